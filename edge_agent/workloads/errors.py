"""Errors of the workload drivers.

Tree::

    WorkloadError                 code
    ├── DriverRefusedError        the host answered with an error code; the act did not happen
    └── DriverUnavailableError    no answer: whether the act happened is unknown
        └── NobodyListensError    the connection was refused: there is no such process, or not yet
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why an engine or its driver refused; beside the codes of a workload host."""

    UNSUPPORTED = "unsupported"
    """It has no such act, or its switch for it is off."""
    NOT_OURS = "not_ours"
    """Somebody else runs the program: it is neither started nor ended from here."""
    NOT_RUNNING = "not_running"
    """There is no such process."""
    START_FAILED = "start_failed"
    """The program did not start, or ended before it was ready."""
    DENIED = "denied"
    """Token missing, wrong, or of too little power."""
    NOT_API = "not_api"
    """What answered does not speak the engine's API: a page, or another shape."""
    BAD_REQUEST = "bad_request"
    """It does not take the request."""
    BUSY = "busy"
    """It still works, sleeps or loads: not now."""
    ENGINE_ERROR = "engine_error"
    """It says that the act failed."""
    OUT_OF_MEMORY = "out_of_memory"
    """It says that memory was short."""
    NO_EFFECT = "no_effect"
    """It said yes, and the evidence says no."""
    WRONG_OUTPUT = "wrong_output"
    """It answers the canary, and wrongly."""
    WRONG_MODEL = "wrong_model"
    """It serves another model than the one that it is to serve."""
    UNPREPARED = "unprepared"
    """What it has to answer to the canary is not known: it was never prepared."""


class WorkloadError(Exception):
    """Base of every error that a workload driver raises."""

    code = "workload"


class DriverRefusedError(WorkloadError):
    """The workload host refused the act.

    Args:
        answer_code: the host's code: ``no_gpu``, ``no_instance``, ``busy``, ``gpu_lost``,
            ``bad_request``, or one of ``Refusal``.
        detail: one sentence for a person.
    """

    code = "driver_refused"

    def __init__(self, answer_code: str, detail: str) -> None:
        super().__init__(f"{answer_code}: {detail}")
        self.answer_code = answer_code
        self.detail = detail


class DriverUnavailableError(WorkloadError, ConnectionError):
    """The workload host is not connected, or did not answer in time."""

    code = "driver_unavailable"


class NobodyListensError(DriverUnavailableError):
    """Nobody listens at an engine's address.

    Told apart from silence: a process that hangs still holds its GPU, and may work on.
    """

    code = "nobody_listens"
