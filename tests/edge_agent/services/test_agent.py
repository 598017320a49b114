import asyncio

import pytest

from edge_agent.core.errors import ActError
from edge_agent.core.facts import decode_row
from edge_agent.core.passes import replay_row
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import decode_state, state_hash
from edge_agent.services.agent import Agent
from protocol.event import (
    Alarm,
    LeaseAccepted,
    LeaseInterrupted,
    LeaseRefused,
    LeaseReleased,
    LeaseRunning,
    ReleaseOutcome,
    SiteReport,
)
from protocol.lease import LeaseState, SitePolicy
from protocol.resource import Activity
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import (
    BOOT_NS,
    MemoryStore,
    World,
    build_site,
    lease,
    play,
)


def test_a_lease_runs_within_20_ms_and_is_released_with_all_its_usage() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.5)
        began = asyncio.get_running_loop().time()
        await agent.offer_lease(lease(count=2))
        for _ in range(1_000):
            if world.store.of(LeaseRunning):
                break
            await asyncio.sleep(0.001)
        took = asyncio.get_running_loop().time() - began
        assert took < 0.02, took
        await asyncio.sleep(130.0)
        await agent.offer_lease(lease(count=2, generation=2, state=LeaseState.END))
        await asyncio.sleep(5.0)

    play(world, script)
    accepted = world.store.of(LeaseAccepted)
    assert isinstance(accepted[0], LeaseAccepted)
    assert len(accepted[0].devices) == 2
    released = world.store.of(LeaseReleased)
    assert len(released) == 1
    assert isinstance(released[0], LeaseReleased)
    assert released[0].outcome is ReleaseOutcome.CANCELLED
    truth_ms = {key: ns // 1_000_000 for key, ns in world.nodes.truth_ns.items()}
    billed: dict[str, int] = {}
    for at, item in enumerate(world.store.usage, start=1):
        if item in world.store.records():
            assert at <= released[0].final_usage_seq
    for record in world.store.records():
        billed[record.instance_id] = billed.get(record.instance_id, 0) + record.active_ms
    assert billed == truth_ms
    assert len(world.store.throughs()) >= 2


def test_a_price_spike_curtails_the_miners_in_one_switch_and_they_come_back() -> None:
    world = World(build_site(asics=8, gpus=2))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(40.0)
        assert all(world.fleet.mining.values())
        world.price = 900.0
        await asyncio.sleep(60.0)
        assert not any(world.fleet.mining.values())
        why = agent.why("a0")
        assert why.activity is Activity.CURTAILED
        assert why.break_even_usd_per_mwh is not None
        assert why.would_change
        world.price = 20.0
        await asyncio.sleep(60.0)
        assert all(world.fleet.mining.values())

    agent = play(world, script)
    asic = [row for row in agent.switches() if row.device_class == "S21"]
    assert [(row.devices, row.to_activity) for row in asic] == [(8, "curtailed"), (8, "mine")]
    assert all(row.expected_gain_usd is not None for row in asic)
    for row in asic:
        assert (row.expected_gain_usd or 0.0) > (row.switch_cost_usd or 0.0)


def test_negative_prices_keep_everything_on() -> None:
    world = World()
    world.price = -250.0

    async def script(agent: Agent) -> None:
        await asyncio.sleep(120.0)
        earning = agent.status().earning_usd_per_h
        assert earning is not None
        assert earning > 0.0

    agent = play(world, script)
    assert all(world.fleet.mining.values())
    assert not agent.switches()


def test_a_higher_class_preempts_a_lower_one_and_price_does_not() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease("low.1", count=4, priority=9))
        await asyncio.sleep(1.0)
        await agent.offer_lease(lease("same.1", count=1, priority=10))
        await asyncio.sleep(1.0)
        await agent.offer_lease(lease("high.1", count=1, priority=1))
        await asyncio.sleep(5.0)
        world.price = 4_000.0
        await asyncio.sleep(60.0)
        running = {row.lease_id: row.state for row in agent.status().leases}
        assert running == {"high.1": "running"}

    play(world, script)
    refused = [event.lease_id for event in world.store.of(LeaseRefused)]  # type: ignore[union-attr]
    assert refused == ["same.1"]
    released = world.store.of(LeaseReleased)
    assert [(row.lease_id, row.outcome) for row in released] == [  # type: ignore[union-attr]
        ("low.1", ReleaseOutcome.PREEMPTED)
    ]


def test_an_end_before_the_start_releases_as_never_started() -> None:
    world = World()
    world.nodes.up.clear()

    async def script(agent: Agent) -> None:
        await agent.offer_lease(lease("x.1", state=LeaseState.END))
        await asyncio.sleep(1.0)

    play(world, script)
    released = world.store.of(LeaseReleased)
    assert [row.outcome for row in released] == [  # type: ignore[union-attr]
        ReleaseOutcome.NEVER_STARTED
    ]


def test_work_that_completes_by_itself_frees_the_device() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease())
        await asyncio.sleep(3.0)
        device = next(row.device_id for row in agent.devices() if row.lease_id == "w1.1")
        await world.nodes.complete(device)
        await asyncio.sleep(3.0)
        assert not [row for row in agent.devices() if row.lease_id]
        assert world.nodes.gpus[device].activity is not Activity.SERVE

    play(world, script)
    released = world.store.of(LeaseReleased)
    assert [row.outcome for row in released] == [  # type: ignore[union-attr]
        ReleaseOutcome.COMPLETED
    ]


def test_the_hub_is_told_where_a_lease_listens_and_when_that_changes() -> None:
    world = World()
    world.nodes.proxy_url = "https://g1.test"

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease())
        await asyncio.sleep(5.0)
        world.nodes.proxy_url = "https://g2.test"
        await asyncio.sleep(5.0)
        world.nodes.proxy_url = None
        await asyncio.sleep(5.0)

    play(world, script)
    lease_id = lease().lease_id
    (running,) = world.store.of(LeaseRunning)
    assert running.endpoint_url == f"https://g1.test/l/{lease_id}/v1"  # type: ignore[union-attr]
    told = [
        held.endpoint_url
        for report in world.store.of(SiteReport)
        for held in report.leases  # type: ignore[union-attr] # of reports alone
        if held.lease_id == lease_id
    ]
    urls = [f"https://{host}/l/{lease_id}/v1" for host in ("g1.test", "g2.test")]
    assert list(dict.fromkeys(told)) == [*urls, None]


def test_a_lost_instance_is_started_again_three_times_then_the_lease_fails() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease())
        for _ in range(4):
            await asyncio.sleep(5.0)
            serving = [gpu for gpu in world.nodes.gpus.values() if gpu.opened_ns is not None]
            if serving:
                await world.nodes.lose(serving[0].device_id)
        await asyncio.sleep(5.0)

    play(world, script)
    assert len(world.store.of(LeaseRunning)) == 4
    assert len(world.store.of(LeaseInterrupted)) == 4
    released = world.store.of(LeaseReleased)
    assert [row.outcome for row in released] == [ReleaseOutcome.FAILED]  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", ["failed", "lost"])
@pytest.mark.parametrize("nth", range(16))
def test_the_nth_effect_that_fails_leaves_no_device_in_between(nth: int, fault: str) -> None:
    world = World()
    calls = 0

    def fail(_request: object, _device: str) -> str | None:
        nonlocal calls
        calls += 1
        return fault if calls == nth + 1 else None

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        world.nodes.fail = fail
        await agent.offer_lease(lease(count=2))
        await asyncio.sleep(10.0)
        assert not agent.state.switches
        running = [row for row in agent.status().leases if row.state == "running"]
        assert len(running) == 1, agent.status().leases
        await agent.offer_lease(lease(count=2, generation=2, state=LeaseState.END))
        await asyncio.sleep(5.0)
        assert not agent.state.switches

    play(world, script)
    released = world.store.of(LeaseReleased)
    assert len(released) == 1
    truth = {key: ns // 1_000_000 for key, ns in world.nodes.truth_ns.items()}
    billed = dict.fromkeys(truth, 0)
    for record in world.store.records():
        billed[record.instance_id] += record.active_ms
    assert billed == truth
    assert not [gpu for gpu in world.nodes.gpus.values() if gpu.opened_ns is not None]


@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 7, 9, 11, 13, 30])
def test_an_agent_killed_during_a_switch_carries_on_after_its_start(after_ms: int) -> None:
    world = World()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(2.0)
            offer = group.create_task(agent.offer_lease(lease(count=2)))
            offer.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.sleep(0.0001 + after_ms / 1_000)
            for task in tasks:
                task.cancel()
            offer.cancel()
            await asyncio.sleep(1.0)
            agent, tasks = await world.start(group)
            await agent.offer_lease(lease(count=2))
            await asyncio.sleep(70.0)
            assert [row.state for row in agent.status().leases] == ["running"]
            await agent.offer_lease(lease(count=2, generation=2, state=LeaseState.END))
            await asyncio.sleep(5.0)
            assert not agent.status().leases
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    truth = {key: ns // 1_000_000 for key, ns in world.nodes.truth_ns.items()}
    billed = dict.fromkeys(truth, 0)
    for record in world.store.records():
        billed[record.instance_id] += record.active_ms
    assert billed == truth
    keys = [record.usage_id for record in world.store.records()]
    assert len(keys) == len(set(keys))


def test_an_unreachable_node_keeps_its_lease_and_is_adopted_when_it_returns() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease())
        await asyncio.sleep(3.0)
        device = next(row.device_id for row in agent.devices() if row.lease_id == "w1.1")
        node_id = world.nodes.node_of(device)
        world.nodes.up.discard(node_id)
        await agent.on_lost(node_id)
        throughs = len(world.store.throughs())
        await asyncio.sleep(200.0)
        assert len(world.store.throughs()) == throughs, "a node that is away holds through back"
        assert [row.state for row in agent.status().leases] == ["running"]
        assert agent.status().problems
        world.nodes.up.add(node_id)
        await world.nodes.hello_one(node_id)
        await asyncio.sleep(70.0)
        assert [row.state for row in agent.status().leases] == ["running"]
        assert len(world.store.throughs()) > throughs

    play(world, script)
    assert len(world.store.of(LeaseRunning)) == 1


def test_a_node_is_believed_when_it_contradicts_twice_however_long_it_has_agreed() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(20.5)
        said = [row.activity for row in agent.devices() if row.device_id == "g0"]
        assert said == ["mine"]
        world.nodes.gpus["g0"].activity = Activity.FAULT
        await asyncio.sleep(1.0)
        assert [row.activity for row in agent.devices() if row.device_id == "g0"] == ["mine"]
        await asyncio.sleep(1.3)  # the next facts, and the gap before what tidies up
        assert [row.activity for row in agent.devices() if row.device_id == "g0"] == ["fault"]

    play(world, script)


def test_work_of_an_unknown_lease_stays_until_the_manifest_leaves_it_out() -> None:
    world = World()

    async def first(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease())
        await asyncio.sleep(3.0)

    play(world, first)
    world.store = MemoryStore()  # a new disk: the agent knows nothing
    world.store.epoch = 10

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(3.0)
            assert [row.state for row in agent.status().leases] == ["foreign"]
            assert [gpu for gpu in world.nodes.gpus.values() if gpu.opened_ns is not None]
            agent.offer_manifest(())
            await asyncio.sleep(5.0)
            assert not agent.status().leases
            assert not [gpu for gpu in world.nodes.gpus.values() if gpu.opened_ns is not None]
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert "unknown_lease" in {event.code for event in world.store.of(Alarm)}  # type: ignore[union-attr]


def test_drain_moves_the_device_out_of_use_and_undrain_brings_it_back() -> None:
    world = World()

    def mines(device_id: str) -> bool:
        return world.fleet.mining[device_id]

    async def script(agent: Agent) -> None:
        await asyncio.sleep(35.0)
        await agent.drain("a1", None, "fan")
        await asyncio.sleep(10.0)
        assert mines("a1") is False
        assert agent.why("a1").reason == "drained"
        line = next(row for row in agent.devices() if row.device_id == "a1")
        assert (line.activity, line.hold) == ("maintenance", "drain")
        told = {row.device_class: row.by_activity for row in agent.status().classes}
        assert told["S21"] == {"mine": 3, "maintenance": 1}
        await agent.undrain("a1")
        await asyncio.sleep(60.0)
        assert mines("a1") is True
        with pytest.raises(ActError):
            await agent.drain("nope", None, "")
        times = {row.activity: row.spent_ns for row in agent.device_time("a1").times}
        assert 9.0e9 < times[Activity.MAINTENANCE] <= 10.0e9
        assert sum(times.values()) == agent.ledger_ns() - BOOT_NS

    play(world, script)


def test_the_hub_is_told_of_devices_in_maintenance() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(5.0)
        await agent.drain("a1", None, "fan")
        await asyncio.sleep(70.0)

    play(world, script)
    told = [row for row in world.store.events if isinstance(row, SiteReport)]
    by_class = {row.device_class: row.by_activity for row in told[-1].classes}
    assert by_class["S21"] == {"mine": 3, "maintenance": 1}


def test_a_node_unheard_for_a_day_is_unknown_and_its_work_is_billed_as_read() -> None:
    """The agent is down while the node serves on: its belief is lost, its bill is not."""
    world = World()
    gone_s = 25 * 3_600.0
    times: dict[str, dict[Activity, int]] = {}

    def note(agent: Agent, when: str, device: str) -> None:
        rows = agent.device_time(device).times
        times[when] = {row.activity: row.spent_ns for row in rows}
        assert sum(times[when].values()) == agent.ledger_ns() - BOOT_NS

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(2.0)
            await agent.offer_lease(lease())
            await asyncio.sleep(60.0)
            device = next(row.device_id for row in agent.devices() if row.lease_id == "w1.1")
            note(agent, "before", device)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(gone_s)
            node_id = world.nodes.node_of(device)
            world.nodes.up.discard(node_id)
            agent, tasks = await world.start(group)
            await asyncio.sleep(10.0)
            line = next(row for row in agent.devices() if row.device_id == device)
            assert (line.activity, line.reachable, line.lease_id) == ("unknown", False, "w1.1")
            assert [row.state for row in agent.status().leases] == ["running"]
            world.nodes.up.add(node_id)
            await world.nodes.hello_one(node_id)
            await asyncio.sleep(10.0)
            line = next(row for row in agent.devices() if row.device_id == device)
            assert (line.activity, line.reachable) == ("serve", True)
            note(agent, "after", device)
            await agent.offer_lease(lease(generation=2, state=LeaseState.END))
            await asyncio.sleep(5.0)
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    unknown_s = (times["after"][Activity.UNKNOWN] - times["before"][Activity.UNKNOWN]) / 1e9
    assert gone_s <= unknown_s <= gone_s + 15.0
    billed = sum(record.active_ms for record in world.store.records())
    truth_ms = [ns // 1_000_000 for ns in world.nodes.truth_ns.values()]
    assert [billed] == truth_ms
    assert billed > gone_s * 1_000


def test_a_replay_of_the_journal_gives_the_same_state_and_plans() -> None:
    world = World()
    seen: list[bytes] = []

    async def script(agent: Agent) -> None:
        await asyncio.sleep(20.0)
        await agent.offer_lease(lease(count=2))
        world.price = 700.0
        await asyncio.sleep(40.0)
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=9_000.0)
        )
        await asyncio.sleep(40.0)
        seen.append(agent.state_hash())

    agent = play(world, script)
    hashes: list[list[bytes]] = []
    for _ in range(2):
        state = None
        states: list[bytes] = []
        for _seq, body in world.store.facts:
            row = decode_row(body)
            state = new_state(world.site, row.instant) if state is None else state
            state, made = replay_row(world.site, state, row)
            if made is not None:
                states.append(made.records.gain_usd.tobytes() + made.records.reason.tobytes())
            states.append(state_hash(world.site, state))
        hashes.append(states)
    assert hashes[0] == hashes[1]
    assert agent.state_hash() == hashes[0][-1]
    assert world.store.snapshot is not None
    seq, body = world.store.snapshot
    state = decode_state(world.site, body)
    for at, raw in world.store.facts:
        if at > seq:
            state, _ = replay_row(world.site, state, decode_row(raw))
    assert state_hash(world.site, state) == hashes[0][-1]


def test_a_tight_policy_sheds_mining_first_and_then_the_lowest_lease() -> None:
    world = World(build_site(asics=4, gpus=4, cap_w=60_000.0))

    async def script(agent: Agent) -> None:
        await asyncio.sleep(2.0)
        await agent.offer_lease(lease("a.1", priority=1))
        await agent.offer_lease(lease("b.1", priority=10))
        await asyncio.sleep(3.0)
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=4_200.0)
        )
        await asyncio.sleep(60.0)
        assert not any(world.fleet.mining.values())
        assert {row.lease_id for row in agent.status().leases} == {"a.1", "b.1"}
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=2, site_id="s1", power_cap_w=3_100.0)
        )
        await asyncio.sleep(60.0)
        assert {row.lease_id for row in agent.status().leases} == {"a.1"}
        assert agent.status().power_counted_w <= 3_100.0

    play(world, script)
