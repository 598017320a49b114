"""What the telemetry child tells, and what it is asked: frozen values, None = unknown.

Instants are CLOCK_BOOTTIME in ns. `GPU-...` UUIDs name the cards: an index changes when a card is
lost, a UUID does not.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

Name = Annotated[str, Meta(max_length=128)]
Detail = Annotated[str, Meta(max_length=500)]
Count = Annotated[int, Meta(ge=0)]
Index = Annotated[int, Meta(ge=0, le=255)]
PROCESSES_MAX = 512


class PowerSource(StrEnum):
    """Where a power figure comes from: the instant field, or the average that a card keeps."""

    INSTANT = "instant"
    AVERAGE = "average"


class FaultKind(StrEnum):
    """Why a card gives no sample."""

    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    UNREADABLE = "unreadable"


class EventKind(StrEnum):
    """What happened on a card by itself."""

    XID = "xid"
    ECC_SINGLE = "ecc_single"
    ECC_DOUBLE = "ecc_double"
    UNAVAILABLE = "unavailable"
    RECOVERY_ACTION = "recovery_action"
    OTHER = "other"


class GpuInfo(Struct, frozen=True, kw_only=True):
    """What does not change while the driver is loaded.

    Args:
        power_w_min: with power_w_max, the range the card takes as its power limit.
        slowdown_c: where the card slows itself down. memory_c_max: limit of its memory.
    """

    uuid: Name
    index: Index
    model: Name | None = None
    pci_bus_id: Name | None = None
    power_w_min: float | None = None
    power_w_max: float | None = None
    power_w_default: float | None = None
    slowdown_c: int | None = None
    shutdown_c: int | None = None
    memory_c_max: int | None = None


class GpuSample(Struct, frozen=True, kw_only=True, tag="sample"):
    """One sweep of one card, taken between began_ns and at_ns.

    Args:
        energy_mj: counter since the driver was loaded; bill from its differences alone.
        event_reasons: bits that say why clocks are held back. mig: the card is partitioned.
        nvlink_tx_kib: with nvlink_rx_kib, data counters over all links.
        recovery_action: what the driver asks for: 0 none, 1 reset, 2 reboot, 3 drain, 4 drain
            and reset; higher values in newer drivers.
        failed_calls: functions that failed for another reason than not being supported.
    """

    info: GpuInfo
    began_ns: int
    at_ns: int
    power_w: float | None = None
    power_source: PowerSource | None = None
    power_limit_w: float | None = None
    energy_mj: Count | None = None
    temp_c: float | None = None
    memory_temp_c: float | None = None
    gpu_util_pct: Count | None = None
    memory_util_pct: Count | None = None
    memory_total_bytes: Count | None = None
    memory_used_bytes: Count | None = None
    memory_free_bytes: Count | None = None
    memory_reserved_bytes: Count | None = None
    sm_clock_mhz: Count | None = None
    memory_clock_mhz: Count | None = None
    event_reasons: Count | None = None
    ecc_corrected_volatile: Count | None = None
    ecc_uncorrected_volatile: Count | None = None
    ecc_corrected_aggregate: Count | None = None
    ecc_uncorrected_aggregate: Count | None = None
    remapped_correctable: Count | None = None
    remapped_uncorrectable: Count | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    nvlinks: Count | None = None
    nvlinks_up: Count | None = None
    nvlink_tx_kib: Count | None = None
    nvlink_rx_kib: Count | None = None
    pcie_replays: Count | None = None
    mig: bool | None = None
    persistence: bool | None = None
    recovery_action: Count | None = None
    failed_calls: tuple[Name, ...] = ()

    @property
    def uuid(self) -> str:
        """Name the card."""
        return self.info.uuid


class GpuFault(Struct, frozen=True, kw_only=True, tag="fault"):
    """A card that cannot be read.

    Args:
        index: its place in the list that the child was given; without one, its index.
        uuid: None when the card never said it.
    """

    index: Index
    at_ns: int
    kind: FaultKind
    uuid: Name | None = None
    detail: Detail = ""


class GpuEvent(Struct, frozen=True, kw_only=True, tag="event"):
    """One event, told once.

    Args:
        seq: counts the events of one child. number: of an Xid; for others the driver's datum.
        uuid: None when the driver names a card that was never read.
    """

    seq: Count
    at_ns: int
    kind: EventKind
    type_bits: Count
    number: Count
    uuid: Name | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None


class Worker(Struct, frozen=True, array_like=True):
    """What one card's thread is doing: the call it is in, and since when (None: between calls).

    Args:
        index: as in GpuFault.
    """

    index: Index
    uuid: Name | None
    call: Name | None
    since_ns: int | None


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """The library is loaded; the first message of a child that works."""

    pid: int
    driver: Name | None
    gpus: Index


class Beat(Struct, frozen=True, kw_only=True, tag="beat"):
    """The child is alive, whatever its calls do.

    Args:
        events_call_ns: since when the thread of events is in its call; None: it is in none.
        events_lost: events dropped because the parent did not take them.
    """

    seq: Count
    at_ns: int
    workers: tuple[Worker, ...]
    events_call_ns: int | None = None
    events_lost: Count = 0


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """The child ends: no driver, no library, or the driver went away."""

    code: int
    detail: Detail


class GpuProcess(Struct, frozen=True, array_like=True):
    """A process that computes on a card; None where the driver does not tell (MIG)."""

    pid: int
    used_bytes: int | None
    gpu_instance: int | None


class Processes(Struct, frozen=True, kw_only=True, tag="processes"):
    """The answer to AskProcesses; processes is None when they could not be read."""

    request: Count
    uuid: Name
    at_ns: int
    processes: Annotated[tuple[GpuProcess, ...], Meta(max_length=PROCESSES_MAX)] | None
    detail: Detail = ""


class AskProcesses(Struct, frozen=True, kw_only=True, tag="ask_processes"):
    """List the processes of one card now; never asked in a sweep (4.5 ms a call on some cards)."""

    request: Count
    uuid: Name


Row = GpuSample | GpuFault
FromChild = Hello | Beat | GpuSample | GpuFault | GpuEvent | Processes | Failed
ToChild = AskProcesses
