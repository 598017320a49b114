"""The child and its parent for real: processes, pipes, and a driver that hangs, loses and lies."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from firmware_bridges.nvml.child import ChildOptions
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.errors import ChildAwayError, ChildSilentError
from firmware_bridges.nvml.pipe import FROM_CHILD, Unpacker
from firmware_bridges.nvml.samples import Failed, GpuEvent, GpuSample, PowerSource
from firmware_bridges.nvml.spawn import ChildProcess, PipedChild, SpawnPiped
from firmware_bridges.nvml.states import Bounds, GpuState, GpuView
from tests.fakes.nvml import FakeNvml, cards

# Short where the test waits for it, long where a loaded machine must not be taken for a hang.
BOUNDS = Bounds(stale_s=2.0, hang_s=0.4, probe_s=1.0, probe_s_min=0.3, probe_s_max=0.6)
PERIOD_S = 0.05
DEADLINE_S = 20.0


class Counting(SpawnPiped):
    """Starts real children and remembers them."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.started: list[tuple[ChildOptions, ChildProcess]] = []

    async def __call__(self, options: ChildOptions) -> ChildProcess:
        child = await super().__call__(options)
        self.started.append((options, child))
        return child

    @property
    def mains(self) -> list[ChildOptions]:
        return [options for options, _ in self.started if options.events]


@asynccontextmanager
async def running(spawn: Counting, bounds: Bounds = BOUNDS) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(spawn, bounds=bounds, period_s=PERIOD_S)
    task = asyncio.create_task(telemetry.run())
    try:
        yield telemetry
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.01)


def states(telemetry: Telemetry) -> list[GpuState]:
    return [view.state for view in telemetry.view()]


def view_of(telemetry: Telemetry, uuid: str) -> GpuView:
    return next(view for view in telemetry.view() if view.card == uuid)


def all_live(telemetry: Telemetry, count: int = 4) -> Callable[[], bool]:
    return lambda: states(telemetry) == [GpuState.LIVE] * count


def at_ns(telemetry: Telemetry, uuid: str) -> int:
    sample = view_of(telemetry, uuid).sample
    assert sample is not None
    return sample.at_ns


async def test_all_cards_are_read_and_follow_what_happens(fake: FakeNvml) -> None:
    async with running(Counting(fake.environment())) as telemetry:
        await until(all_live(telemetry))
        assert telemetry.driver == "580.159.03"
        fake.gpu(2).temp_c = 77
        await until(lambda: view_of(telemetry, fake.uuid(2)).sample.temp_c == 77.0)  # type: ignore[union-attr]


async def test_a_card_that_hangs_is_fenced_and_the_others_are_read_on(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    async with running(spawn) as telemetry:
        await until(all_live(telemetry))
        fake.gpu(1).hang = 1
        await until(lambda: view_of(telemetry, fake.uuid(1)).state is GpuState.SILENT)
        assert "hangs in nvml" in view_of(telemetry, fake.uuid(1)).detail
        others = [fake.uuid(index) for index in (0, 2, 3)]
        before = [at_ns(telemetry, uuid) for uuid in others]
        # a probe tries the card and gives it up, and all the while the others' rows are new
        await until(lambda: len(spawn.started) >= 3)
        assert all(at_ns(telemetry, uuid) > at for uuid, at in zip(others, before, strict=True))
        assert len(spawn.mains) == 1
        assert [options.cards for options, _ in spawn.started[1:]] == [(fake.uuid(1),)] * 2
        fake.gpu(1).hang = 0
        await until(all_live(telemetry))


async def test_a_hang_that_holds_the_drivers_lock_costs_that_card_alone(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    bounds = Bounds(stale_s=1.0, hang_s=0.4, probe_s=1.0, probe_s_min=0.5)
    async with running(spawn, bounds) as telemetry:
        await until(all_live(telemetry))
        fake.state.hang_holds_lock = 1
        fake.gpu(2).hang = 1
        await until(lambda: len(spawn.mains) >= 2)
        # a card that only waited may be left out first; it comes back by its probe
        live, silent = GpuState.LIVE, GpuState.SILENT
        await until(lambda: states(telemetry) == [live, live, silent, live])
        assert spawn.mains[-1].cards is not None
        assert fake.uuid(2) not in spawn.mains[-1].cards
        fake.gpu(2).hang = 0
        await until(all_live(telemetry))


async def test_a_driver_that_hangs_as_a_whole_does_not_stop_the_parent(fake: FakeNvml) -> None:
    bounds = Bounds(stale_s=1.0, hang_s=0.4, start_s=1.0, retry_s_max=0.5, probe_s_max=1.0,
                    probe_s=1.0, probe_s_min=0.3)  # fmt: skip
    spawn = Counting(fake.environment())
    async with running(spawn, bounds) as telemetry:
        await until(all_live(telemetry))
        fake.state.hang_all = 1
        await until(lambda: states(telemetry) == [GpuState.SILENT] * 4)
        # killed, started anew, and that one does not even load the library
        await until(lambda: len(spawn.mains) >= 3)
        fake.state.hang_all = 0
        await until(all_live(telemetry))


async def test_a_lost_card_is_fenced_alone_and_comes_back(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    # its own child sees it again before a probe would
    async with running(spawn, Bounds(stale_s=2.0, hang_s=0.4, probe_s_min=60.0)) as telemetry:
        await until(all_live(telemetry))
        fake.gpu(3).lost = 1
        await until(lambda: view_of(telemetry, fake.uuid(3)).state is GpuState.LOST)
        assert view_of(telemetry, fake.uuid(0)).state is GpuState.LIVE
        # the last sample stays known
        assert view_of(telemetry, fake.uuid(3)).sample is not None
        fake.gpu(3).lost = 0
        await until(all_live(telemetry))
        assert len(spawn.started) == 1


async def test_each_xid_is_told_once_and_with_its_card(fake: FakeNvml) -> None:
    async with running(Counting(fake.environment())) as telemetry:
        await until(all_live(telemetry))
        got: list[GpuEvent] = []
        # cards are registered after their first sweep; the trials are told apart by their number
        await until(lambda: _registered(fake, telemetry, got))
        fake.event(3, 8, 2)
        await until(lambda: _taken(telemetry, got) > 0 and got[-1].number == 2)
        got.clear()
        for number in range(40):
            fake.event(number % 4, 8, 1_000 + number)
        await until(lambda: _taken(telemetry, got) >= 40)
        assert [event.number for event in got] == [1_000 + number for number in range(40)]
        assert [event.uuid for event in got] == [fake.uuid(number % 4) for number in range(40)]
        fake.event(0, 2, 0)
        await until(lambda: _taken(telemetry, got) >= 41)
        assert got[40].kind == "ecc_double"


def _taken(telemetry: Telemetry, got: list[GpuEvent]) -> int:
    got.extend(telemetry.take_events())
    return len(got)


def _registered(fake: FakeNvml, telemetry: Telemetry, got: list[GpuEvent]) -> bool:
    """Tell whether an event of each card has come; a card not yet registered gives none."""
    _taken(telemetry, got)
    if {event.uuid for event in got} == {fake.uuid(index) for index in range(4)}:
        return True
    for index in range(4):
        fake.event(index, 8, 1)
    return False


async def test_processes_are_listed_on_demand(fake: FakeNvml) -> None:
    fake.gpu(0).processes_n = 1
    fake.gpu(0).processes[0].pid = 77
    async with running(Counting(fake.environment())) as telemetry:
        with pytest.raises(ChildAwayError):
            await telemetry.processes(fake.uuid(0))
        await until(all_live(telemetry))
        listed = await telemetry.processes(fake.uuid(0))
        assert listed.processes is not None
        assert [one.pid for one in listed.processes] == [77]
        assert (await telemetry.processes("GPU-none")).processes is None
        fake.force("nvmlDeviceGetComputeRunningProcesses_v3", 3)
        refused = await telemetry.processes(fake.uuid(0))
        assert (refused.processes, "Not Supported" in refused.detail) == (None, True)


async def test_a_list_of_processes_that_hangs_is_given_up(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firmware_bridges.nvml.client.ASK_S", 0.2)
    async with running(Counting(fake.environment())) as telemetry:
        await until(all_live(telemetry))
        fake.gpu(0).hang = 1
        with pytest.raises(ChildSilentError):
            await telemetry.processes(fake.uuid(0))


async def test_a_child_that_is_killed_is_replaced(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    async with running(spawn) as telemetry:
        await until(all_live(telemetry))
        before = at_ns(telemetry, fake.uuid(0))
        spawn.started[0][1].kill()
        await until(lambda: len(spawn.mains) == 2 and at_ns(telemetry, fake.uuid(0)) > before)
        await until(all_live(telemetry))


async def test_a_child_that_is_stopped_is_replaced(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    bounds = Bounds(stale_s=3.0, hang_s=1.0, beat_s=0.6)
    async with running(spawn, bounds) as telemetry:
        await until(all_live(telemetry))
        child = spawn.started[0][1]
        assert isinstance(child, PipedChild)
        os.kill(child.pid, signal.SIGSTOP)
        await until(lambda: len(spawn.mains) == 2)
        await until(all_live(telemetry))


async def test_without_a_driver_the_parent_goes_on_and_says_so(
    fake: FakeNvml, tmp_path: Path
) -> None:
    environment = {**fake.environment(), "HCP_NVML_STATE": str(tmp_path / "none")}
    spawn = Counting(environment)
    async with running(spawn) as telemetry:
        await until(lambda: len(spawn.started) >= 2)
        assert telemetry.view() == ()
        await until(lambda: "nvmlInit" in telemetry.problem)


def test_the_parent_runs_on_the_loop_of_the_agent_as_well(fake: FakeNvml) -> None:
    async def read_and_replace() -> None:
        spawn = Counting(fake.environment())
        async with running(spawn) as telemetry:
            await until(all_live(telemetry))
            spawn.started[0][1].kill()
            await until(lambda: len(spawn.mains) == 2)
            await until(all_live(telemetry))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(read_and_replace())


def first_messages(environment: dict[str, str], count: int) -> list[object]:
    """Run a child by itself and give its first messages; its input ends, and so does it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "firmware_bridges.nvml.child", '{"period_s":0.05}'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    got: list[object] = []
    unpacker = Unpacker(FROM_CHILD)
    while len(got) < count and (data := os.read(child.stdout.fileno(), 4_096)):
        got += unpacker.feed(data)
    child.stdin.close()
    child.stdout.close()
    child.wait(DEADLINE_S)
    return got


def test_an_old_driver_lacks_functions_and_gives_what_it_has(
    old_library: Path, tmp_path: Path
) -> None:
    with cards(old_library, tmp_path, 1) as fake:
        fake.gpu(0).fields_n = 0
        got = first_messages(fake.environment(), 8)
    sample = next(message for message in got if isinstance(message, GpuSample))
    assert (sample.power_w, sample.power_source) == (400.0, PowerSource.AVERAGE)
    assert (sample.remap_pending, sample.mig, sample.memory_temp_c) == (None, None, None)
    # its one function counts what is reserved as used
    assert sample.memory_reserved_bytes is None
    assert sample.memory_used_bytes == fake.gpu(0).memory_reserved + fake.gpu(0).memory_used
    assert sample.event_reasons == 4
    assert sample.failed_calls == ()


def test_a_child_ends_when_its_parent_does_even_if_it_hangs(fake: FakeNvml) -> None:
    fake.state.hang_all = 1
    child = subprocess.Popen(
        [sys.executable, "-m", "firmware_bridges.nvml.child", "{}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=fake.environment(),
    )
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(DEADLINE_S) == 0


def test_a_driver_that_goes_away_ends_the_child_with_a_word(fake: FakeNvml) -> None:
    fake.force("nvmlDeviceGetTotalEnergyConsumption", 9)
    got = first_messages(fake.environment(), 100)
    assert isinstance(got[-1], Failed)
    assert got[-1].code == 9


def test_a_driver_without_cards_ends_the_child_with_a_word(fake: FakeNvml) -> None:
    fake.state.gpus_n = 0
    (failed,) = first_messages(fake.environment(), 1)
    assert isinstance(failed, Failed)
    assert failed.code == 28


async def test_cards_that_come_after_the_start_are_found(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    fake.state.gpus_n = 0
    async with running(spawn) as telemetry:
        await until(lambda: bool(telemetry.problem))
        assert (telemetry.view(), "no card" in telemetry.problem) == ((), True)
        fake.state.gpus_n = 4
        await until(all_live(telemetry))


async def test_a_card_that_the_driver_no_longer_counts_is_fenced_and_comes_back(
    fake: FakeNvml,
) -> None:
    spawn = Counting(fake.environment())
    async with running(spawn) as telemetry:
        await until(all_live(telemetry))
        # every call on it is an invalid argument now: no card without figures
        fake.state.gpus_n = 3
        await until(lambda: states(telemetry).count(GpuState.UNREADABLE) == 1)
        assert view_of(telemetry, fake.uuid(3)).state is GpuState.UNREADABLE
        assert view_of(telemetry, fake.uuid(0)).state is GpuState.LIVE
        fake.state.gpus_n = 4
        await until(all_live(telemetry))
        assert len(spawn.mains) == 1


async def test_cards_that_change_places_keep_their_names(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    async with running(spawn) as telemetry:
        await until(all_live(telemetry))
        first, second = fake.uuid(0), fake.uuid(1)
        one, other = fake.gpu(0), fake.gpu(1)
        one.uuid, other.uuid = other.uuid, one.uuid
        one.temp_c, other.temp_c = 31, 32

        def swapped() -> bool:
            samples = [view_of(telemetry, uuid).sample for uuid in (first, second)]
            return [s.temp_c for s in samples if s is not None] == [32.0, 31.0]

        await until(swapped)
        await until(all_live(telemetry))


async def test_a_card_that_a_new_child_did_not_count_comes_back(fake: FakeNvml) -> None:
    spawn = Counting(fake.environment())
    quick = Bounds(
        stale_s=2.0, hang_s=0.4, start_s=1.0, probe_s=1.0, probe_s_min=0.3, probe_s_max=0.6
    )
    async with running(spawn, quick) as telemetry:
        await until(all_live(telemetry))
        fake.state.gpus_n = 3
        spawn.started[-1][1].kill()
        await until(lambda: view_of(telemetry, fake.uuid(3)).state is GpuState.SILENT)
        fake.state.gpus_n = 4
        await until(all_live(telemetry))
