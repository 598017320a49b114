"""The agent sets power modes: plan, switch, fleet, confirmation, journal, restart."""

import asyncio

import pytest

from edge_agent.core.facts import SwitchOpened, decode_row
from edge_agent.core.passes import replay_row
from edge_agent.core.power import counted_w, total
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import state_hash
from edge_agent.core.step_facts import refusal_of
from edge_agent.devices.fake import FakeAsic, FakeFault, FakeFaultKind, FakeFleet, FakePhysics
from edge_agent.devices.ports import AsicNameplate
from edge_agent.services.agent import Agent
from protocol.event import SwitchReport
from protocol.lease import SitePolicy
from protocol.resource import MODELS, Activity
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.core.mode_plant import CURVE
from tests.edge_agent.services.brain_world import LoopClock, World, play

PLATE = AsicNameplate(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)


def mode_site(miners: int = 4, cap_w: float = 1e5) -> Site:
    row = DeviceClass(
        model=MODELS["S21"], modes=CURVE, set_modes=True, pue=1.0, adder_usd_per_mwh=0.0,
        dwell_s=120.0, warmup_s=30.0, wear_usd=0.001,
    )  # fmt: skip
    devices = tuple(
        Device(device_id=f"a{n}", device_class="S21", address="127.0.0.1") for n in range(miners)
    )
    return Site("s1", (row,), devices, Limits(power_cap_w=cap_w, ramp_w_per_min=1e6))


class ModeWorld(World):
    """A world whose miners have modes, with physics and faults."""

    def __init__(
        self,
        site: Site | None = None,
        *,
        faults: tuple[FakeFault, ...] = (),
        refuses: tuple[str, ...] = (),
    ) -> None:
        super().__init__(mode_site() if site is None else site)
        self.faults = faults
        self.refuses = refuses
        self.price = 75.0
        self.miners: FakeFleet | None = None

    async def start(self, group: asyncio.TaskGroup) -> tuple[Agent, list[asyncio.Task[None]]]:
        if self.miners is None:
            self.miners = FakeFleet(
                [
                    FakeAsic(
                        device_id=device.device_id, nameplate=PLATE, mode=CURVE[1],
                        refuses=self.refuses,
                    )
                    for device in self.site.devices
                ],
                clock=LoopClock(),
                seed=1,
                physics=FakePhysics(warm_up_s=20.0, mode_s=20.0, noise_share=0.0),
                faults=self.faults,
            )  # fmt: skip
            self.fleet = self.miners  # type: ignore[assignment]
        return await super().start(group)

    def modes(self) -> list[str]:
        assert self.miners is not None
        rates = {point.rate_ths: point.mode for point in CURVE}
        return [
            rates.get(self.miners.true_rate_ths(device.device_id), "off")
            for device in self.site.devices
        ]


async def until_it_changes(agent: Agent) -> None:
    """Wait, on virtual time, for the first change of mode to be open."""
    for _ in range(10_000):
        if (agent.state.step_to != agent.state.step).any():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no change of mode was opened")


def told(world: World) -> list[SwitchReport]:
    return [row for row in world.store.of(SwitchReport) if isinstance(row, SwitchReport)]


def test_a_cheap_hour_raises_the_modes_and_a_dear_one_lowers_them() -> None:
    world = ModeWorld()
    seen: list[list[str]] = []

    async def script(agent: Agent) -> None:
        await asyncio.sleep(200.0)
        seen.append(world.modes())
        world.price = 20.0
        await asyncio.sleep(400.0)
        seen.append(world.modes())
        why = agent.why("a0")
        assert why.mode is not None
        assert (why.mode.mode, why.mode.to_mode) == ("high", None)
        assert [row.mode for row in why.mode.options] == ["low", "normal", "high"]
        assert any("normal earn more" in line for line in why.mode.would_change)
        world.price = 110.0
        await asyncio.sleep(400.0)
        seen.append(world.modes())
        assert agent.why("a0").activity is Activity.MINE

    play(world, script)
    assert seen == [["normal"] * 4, ["high"] * 4, ["low"] * 4]
    rows = told(world)
    assert [(row.devices, row.committed, row.mode) for row in rows] == [
        (4, 4, "high"), (4, 4, "low"),
    ]  # fmt: skip
    for row in rows:
        assert (row.expected_gain_usd or 0.0) > (row.switch_cost_usd or 0.0) > 0.0


def test_a_tighter_cap_lowers_modes_and_the_true_power_obeys() -> None:
    world = ModeWorld()
    world.price = 20.0

    async def script(agent: Agent) -> None:
        await asyncio.sleep(400.0)
        assert world.modes() == ["high"] * 4
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=9_000.0)
        )
        await asyncio.sleep(20.0)
        assert world.miners is not None
        assert world.miners.true_power_w() <= 9_000.0
        await asyncio.sleep(300.0)
        assert world.miners.true_power_w() <= 9_000.0
        assert total(counted_w(agent.site, agent.state)) <= 9_000.0
        assert world.modes() == ["low"] * 4

    play(world, script)
    assert {row.to_activity for row in told(world)} == {"mine"}


def test_a_miner_that_says_no_mines_on_and_is_not_asked_again() -> None:
    world = ModeWorld(refuses=("high",))
    world.price = 20.0

    async def script(agent: Agent) -> None:
        await asyncio.sleep(1_500.0)
        assert world.modes() == ["normal"] * 4
        assert [refusal_of(int(code)) for code in agent.state.no_code] == ["mode.refused"] * 4
        assert not (agent.state.quarantine_ns > 0).any()
        why = agent.why("a0").mode
        assert why is not None
        assert why.reason == "step_refused"
        assert [row.note for row in why.options] == ["", "", "refused: mode.refused"]

    play(world, script)
    assert len(told(world)) == 1


def test_a_miner_that_lies_is_set_back_or_counts_as_the_highest() -> None:
    liar = FakeFault(at_s=0.0, duration_s=4_000.0, device_id="a1", kind=FakeFaultKind.LIES)
    world = ModeWorld(faults=(liar,))
    world.price = 20.0

    async def script(agent: Agent) -> None:
        await asyncio.sleep(1_700.0)
        at = agent.site.index_of("a1")
        assert at is not None
        assert world.modes() == ["high", "normal", "high", "high"]
        # Set back and confirmed: it is where it was.
        assert agent.state.step.tolist() == [3, 2, 3, 3]
        assert agent.state.failures[at] > 0

    play(world, script)
    assert told(world)[0].rolled_back == 1


def test_a_cap_in_the_middle_of_a_change_takes_the_miners_over() -> None:
    world = ModeWorld()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(200.0)
        world.price = 20.0
        await until_it_changes(agent)
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=100.0)
        )
        await asyncio.sleep(60.0)
        assert world.miners is not None
        assert world.miners.true_power_w() <= 100.0
        assert {int(code) for code in agent.state.switch_no} == {-1}
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=2, site_id="s1", power_cap_w=1e5)
        )
        await asyncio.sleep(900.0)
        assert world.modes() == ["high"] * 4
        assert (agent.state.quarantine_ns <= agent.state.now_ns).all()

    play(world, script)


def test_a_replay_of_the_journal_gives_the_same_modes_and_plans() -> None:
    world = ModeWorld(refuses=("low",))

    async def script(_: Agent) -> None:
        for price in (75.0, 20.0, 110.0, 400.0, 20.0):
            world.price = price
            await asyncio.sleep(200.0)

    agent = play(world, script)
    state = None
    for _seq, body in world.store.facts:
        row = decode_row(body)
        state = new_state(world.site, row.instant) if state is None else state
        state, made = replay_row(world.site, state, row)
        if made is not None:
            modes = {intent.mode for intent in made.intents if intent.mode}
            acted = {fact.mode for fact in row.acts if isinstance(fact, SwitchOpened)} - {""}
            assert modes == acted
    assert state is not None
    assert state_hash(world.site, state) == agent.state_hash()
    assert any(row.mode == "high" for row in told(world))


@pytest.mark.parametrize("gone_s", [1.0, 60.0])
def test_an_agent_that_dies_in_the_middle_of_a_change_carries_it_on(gone_s: float) -> None:
    world = ModeWorld()

    async def whole() -> None:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await asyncio.sleep(200.0)
            world.price = 20.0
            await until_it_changes(agent)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(gone_s)
            agent, tasks = await world.start(group)
            assert agent.state.step_to.tolist() == [3] * 4
            await asyncio.sleep(600.0)
            assert world.modes() == ["high"] * 4
            assert agent.state.step.tolist() == [3] * 4
            for task in tasks:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(whole())
