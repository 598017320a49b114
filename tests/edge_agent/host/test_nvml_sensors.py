"""The host's view of its cards: through a real child, real pynvml and a fake driver."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.host.errors import RefusedError
from edge_agent.host.fences import FenceFile
from edge_agent.host.nvml_sensors import NvmlSensors
from edge_agent.host.sensors import GpuFacts
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.health import HealthLimits
from firmware_bridges.nvml.samples import EventKind, GpuEvent
from firmware_bridges.nvml.spawn import SpawnPiped
from firmware_bridges.nvml.states import Bounds
from tests.fakes.nvml import FakeNvml, build, cards, compiler

DEADLINE_S = 20.0
# Short where the test waits for it, long where a loaded machine must not be taken for a hang.
BOUNDS = Bounds(stale_s=2.0, hang_s=0.4, probe_s=1.0, probe_s_min=0.3, probe_s_max=0.6)
XID_EVENT, DOUBLE_BIT, ROW_TO_BE_REMAPPED, FALLEN_OFF_THE_BUS = 0x8, 48, 63, 79


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler for tests/fakes/nvml.c: apt-get install -y gcc")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> Iterator[FakeNvml]:
    with cards(library, tmp_path, 2) as driver:
        yield driver


@asynccontextmanager
async def reading(
    fake: FakeNvml, kept: FenceFile | None = None, boot_id: str = "b1", bounds: Bounds = BOUNDS
) -> AsyncIterator[NvmlSensors]:
    telemetry = Telemetry(SpawnPiped(fake.environment()), bounds=bounds, period_s=0.05)
    sensors = NvmlSensors(
        telemetry,
        {"gpu0": fake.uuid(0), "gpu1": fake.uuid(1)},
        now_ns=SystemClock().boottime_ns,
        limits=HealthLimits(fault_s=0.5),
        kept=kept,
        boot_id=boot_id,
        wall_ns=lambda: 1_700_000_000 * 1_000_000_000,
    )
    task = asyncio.create_task(sensors.run())
    try:
        yield sensors
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(sensors: NvmlSensors, uuid: str, is_true: Callable[[GpuFacts], bool]) -> GpuFacts:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            facts = (await sensors.read()).get(uuid)
            if facts is not None and is_true(facts):
                return facts
            await asyncio.sleep(0.02)  # another process makes it true


def is_well(row: GpuFacts) -> bool:
    """Tell whether a card was read, and nothing speaks against it."""
    return row.healthy and row.power_w is not None


async def test_facts_are_those_of_the_driver_in_the_units_of_the_host(fake: FakeNvml) -> None:
    async with reading(fake) as sensors:
        facts = await until(sensors, fake.uuid(1), lambda row: row.power_w is not None)
        assert facts.healthy
        assert facts.power_w == pytest.approx(410.001), "the instant power, in watts"
        assert facts.temp_c == 51.0
        assert facts.utilisation == pytest.approx(0.97)
        assert facts.memory_used_mib == 20_000
        assert await sensors.used_mib("gpu1") == 20_000
        assert await sensors.used_mib("no such gpu") is None


async def test_a_card_that_was_never_read_takes_no_new_work_and_one_that_is_does(
    fake: FakeNvml,
) -> None:
    async with reading(fake) as sensors:
        first = (await sensors.read())[fake.uuid(0)]  # no child has started yet
        assert (first.healthy, first.held) == (True, True)
        assert "nothing" in first.reason
        known = await until(sensors, fake.uuid(0), lambda row: row.power_w is not None)
        assert not known.held


async def test_a_card_that_no_driver_knows_takes_no_work_and_the_others_do(fake: FakeNvml) -> None:
    names = {"gpu0": fake.uuid(0), "gpu9": "GPU-none"}
    telemetry = Telemetry(SpawnPiped(fake.environment()), bounds=BOUNDS, period_s=0.05)
    sensors = NvmlSensors(telemetry, names, now_ns=SystemClock().boottime_ns)
    task = asyncio.create_task(sensors.run())
    try:
        known = await until(sensors, fake.uuid(0), lambda row: row.power_w is not None)
        unknown = (await sensors.read())["GPU-none"]
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert (known.held, unknown.held) == (False, True)


async def test_energy_is_the_difference_of_the_counter_whatever_it_starts_from(
    fake: FakeNvml,
) -> None:
    async with reading(fake) as sensors:
        first = await until(sensors, fake.uuid(0), lambda row: row.energy is not None)
        assert first.energy is not None
        fake.gpu(0).energy_mj += 12_345
        begun_mj = first.energy.energy_mj

        def risen(row: GpuFacts) -> bool:
            return row.energy is not None and row.energy.energy_mj > begun_mj

        later = await until(sensors, fake.uuid(0), risen)
        assert later.energy is not None
        assert later.energy.energy_mj - begun_mj == 12_345
        assert later.energy.at_ns > first.energy.at_ns


async def test_heat_fences_a_card_until_it_has_cooled_down(fake: FakeNvml) -> None:
    async with reading(fake) as sensors:
        await until(sensors, fake.uuid(0), is_well)
        fake.gpu(0).temp_c = 95
        await until(sensors, fake.uuid(0), lambda row: not row.healthy)
        assert (await sensors.read())[fake.uuid(1)].healthy
        fake.gpu(0).temp_c = 80
        await until(sensors, fake.uuid(0), lambda row: row.temp_c == 80.0)
        assert not (await sensors.read())[fake.uuid(0)].healthy, "below the limit, not yet cool"
        fake.gpu(0).temp_c = 60
        await until(sensors, fake.uuid(0), is_well)


async def test_an_xid_fences_its_card_for_good_and_that_one_alone(fake: FakeNvml) -> None:
    async with reading(fake) as sensors:
        await until(sensors, fake.uuid(1), is_well)
        fake.event(1, XID_EVENT, FALLEN_OFF_THE_BUS)
        await until(sensors, fake.uuid(1), lambda row: not row.healthy)
        fake.gpu(1).temp_c = 44
        await until(sensors, fake.uuid(1), lambda row: row.temp_c == 44.0)
        facts = await sensors.read()
        assert (facts[fake.uuid(0)].healthy, facts[fake.uuid(1)].healthy) == (True, False)


async def test_an_xid_that_holds_a_card_lets_its_work_go_on_and_no_new_begin(
    fake: FakeNvml,
) -> None:
    async with reading(fake) as sensors:
        await until(sensors, fake.uuid(0), lambda row: row.healthy and not row.held)
        fake.event(0, XID_EVENT, ROW_TO_BE_REMAPPED)
        facts = await until(sensors, fake.uuid(0), lambda row: row.held)
        assert facts.healthy
        assert facts.reason.startswith("Xid 63")
        assert not (await sensors.read())[fake.uuid(1)].held


async def fenced(fake: FakeNvml, file: FenceFile, xid: int) -> None:
    """Have a host see an Xid of the second card, and end."""
    async with reading(fake, file) as sensors:
        await until(sensors, fake.uuid(1), is_well)
        fake.event(1, XID_EVENT, xid)
        await until(sensors, fake.uuid(1), lambda row: not row.healthy and file.read() != ())


@pytest.fixture
def file(tmp_path: Path) -> FenceFile:
    return FenceFile(tmp_path / "fences.json")


async def test_a_fence_outlives_the_host_and_stands_before_the_card_is_read(
    fake: FakeNvml, file: FenceFile
) -> None:
    await fenced(fake, file, DOUBLE_BIT)
    async with reading(fake, file, "b2") as sensors:
        first = (await sensors.read())[fake.uuid(1)]
        assert (first.healthy, first.held) == (False, True), "its child has read nothing yet"
        facts = await until(sensors, fake.uuid(1), lambda row: row.temp_c is not None)
        assert not facts.healthy
        assert facts.fence is not None
        assert (facts.fence.code, facts.fence.stands) == ("xid-48", "")
        assert facts.fence.since == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert facts.fence.ends_by == "an operator's release, after: reset"
        assert (await sensors.read())[fake.uuid(0)].fence is None


async def test_a_release_is_refused_while_the_cause_is_seen_and_then_outlives_the_host(
    fake: FakeNvml, file: FenceFile
) -> None:
    await fenced(fake, file, DOUBLE_BIT)
    async with reading(fake, file) as sensors:
        with pytest.raises(RefusedError, match="not read yet"):
            await sensors.release(fake.uuid(1))
        fake.gpu(1).remap_pending = 1
        said = await until(sensors, fake.uuid(1), lambda row: "remapped" in row.reason)
        assert said.fence is not None
        assert said.fence.stands == "a row is remapped at the next reset"
        with pytest.raises(RefusedError) as refused:
            await sensors.release(fake.uuid(1))
        assert refused.value.answer_code == "fence_stands"
        assert len(file.read() or ()) == 1
        fake.gpu(1).remap_pending = 0
        await until(sensors, fake.uuid(1), lambda row: "remapped" not in row.reason)
        await sensors.release(fake.uuid(1))
        assert file.read() == ()
        assert (await sensors.read())[fake.uuid(1)].healthy
        await sensors.release(fake.uuid(1))
    async with reading(fake, file) as sensors:
        facts = await until(sensors, fake.uuid(1), lambda row: row.temp_c is not None)
        assert (facts.healthy, facts.fence) == (True, None)


async def test_a_reboot_ends_a_fence_that_needs_one_once_the_card_is_seen_to_be_well(
    fake: FakeNvml, file: FenceFile
) -> None:
    await fenced(fake, file, FALLEN_OFF_THE_BUS)
    async with reading(fake, file, "b1") as sensors:
        facts = await until(sensors, fake.uuid(1), lambda row: row.temp_c is not None)
        assert not facts.healthy, "the same boot"
    fake.gpu(1).remap_pending = 1
    async with reading(fake, file, "b2") as sensors:
        assert not (await sensors.read())[fake.uuid(1)].healthy, "not read yet"
        facts = await until(sensors, fake.uuid(1), lambda row: row.temp_c is not None)
        assert not facts.healthy, "something is still seen"
        fake.gpu(1).remap_pending = 0
        facts = await until(sensors, fake.uuid(1), is_well)
        assert facts.fence is None
        await until(sensors, fake.uuid(1), lambda row: row.healthy and file.read() == ())


async def test_without_a_readable_record_no_card_works_until_each_is_released(
    fake: FakeNvml, file: FenceFile, tmp_path: Path
) -> None:
    (tmp_path / "fences.json").write_bytes(b"\0" * 512)
    uuids = (fake.uuid(0), fake.uuid(1))
    async with reading(fake, file) as sensors:
        first = await sensors.read()
        assert [first[uuid].healthy for uuid in uuids] == [False, False], "read nothing yet"
        for uuid in uuids:
            facts = await until(sensors, uuid, lambda row: row.temp_c is not None)
            assert (facts.healthy, facts.reason) == (False, "fence record unreadable")
            assert facts.fence is not None
            assert (facts.fence.code, facts.fence.stands) == ("record-unreadable", "")
            assert facts.fence.ends_by == "an operator's release, after: inspect"
        await until(sensors, uuids[0], lambda _: file.read() is not None)
    async with reading(fake, file, "b2") as sensors:
        await until(sensors, uuids[1], lambda row: row.temp_c is not None)
        await sensors.release(uuids[1])
        facts = (await sensors.read())[uuids[1]]
        assert (facts.healthy, facts.fence) == (True, None)
        assert not (await sensors.read())[uuids[0]].healthy
    async with reading(fake, file, "b2") as sensors:
        await until(sensors, uuids[1], lambda row: row.healthy and row.temp_c is not None)
        facts = await until(sensors, uuids[0], lambda row: row.temp_c is not None)
        assert facts.reason == "fence record unreadable"
    assert (tmp_path / "fences.unread").read_bytes() == b"\0" * 512


async def test_the_cards_are_told_under_the_names_of_dcgm(fake: FakeNvml) -> None:
    async with reading(fake) as sensors:
        assert sensors.prometheus("g1") == ""
        await until(sensors, fake.uuid(1), is_well)
        fake.event(1, XID_EVENT, FALLEN_OFF_THE_BUS)
        await until(sensors, fake.uuid(1), lambda row: not row.healthy)
        text = sensors.prometheus("g1")
        temps = [row for row in text.splitlines() if row.startswith("DCGM_FI_DEV_GPU_TEMP{")]
        assert [row.rsplit(" ", 1)[1] for row in temps] == ["50", "51"]
        assert all('hostname="g1"' in row for row in temps)
        xids = [row for row in text.splitlines() if row.startswith("DCGM_FI_DEV_XID_ERRORS{")]
        assert [(fake.uuid(1) in row, row.rsplit(" ", 1)[1]) for row in xids] == [(True, "79")]


async def test_a_card_that_hangs_tells_nothing_but_that_it_is_not_well(fake: FakeNvml) -> None:
    async with reading(fake) as sensors:
        await until(sensors, fake.uuid(0), lambda row: row.power_w is not None)
        fake.gpu(0).hang = 1
        facts = await until(sensors, fake.uuid(0), lambda row: not row.healthy)
        assert facts == GpuFacts(healthy=False, held=True, reason=facts.reason)
        assert facts.reason
        assert await sensors.used_mib("gpu0") is None
        assert (await sensors.read())[fake.uuid(1)].power_w is not None
        fake.gpu(0).hang = 0
        await until(sensors, fake.uuid(0), lambda row: row.healthy and row.power_w is not None)


class OneEvent(Telemetry):
    """Has read no card, and tells one event."""

    def __init__(self, uuid: str | None) -> None:
        super().__init__(SpawnPiped())
        self._events.append(
            GpuEvent(seq=0, at_ns=1, kind=EventKind.XID, type_bits=8, number=79, uuid=uuid)
        )


async def test_an_xid_that_comes_before_the_first_row_of_its_card_is_not_forgotten() -> None:
    sensors = NvmlSensors(OneEvent("GPU-1"), {"gpu0": "GPU-1"}, now_ns=SystemClock().boottime_ns)
    assert not (await sensors.read())["GPU-1"].healthy
    again = (await sensors.read())["GPU-1"]
    assert again.fence is not None
    assert again.fence.code == "xid-79"


async def test_an_xid_of_a_card_without_a_name_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sensors = NvmlSensors(OneEvent(None), {"gpu0": "GPU-1"}, now_ns=SystemClock().boottime_ns)
    assert all(row.healthy for row in (await sensors.read()).values())
    assert "event of a card that has no name" in caplog.text
    assert "number=79" in caplog.text


async def test_a_card_that_is_lost_again_and_again_is_in_quarantine_over_a_restart(
    fake: FakeNvml, tmp_path: Path
) -> None:
    kept = FenceFile(tmp_path / "fences.json")
    # its own child sees it again before a probe would
    bounds = Bounds(stale_s=2.0, hang_s=0.4, probe_s_min=60.0)
    async with reading(fake, kept, bounds=bounds) as sensors:
        for _ in range(3):
            await until(sensors, fake.uuid(0), lambda row: row.power_w is not None)
            fake.gpu(0).lost = 1
            await until(sensors, fake.uuid(0), lambda row: row.power_w is None)
            fake.gpu(0).lost = 0
        async with asyncio.timeout(DEADLINE_S):
            while not kept.read():  # noqa: ASYNC110 - the disk makes it true
                await asyncio.sleep(0.02)
    async with reading(fake, kept) as sensors:
        facts = await until(sensors, fake.uuid(0), lambda row: row.power_w is not None)
        assert facts.fence is not None
        assert (facts.healthy, facts.fence.code) == (False, "quarantine")
        await sensors.release(fake.uuid(0))
        assert (await until(sensors, fake.uuid(0), is_well)).fence is None
        other = await until(sensors, fake.uuid(1), lambda row: row.power_w is not None)
        assert other.healthy
