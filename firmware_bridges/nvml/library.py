"""The one door to pynvml: calls by name, errors of our own, and which call is under way.

pynvml has no types; what comes through here is an object until the reader has checked it.
"""

from collections.abc import Callable
from ctypes import ArgumentError
from typing import Final

import pynvml

from firmware_bridges.nvml.errors import (
    NvmlCallError,
    NvmlError,
    NvmlGoneError,
    NvmlGpuLostError,
    NvmlResetRequiredError,
)

# Return codes of nvml.h, version 13.
UNINITIALIZED: Final = 1
INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
INSUFFICIENT_SIZE: Final = 7
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
VERSION_MISMATCH: Final = 25
DEPRECATED: Final = 26
GPU_NOT_FOUND: Final = 28
UNKNOWN: Final = 999

DETAIL_MAX: Final = 300
# What pynvml makes of a function it does not have, or of an answer it cannot read.
_STRANGE: Final = (ArgumentError, AttributeError, LookupError, TypeError, ValueError)

# What a card or its driver does not have, or not for us: it will say the same the next time.
ABSENT: Final = frozenset(
    {
        INVALID_ARGUMENT,
        NOT_SUPPORTED,
        NO_PERMISSION,
        FUNCTION_NOT_FOUND,
        VERSION_MISMATCH,
        DEPRECATED,
    }
)

_LOST: Final = {GPU_IS_LOST, GPU_NOT_FOUND}
_GONE: Final = {UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, LIB_RM_VERSION_MISMATCH}

Handle = object


class Nvml:
    """Calls NVML for one thread and remembers the call it is in.

    Args:
        now_ns: CLOCK_BOOTTIME.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        # Read by another thread: one assignment of one tuple, so never half of one.
        self.under_way: tuple[str, int] | None = None

    def call(self, name: str, *args: object) -> object:
        """Call one function of pynvml.

        Raises:
            NvmlError: of the kind that says what is broken: call, card or driver.
        """
        self.under_way = (name, self._now_ns())
        try:
            return getattr(pynvml, name)(*args)
        except pynvml.NVMLError as exc:
            raise error_of(name, int(exc.value), _said(exc)) from exc
        except _STRANGE as exc:
            detail = f"{type(exc).__name__}: {exc}"[:DETAIL_MAX]
            raise NvmlCallError(name, UNKNOWN, detail) from exc
        finally:
            self.under_way = None

    def open(self) -> None:
        """Load the library and attach to the driver.

        Raises:
            NvmlGoneError: there is none.
        """
        try:
            self.call("nvmlInit")
        except NvmlCallError as exc:
            raise NvmlGoneError(exc.call, exc.nvml_code, exc.detail) from exc

    def close(self) -> None:
        """Let go of the driver."""
        self.call("nvmlShutdown")

    def integer(self, name: str, *args: object) -> int:
        """Call a function that gives a whole number.

        Raises:
            NvmlError: as `call`.
        """
        value = self.call(name, *args)
        assert isinstance(value, int), f"{name} gives a number"
        return value

    def text(self, name: str, *args: object) -> str:
        """Call a function that gives a text.

        Raises:
            NvmlError: as `call`.
        """
        value = self.call(name, *args)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _said(exc: pynvml.NVMLError) -> str:
    """Give the words of an error: for a code that pynvml does not know, the library's own."""
    try:
        return str(exc)[:DETAIL_MAX]
    except _STRANGE:
        return "an error whose words cannot be read"


def error_of(call: str, nvml_code: int, detail: str) -> NvmlError:
    """Give the error of one return code."""
    if nvml_code in _LOST:
        return NvmlGpuLostError(call, nvml_code, detail)
    if nvml_code == RESET_REQUIRED:
        return NvmlResetRequiredError(call, nvml_code, detail)
    if nvml_code in _GONE:
        return NvmlGoneError(call, nvml_code, detail)
    return NvmlCallError(call, nvml_code, detail)
