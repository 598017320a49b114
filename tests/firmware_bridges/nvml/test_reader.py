"""One sweep through the real pynvml: every figure, and None wherever there is none."""

import math
from collections.abc import Sequence

import pynvml
import pytest

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.errors import (
    NvmlCallError,
    NvmlGoneError,
    NvmlGpuLostError,
    NvmlResetRequiredError,
)
from firmware_bridges.nvml.library import Nvml, error_of
from firmware_bridges.nvml.reader import CardReader, _whole
from firmware_bridges.nvml.samples import GpuInfo, GpuProcess, PowerSource
from tests.fakes.nvml import MIB, FakeNvml

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, LOST, RESET_REQUIRED, UNKNOWN = 3, 4, 10, 15, 16, 999
# A structure newer than the driver, and a function that a newer driver gave up.
VERSION_MISMATCH, DEPRECATED = 25, 26


def reader_of(nvml: Nvml, index: int = 0) -> CardReader:
    handle = nvml.call("nvmlDeviceGetHandleByIndex", index)
    return CardReader(nvml, handle, index, boottime_ns)


def test_a_card_tells_what_it_is(fake: FakeNvml, nvml: Nvml) -> None:
    assert reader_of(nvml, 2).info == GpuInfo(
        uuid=fake.uuid(2),
        index=2,
        model="NVIDIA H100 80GB HBM3",
        pci_bus_id="00000000:1A:00.0",
        power_w_min=200.0,
        power_w_max=700.0,
        power_w_default=700.0,
        slowdown_c=87,
        shutdown_c=92,
        memory_c_max=95,
    )


def test_every_figure_of_a_sweep_is_the_cards_own(fake: FakeNvml, nvml: Nvml) -> None:
    card = fake.gpu(1)
    card.ecc[0][0], card.ecc[0][1], card.ecc[1][0], card.ecc[1][1] = 11, 12, 13, 14
    card.remap_correctable, card.remap_uncorrectable = 2, 1
    card.remap_pending, card.remap_failure = 1, 0
    card.link_active[17] = 0
    card.persistence = 1
    fake.field(1, 230, 1, wide=False)
    sample = reader_of(nvml, 1).sample()
    assert (sample.power_w, sample.power_source) == (410.001, PowerSource.INSTANT)
    assert (sample.power_limit_w, sample.energy_mj) == (700.0, 1_000_000_001)
    assert (sample.temp_c, sample.memory_temp_c) == (51.0, 61.0)
    assert (sample.gpu_util_pct, sample.memory_util_pct) == (97, 41)
    assert (sample.memory_total_bytes, sample.memory_reserved_bytes) == (81_559 * MIB, 551 * MIB)
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (20_000 * MIB, 61_008 * MIB)
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz) == (1_755, 2_619)
    assert sample.event_reasons == 4
    assert (sample.ecc_corrected_volatile, sample.ecc_corrected_aggregate) == (11, 12)
    assert (sample.ecc_uncorrected_volatile, sample.ecc_uncorrected_aggregate) == (13, 14)
    assert (sample.remapped_correctable, sample.remapped_uncorrectable) == (2, 1)
    assert (sample.remap_pending, sample.remap_failed) == (True, False)
    assert (sample.nvlinks, sample.nvlinks_up) == (18, 17)
    assert (sample.nvlink_tx_kib, sample.nvlink_rx_kib) == (5_001, 6_001)
    assert (sample.pcie_replays, sample.mig, sample.persistence) == (3, False, True)
    assert sample.recovery_action == 1
    assert sample.failed_calls == ()
    assert sample.began_ns <= sample.at_ns


def test_power_follows_the_limit(fake: FakeNvml, nvml: Nvml) -> None:
    fake.gpu(0).limit_mw = 300_000
    assert reader_of(nvml).sample().power_w == 300.0


@pytest.mark.parametrize("ret", [NOT_SUPPORTED, UNKNOWN])
def test_without_the_instant_field_the_average_is_told_as_such(
    fake: FakeNvml, nvml: Nvml, ret: int
) -> None:
    fake.field(0, 186, 0, ret=ret, wide=False)
    sample = reader_of(nvml).sample()
    assert (sample.power_w, sample.power_source) == (400.0, PowerSource.AVERAGE)


def test_the_temperature_is_asked_by_its_new_name_as_well(fake: FakeNvml, nvml: Nvml) -> None:
    fake.force("nvmlDeviceGetTemperature", NOT_SUPPORTED)
    assert reader_of(nvml).sample().temp_c == 50.0


def test_what_pynvml_cannot_read_is_the_fault_of_that_call_alone(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(nvml)

    def unreadable(*_: object) -> object:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "y" * 1_000)

    monkeypatch.setattr("pynvml.nvmlDeviceGetMigMode", unreadable)
    monkeypatch.delattr("pynvml.nvmlDeviceGetTotalEccErrors")
    sample = reader.sample()
    assert (sample.mig, sample.ecc_corrected_volatile, sample.temp_c) == (None, None, 50.0)
    assert set(sample.failed_calls) == {"nvmlDeviceGetMigMode", "nvmlDeviceGetTotalEccErrors"}
    with pytest.raises(NvmlCallError) as failed:
        nvml.call("nvmlDeviceGetMigMode", reader.handle)
    assert len(str(failed.value)) < 500


def test_a_partitioned_card_has_no_utilisation(fake: FakeNvml, nvml: Nvml) -> None:
    fake.gpu(0).mig = 1
    sample = reader_of(nvml).sample()
    assert (sample.mig, sample.gpu_util_pct, sample.memory_util_pct) == (True, None, None)


FUNCTIONS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("nvmlDeviceGetEnforcedPowerLimit", ("power_limit_w",)),
    ("nvmlDeviceGetTotalEnergyConsumption", ("energy_mj",)),
    ("nvmlDeviceGetUtilizationRates", ("gpu_util_pct", "memory_util_pct")),
    ("nvmlDeviceGetClockInfo", ("sm_clock_mhz", "memory_clock_mhz")),
    ("nvmlDeviceGetTotalEccErrors", ("ecc_corrected_volatile", "ecc_uncorrected_aggregate")),
    ("nvmlDeviceGetRemappedRows", ("remap_pending", "remap_failed", "remapped_correctable")),
    ("nvmlDeviceGetNvLinkState", ("nvlinks_up",)),
    ("nvmlDeviceGetMigMode", ("mig",)),
    ("nvmlDeviceGetPersistenceMode", ("persistence",)),
    ("nvmlDeviceGetFieldValues", ("memory_temp_c", "nvlinks", "nvlink_tx_kib", "pcie_replays")),
)


@pytest.mark.parametrize(
    "ret", [NOT_SUPPORTED, NO_PERMISSION, VERSION_MISMATCH, DEPRECATED, TIMEOUT]
)
@pytest.mark.parametrize(("function", "fields"), FUNCTIONS)
def test_what_a_function_does_not_tell_is_none_and_the_rest_is_there(
    fake: FakeNvml, nvml: Nvml, function: str, fields: tuple[str, ...], ret: int
) -> None:
    whole = reader_of(nvml).sample()
    fake.force(function, ret)
    sample = reader_of(nvml).sample()
    assert [getattr(sample, field) for field in fields] == [None] * len(fields)
    assert None not in [getattr(whole, field) for field in fields]
    # only what says nothing of the card or the driver is noted as a failure
    assert (function in sample.failed_calls) == (ret == TIMEOUT)
    assert sample.memory_total_bytes == whole.memory_total_bytes


def test_a_card_that_tells_nothing_but_its_name_gives_a_sample_of_nones(
    fake: FakeNvml, nvml: Nvml
) -> None:
    for function, _ in FUNCTIONS:
        fake.force(function, NOT_SUPPORTED)
    for function in (
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ):
        fake.force(function, NOT_SUPPORTED)
    sample = reader_of(nvml).sample()
    told = {
        name
        for name in sample.__struct_fields__
        if getattr(sample, name) not in {None, ()} and name not in {"info", "began_ns", "at_ns"}
    }
    assert told == set()


def test_what_is_not_supported_is_asked_again_after_a_minute_of_sweeps(
    fake: FakeNvml, nvml: Nvml
) -> None:
    reader = reader_of(nvml)
    fake.force("nvmlDeviceGetMigMode", NOT_SUPPORTED)
    assert reader.sample().mig is None
    fake.release()
    seen = [reader.sample().mig for _ in range(60)]
    assert seen.index(False) == 59


@pytest.mark.parametrize("ret", [NOT_SUPPORTED, VERSION_MISMATCH, DEPRECATED])
def test_a_function_that_is_not_supported_costs_no_call(
    fake: FakeNvml, nvml: Nvml, ret: int
) -> None:
    reader = reader_of(nvml)
    fake.force("nvmlDeviceGetTotalEccErrors", ret)
    reader.sample()
    before = fake.gpu(0).calls
    reader.sample()
    without = fake.gpu(0).calls - before
    fake.release()
    fresh = reader_of(nvml)
    before = fake.gpu(0).calls
    fresh.sample()
    assert fake.gpu(0).calls - before == without + 4


@pytest.mark.parametrize("ret", [NOT_SUPPORTED, VERSION_MISMATCH])
def test_an_older_driver_tells_its_memory_by_the_older_structure(
    fake: FakeNvml, nvml: Nvml, ret: int
) -> None:
    fake.force("nvmlDeviceGetMemoryInfo_v2", ret)
    sample = reader_of(nvml).sample()
    mib = 1 << 20
    assert sample.memory_total_bytes == 81_559 * mib
    assert (sample.memory_used_bytes, sample.memory_reserved_bytes) == (20_551 * mib, None)
    assert sample.failed_calls == ()


@pytest.mark.parametrize(
    ("ret", "error"),
    [(LOST, NvmlGpuLostError), (RESET_REQUIRED, NvmlResetRequiredError), (9, NvmlGoneError)],
)
def test_a_card_or_a_driver_that_is_gone_ends_the_sweep(
    fake: FakeNvml, nvml: Nvml, ret: int, error: type[Exception]
) -> None:
    reader = reader_of(nvml)
    fake.force("nvmlDeviceGetTotalEnergyConsumption", ret)
    with pytest.raises(error):
        reader.sample()


def test_a_lost_card_is_lost_alone(fake: FakeNvml, nvml: Nvml) -> None:
    fake.gpu(3).lost = 1
    with pytest.raises(NvmlGpuLostError):
        reader_of(nvml, 3)
    assert reader_of(nvml, 0).sample().temp_c == 50.0


def test_processes_are_listed_when_asked_for(fake: FakeNvml, nvml: Nvml) -> None:
    reader = reader_of(nvml)
    assert reader.processes() == ()
    card = fake.gpu(0)
    card.processes_n = 2
    card.processes[0].pid, card.processes[0].used_bytes = 4_242, 7 * MIB
    card.processes[0].gpu_instance = 0xFFFF_FFFF
    card.processes[1].pid, card.processes[1].used_bytes = 4_243, 0xFFFF_FFFF_FFFF_FFFF
    card.processes[1].gpu_instance = 3
    assert reader.processes() == (
        GpuProcess(4_242, 7 * MIB, None),
        GpuProcess(4_243, None, 3),
    )


def test_a_sweep_lists_no_processes(fake: FakeNvml, nvml: Nvml) -> None:
    fake.force("nvmlDeviceGetComputeRunningProcesses_v3", LOST)
    assert reader_of(nvml).sample().failed_calls == ()


def test_a_setter_without_rights_is_refused_by_the_driver(fake: FakeNvml, nvml: Nvml) -> None:
    handle = nvml.call("nvmlDeviceGetHandleByIndex", 0)
    with pytest.raises(NvmlCallError) as failed:
        nvml.call("nvmlDeviceSetPowerManagementLimit", handle, 300_000)
    assert failed.value.nvml_code == NO_PERMISSION
    fake.state.setters_allowed = 1
    nvml.call("nvmlDeviceSetPowerManagementLimit", handle, 300_000)
    assert fake.gpu(0).limit_mw == 300_000


def test_the_call_under_way_is_known_and_forgotten(nvml: Nvml) -> None:
    assert nvml.under_way is None
    nvml.call("nvmlSystemGetDriverVersion")
    assert nvml.under_way is None
    with pytest.raises(NvmlCallError):
        nvml.call("nvmlDeviceGetHandleByIndex", 99)
    assert nvml.under_way is None


@pytest.mark.parametrize("code", [1, 9, 12, 18])
def test_a_driver_that_is_not_there_is_no_fault_of_a_card(code: int) -> None:
    assert isinstance(error_of("nvmlInit", code, ""), NvmlGoneError)


def test_a_card_that_answers_no_call_is_unreadable_and_not_well(fake: FakeNvml, nvml: Nvml) -> None:
    reader = reader_of(nvml)
    names = [name for name, _ in FUNCTIONS]
    names += ["nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetPowerUsage"]
    names += ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"]
    names += ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
    for name in names:
        fake.force(name, UNKNOWN)
    with pytest.raises(NvmlCallError, match="no call on this card is answered"):
        reader.sample()
    fake.release()
    assert reader.sample().temp_c == 50.0


def test_a_handle_that_has_become_another_cards_gives_no_sample(fake: FakeNvml, nvml: Nvml) -> None:
    reader = reader_of(nvml, 0)
    fake.gpu(0).uuid, fake.gpu(1).uuid = fake.gpu(1).uuid, fake.gpu(0).uuid
    with pytest.raises(NvmlCallError, match=fake.uuid(0)):
        reader.sample()


@pytest.mark.parametrize("member", ["name", "bus_id"])
def test_a_text_that_is_no_utf_8_is_unknown(fake: FakeNvml, nvml: Nvml, member: str) -> None:
    setattr(fake.gpu(0), member, b"\xff\xfe")
    info = reader_of(nvml).info
    assert (info.model is None, info.pci_bus_id is None) == (member == "name", member == "bus_id")


def test_a_card_without_a_uuid_is_no_card(fake: FakeNvml, nvml: Nvml) -> None:
    fake.gpu(0).uuid = b""
    with pytest.raises(NvmlCallError, match="no name"):
        reader_of(nvml)


def test_a_threshold_of_nothing_is_no_threshold(fake: FakeNvml, nvml: Nvml) -> None:
    card = fake.gpu(0)
    card.slowdown_c = card.shutdown_c = card.memory_max_c = 0
    info = reader_of(nvml).info
    assert (info.slowdown_c, info.shutdown_c, info.memory_c_max) == (None, None, None)


@pytest.mark.parametrize("kind", [0, 7, 0xFFFF_FFFF])
def test_a_field_value_of_a_type_that_cannot_be_is_unknown(
    fake: FakeNvml, nvml: Nvml, kind: int
) -> None:
    # 0: the driver left the type out, so that its integer reads as a double near 0
    fake.gpu(0).fields[0].type = kind
    sample = reader_of(nvml).sample()
    assert (sample.power_w, sample.power_source) == (400.0, PowerSource.AVERAGE)
    assert sample.memory_temp_c == 60.0


@pytest.mark.parametrize(("value", "told"), [(math.nan, None), (math.inf, None), (5.0, 5)])
def test_a_double_is_read_where_it_is_a_number(value: float, told: int | None) -> None:
    field = pynvml.c_nvmlFieldValue_t()
    field.valueType, field.value.dVal = 0, value
    assert _whole(field) == told


@pytest.mark.parametrize(
    ("ret", "error"), [(LOST, NvmlGpuLostError), (RESET_REQUIRED, NvmlResetRequiredError)]
)
def test_a_field_value_may_be_the_one_that_tells_of_the_loss(
    fake: FakeNvml, nvml: Nvml, ret: int, error: type[Exception]
) -> None:
    fake.field(0, 186, 0, ret=ret, wide=False)
    with pytest.raises(error):
        reader_of(nvml).sample()


def test_a_list_of_processes_that_outgrew_its_room_is_asked_for_again(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(nvml)
    asked = 0

    def growing(_: object) -> list[object]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise pynvml.NVMLError(7)
        return []

    monkeypatch.setattr("pynvml.nvmlDeviceGetComputeRunningProcesses_v3", growing)
    assert reader.processes() == ()
    asked = -10
    with pytest.raises(NvmlCallError):
        reader.processes()
    assert asked == -7


def test_an_error_without_readable_words_is_still_that_error(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: object) -> str:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "y")

    monkeypatch.setattr("pynvml.nvmlErrorString", unreadable)
    fake.force("nvmlDeviceGetTotalEnergyConsumption", 28)
    with pytest.raises(NvmlGpuLostError):
        reader_of(nvml).sample()
