"""What the agent has held ready: asked, told, used, counted, kept over its death, replayed."""

import asyncio
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.services.agent import Agent
from edge_agent.services.override_keys import Overrides
from edge_agent.services.switch_costs import CostLearner
from edge_agent.services.what_if import what_if
from edge_agent.storage.journal_reader import JournalReader
from protocol.lease import LeaseState
from protocol.node import Prepare, PrepareStage
from protocol.resource import Activity
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import World, build_site, lease, play
from tests.edge_agent.services.replay_world import JournalWorld, live, replay_file, spiky
from tests.edge_agent.services.test_replay import rewrite, rows_of

PREWARM = PrewarmLimits(per_node=1)
SERVE = Activity.SERVE


def _world() -> World:
    return World(build_site(prewarm=PREWARM))


async def _demand(agent: Agent, leases: int = 3) -> None:
    for number in range(leases):
        name = f"d{number}.1"
        await agent.offer_lease(lease(name))
        await asyncio.sleep(20)
        await agent.offer_lease(lease(name, generation=2, state=LeaseState.END))
        await asyncio.sleep(20)


def _wanted(agent: Agent) -> tuple[Prepare, ...]:
    return tuple(one for node in agent.site.nodes for one in agent.prepare(node))


def test_what_is_likely_is_asked_for_told_as_ready_and_used() -> None:
    world = _world()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3)
        assert _wanted(agent) == ()
        await _demand(agent)
        (one,) = _wanted(agent)
        assert (one.enters, one.earns_usd_per_h) == (SERVE, 2.0)
        assert one.energy_usd_per_mwh == pytest.approx((30.0 + 5.0) * 1.25)
        world.nodes.stage = lambda _one: PrepareStage.PREPARED
        await asyncio.sleep(8)
        said = agent.status().prewarm
        assert said is not None
        assert (said.asked, said.ready, said.used) == (1, 1, 0)
        text = agent.why(one.device_id).prepared
        assert text is not None
        assert text.startswith("prepared to serve")
        await agent.offer_lease(lease("next.1"))
        await asyncio.sleep(8)
        taken = next(row for row in agent.state.leases if row.lease_id == "next.1")
        assert [slot.device_id for slot in taken.slots] == [one.device_id]
        said = agent.status().prewarm
        assert said is not None
        assert (said.used, said.wasted) == (1, 0)
        assert 'hcp_prewarm_ended_total{outcome="used",ready="true"} 1' in agent.metrics()

    play(world, script)


def test_a_site_that_has_it_switched_off_asks_for_nothing() -> None:
    async def script(agent: Agent) -> None:
        await _demand(agent)
        assert _wanted(agent) == ()
        assert agent.status().prewarm is None

    play(World(build_site()), script)


def test_an_agent_that_is_killed_wants_the_same_again() -> None:
    world = _world()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await _demand(agent)
            before = _wanted(agent)
            assert len(before) == 1
            for _ in range(2):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                agent, tasks = await world.start(group)
                assert _wanted(agent) == before
                await asyncio.sleep(8)
                assert _wanted(agent) == before
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("stage", [PrepareStage.REFUSED, PrepareStage.FAILED])
def test_one_that_cannot_be_had_is_counted_and_left_alone(stage: PrepareStage) -> None:
    world = _world()

    async def script(agent: Agent) -> None:
        world.nodes.stage = lambda _one: stage
        await _demand(agent)
        await asyncio.sleep(20)
        said = agent.status().prewarm
        assert said is not None
        assert said.failed >= 1
        assert said.failed <= len(world.nodes.gpus)  # each device once, then it rests
        assert all(gpu.activity is Activity.MINE for gpu in world.nodes.gpus.values())
        assert agent.status().problems == ()

    play(world, script)


def test_switches_to_what_was_ready_teach_a_cost_of_their_own() -> None:
    world = _world()

    async def script(agent: Agent) -> None:
        world.nodes.stage = lambda _one: PrepareStage.PREPARED
        await _demand(agent, leases=30)
        moves = {row.ready for row in agent.state.switch_costs if row.to_activity is SERVE}
        assert moves == {True}
        kept = CostLearner(agent.site, agent.state.switch_costs)
        assert {key.move for key, _ in kept.book.cells if key.move.startswith("mine-serve")} == {
            "mine-serve-ready"
        }

    play(world, script)


EAGER = PrewarmLimits(
    per_node=1, start_chance=0.2, keep_chance=0.1, horizon_s=40_000.0, expire_s=7_200.0
)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the journal of two days with restarts, of a site that pre-warms."""
    path = tmp_path_factory.mktemp("ready") / "core.sqlite"
    world = JournalWorld(path, site=build_site(prewarm=EAGER), turn_s=600.0, price_at=spiky(3))
    world.nodes.stage = lambda one: (
        PrepareStage.PREPARED if one.within_s > 60.0 else PrepareStage.PREPARING
    )
    live(world, 2)
    return path


def test_a_journal_with_it_is_replayed_exactly(days: Path) -> None:
    acts = [fact for _, row in rows_of(days) for fact in row.acts]
    assert any(isinstance(fact, f.PrepareAsked) for fact in acts)
    ended = {fact.outcome for fact in acts if isinstance(fact, f.PrepareEnded)}
    assert f.PrepareOutcome.USED in ended
    report = replay_file(days)
    assert report.differences == ()
    assert report.equal
    assert report.states > 0


def test_an_act_that_was_not_decided_is_found_and_named(days: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(days, tmp_path / "core.sqlite"))
    for seq, row in rows_of(path):
        asked = [fact for fact in row.acts if isinstance(fact, f.PrepareAsked)]
        if asked:
            told = tuple(
                replace(fact, chance=0.123) if fact in asked else fact for fact in row.acts
            )
            rewrite(path, seq, f.encode_row(replace(row, acts=told)), chained=True)
            break
    found = [row for row in replay_file(path).differences if row.kind == "act"]
    assert "0.123" in str(found[0].journalled)


def test_the_same_values_ask_for_the_same(days: Path) -> None:
    reader = JournalReader(days)
    try:
        report = what_if(reader, (), Overrides())
    finally:
        reader.close()
    assert report.changes == ()
