"""Errors of the simulators, one tree.

SimulatorError
|-- VirtualTimeError          the simulation itself can not go on
|   |-- VirtualDeadlockError       everything waits and nothing will ever wake it
|   |-- VirtualLivelockError       tasks keep running and the clock stands still
|   `-- ThreadRefusedError   a thread was asked for, and would break repeatability
`-- SettingError            an option or a control message that makes no sense
"""

from __future__ import annotations

from typing import ClassVar


class SimulatorError(Exception):
    """Base of every error that the simulators raise themselves."""

    code: ClassVar[str] = "simulator"


class VirtualTimeError(SimulatorError):
    """Base of the errors of the virtual-time loop."""

    code: ClassVar[str] = "virtual_time"


class VirtualDeadlockError(VirtualTimeError):
    """No task is ready, no timer is set and no file descriptor reported anything."""

    code: ClassVar[str] = "virtual_deadlock"


class VirtualLivelockError(VirtualTimeError):
    """The loop turned very often without the virtual clock moving."""

    code: ClassVar[str] = "virtual_livelock"


class ThreadRefusedError(VirtualTimeError):
    """A thread was requested on the virtual loop, whose clock would jump past its work."""

    code: ClassVar[str] = "thread_refused"


class SettingError(SimulatorError):
    """A setting or control message was refused; `field` names it."""

    code: ClassVar[str] = "setting"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
