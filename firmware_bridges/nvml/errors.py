"""Errors of NVML.

Tree::

    NvmlError                    call, nvml_code
    ├── NvmlCallError            this call failed, and says nothing of the card
    ├── NvmlGpuLostError         the card fell off the bus, or is not found any more
    ├── NvmlResetRequiredError   the card wants a reset
    └── NvmlGoneError            no library, no driver, or the driver was unloaded

    TelemetryError               code, detail
    ├── ChildAwayError           no child runs at the moment
    └── ChildSilentError         the child did not answer in time

    ControlError                 code, detail
    ├── ControlRefusedError      the helper said no: nothing was changed
    └── ControlUnknownError      no answer: whether it was changed is unknown
"""

from typing import ClassVar


class NvmlError(Exception):
    """NVML answered something else than success.

    Args:
        call: name of the function.
        nvml_code: NVML's return code.
    """

    def __init__(self, call: str, nvml_code: int, detail: str) -> None:
        super().__init__(f"{call}: {detail} [{nvml_code}]")
        self.call = call
        self.nvml_code = nvml_code
        self.detail = detail


class NvmlCallError(NvmlError):
    """This one call failed: not supported, not allowed, not known, timed out."""


class NvmlGpuLostError(NvmlError):
    """The card is lost."""


class NvmlResetRequiredError(NvmlError):
    """The card gives nothing until it is reset."""


class NvmlGoneError(NvmlError):
    """The library or the driver under it is not there."""


class TelemetryError(Exception):
    """The telemetry child could not be asked."""

    code: ClassVar[str] = "nvml.telemetry"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail} [{self.code}]")
        self.detail = detail


class ChildAwayError(TelemetryError):
    """No child runs at the moment, or it ended before it answered."""

    code: ClassVar[str] = "nvml.child_away"


class ChildSilentError(TelemetryError):
    """The child did not answer in time: the call hangs, as it may."""

    code: ClassVar[str] = "nvml.child_silent"


class ControlError(Exception):
    """A setting of a card was not confirmed.

    Args:
        reason: stable word of the helper, e.g. ``out_of_bounds``.
    """

    code: ClassVar[str] = "nvml.control"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail} [{self.code}]")
        self.reason = reason
        self.detail = detail


class ControlRefusedError(ControlError):
    """The helper refused; nothing was changed."""

    code: ClassVar[str] = "nvml.control_refused"


class ControlUnknownError(ControlError):
    """No answer came; whether the setting was changed is unknown."""

    code: ClassVar[str] = "nvml.control_unknown"
