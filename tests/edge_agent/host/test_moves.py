"""What was seen of an engine a moment ago: when it counts, and what happens when it is over."""

from __future__ import annotations

import asyncio

import pytest

from edge_agent.clock import SystemClock
from edge_agent.host import moves
from edge_agent.host.moves import Mover
from edge_agent.workloads.engine import EngineSpec, EngineState, PauseMode, Probe, Strategy
from edge_agent.workloads.engines.simulated import SimulatedEngine, SimulatedMachine

SPEC = EngineSpec(engine_id="m0", gpu="g0")


class Watched(SimulatedEngine):
    """An engine that counts how often it is asked where it stands, and may be slow to say so."""

    def __init__(self, machine: SimulatedMachine) -> None:
        super().__init__(SPEC, machine, mines=True)
        self.asked = 0
        self.told = asyncio.Event()
        self.told.set()

    async def probe(self) -> Probe:
        self.asked += 1
        probe = await super().probe()
        await self.told.wait()
        return probe


@pytest.fixture
def machine() -> SimulatedMachine:
    return SimulatedMachine(SystemClock())


async def _mover(machine: SimulatedMachine, state: EngineState) -> tuple[Mover, Watched]:
    engine = Watched(machine)
    machine.put(SPEC, state)
    mover = Mover(engine, Strategy.RESIDENT_GATE, act_s=1.0, grace_s=0.1)
    await mover.look()
    engine.asked = 0
    return mover, engine


async def test_what_was_just_seen_at_work_is_paused_without_another_look(
    machine: SimulatedMachine,
) -> None:
    mover, engine = await _mover(machine, EngineState.ACTIVE)
    await mover.off(PauseMode.KEEP)
    assert machine.body(SPEC).state is EngineState.WARM
    assert (engine.asked, engine.calls) == (0, ["pause"])


async def test_there_and_back_again_asks_nothing_but_the_acts(machine: SimulatedMachine) -> None:
    mover, engine = await _mover(machine, EngineState.ACTIVE)
    await mover.off(PauseMode.KEEP)
    await mover.to_work()
    assert (engine.asked, engine.calls) == (0, ["pause", "resume"])
    assert machine.body(SPEC).state is EngineState.ACTIVE


async def test_an_old_look_is_none(
    machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, engine = await _mover(machine, EngineState.ACTIVE)
    monkeypatch.setattr(moves, "SEEN_S", -1.0)
    await mover.off(PauseMode.KEEP)
    await mover.to_work()
    assert engine.asked == 2


async def test_an_act_makes_earlier_looks_none_also_one_that_is_under_way(
    machine: SimulatedMachine,
) -> None:
    mover, engine = await _mover(machine, EngineState.WARM)
    at_once, told = engine.told, asyncio.Event()
    engine.told = told
    late = asyncio.create_task(mover.look())
    while not engine.asked:  # noqa: ASYNC110 - an engine tells no event
        await asyncio.sleep(0)
    engine.told = at_once
    await mover.end()
    told.set()
    assert (await late).state is EngineState.WARM
    await mover.to_work()
    assert engine.calls == ["stop", "prepare", "resume"], "it is not taken for warm any more"


async def test_one_that_ended_since_it_was_seen_at_work_is_off(machine: SimulatedMachine) -> None:
    mover, engine = await _mover(machine, EngineState.ACTIVE)
    machine.kill("m0")
    await mover.off(PauseMode.KEEP)
    assert engine.calls == ["pause"], "there is nothing to end"


async def test_one_that_ended_since_it_was_seen_warm_is_prepared_and_comes(
    machine: SimulatedMachine,
) -> None:
    mover, engine = await _mover(machine, EngineState.WARM)
    machine.kill("m0")
    await mover.to_work()
    assert engine.calls == ["resume", "prepare", "resume"]
    assert machine.body(SPEC).state is EngineState.ACTIVE
