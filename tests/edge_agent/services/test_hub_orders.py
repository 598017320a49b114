"""Grid orders of the hub on a running agent: taken once, refused with a reason, told to the end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from edge_agent.services.hub_words import HubWords
from protocol.order import GridOrder, OrderReport, OrderState, SiteOrders
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import LoopClock, World, build_site, play

if TYPE_CHECKING:
    from edge_agent.ports import Clock, CoreStore
    from edge_agent.services.agent import Agent

# Four miners of 3.45 kW with a PUE of 1.05; two of them stay.
HALF_MW = 0.0085


def words_of(world: World, agent: Agent) -> HubWords:
    return HubWords(agent, cast("CoreStore", world.store), cast("Clock", LoopClock()))


def order(
    order_id: str, due_s: float, for_s: float, state: OrderState = OrderState.STAND
) -> GridOrder:
    due_at = LoopClock().wall() + timedelta(seconds=due_s)
    return GridOrder(
        order_id=order_id, state=state, limit_mw=HALF_MW, due_at=due_at,
        until_at=due_at + timedelta(seconds=for_s), by="op@x.test",
    )  # fmt: skip


def table(*orders: GridOrder) -> SiteOrders:
    return SiteOrders(hub_epoch=1, generation=1, site_id="lubbock", orders=orders)


def told(world: World, order_id: str) -> list[OrderReport]:
    events = world.store.of(OrderReport)
    return [row for row in events if isinstance(row, OrderReport) and row.order_id == order_id]


def statuses(world: World, order_id: str) -> list[str]:
    return list(dict.fromkeys(row.status for row in told(world, order_id)))


def test_an_order_said_again_and_over_a_restart_is_taken_once_and_told_to_its_end() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def main() -> Agent:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(3.0)
            wanted = table(order("ercot-7", due_s=600.0, for_s=300.0))
            for _ in range(2):
                await words_of(world, agent).on_orders(wanted)
            await asyncio.sleep(400.0)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(8.0)
            agent, tasks = await world.start(group)
            await words_of(world, agent).on_orders(wanted)
            await asyncio.sleep(195.0)
            assert sum(world.fleet.mining.values()) == 2
            await asyncio.sleep(420.0)
            await words_of(world, agent).on_orders(wanted)
            await asyncio.sleep(60.0)
            assert sum(world.fleet.mining.values()) == 4
            for task in tasks:
                task.cancel()
            return agent

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        agent = runner.run(main())
    assert [line.order_id for line in agent.grid.orders().items] == ["ercot-7"]
    assert statuses(world, "ercot-7") == ["waiting", "shedding", "holding", "met"]
    first, last = told(world, "ercot-7")[0], told(world, "ercot-7")[-1]
    assert (first.by, first.limit_mw, first.ended_at) == ("hub: op@x.test", HALF_MW, None)
    assert first.promised_mw is not None
    assert last.ended_at is not None
    assert last.load_mw is not None
    assert last.load_mw <= HALF_MW
    assert last.over_s == 0.0


def test_a_refused_order_is_told_once_with_its_reason() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        words = words_of(world, agent)
        late, good = order("late", due_s=-600.0, for_s=300.0), order("good", 60.0, 60.0)
        for _ in range(3):
            await words.on_orders(table(late, good))
        await asyncio.sleep(5.0)
        assert [line.order_id for line in agent.grid.orders().items] == ["good"]

    play(world, script)
    (refused,) = told(world, "late")
    assert refused.status == "refused"
    assert refused.why.startswith("bad_time: until: must be after")
    assert refused.ended_at is not None


def test_an_order_is_taken_back_and_one_taken_back_before_it_came_is_over() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        words = words_of(world, agent)
        await words.on_orders(table(order("o1", 3_600.0, 60.0)))
        await asyncio.sleep(5.0)
        back = OrderState.CANCELLED
        for _ in range(2):
            await words.on_orders(
                table(order("o1", 3_600.0, 60.0, back), order("o2", 3_600.0, 60.0, back))
            )
        await asyncio.sleep(5.0)

    play(world, script)
    assert statuses(world, "o1") == ["waiting", "cancelled"]
    assert told(world, "o1")[-1].ended_at is not None
    assert [(row.status, row.ended_at is not None) for row in told(world, "o2")] == [
        ("cancelled", True)
    ]


def test_what_the_hub_no_longer_names_stands_and_the_sites_own_orders_are_told_too() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        words = words_of(world, agent)
        await words.on_orders(table(order("o1", 3_600.0, 60.0)))
        await words.on_orders(table())
        now = LoopClock().wall()
        await agent.grid.add_order(
            HALF_MW, now + timedelta(hours=1), now + timedelta(hours=2), "own", "uid 0"
        )
        await asyncio.sleep(5.0)
        assert {line.order_id: line.status for line in agent.grid.orders().items} == {
            "o1": "waiting", "own": "waiting",
        }  # fmt: skip

    play(world, script)
    assert statuses(world, "own") == ["waiting"]
