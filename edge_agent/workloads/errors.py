"""Errors of the workload drivers.

Tree::

    WorkloadError                 code
    ├── DriverRefusedError        the host answered with an error code; the act did not happen
    └── DriverUnavailableError    no answer: whether the act happened is unknown
"""


class WorkloadError(Exception):
    """Base of every error that a workload driver raises."""

    code = "workload"


class DriverRefusedError(WorkloadError):
    """The workload host refused the act.

    Args:
        answer_code: the host's code: ``no_gpu``, ``no_instance``, ``busy``, ``gpu_lost``,
            ``bad_request``.
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
