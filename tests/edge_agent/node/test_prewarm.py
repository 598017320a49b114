"""What a node hands on of what is to be held ready, and what it tells of it; in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edge_agent.node.prewarm import FOR_S
from edge_agent.workloads.errors import DriverUnavailableError
from edge_agent.workloads.ports import Ready, Wish
from protocol.node import (
    PREPARE_LAPSES_S,
    AgentBeat,
    NodeFacts,
    Phase,
    Prepare,
    Prepared,
    PrepareStage,
)
from protocol.resource import Activity
from tests.edge_agent.node.world import lease_work, step

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.edge_agent.node.conftest import Scenario
    from tests.edge_agent.node.world import World

    Play = Callable[[Scenario], None]

PREPARED, PREPARING, REFUSED = (
    PrepareStage.PREPARED,
    PrepareStage.PREPARING,
    PrepareStage.REFUSED,
)


def _one(device: str = "d0", enters: Activity = Activity.SERVE) -> Prepare:
    return Prepare(device_id=device, enters=enters, probability=0.8, within_s=60.0, why="because")


def _ready(wish: Wish) -> Ready:
    return Ready(gpu=wish.gpu, enters=wish.enters, stage=PREPARED, code="standing")


def _told(world: World) -> tuple[Prepared, ...]:
    facts: NodeFacts = world.sink.facts[-1]
    return facts.prepared


def _is_unheard(world: World) -> bool:
    facts: NodeFacts = world.sink.facts[-1]
    return facts.unheard


def _wishes(world: World) -> tuple[Wish, ...]:
    return world.driver.wishes


def test_what_the_agent_wants_reaches_the_host_and_comes_back_as_it_stands(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.readiness = _ready
        async with world.node(), world.agent():
            world.sink.wanted = (_one(),)
            await asyncio.sleep(4.5)
            assert len(_wishes(world)) == 1
            wish = _wishes(world)[0]
            assert (wish.gpu, wish.enters, wish.begin) == ("gpu0", Activity.SERVE, True)
            assert (wish.probability, wish.within_s, wish.why) == (0.8, 60.0, "because")
            assert _told(world) == (
                Prepared(device_id="d0", enters=Activity.SERVE, stage=PREPARED, code="standing"),
            )
            world.sink.wanted = ()
            await asyncio.sleep(4.5)
            assert _wishes(world) == ()
            assert _told(world) == ()

    play(scenario)


def test_without_an_agent_it_lapses_and_the_host_is_told_so_once(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.readiness = _ready
        async with world.node():
            async with world.agent():
                world.sink.wanted = (_one(),)
                await asyncio.sleep(4.5)
                assert len(_wishes(world)) == 1
            await asyncio.sleep(PREPARE_LAPSES_S - 4)
            assert len(_wishes(world)) == 1
            await asyncio.sleep(6)
            assert _wishes(world) == ()

    play(scenario)


def test_a_host_is_told_each_second_while_something_is_wanted_and_never_otherwise(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        told: list[int] = []

        async def prewarm(wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
            assert for_s == FOR_S
            told.append(len(wishes))
            return tuple(_ready(wish) for wish in wishes)

        monkeypatch.setattr(world.driver, "prewarm", prewarm)
        async with world.node(), world.agent():
            await asyncio.sleep(10)
            assert told == []
            world.sink.wanted = (_one(),)
            await asyncio.sleep(10)
            assert 7 <= len(told) <= 11
            world.sink.wanted = ()
            await asyncio.sleep(10)
            assert told.count(0) == 1

    play(scenario)


def test_a_host_that_knows_of_none_is_asked_once_and_nothing_else_suffers(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        ask, asked = world.driver.prewarm, list[int]()

        async def prewarm(wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
            asked.append(len(wishes))
            return await ask(wishes, for_s)

        monkeypatch.setattr(world.driver, "prewarm", prewarm)
        async with world.node(), world.agent():
            world.sink.wanted = (_one(),)
            await asyncio.sleep(6.5)
            assert asked == [1]
            (row,) = _told(world)
            assert (row.stage, row.code) == (REFUSED, "unsupported")
            await world.serve("d0", lease_work())
            assert world.sink.events == []
            world.driver.readiness = _ready
            world.restart_host()  # another program now
            await asyncio.sleep(2.5)
            assert [one.stage for one in _told(world)] == [PREPARED]

    play(scenario)


def test_a_host_that_is_silent_makes_nothing_ready_and_no_device_suffers(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        async def prewarm(wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
            await asyncio.sleep(5)
            raise DriverUnavailableError(f"no answer in 5 s: {len(wishes)}, {for_s}")

        monkeypatch.setattr(world.driver, "prewarm", prewarm)
        async with world.node(), world.agent():
            world.sink.wanted = (_one(), _one("nobody"))
            await asyncio.sleep(20)
            (row,) = _told(world)
            assert (row.device_id, row.code) == ("nobody", "unknown_device")
            await world.serve("d0", lease_work())
            assert world.sink.events == []

    play(scenario)


def test_nothing_is_to_begin_between_two_phases_of_a_switch(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.readiness = _ready
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            world.sink.wanted = (_one("d0"), _one("d1"))
            steps = step("d0", Activity.IDLE, Activity.MINE)
            await world.phase("s1", Phase.VALIDATE, steps)
            await world.phase("s1", Phase.PAUSE, steps)
            await asyncio.sleep(4)
            assert {one.gpu: one.begin for one in _wishes(world)} == {
                "gpu0": False,
                "gpu1": True,
            }
            for phase in (Phase.ACTIVATE, Phase.VERIFY, Phase.COMMIT):
                await world.phase("s1", phase, steps)
            await asyncio.sleep(2)
            assert all(one.begin for one in _wishes(world))

    play(scenario)


def test_what_was_ready_once_is_not_to_begin_anew(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.readiness = _ready
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            world.sink.wanted = (_one("d0"), replace(_one("d1"), anew=False))
            await asyncio.sleep(2.5)
            first = _wishes(world)
            await asyncio.sleep(2.5)
            assert {one.gpu: one.anew for one in _wishes(world)} == {"gpu0": False, "gpu1": False}
            assert {one.gpu: one.begin for one in first} == {"gpu0": True, "gpu1": True}
            world.sink.wanted = ()
            await asyncio.sleep(4.5)
            world.driver.readiness = lambda wish: replace(_ready(wish), stage=PREPARING)
            world.sink.wanted = (_one("d0"),)
            await asyncio.sleep(4.5)
            assert [one.anew for one in _wishes(world)] == [True]

    play(scenario)


def test_a_node_says_whether_its_silence_means_anything(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        away = ["host"]

        async def prewarm(wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
            assert for_s == FOR_S
            if away:
                raise DriverUnavailableError("no answer")
            return tuple(_ready(wish) for wish in wishes)

        monkeypatch.setattr(world.driver, "prewarm", prewarm)
        async with world.node(), world.agent():
            await asyncio.sleep(5.5)
            assert not _is_unheard(world)  # nothing is wanted
            world.sink.wanted = (_one(),)
            await asyncio.sleep(4.5)
            assert _is_unheard(world)
            away.clear()
            await asyncio.sleep(2.5)
            assert not _is_unheard(world)
            assert [row.stage for row in _told(world)] == [PREPARED]

    play(scenario)


def test_what_is_wanted_no_longer_is_told_until_its_host_says_that_it_is_gone(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        leaving = [_ready(Wish(gpu="gpu0", enters=Activity.SERVE, probability=1.0, within_s=1.0))]

        async def prewarm(wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
            assert for_s == FOR_S
            return tuple(_ready(wish) for wish in wishes) or tuple(leaving)

        monkeypatch.setattr(world.driver, "prewarm", prewarm)
        async with world.node(), world.agent():
            world.sink.wanted = (_one(),)
            await asyncio.sleep(4.5)
            world.sink.wanted = ()
            await asyncio.sleep(8)
            assert [row.device_id for row in _told(world)] == ["d0"]
            leaving.clear()
            await asyncio.sleep(2.5)
            assert _told(world) == ()

    play(scenario)


def test_an_agent_from_the_past_wants_nothing_here(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.readiness = _ready
        async with world.node() as node, world.agent(epoch=5):
            await asyncio.sleep(1.5)
            node.beat(AgentBeat(agent_epoch=4, prepare=(_one(),)))
            await asyncio.sleep(1.5)
            assert _wishes(world) == ()

    play(scenario)
