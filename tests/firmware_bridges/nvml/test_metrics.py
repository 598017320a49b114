"""Prometheus text under the names of NVIDIA's exporter."""

import re

from firmware_bridges.nvml.metrics import prometheus
from firmware_bridges.nvml.samples import GpuInfo, GpuSample, PowerSource

MIB = 1 << 20
INFO = GpuInfo(uuid="GPU-1", index=3, model='NVIDIA "H100"\\80', pci_bus_id="00000000:1A:00.0")
FULL = GpuSample(
    info=INFO,
    began_ns=1,
    at_ns=2,
    power_w=412.5,
    power_source=PowerSource.INSTANT,
    power_limit_w=700.0,
    energy_mj=3_000_000_000_001,
    temp_c=64.0,
    memory_temp_c=72.0,
    gpu_util_pct=97,
    memory_util_pct=41,
    memory_used_bytes=20_000 * MIB,
    memory_free_bytes=61_008 * MIB,
    memory_reserved_bytes=551 * MIB,
    sm_clock_mhz=1_755,
    memory_clock_mhz=2_619,
    event_reasons=4,
    ecc_corrected_volatile=1,
    ecc_uncorrected_volatile=0,
    ecc_corrected_aggregate=2,
    ecc_uncorrected_aggregate=0,
    remapped_correctable=5,
    remapped_uncorrectable=0,
    remap_failed=False,
    remap_pending=True,
    nvlink_tx_kib=10,
    nvlink_rx_kib=20,
    pcie_replays=3,
)
# From dcgm-exporter's default counters: those that NVML can give.
NAMES = {
    "SM_CLOCK", "MEM_CLOCK", "GPU_TEMP", "MEMORY_TEMP", "POWER_USAGE", "TOTAL_ENERGY_CONSUMPTION",
    "GPU_UTIL", "MEM_COPY_UTIL", "FB_FREE", "FB_USED", "FB_RESERVED", "XID_ERRORS",
    "PCIE_REPLAY_COUNTER", "NVLINK_BANDWIDTH_TOTAL", "UNCORRECTABLE_REMAPPED_ROWS",
    "CORRECTABLE_REMAPPED_ROWS", "ROW_REMAP_FAILURE",
}  # fmt: skip
# Of dcgm_fields.h: the limit that `nvmlDeviceGetEnforcedPowerLimit` tells is field 164, not 160
# (POWER_MGMT_LIMIT); field 112 has its own name since 535 (CLOCK_THROTTLE_REASONS is deprecated).
FIELDS = {
    "ENFORCED_POWER_LIMIT",
    "CLOCKS_EVENT_REASONS",
    "POWER_USAGE_INSTANT",
    "ROW_REMAP_PENDING",
}
# The type column of the exporter's file.
COUNTERS = {
    "TOTAL_ENERGY_CONSUMPTION", "PCIE_REPLAY_COUNTER", "NVLINK_BANDWIDTH_TOTAL",
    "UNCORRECTABLE_REMAPPED_ROWS", "CORRECTABLE_REMAPPED_ROWS", "ECC_SBE_VOL_TOTAL",
    "ECC_DBE_VOL_TOTAL", "ECC_SBE_AGG_TOTAL", "ECC_DBE_AGG_TOTAL",
}  # fmt: skip


def values(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in lines}


def test_a_full_sample_has_every_name_of_the_exporter() -> None:
    told = values(prometheus([FULL], hostname="g1", last_xids={"GPU-1": 79}))
    assert {f"DCGM_FI_DEV_{name}" for name in NAMES | FIELDS} <= set(told)
    assert told["DCGM_FI_DEV_ENFORCED_POWER_LIMIT"] == "700"
    assert told["DCGM_FI_DEV_POWER_USAGE"] == "412.5"
    assert told["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == "3000000000001"
    assert told["DCGM_FI_DEV_FB_USED"] == "20000"
    assert told["DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"] == "30"
    assert told["DCGM_FI_DEV_ROW_REMAP_FAILURE"] == "0"
    assert told["DCGM_FI_DEV_XID_ERRORS"] == "79"


def test_the_labels_are_those_of_the_exporter_and_escaped() -> None:
    text = prometheus([FULL], hostname="g1", last_xids={})
    line = next(row for row in text.splitlines() if row.startswith("DCGM_FI_DEV_GPU_TEMP"))
    assert line == (
        'DCGM_FI_DEV_GPU_TEMP{gpu="3",UUID="GPU-1",pci_bus_id="00000000:1A:00.0",'
        'device="nvidia3",modelName="NVIDIA \\"H100\\"\\\\80",hostname="g1"} 64'
    )


def test_what_is_unknown_is_left_out_with_its_header() -> None:
    bare = GpuSample(info=INFO, began_ns=1, at_ns=2, temp_c=50.0)
    text = prometheus([bare], hostname="g1", last_xids={})
    assert set(values(text)) == {"DCGM_FI_DEV_GPU_TEMP"}
    assert text.count("# TYPE") == 1
    assert prometheus([], hostname="g1", last_xids={}) == ""


def test_an_average_is_not_told_as_instant_power() -> None:
    average = GpuSample(
        info=INFO, began_ns=1, at_ns=2, power_w=400.0, power_source=PowerSource.AVERAGE
    )
    told = values(prometheus([average], hostname="g1", last_xids={}))
    assert told == {"DCGM_FI_DEV_POWER_USAGE": "400"}


def test_the_text_is_well_formed_and_each_metric_has_one_header() -> None:
    other = GpuSample(info=GpuInfo(uuid="GPU-2", index=4), began_ns=1, at_ns=2, temp_c=51.0)
    text = prometheus([FULL, other], hostname="g1", last_xids={})
    assert text.endswith("\n")
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+\{(\w+=\".*\",?)+\} -?[\d.e+]+", line), line
    headers = re.findall(r"# TYPE (\w+)", text)
    assert len(headers) == len(set(headers))


def test_each_metric_is_of_the_type_that_the_exporter_gives_it() -> None:
    text = prometheus([FULL], hostname="g1", last_xids={"GPU-1": 79})
    types = dict(re.findall(r"# TYPE DCGM_FI_DEV_(\w+) (\w+)", text))
    assert {name for name, kind in types.items() if kind == "counter"} == COUNTERS
    assert set(types.values()) == {"counter", "gauge"}
