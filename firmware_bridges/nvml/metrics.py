"""Samples as Prometheus text under the names of NVIDIA's exporter, for its dashboards. Pure.

Names, units and labels follow dcgm-exporter (etc/default-counters.csv; `hostname` is lower case
since its #655). A figure that is not known is left out: no card draws 0 W because it was not asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from firmware_bridges.nvml.samples import GpuSample, PowerSource

MIB: Final = 1 << 20


class Metric(Struct, frozen=True):
    """One metric: its name, its kind, its meaning, and where a sample has it."""

    name: str
    kind: str
    meaning: str
    value_of: Callable[[GpuSample], float | None]


def _mib(value_bytes: int | None) -> float | None:
    return None if value_bytes is None else value_bytes / MIB


def _nvlink_kib(sample: GpuSample) -> float | None:
    if sample.nvlink_tx_kib is None or sample.nvlink_rx_kib is None:
        return None
    return sample.nvlink_tx_kib + sample.nvlink_rx_kib


def _instant_w(sample: GpuSample) -> float | None:
    return sample.power_w if sample.power_source is PowerSource.INSTANT else None


METRICS: Final = (
    Metric("SM_CLOCK", "gauge", "SM clock (MHz)", lambda s: s.sm_clock_mhz),
    Metric("MEM_CLOCK", "gauge", "memory clock (MHz)", lambda s: s.memory_clock_mhz),
    Metric("GPU_TEMP", "gauge", "temperature (C)", lambda s: s.temp_c),
    Metric("MEMORY_TEMP", "gauge", "temperature of the memory (C)", lambda s: s.memory_temp_c),
    Metric("POWER_USAGE", "gauge", "power, instant where the card tells it (W)",
           lambda s: s.power_w),
    Metric("POWER_USAGE_INSTANT", "gauge", "instant power (W)", _instant_w),
    Metric("ENFORCED_POWER_LIMIT", "gauge", "power limit in force (W)", lambda s: s.power_limit_w),
    Metric("TOTAL_ENERGY_CONSUMPTION", "counter", "energy since the driver was loaded (mJ)",
           lambda s: s.energy_mj),
    Metric("GPU_UTIL", "gauge", "time with a kernel running (%)", lambda s: s.gpu_util_pct),
    Metric("MEM_COPY_UTIL", "gauge", "time with the memory in use (%)",
           lambda s: s.memory_util_pct),
    Metric("FB_FREE", "gauge", "free memory (MiB)", lambda s: _mib(s.memory_free_bytes)),
    Metric("FB_USED", "gauge", "used memory (MiB)", lambda s: _mib(s.memory_used_bytes)),
    Metric("FB_RESERVED", "gauge", "memory kept by the driver (MiB)",
           lambda s: _mib(s.memory_reserved_bytes)),
    Metric("CLOCKS_EVENT_REASONS", "gauge", "why clocks are held back (bits)",
           lambda s: s.event_reasons),
    Metric("PCIE_REPLAY_COUNTER", "counter", "repeated PCIe packets", lambda s: s.pcie_replays),
    Metric("NVLINK_BANDWIDTH_TOTAL", "counter", "data over all NVLinks, both ways (KiB)",
           _nvlink_kib),
    Metric("ECC_SBE_VOL_TOTAL", "counter", "corrected ECC errors since the driver was loaded",
           lambda s: s.ecc_corrected_volatile),
    Metric("ECC_DBE_VOL_TOTAL", "counter", "uncorrected ECC errors since the driver was loaded",
           lambda s: s.ecc_uncorrected_volatile),
    Metric("ECC_SBE_AGG_TOTAL", "counter", "corrected ECC errors of the card's life",
           lambda s: s.ecc_corrected_aggregate),
    Metric("ECC_DBE_AGG_TOTAL", "counter", "uncorrected ECC errors of the card's life",
           lambda s: s.ecc_uncorrected_aggregate),
    Metric("CORRECTABLE_REMAPPED_ROWS", "counter", "rows remapped after corrected errors",
           lambda s: s.remapped_correctable),
    Metric("UNCORRECTABLE_REMAPPED_ROWS", "counter", "rows remapped after uncorrected errors",
           lambda s: s.remapped_uncorrectable),
    Metric("ROW_REMAP_FAILURE", "gauge", "a row could not be remapped", lambda s: s.remap_failed),
    Metric("ROW_REMAP_PENDING", "gauge", "a row is remapped at the next reset",
           lambda s: s.remap_pending),
)  # fmt: skip
_PREFIX: Final = "DCGM_FI_DEV_"


def prometheus(samples: Sequence[GpuSample], *, hostname: str, last_xids: Mapping[str, int]) -> str:
    """Give the samples as Prometheus text, version 0.0.4.

    Args:
        samples: of the cards that are live. last_xids: by UUID, the newest Xid of each card.
    """
    labels = {sample.uuid: _labels(sample, hostname) for sample in samples}
    lines: list[str] = []
    for metric in METRICS:
        _add(lines, metric, [(labels[one.uuid], metric.value_of(one)) for one in samples])
    xid = Metric("XID_ERRORS", "gauge", "the newest Xid", lambda s: last_xids.get(s.uuid))
    _add(lines, xid, [(labels[one.uuid], xid.value_of(one)) for one in samples])
    return "".join(lines)


def _add(lines: list[str], metric: Metric, values: Sequence[tuple[str, float | None]]) -> None:
    told = [(labels, value) for labels, value in values if value is not None]
    if not told:
        return
    name = _PREFIX + metric.name
    lines.append(f"# HELP {name} {metric.meaning}\n# TYPE {name} {metric.kind}\n")
    lines += [f"{name}{{{labels}}} {_number(value)}\n" for labels, value in told]


def _labels(sample: GpuSample, hostname: str) -> str:
    info = sample.info
    pairs = (
        ("gpu", str(info.index)),
        ("UUID", info.uuid),
        ("pci_bus_id", info.pci_bus_id or ""),
        ("device", f"nvidia{info.index}"),
        ("modelName", info.model or ""),
        ("hostname", hostname),
    )
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    # a counter of mJ passes 10^12 in a month: whole numbers stay whole
    return str(int(value)) if value == int(value) else repr(float(value))
