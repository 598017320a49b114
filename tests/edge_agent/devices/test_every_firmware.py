"""The agent's fleet and one simulated miner of every steered firmware, found out by itself."""

import asyncio
from itertools import count

import pytest

from edge_agent.clock import SystemClock
from edge_agent.devices.fleet import AsicUnit, MinerFleet
from edge_agent.devices.ports import (
    AsicAction,
    AsicNameplate,
    DeviceOutcome,
    OutcomeState,
    StateCode,
)
from firmware_bridges.base import MinerAddress
from firmware_bridges.families import FAMILIES
from simulators.asic_models import MODELS
from tests.edge_agent.devices.test_simulated_fleet import SETTINGS, simulator

# One model of the simulator for each steered family, in any order.
KINDS = (
    "s21", "a1566", "s19xp-braiins-old", "s19xp-braiins-graphql", "s19xp-braiins", "s19xp-epic",
    "s21-luxos", "s21-mara", "s21-vnish", "m50s", "m60s",
)  # fmt: skip


def fleet_of(addresses: list[MinerAddress]) -> MinerFleet:
    fresh = count(1)
    units = []
    for number, (address, kind) in enumerate(zip(addresses, KINDS, strict=True)):
        model = MODELS[kind]
        plate = AsicNameplate(
            hashrate_ths=model.hashrate_ths,
            power_w=model.power_w,
            sleep_power_w=model.power_w_asleep,
        )
        units.append(
            AsicUnit(device_id=f"asic-{number}", address=address, nameplate=plate, family=None)
        )
    return MinerFleet(
        units, clock=SystemClock(), client_nonce=lambda: f"{next(fresh):016x}", settings=SETTINGS
    )


async def until(fleet: MinerFleet, state: StateCode) -> None:
    """Wait until polling itself shows every device in one state."""
    while set((await fleet.next_batch()).state.tolist()) != {state}:
        assert fleet.counts().ticks < 240, (await fleet.read()).state.tolist()


def test_there_is_one_of_every_steered_family() -> None:
    assert len(KINDS) == len([family for family in FAMILIES if family.control is not None])


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_every_firmware_is_found_out_put_to_sleep_and_woken_by_the_fleet() -> None:
    options = ("--count", str(len(KINDS)), "--model", ",".join(KINDS), "--time-scale", "100")
    async with (
        simulator(*options, "--seed", "4", "--v3-port", "0") as addresses,
        asyncio.timeout(120),
        asyncio.TaskGroup() as group,
    ):
        fleet = fleet_of(addresses)
        ids = [f"asic-{number}" for number in range(len(KINDS))]
        polling = group.create_task(fleet.run(), name="polling")
        await until(fleet, StateCode.MINING)
        asleep = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ids, 40.0)
        assert unconfirmed(asleep) == {}
        awake = await fleet.apply("s2", "activate", AsicAction.MINE, ids, 40.0)
        assert unconfirmed(awake) == {}
        await until(fleet, StateCode.MINING)
        polling.cancel()


def unconfirmed(outcomes: tuple[DeviceOutcome, ...]) -> dict[str, str]:
    return {
        kind: f"{outcome.code} {outcome.detail}"
        for kind, outcome in zip(KINDS, outcomes, strict=True)
        if outcome.state is not OutcomeState.CONFIRMED
    }
