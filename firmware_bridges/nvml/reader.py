"""One sweep of one card: every figure by itself, None where the card or its driver has none.

A function that is not supported is not asked again for a minute: each call talks to the card's
own processor, waits for the driver's lock and so holds up others. Field values come in one call.
Processes are never listed in a sweep: that call takes 4.5 ms on some cards (MangoHud#2104).
"""

import math
from collections.abc import Callable, Sequence
from ctypes import c_void_p, cast
from typing import Any, Final

from firmware_bridges.nvml.errors import NvmlCallError, NvmlGpuLostError, NvmlResetRequiredError
from firmware_bridges.nvml.library import (
    ABSENT,
    INSUFFICIENT_SIZE,
    UNKNOWN,
    Handle,
    Nvml,
    error_of,
)
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
# NVML_NVLINK_MAX_LINKS of nvml.h, version 13.
LINKS_MAX: Final = 36
_INDEX_MAX: Final = 255
# A list that grows faster than it is read is asked for so often.
_LIST_TRIES: Final = 3

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
        self._answers = 0
        self.handle = handle
        self.info = self._info(index)

    def sample(self) -> GpuSample:
        """Read the whole card.

        Raises:
            NvmlGpuLostError, NvmlResetRequiredError, NvmlGoneError: there is no sample.
            NvmlCallError: the handle stands for another card by now, or every call failed.
        """
        self._sweep += 1
        self._failed.clear()
        self._answers = 0
        began_ns = self._now_ns()
        self._check_identity()
        sample = self._swept(began_ns)
        if self._failed and not self._answers:
            # A card of which nothing can be seen must not pass for one without figures.
            raise NvmlCallError(self._failed[0], UNKNOWN, "no call on this card is answered")
        return sample

    def _check_identity(self) -> None:
        uuid = self._nvml.text("nvmlDeviceGetUUID", self.handle)
        if uuid != self.info.uuid:
            raise NvmlCallError("nvmlDeviceGetUUID", UNKNOWN, f"the handle is of {uuid} now")

    def _swept(self, began_ns: int) -> GpuSample:
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
        found = self._listed("nvmlDeviceGetComputeRunningProcesses_v3")
        return tuple(
            GpuProcess(int(one.pid), one.usedGpuMemory, _instance(one.gpuInstanceId))
            for one in found[:PROCESSES_MAX]
        )

    def _listed(self, name: str) -> Sequence[Any]:
        """Ask for a list; one that outgrew its room meanwhile is asked for again."""
        for tries_left in reversed(range(_LIST_TRIES)):
            try:
                found = self._nvml.call(name, self.handle)
            except NvmlCallError as exc:
                if exc.nvml_code != INSUFFICIENT_SIZE or not tries_left:
                    raise
            else:
                assert isinstance(found, Sequence)
                return found
        return ()

    def _info(self, index: int) -> GpuInfo:
        uuid = self._nvml.text("nvmlDeviceGetUUID", self.handle)
        if not uuid:
            raise NvmlCallError("nvmlDeviceGetUUID", UNKNOWN, "the card has no name")
        told = self._integer("nvmlDeviceGetIndex")
        name = self._ask("nvmlDeviceGetName")
        low, high = self._tuple("nvmlDeviceGetPowerManagementLimitConstraints", 2)
        threshold = "nvmlDeviceGetTemperatureThreshold"
        default_mw = self._integer("nvmlDeviceGetPowerManagementDefaultLimit")
        return GpuInfo(
            uuid=uuid,
            index=index if told is None or told > _INDEX_MAX else told,
            model=None if name is None else _text(name),
            pci_bus_id=self._bus_id(),
            power_w_min=_watts(low),
            power_w_max=_watts(high),
            power_w_default=_watts(default_mw),
            # 0 C is no limit that a card has
            slowdown_c=self._integer(threshold, _THRESHOLD_SLOWDOWN) or None,
            shutdown_c=self._integer(threshold, _THRESHOLD_SHUTDOWN) or None,
            memory_c_max=self._integer(threshold, _THRESHOLD_MEMORY_MAX) or None,
        )

    def _bus_id(self) -> str | None:
        pci = self._ask("nvmlDeviceGetPciInfo")
        try:
            return None if pci is None else _text(pci.busId)
        except UnicodeDecodeError:
            # pynvml decodes a member of a structure only when it is looked at
            return None

    def _ask(self, name: str, *args: object) -> Any:  # noqa: ANN401 - pynvml has no types
        """Call, or give None where this card or driver has no such figure."""
        key = (name, *args)
        if self._absent.get(key, 0) > self._sweep:
            return None
        try:
            answer = self._nvml.call(name, self.handle, *args)
        except NvmlCallError as exc:
            if exc.nvml_code in ABSENT:
                self._absent[key] = self._sweep + _ASK_AGAIN_SWEEPS
            elif len(self._failed) < _FAILED_MAX:
                self._failed.append(name)
            return None
        self._answers += 1
        return answer

    def _integer(self, name: str, *args: object) -> int | None:
        value = self._ask(name, *args)
        return None if value is None else int(value)

    def _tuple(self, name: str, size: int) -> tuple[int | None, ...]:
        values = self._ask(name)
        return (None,) * size if values is None else tuple(int(value) for value in values)

    def _fields(self) -> dict[int, int]:
        """Ask all field values at once; each has a return code of its own.

        Raises:
            NvmlGpuLostError, NvmlResetRequiredError: a value says so.
        """
        wanted = tuple((one, _ALL_LINKS if one in _SCOPED else 0) for one in _FIELDS)
        values = self._ask("nvmlDeviceGetFieldValues", wanted)
        found = {}
        for value in values or ():
            code = int(value.nvmlReturn)
            if code:
                error = error_of("nvmlDeviceGetFieldValues", code, f"field {value.fieldId}")
                if isinstance(error, NvmlGpuLostError | NvmlResetRequiredError):
                    raise error
                continue
            number = _whole(value)
            if number is not None:
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


def _whole(value: Any) -> int | None:  # noqa: ANN401 - pynvml has no types
    """Give the number in a field value; None where its type or its bits make no sense."""
    if not 0 <= value.valueType < len(_MEMBER_OF_TYPE):
        return None
    number = getattr(value.value, _MEMBER_OF_TYPE[value.valueType])
    # A driver that leaves the type at 0 has its integer read as a double near 0.
    if not math.isfinite(number) or number < 0 or 0 < number < 1:
        return None
    return int(number)


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
