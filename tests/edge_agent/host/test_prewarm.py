"""Engines held ready ahead of a switch: host, node and the agent's switch in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_agent.core.switching import Status, Switch
from edge_agent.host.prewarm import RETRY_S
from edge_agent.node.prewarm import FOR_S
from protocol.node import PREPARE_LAPSES_S, AgentBeat, Phase, Prepare, Prepared, PrepareStage
from protocol.resource import Activity
from simulators.engine_lies import EVERY_PATH, Lie
from simulators.virtual_loop import run
from tests.edge_agent.host.fault_bodies import Pair
from tests.edge_agent.host.fault_world import DEVICE, GPU, FaultWorld, until
from tests.edge_agent.host.test_fault_matrix import RESIDENT, RESTARTED
from tests.edge_agent.node.world import lease_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from simulators.engine_server import Reply, StandIn
    from simulators.http_wire import HttpRequest

MINE, SERVE = Activity.MINE, Activity.SERVE
PREPARED, FAILED, REFUSED = PrepareStage.PREPARED, PrepareStage.FAILED, PrepareStage.REFUSED
BEAT_S = 2.0


class Beats:
    """An agent's beats, with what it wants held ready."""

    def __init__(self, world: FaultWorld) -> None:
        self.world = world
        self.wanted: tuple[Prepare, ...] = ()
        self.silent = False

    def want(self, enters: Activity | None, **fields: float) -> None:
        values = {"probability": 0.9, "within_s": 600.0, "earns_usd_per_h": 2.0, **fields}
        rows = [] if enters is None else [{"device_id": DEVICE, "enters": enters, **values}]
        self.wanted = msgspec.convert(tuple(rows), tuple[Prepare, ...])
        self.say()

    def say(self) -> None:
        if self.world.node is not None and not self.silent:
            self.world.node.beat(AgentBeat(agent_epoch=1, prepare=self.wanted))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self.say()

    def told(self) -> Prepared | None:
        node = self.world.node
        rows = () if node is None else node._prewarm.prepared()
        return rows[0] if rows else None

    async def see(self, stage: PrepareStage, limit_s: float = 30.0) -> Prepared:
        await until(lambda: (row := self.told()) is not None and row.stage is stage, limit_s)
        row = self.told()
        assert row is not None
        return row


Scenario = Callable[[FaultWorld, Beats], Awaitable[None]]


@asynccontextmanager
async def _beating(beats: Beats) -> AsyncIterator[None]:
    task = asyncio.create_task(beats.run())
    try:
        yield
    finally:
        task.cancel()


def _paused(standin: StandIn) -> None:
    standin.state = "paused"  # type: ignore[attr-defined] # of ours


def _play(
    folder: Path, scenario: Scenario, pair: Pair = RESTARTED, *, starts_paused: bool = True
) -> None:
    async def main() -> None:
        world = FaultWorld(folder, pair)
        world.starts_paused = starts_paused
        if starts_paused:
            world.bodies["miner"].born = _paused
        beats = Beats(world)
        async with world.running(), _beating(beats):
            await scenario(world, beats)
            assert world.both_at_work == []
            assert world.unverified == []

    run(main())


async def _serve(world: FaultWorld, began: dict[Phase, int] | None = None) -> Switch:
    async def before(phase: Phase) -> bool:
        if began is not None:
            began[phase] = world.bodies["server"].started
        return True

    switch = await world.switch(MINE, SERVE, lease_work(), before=before)
    assert [one.status for one in switch.devices] == [Status.COMMITTED]
    return switch


def _count(world: FaultWorld, outcome: str) -> int:
    assert world.host is not None
    return world.host.prewarmer.counts[GPU, outcome]


def _earns(world: FaultWorld) -> None:
    """The miner mines, nothing was fenced, and nobody was billed."""
    assert world.mines()
    assert world.held.activity is MINE
    assert not world.held.quarantined
    assert world.events == []
    assert world.log == []
    assert world.slot.instance is None


def test_a_switch_to_what_is_ready_starts_nothing(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        server = world.bodies["server"]
        beats.want(SERVE)
        assert (await beats.see(PREPARED)).code == ""
        _earns(world)
        assert server.started == 1
        began: dict[Phase, int] = {}
        await _serve(world, began)
        assert began[Phase.HANDOVER] == began[Phase.ACTIVATE] == server.started == 1
        await until(lambda: _count(world, "used") == 1)

    _play(tmp_path, scenario)


def test_the_same_switch_from_cold_starts_its_engine_in_handover(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        del beats
        began: dict[Phase, int] = {}
        await _serve(world, began)
        assert (began[Phase.HANDOVER], began[Phase.ACTIVATE]) == (0, 1)

    _play(tmp_path, scenario)


def test_what_takes_longer_than_an_act_is_served_only_where_it_was_made_ready(
    tmp_path: Path,
) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        world.bodies["server"].slow_s = 5.0  # an act may take 1 s
        cold = await world.switch(MINE, SERVE, lease_work())
        assert cold.devices[0].status is Status.ROLLED_BACK
        await until(world.mines)
        beats.want(SERVE)
        await beats.see(PREPARED)
        await _serve(world)

    _play(tmp_path, scenario)


def test_a_miner_is_held_ready_while_its_gpu_serves(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        await _serve(world)
        miner = world.bodies["miner"]
        assert not miner.alive
        beats.want(MINE)
        await beats.see(PREPARED)
        assert world.serving()
        assert not world.mines()
        before = miner.started
        switch = await world.switch(SERVE, MINE)
        assert switch.devices[0].status is Status.COMMITTED
        assert miner.started == before
        assert world.mines()

    _play(tmp_path, scenario)


def test_a_miner_that_hashes_from_its_start_is_not_started_before_its_time(
    tmp_path: Path,
) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        await _serve(world)
        beats.want(MINE)
        assert (await beats.see(REFUSED)).code == "hashes_first"
        assert not world.bodies["miner"].alive
        assert world.serving()

    _play(tmp_path, scenario, starts_paused=False)


def test_a_forecast_that_turns_lets_go_and_frees_the_memory(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        before_mib = world.used_mib()
        beats.want(SERVE)
        await beats.see(PREPARED)
        assert world.used_mib() > before_mib
        beats.want(None)
        await until(lambda: not world.bodies["server"].alive, 10)
        assert world.used_mib() == before_mib
        await until(lambda: beats.told() is None, 5)
        _earns(world)

    _play(tmp_path, scenario)


def test_a_start_that_is_wanted_no_longer_is_ended_midway(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        server = world.bodies["server"]
        server.slow_s = 4.0
        beats.want(SERVE)
        await beats.see(PrepareStage.PREPARING)
        beats.want(None)
        await asyncio.sleep(8)
        assert not server.alive
        assert _count(world, "prepared") == 0
        _earns(world)

    _play(tmp_path, scenario)


@pytest.mark.parametrize("who", ["agent", "node"])
def test_without_the_word_of_agent_or_node_all_is_let_go(tmp_path: Path, who: str) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        await beats.see(PREPARED)
        if who == "node":
            await world.kill_node()
        beats.silent = True
        limit_s = FOR_S if who == "node" else PREPARE_LAPSES_S
        await asyncio.sleep(limit_s - 5)
        assert world.bodies["server"].alive
        await until(lambda: not world.bodies["server"].alive, 10)
        assert world.mines()
        if who == "node":
            await world.start_node()

    _play(tmp_path, scenario)


def test_a_node_that_starts_anew_is_told_again_before_anything_lapses(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        await beats.see(PREPARED)
        await world.kill_node()
        await asyncio.sleep(3)
        await world.start_node()
        await beats.see(PREPARED)
        assert world.bodies["server"].started == 1

    _play(tmp_path, scenario)


def test_a_host_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        await beats.see(PREPARED)
        await world.kill_host()
        beats.want(None)
        await asyncio.sleep(1)
        assert world.bodies["server"].alive  # engines outlive their host
        await world.start_host()
        await until(lambda: not world.bodies["server"].alive, 10)
        await until(world.mines)

    _play(tmp_path, scenario)


def test_a_paused_miner_of_a_killed_host_is_ended_or_taken_over(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        miner = world.bodies["miner"]
        for wanted in (True, False):
            await _serve(world)
            beats.want(MINE)
            await beats.see(PREPARED)
            started = miner.started
            await world.kill_host()
            if not wanted:
                beats.want(None)
            await world.start_host()
            if wanted:
                await beats.see(PREPARED)
                assert miner.started == started
                beats.want(None)
            await until(lambda: not miner.alive, 30)
            switch = await world.switch(Activity.SERVE, MINE)
            assert switch.devices[0].status is Status.COMMITTED

    _play(tmp_path, scenario)


def _hangs(standin: StandIn) -> None:
    standin.lies.tell(EVERY_PATH, Lie.HANG)


def _lies(standin: StandIn) -> None:
    standin.lies.tell("/pause", Lie.FALSE)


def _wrong(standin: StandIn) -> None:
    standin.rubbish = True  # type: ignore[attr-defined] # of servers


@pytest.mark.parametrize("born", [_hangs, _lies, _wrong, None])
def test_one_that_hangs_lies_or_fails_is_counted_and_the_gpu_earns_on(
    tmp_path: Path, born: Callable[[StandIn], None] | None
) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        server = world.bodies["server"]
        if born is None:
            server.starts = False
        else:
            server.born = born
        beats.want(SERVE)
        row = await beats.see(FAILED)
        assert row.code
        assert not server.alive
        assert _count(world, "failed") == 1
        started = server.started
        await asyncio.sleep(RETRY_S / 2)
        assert server.started == started  # not again and again
        _earns(world)

    _play(tmp_path, scenario)


def test_one_that_dies_while_it_is_held_is_told_as_failed(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        await beats.see(PREPARED)
        world.bodies["server"].die()
        assert (await beats.see(FAILED)).code == "died"
        _earns(world)

    _play(tmp_path, scenario)


def test_one_that_takes_more_memory_than_it_claims_is_ended(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        def greedy(standin: StandIn) -> None:
            world.greed_mib[id(standin)] = 20_000

        world.bodies["server"].born = greedy
        beats.want(SERVE)
        assert (await beats.see(FAILED)).code == "over_claim"
        assert not world.bodies["server"].alive
        _earns(world)

    _play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"probability": 0.01}, "unlikely"),
        ({"earns_usd_per_h": 0.0}, "dearer"),
        ({"draw_w": 700.0, "energy_usd_per_mwh": 5_000.0}, "dearer"),
    ],
)
def test_what_is_not_worth_it_is_refused(
    tmp_path: Path, fields: dict[str, float], code: str
) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE, **fields)
        assert (await beats.see(REFUSED)).code == code
        assert world.bodies["server"].started == 0
        _earns(world)

    _play(tmp_path, scenario)


def test_what_does_not_fit_beside_the_miner_is_refused(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        world.server_claim_mib = 79_000
        await world.kill_host()
        await world.start_host()
        await until(lambda: world.slot.mining is True)
        beats.want(SERVE)
        assert (await beats.see(REFUSED)).code == "vram"
        assert world.bodies["server"].started == 0

    _play(tmp_path, scenario)


def test_what_is_warm_anyway_is_told_so_and_never_ended(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        assert (await beats.see(PREPARED)).code == "standing"
        beats.want(None)
        await asyncio.sleep(5)
        assert world.bodies["server"].alive
        assert world.bodies["server"].started == 0

    _play(tmp_path, scenario, RESIDENT)


def test_nothing_begins_while_a_switch_is_under_way(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        seen: list[int] = []

        async def before(phase: Phase) -> bool:
            if phase is Phase.PAUSE:
                beats.want(SERVE)
                await asyncio.sleep(5)  # the switch to idle is slow
            seen.append(world.bodies["server"].started)
            return True

        await world.switch(MINE, Activity.IDLE, before=before)
        assert set(seen) == {0}

    _play(tmp_path, scenario)


def test_a_switch_that_meets_a_start_waits_for_it_and_serves_on(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        def slowly(standin: StandIn) -> None:
            answer = standin.answer

            async def answered(request: HttpRequest, lie: Lie | None) -> Reply:
                if request.path == "/pause":  # it looks as if it were at work meanwhile
                    await asyncio.sleep(0.4)
                return await answer(request, lie)

            standin.answer = answered  # type: ignore[method-assign]

        server = world.bodies["server"]
        server.born = slowly
        beats.want(SERVE)
        await until(lambda: server.alive, 10)
        await _serve(world)
        for _ in range(20):
            await asyncio.sleep(0.1)
            assert world.able()

    _play(tmp_path, scenario)


def test_a_rolled_back_switch_leaves_nothing_ready_behind_once_it_turned(tmp_path: Path) -> None:
    async def scenario(world: FaultWorld, beats: Beats) -> None:
        beats.want(SERVE)
        await beats.see(PREPARED)

        async def before(phase: Phase) -> bool:
            if phase is Phase.VERIFY:
                world.bodies["server"].die()
            return True

        switch = await world.switch(MINE, SERVE, lease_work(), before=before)
        assert switch.devices[0].status is Status.ROLLED_BACK
        beats.want(None)
        await asyncio.sleep(8)
        assert not world.bodies["server"].alive
        await until(world.mines)

    _play(tmp_path, scenario)
