"""The whole way of a power mode: price, plan, journal, switch, sealed bytes, miner, and back.

The miners are a process of their own that shares no code with the agent.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from edge_agent.core.curve import ModePoint
from edge_agent.core.facts import decode_row
from edge_agent.core.passes import replay_row
from edge_agent.core.power import counted_w, total
from edge_agent.core.site import MINE, Device, DeviceClass, Limits, Site
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import state_hash
from edge_agent.devices.fleet import AsicUnit, MinerFleet
from edge_agent.devices.ports import AsicNameplate
from edge_agent.services.agent import Agent, AgentPorts
from firmware_bridges.base import MinerAddress
from protocol.event import SwitchReport
from protocol.lease import SitePolicy
from protocol.resource import MODELS
from tests.edge_agent.devices.test_simulated_fleet import SETTINGS, simulator
from tests.edge_agent.services.brain_world import LoopClock, World

MINERS = 3
PLATE = MODELS["M50S"]
# Shares of rate and power in each mode. The simulated low mode is as efficient as normal, so that
# nothing would tell stepping down from switching off: the file claims more for it, as a site may.
MODES = tuple(
    ModePoint(mode=mode, rate_ths=PLATE.hashrate_ths * rate, power_w=PLATE.mine_w * power)
    for mode, rate, power in (("low", 0.82, 0.75), ("normal", 1.0, 1.0), ("high", 1.08, 1.12))
)


def whatsminers() -> Site:
    row = DeviceClass(
        model=PLATE, modes=MODES, set_modes=True, mode_change_s=1.0, pue=1.0,
        adder_usd_per_mwh=0.0, dwell_s=1.0, warmup_s=30.0, wear_usd=0.0001,
    )  # fmt: skip
    devices = tuple(Device(device_id=f"w{n}", device_class="M50S") for n in range(MINERS))
    return Site("s1", (row,), devices, Limits(power_cap_w=5e4, ramp_w_per_min=1e7))


class WireWorld(World):
    """A world of simulated WhatsMiners behind real sockets."""

    def __init__(self, addresses: list[MinerAddress]) -> None:
        super().__init__(whatsminers())
        fresh = count(1)
        plate = AsicNameplate(
            hashrate_ths=PLATE.hashrate_ths,
            power_w=PLATE.mine_w,
            sleep_power_w=PLATE.curtailed_w,
        )
        self.miners = MinerFleet(
            [
                AsicUnit(device_id=f"w{n}", address=address, nameplate=plate, family=None)
                for n, address in enumerate(addresses)
            ],
            clock=LoopClock(),
            client_nonce=lambda: f"{next(fresh):016x}",
            settings=SETTINGS,
        )
        self.price = 55.0

    async def begin(self, group: asyncio.TaskGroup) -> tuple[Agent, list[asyncio.Task[None]]]:
        ports = AgentPorts(
            store=self.store, clock=LoopClock(), links=self.nodes, fleet=self.miners,
            new_id=self.new_id,
        )  # fmt: skip
        agent = Agent(self.site, ports, await self.store.recover(), tick_s=0.25)
        tasks = [
            group.create_task(self.miners.run(), name="miners"),
            group.create_task(agent.run(), name="agent"),
            group.create_task(self.tell(agent), name="world"),
        ]
        return agent, tasks

    async def tell(self, agent: Agent) -> None:
        while True:
            agent.offer_asic(await self.miners.next_batch())
            self.feed(agent)


async def until(agent: Agent, holds: Callable[[], bool], what: str) -> None:
    """Look four times a second, as the agent does; the test's own limit ends it."""
    for _ in range(80):
        if holds():
            return
        await asyncio.sleep(0.25)
    pytest.fail(
        f"{what}: step {agent.state.step}, to {agent.state.step_to}, "
        f"activity {agent.state.activity}, refused {agent.state.no_steps}, "
        f"W {agent.state.power_w}, TH/s {agent.state.hashrate_ths}, {list(agent.switches())[-4:]}"
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_price_and_cap_set_the_modes_of_real_sockets_and_the_journal_repeats_it() -> None:
    options = ("--count", str(MINERS), "--model", "m50s", "--time-scale", "200", "--seed", "7")
    async with simulator(*options) as addresses, asyncio.TaskGroup() as group:
        world = WireWorld(addresses)
        agent, tasks = await world.begin(group)

        def all_in(step: int) -> bool:
            known = agent.state.step.tolist() == [step] * MINERS
            return known and bool((agent.state.activity == MINE).all()) and not agent.state.switches

        await until(agent, lambda: all_in(2), "found in normal")
        world.price = 5.0
        await until(agent, lambda: all_in(3), "raised to high")
        await until(
            agent, lambda: bool((agent.state.power_w > PLATE.mine_w * 1.05).all()), "drawing more"
        )
        await agent.offer_policy(
            SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=PLATE.mine_w * 2.4)
        )
        await until(agent, lambda: all_in(1), "lowered for the cap")
        await until(
            agent,
            lambda: total(counted_w(agent.site, agent.state)) <= PLATE.mine_w * 2.4,
            "read lower",
        )
        # What the miners themselves tell, whatever the agent believes.
        await until(agent, lambda: told_modes(world) == ["low"] * MINERS, "telling low")
        for task in tasks:
            task.cancel()
    reports = [row for row in world.store.of(SwitchReport) if isinstance(row, SwitchReport)]
    done = Counter[str]()
    for report in reports:
        done[report.mode] += report.committed
    assert done["high"] == MINERS
    assert done["low"] == MINERS
    state = None
    for _seq, body in world.store.facts:
        row = decode_row(body)
        state = new_state(world.site, row.instant) if state is None else state
        state, _ = replay_row(world.site, state, row)
    assert state is not None
    assert state_hash(world.site, state) == agent.state_hash()


def told_modes(world: WireWorld) -> list[str | None]:
    readings = [world.miners.known(f"w{n}").reading for n in range(MINERS)]
    return [None if row is None else row.configured_mode for row in readings]
