"""The grid desk on a running agent: orders over a kill, replay, permissions, and feeds at odds."""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from edge_agent.core.errors import ActError
from edge_agent.core.facts import OrderSeen, decode_row
from edge_agent.core.passes import replay_row
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import state_hash
from edge_agent.local_api.api import BufferView, HubLink, LocalApi
from edge_agent.local_api.http import LocalError, LocalRequest, Peer
from edge_agent.services.agent import Agent
from edge_agent.services.grid_desk import OrderLine
from protocol.event import Alarm, SiteReport
from protocol.market import MarketTick
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import START, LoopClock, World, build_site, play

# Four miners of 3.45 kW with a PUE of 1.05; two of them stay.
HALF_MW = 0.0085


def request(method: str, path: str, body: object = None, *, writable: bool = True) -> LocalRequest:
    return LocalRequest(
        method=method,
        path=path,
        query={},
        body=b"" if body is None else msgspec.json.encode(body),
        peer=Peer(pid=1, uid=1_000, gid=1_000),
        writable=writable,
    )


def api_of(agent: Agent) -> LocalApi:
    return LocalApi(
        agent,
        LoopClock(),
        hub=lambda: HubLink(online=False, heard_age_s=None, backlog=0, last_error=""),
        buffer=lambda: BufferView(v=1, streams=(), segment_bytes=0, level=0, dropped_segments=0),
        switches=lambda _limit: (),
        grid=agent.grid,
    )


def line_of(agent: Agent, order_id: str) -> OrderLine:
    return next(row for row in agent.grid.orders().items if row.order_id == order_id)


async def add(agent: Agent, order_id: str, limit_mw: float, due_s: float, for_s: float) -> None:
    due_at = LoopClock().wall() + timedelta(seconds=due_s)
    until_at = due_at + timedelta(seconds=for_s)
    await agent.grid.add_order(limit_mw, due_at, until_at, order_id, "test")


@pytest.mark.parametrize("kill_s", [100.0, 346.0, 380.0, 420.0])
def test_an_order_outlives_a_killed_agent_and_is_met(kill_s: float) -> None:
    world = World(build_site(asics=4, gpus=0))

    async def main() -> Agent:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(3.0)
            await add(agent, "o1", HALF_MW, due_s=600.0, for_s=300.0)
            await asyncio.sleep(kill_s)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(8.0)
            agent, tasks = await world.start(group)
            await asyncio.sleep(600.0 - kill_s - 8.0)
            assert sum(world.fleet.mining.values()) == 2
            await asyncio.sleep(420.0)
            assert sum(world.fleet.mining.values()) == 4
            for task in tasks:
                task.cancel()
            return agent

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        agent = runner.run(main())
    line = line_of(agent, "o1")
    assert (line.status, line.over_s, line.why) == ("met", 0.0, "")
    assert line.achieved[-1].load_mw <= HALF_MW
    assert not [row for row in world.store.of(Alarm) if "order" in row.code]  # type: ignore[union-attr]


def test_orders_replay_to_the_same_state_and_a_missed_one_is_alarmed() -> None:
    world = World(build_site(asics=4, gpus=2))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        world.fleet.refuse = {"a0", "a1"}
        await add(agent, "o1", 0.001, due_s=5.0, for_s=120.0)
        await asyncio.sleep(60.0)
        await agent.grid.cancel_order("o1", "test")
        await asyncio.sleep(5.0)

    agent = play(world, script)
    line = line_of(agent, "o1")
    assert line.status == "missed"
    assert line.worst_mw > 0.005
    assert "before the deadline" in line.why
    alarms = [row.code for row in world.store.of(Alarm) if isinstance(row, Alarm)]
    assert alarms.count("grid_order_missed") == 1
    rows = [decode_row(body) for _, body in world.store.facts]
    assert sum(isinstance(fact, OrderSeen) for row in rows for fact in row.facts) == 1
    state = new_state(world.site, rows[0].instant)
    for row in rows:
        state, _ = replay_row(world.site, state, row)
    assert state_hash(world.site, state) == agent.state_hash()


def test_the_api_takes_orders_by_the_control_socket_only_and_checks_them() -> None:
    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        api = api_of(agent)
        body = {"limit_mw": 0.01, "due_in_s": 600, "for_s": 300, "order_id": "o1", "by": "desk"}
        with pytest.raises(LocalError) as refused:
            await api.handle(request("POST", "/v1/orders/add", body, writable=False))
        assert refused.value.status == 403
        await api.handle(request("POST", "/v1/orders/add", body))
        line = line_of(agent, "o1")
        assert line.by == "desk (uid 1000)"
        assert line.until_at - line.due_at == timedelta(seconds=300)
        # Two waves of the slow prior of miners, and the margin.
        assert line.due_at - line.starts_at == timedelta(seconds=2 * 120 + 15)
        for bad, status in (
            (body, 409),
            (body | {"order_id": "o2", "limit_mw": -1}, 409),
            (body | {"order_id": "o2", "for_s": -700}, 409),
            (body | {"order_id": "o2", "for_s": 8 * 86_400}, 409),
            (body | {"order_id": "o2", "due_at": "2026-03-01T00:10:00Z"}, 400),
            (body | {"order_id": "o2", "limit_mw": "much"}, 400),
        ):
            with pytest.raises(LocalError) as refused:
                await api.handle(request("POST", "/v1/orders/add", bad))
            assert refused.value.status == status, bad
        with pytest.raises(LocalError) as refused:
            await api.handle(request("POST", "/v1/orders/cancel", {"order_id": "x"}))
        assert refused.value.status == 404
        await api.handle(request("POST", "/v1/orders/cancel", {"order_id": "o1"}))
        assert line_of(agent, "o1").status == "cancelled"
        with pytest.raises(ActError, match="no_order"):
            await agent.grid.cancel_order("o1", "again")
        told = api.snapshot()
        assert told.orders is not None
        assert told.power is not None
        assert told.market is not None
        assert told.orders.items[0].order_id == "o1"
        assert told.power.power.cap_mw == pytest.approx(0.05)

    play(World(), script)


def test_feeds_at_odds_are_told_with_numbers_in_market_and_why() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(3.0)
        world.feed_on = False
        assert agent.grid.market().disagreement is None
        wall = LoopClock().wall()
        for feed, price in (("a", 31.0), ("b", 3_100.0)):
            tick = MarketTick(feed=feed, measured_at=wall, source_at=wall, price_usd_per_mwh=price)
            agent.offer_market(tick)
        await asyncio.sleep(6.0)
        view = agent.grid.market()
        assert view.disagreement is not None
        assert "a 31" in view.disagreement
        assert "b 3100" in view.disagreement
        rows = {row.feed: row for row in view.feeds if row.input == "price_usd_per_mwh"}
        assert rows["a"].value == 31.0
        assert rows["b"].value == 3_100.0
        assert rows["a"].taken != rows["b"].taken
        assert 5.0 <= rows["a"].age_s <= 7.0
        assert view.at_risk_usd_per_h > 0.0
        assert agent.why("a0").price_doubt == view.disagreement
        assert rows["a"].source_at > START

    play(world, script)


def test_the_hub_is_told_what_can_go() -> None:
    world = World(build_site(asics=4, gpus=0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(70.0)
        told = agent.grid.power().power
        assert told.curtailable_mw_10min > 0.0
        report = [row for row in world.store.of(SiteReport) if isinstance(row, SiteReport)][-1]
        assert report.curtailable_mw_10min == told.curtailable_mw_10min
        assert report.curtailable_mw_5s == told.curtailable_mw_5s
        assert agent.status().curtailable_mw_10min == told.curtailable_mw_10min

    play(world, script)
