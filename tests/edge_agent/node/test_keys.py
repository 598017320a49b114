"""Who may use what is served: said by the agent with its beats, handed on to the host."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edge_agent.workloads.errors import DriverUnavailableError
from protocol.lease import AccessKey
from protocol.node import LeaseKeys

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.edge_agent.node.conftest import Scenario
    from tests.edge_agent.node.world import World

    Play = Callable[[Scenario], None]

OLD, NEW = AccessKey(sha256="a" * 64), AccessKey(sha256="b" * 64)


def _table(*keys: AccessKey) -> tuple[LeaseKeys, ...]:
    return (LeaseKeys(lease_id="w1.1", keys=keys),)


def test_the_host_has_the_keys_of_the_newest_beat(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            world.sink.keys = _table(OLD)
            await asyncio.sleep(2.5)
            assert world.driver.tables[-1] == _table(OLD)
            world.sink.keys = _table(NEW, OLD)
            await asyncio.sleep(2.5)
            assert world.driver.tables[-1] == _table(NEW, OLD)
            world.sink.keys = ()
            await asyncio.sleep(2.5)
            assert world.driver.tables[-1] == ()

    play(scenario)


def test_an_unchanged_table_is_said_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        told: list[tuple[LeaseKeys, ...]] = []

        async def keys(table: tuple[LeaseKeys, ...]) -> None:
            told.append(table)

        monkeypatch.setattr(world.driver, "keys", keys)
        async with world.node(), world.agent():
            world.sink.keys = _table(OLD)
            await asyncio.sleep(30)
            assert told[-1] == _table(OLD)
            assert len(told) <= 2  # at most the empty one before it

    play(scenario)


def test_a_host_that_did_not_take_it_is_told_again_within_a_second(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        give, failures = world.driver.keys, iter(range(2))

        async def keys(table: tuple[LeaseKeys, ...]) -> None:
            if next(failures, None) is not None:
                raise DriverUnavailableError("not now")
            await give(table)

        world.sink.keys = _table(OLD)
        monkeypatch.setattr(world.driver, "keys", keys)
        async with world.node(), world.agent():
            await asyncio.sleep(3.5)
            assert world.driver.tables[-1] == _table(OLD)

    play(scenario)


def test_a_new_host_is_told_and_a_new_node_says_nothing_it_does_not_know(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.sink.keys = _table(OLD)
        async with world.node(), world.agent():
            await asyncio.sleep(2.5)
            told = len(world.driver.tables)
            world.restart_host()
            await asyncio.sleep(1.5)
            assert world.driver.tables[told:] == [_table(OLD)]
        async with world.node():
            await asyncio.sleep(5)
            assert len(world.driver.tables) == told + 1

    play(scenario)


def test_the_keys_are_there_before_the_gate_opens(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        order: list[str] = []
        give, gate = world.driver.keys, world.driver.gate

        async def keys(table: tuple[LeaseKeys, ...]) -> None:
            await give(table)
            order.append("keys")

        async def opened(gpu: str, instance_id: str, *, is_open: bool) -> object:
            order.append("gate")
            return await gate(gpu, instance_id, is_open=is_open)

        async with world.node() as service:
            await asyncio.sleep(1.5)  # its devices have been seen
            monkeypatch.setattr(world.driver, "keys", keys)
            monkeypatch.setattr(world.driver, "gate", opened)
            service._keys.take(_table(NEW))  # heard, and not handed on yet
            await world.serve()
            assert order[:2] == ["keys", "gate"]

    play(scenario)
