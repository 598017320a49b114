"""One sweep of one card: every figure by itself, None where the card or its driver has none.

A function that is not supported is not asked again for a minute: each call talks to the card's
own processor, waits for the driver's lock and so holds up others. Field values come in one call.
Processes are never listed in a sweep: that call takes 4.5 ms on some cards (MangoHud#2104).
"""

from collections.abc import Callable, Sequence
from ctypes import c_void_p, cast
from typing import Any, Final

from firmware_bridges.nvml.errors import NvmlCallError
from firmware_bridges.nvml.library import ABSENT, Handle, Nvml
from firmware_bridges.nvml.samples import (
    PROCESSES_MAX,
    GpuInfo,
    GpuProcess,
    GpuSample,
    PowerSource,
)

# Field ids of nvml.h, version 13.
MEMORY_TEMP: Final = 82
NVLINK_LINK_COUNT: Final = 91
PCIE_REPLAY_COUNTER: Final = 94
NVLINK_DATA_TX: Final = 138
NVLINK_DATA_RX: Final = 139
POWER_INSTANT: Final = 186
RECOVERY_ACTION: Final = 230
_FIELDS: Final = (
    MEMORY_TEMP, NVLINK_LINK_COUNT, PCIE_REPLAY_COUNTER, NVLINK_DATA_TX, NVLINK_DATA_RX,
    POWER_INSTANT, RECOVERY_ACTION,
)  # fmt: skip
# nvml.h: the link UINT_MAX of NVML_FI_DEV_NVLINK_THROUGHPUT_* is the sum over all links.
_ALL_LINKS: Final = 0xFFFF_FFFF
_SCOPED: Final = {NVLINK_DATA_TX, NVLINK_DATA_RX}

_SENSOR_GPU: Final = 0
_THRESHOLD_SHUTDOWN: Final = 0
_THRESHOLD_SLOWDOWN: Final = 1
_THRESHOLD_MEMORY_MAX: Final = 2
_CLOCK_SM: Final = 1
_CLOCK_MEMORY: Final = 2
_CORRECTED: Final = 0
_UNCORRECTED: Final = 1
_VOLATILE: Final = 0
_AGGREGATE: Final = 1
_MEMORY_V2: Final = 0x0200_0028
LINKS_MAX: Final = 18

# Sweeps until a function that was not supported is asked again: it may be (MIG was left).
_ASK_AGAIN_SWEEPS: Final = 60
_FAILED_MAX: Final = 32
# Value types: 0 double, 1 unsigned int, 2 unsigned long, 3 unsigned long long, 4 signed long long,
# 5 signed int, 6 unsigned short.
_MEMBER_OF_TYPE: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class CardReader:
    """Reads one card.

    Args:
        nvml: of the thread that reads. handle: the card.
        index: its place among the cards, for a driver that does not tell.

    Raises:
        NvmlError: the card does not even say its UUID.
    """

    def __init__(self, nvml: Nvml, handle: Handle, index: int, now_ns: Callable[[], int]) -> None:
        self._nvml = nvml
        self._now_ns = now_ns
        self._sweep = 0
        self._absent: dict[tuple[object, ...], int] = {}
        self._failed: list[str] = []
        self.handle = handle
        self.info = self._info(index)

    def sample(self) -> GpuSample:
        """Read the whole card.

        Raises:
            NvmlGpuLostError, NvmlResetRequiredError, NvmlGoneError: there is no sample.
        """
        self._sweep += 1
        self._failed.clear()
        began_ns = self._now_ns()
        fields = self._fields()
        power_w, source = self._power(fields)
        memory = self._memory()
        remap = self._tuple("nvmlDeviceGetRemappedRows", 4)
        util = self._ask("nvmlDeviceGetUtilizationRates")
        links = fields.get(NVLINK_LINK_COUNT)
        mig = self._tuple("nvmlDeviceGetMigMode", 2)
        return GpuSample(
            info=self.info,
            began_ns=began_ns,
            power_w=power_w,
            power_source=source,
            power_limit_w=_watts(self._integer("nvmlDeviceGetEnforcedPowerLimit")),
            energy_mj=self._integer("nvmlDeviceGetTotalEnergyConsumption"),
            temp_c=self._temp_c(),
            memory_temp_c=_float(fields.get(MEMORY_TEMP)),
            gpu_util_pct=None if util is None else int(util.gpu),
            memory_util_pct=None if util is None else int(util.memory),
            memory_total_bytes=memory[0],
            memory_used_bytes=memory[1],
            memory_free_bytes=memory[2],
            memory_reserved_bytes=memory[3],
            sm_clock_mhz=self._integer("nvmlDeviceGetClockInfo", _CLOCK_SM),
            memory_clock_mhz=self._integer("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            event_reasons=self._reasons(),
            ecc_corrected_volatile=self._ecc(_CORRECTED, _VOLATILE),
            ecc_uncorrected_volatile=self._ecc(_UNCORRECTED, _VOLATILE),
            ecc_corrected_aggregate=self._ecc(_CORRECTED, _AGGREGATE),
            ecc_uncorrected_aggregate=self._ecc(_UNCORRECTED, _AGGREGATE),
            remapped_correctable=remap[0],
            remapped_uncorrectable=remap[1],
            remap_pending=_bool(remap[2]),
            remap_failed=_bool(remap[3]),
            nvlinks=links,
            nvlinks_up=self._links_up(links),
            nvlink_tx_kib=fields.get(NVLINK_DATA_TX),
            nvlink_rx_kib=fields.get(NVLINK_DATA_RX),
            pcie_replays=fields.get(PCIE_REPLAY_COUNTER),
            mig=_bool(mig[0]),
            persistence=_bool(self._integer("nvmlDeviceGetPersistenceMode")),
            recovery_action=fields.get(RECOVERY_ACTION),
            failed_calls=tuple(self._failed),
            at_ns=self._now_ns(),
        )

    def processes(self) -> tuple[GpuProcess, ...]:
        """List what computes on the card, at most 512.

        Raises:
            NvmlError: the driver does not tell.
        """
        found = self._nvml.call("nvmlDeviceGetComputeRunningProcesses_v3", self.handle)
        assert isinstance(found, Sequence)
        return tuple(
            GpuProcess(int(one.pid), one.usedGpuMemory, _instance(one.gpuInstanceId))
            for one in found[:PROCESSES_MAX]
        )

    def _info(self, index: int) -> GpuInfo:
        nvml, handle = self._nvml, self.handle
        uuid = nvml.text("nvmlDeviceGetUUID", handle)
        told = self._integer("nvmlDeviceGetIndex")
        name = self._ask("nvmlDeviceGetName")
        pci = self._ask("nvmlDeviceGetPciInfo")
        low, high = self._tuple("nvmlDeviceGetPowerManagementLimitConstraints", 2)
        threshold = "nvmlDeviceGetTemperatureThreshold"
        default_mw = self._integer("nvmlDeviceGetPowerManagementDefaultLimit")
        return GpuInfo(
            uuid=uuid,
            index=index if told is None else told,
            model=None if name is None else _text(name),
            pci_bus_id=None if pci is None else _text(pci.busId),
            power_w_min=_watts(low),
            power_w_max=_watts(high),
            power_w_default=_watts(default_mw),
            slowdown_c=self._integer(threshold, _THRESHOLD_SLOWDOWN),
            shutdown_c=self._integer(threshold, _THRESHOLD_SHUTDOWN),
            memory_c_max=self._integer(threshold, _THRESHOLD_MEMORY_MAX),
        )

    def _ask(self, name: str, *args: object) -> Any:  # noqa: ANN401 - pynvml has no types
        """Call, or give None where this card or driver has no such figure."""
        key = (name, *args)
        if self._absent.get(key, 0) > self._sweep:
            return None
        try:
            return self._nvml.call(name, self.handle, *args)
        except NvmlCallError as exc:
            if exc.nvml_code in ABSENT:
                self._absent[key] = self._sweep + _ASK_AGAIN_SWEEPS
            elif len(self._failed) < _FAILED_MAX:
                self._failed.append(name)
            return None

    def _integer(self, name: str, *args: object) -> int | None:
        value = self._ask(name, *args)
        return None if value is None else int(value)

    def _tuple(self, name: str, size: int) -> tuple[int | None, ...]:
        values = self._ask(name)
        return (None,) * size if values is None else tuple(int(value) for value in values)

    def _fields(self) -> dict[int, int]:
        """Ask all field values at once; each has a return code of its own."""
        wanted = tuple((one, _ALL_LINKS if one in _SCOPED else 0) for one in _FIELDS)
        values = self._ask("nvmlDeviceGetFieldValues", wanted)
        found = {}
        for value in values or ():
            if value.nvmlReturn == 0 and 0 <= value.valueType < len(_MEMBER_OF_TYPE):
                number = int(getattr(value.value, _MEMBER_OF_TYPE[value.valueType]))
                if number >= 0:
                    found[int(value.fieldId)] = number
        return found

    def _power(self, fields: dict[int, int]) -> tuple[float | None, PowerSource | None]:
        """Prefer the instant figure: the other one is a 1 s average from Ampere on."""
        instant_mw = fields.get(POWER_INSTANT)
        if instant_mw is not None:
            return instant_mw / 1_000, PowerSource.INSTANT
        average_mw = self._integer("nvmlDeviceGetPowerUsage")
        if average_mw is None:
            return None, None
        return average_mw / 1_000, PowerSource.AVERAGE

    def _memory(self) -> tuple[int | None, int | None, int | None, int | None]:
        """Give total, used, free and reserved bytes; older drivers count reserved as used."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", _MEMORY_V2)
        if memory is not None:
            return int(memory.total), int(memory.used), int(memory.free), int(memory.reserved)
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        if memory is None:
            return None, None, None, None
        return int(memory.total), int(memory.used), int(memory.free), None

    def _temp_c(self) -> float | None:
        """Ask by the old name, and by the one that alone will be left with CUDA 14."""
        temp_c = self._integer("nvmlDeviceGetTemperature", _SENSOR_GPU)
        if temp_c is None:
            temp_c = self._integer("nvmlDeviceGetTemperatureV", _SENSOR_GPU)
        return _float(temp_c)

    def _reasons(self) -> int | None:
        """Ask by the new name, and by the one that drivers before 535 know."""
        reasons = self._integer("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is not None:
            return reasons
        return self._integer("nvmlDeviceGetCurrentClocksThrottleReasons")

    def _ecc(self, kind: int, counter: int) -> int | None:
        return self._integer("nvmlDeviceGetTotalEccErrors", kind, counter)

    def _links_up(self, links: int | None) -> int | None:
        if links is None:
            return None
        states = [
            self._integer("nvmlDeviceGetNvLinkState", link) for link in range(min(links, LINKS_MAX))
        ]
        return None if None in states else sum(state == 1 for state in states)


def address_of(handle: Handle) -> int | None:
    """Give the address in a handle: equal for equal cards."""
    return cast(handle, c_void_p).value  # type: ignore[arg-type]  # pynvml's handles are pointers


def _instance(number: int) -> int | None:
    # 0xFFFFFFFF: not partitioned
    return None if number == 0xFFFF_FFFF else int(number)


def _watts(value_mw: int | None) -> float | None:
    return None if value_mw is None else value_mw / 1_000


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _bool(value: int | None) -> bool | None:
    return None if value is None else value != 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
