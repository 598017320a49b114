"""Settings carried out on the cards: bounds first, then NVML. Runs in the helper's one thread."""

import logging
from typing import Final

from firmware_bridges.nvml.control.bounds import (
    CardRanges,
    ControlConfig,
    Range,
    bounds_of,
    refusal_of,
    start_settings,
)
from firmware_bridges.nvml.control.messages import (
    Answer,
    Applied,
    LockGpuClocks,
    LockMemoryClocks,
    Reason,
    Refused,
    ResetGpuClocks,
    ResetMemoryClocks,
    SetPersistence,
    SetPowerLimit,
    Setting,
    Unconfirmed,
)
from firmware_bridges.nvml.errors import (
    NvmlCallError,
    NvmlError,
    NvmlGoneError,
    NvmlGpuLostError,
)
from firmware_bridges.nvml.library import (
    FUNCTION_NOT_FOUND,
    INVALID_ARGUMENT,
    NO_PERMISSION,
    NOT_SUPPORTED,
    Handle,
    Nvml,
)

logger = logging.getLogger(__name__)

_CLOCK_GRAPHICS: Final = 0
_CLOCK_MEMORY: Final = 2
_REASON_OF: Final = {
    NO_PERMISSION: Reason.HELPER_LACKS_RIGHTS,
    NOT_SUPPORTED: Reason.NOT_SUPPORTED,
    FUNCTION_NOT_FOUND: Reason.NOT_SUPPORTED,
    INVALID_ARGUMENT: Reason.CARD_REFUSED,
}


class Cards:
    """Carries settings out.

    Args:
        nvml: opened.
    """

    def __init__(self, nvml: Nvml, config: ControlConfig) -> None:
        self._nvml = nvml
        self._config = config

    def apply(self, setting: Setting) -> Answer:
        """Carry one setting out; every failure is an answer.

        Raises:
            NvmlGoneError: the driver went away: the helper must start anew.
        """
        try:
            handle = self._nvml.call("nvmlDeviceGetHandleByUUID", setting.uuid)
            # by the name that the card gives itself: NVML may take another spelling of it, which
            # would miss the row of that card and be bound by a wider one
            ranges = self._ranges(handle, self._nvml.text("nvmlDeviceGetUUID", handle))
        except NvmlGoneError:
            raise
        except NvmlGpuLostError as exc:
            return Refused(reason=Reason.CARD_LOST, detail=str(exc))
        except NvmlError as exc:
            return Refused(reason=Reason.CARD_UNKNOWN, detail=str(exc))
        bounds = bounds_of(self._config, ranges.uuid, ranges.model)
        refusal = refusal_of(setting, bounds, ranges)
        return self._set(handle, setting) if refusal is None else refusal

    def reassert(self) -> tuple[tuple[Setting, Answer], ...]:
        """Set what the file says is set at start; the driver forgets it when it is loaded anew.

        Raises:
            NvmlGoneError: the driver went away.
        """
        done: list[tuple[Setting, Answer]] = []
        for index in range(self._nvml.integer("nvmlDeviceGetCount")):
            try:
                handle = self._nvml.call("nvmlDeviceGetHandleByIndex", index)
                uuid = self._nvml.text("nvmlDeviceGetUUID", handle)
                bounds = bounds_of(self._config, uuid, self._model(handle))
            except NvmlGoneError:
                raise
            except NvmlError as exc:
                logger.warning("card %d is left as it is: %s", index, exc)
                continue
            wanted = () if bounds is None else start_settings(bounds, uuid)
            done += [(setting, self.apply(setting)) for setting in wanted]
        return tuple(done)

    def _set(self, handle: Handle, setting: Setting) -> Answer:
        name, arguments = _call_of(setting)
        try:
            self._nvml.call(name, handle, *arguments)
        except NvmlGoneError:
            raise
        except NvmlGpuLostError as exc:
            return Refused(reason=Reason.CARD_LOST, detail=str(exc))
        except NvmlCallError as exc:
            reason = _REASON_OF.get(exc.nvml_code)
            if reason is None:
                return Unconfirmed(detail=str(exc))
            return Refused(reason=reason, detail=str(exc))
        except NvmlError as exc:
            return Unconfirmed(detail=str(exc))
        return Applied()

    def _model(self, handle: Handle) -> str | None:
        try:
            return self._nvml.text("nvmlDeviceGetName", handle)
        except NvmlCallError:
            return None

    def _ranges(self, handle: Handle, uuid: str) -> CardRanges:
        return CardRanges(
            uuid=uuid,
            model=self._model(handle),
            power_w=self._power_w(handle),
            gpu_mhz=self._clocks(handle, _CLOCK_GRAPHICS),
            memory_mhz=self._clocks(handle, _CLOCK_MEMORY),
        )

    def _power_w(self, handle: Handle) -> Range | None:
        try:
            told = self._nvml.call("nvmlDeviceGetPowerManagementLimitConstraints", handle)
        except NvmlCallError:
            return None
        assert isinstance(told, list | tuple)
        low_mw, high_mw = told
        return low_mw / 1_000, high_mw / 1_000

    def _clocks(self, handle: Handle, kind: int) -> Range | None:
        try:
            return 0.0, float(self._nvml.integer("nvmlDeviceGetMaxClockInfo", handle, kind))
        except NvmlCallError:
            return None


def _call_of(setting: Setting) -> tuple[str, tuple[int, ...]]:
    """Give the function of NVML and its arguments after the card.

    The power limit goes by the first version of its function: pynvml 13.615 does not look at what
    the second one returns.
    """
    match setting:
        case SetPowerLimit():
            # rounded: a bound of the card in W, times 1,000, may be a hair below its own mW
            return "nvmlDeviceSetPowerManagementLimit", (round(setting.power_w * 1_000),)
        case LockGpuClocks():
            return "nvmlDeviceSetGpuLockedClocks", (setting.mhz_min, setting.mhz_max)
        case LockMemoryClocks():
            return "nvmlDeviceSetMemoryLockedClocks", (setting.mhz_min, setting.mhz_max)
        case ResetGpuClocks():
            return "nvmlDeviceResetGpuLockedClocks", ()
        case ResetMemoryClocks():
            return "nvmlDeviceResetMemoryLockedClocks", ()
        case SetPersistence():
            return "nvmlDeviceSetPersistenceMode", (int(setting.on),)
