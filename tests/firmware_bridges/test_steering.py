"""Every steered family against its simulator, over real sockets: read, sleep, wake, limit, locate.

The simulators share no code with the bridges. Their clock is in the test's hand, so that minutes of
warm-up cost nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from firmware_bridges.base import (
    MinerAddress,
    MinerState,
    ReadDetail,
    Reading,
    WorkMode,
    WriteState,
)
from firmware_bridges.bridge import MinerBridge, bridge_of
from firmware_bridges.commands import (
    Locate,
    PoolTarget,
    Reboot,
    RestartMining,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.detect import Prober
from firmware_bridges.families import FAMILIES, FAMILY_OF
from firmware_bridges.family import Family
from firmware_bridges.sheet import Capability
from simulators.asic_faults import FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS
from simulators.asic_server import serve

# Which model of the simulator speaks as which family.
SIMULATED = {
    "antminer-stock": "s21",
    "avalon": "a1566",
    "braiins-api": "s19xp-braiins-old",
    "braiins-graphql": "s19xp-braiins-graphql",
    "braiins-rest": "s19xp-braiins",
    "epic": "s19xp-epic",
    "luxos": "s21-luxos",
    "marafw": "s21-mara",
    "vnish": "s21-vnish",
    "whatsminer-v2": "m50s",
    "whatsminer-v3": "m60s",
}
# What firmwares say of a machine that stopped itself for heat; of the others there is no more than
# a rate of 0 and hot chips.
SAYS_HOT = {
    "antminer-stock": MinerState.OVERHEATED,
    "epic": MinerState.OVERHEATED,
    "luxos": MinerState.OVERHEATED,
    "marafw": MinerState.OVERHEATED,
    "vnish": MinerState.FAULT,
    "whatsminer-v2": MinerState.OVERHEATED,
    "whatsminer-v3": MinerState.OVERHEATED,
}
# Neither bosminer's API nor GraphQL tells the MAC; it is on a page behind luci's login.
WITHOUT_MAC = {"braiins-api", "braiins-graphql"}
STEERED = [family for family in FAMILIES if family.control is not None]
EPOCH_S = 1_800_000_000
SECOND = 10**9


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def wall_s(self) -> float:
        return EPOCH_S + self.now_ns / 1e9

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)


class Site:
    """One simulated miner, the bridge to it, and its clock."""

    def __init__(self, fleet: Fleet, clock: Hands, address: MinerAddress, family: Family) -> None:
        self.fleet = fleet
        self.clock = clock
        self.address = address
        self.bridge: MinerBridge = bridge_of(
            family,
            address,
            credentials=None,
            in_flight=asyncio.Semaphore(4),
            client_nonce=lambda: "0123456789abcdef",
            wall_s=clock.wall_s,
        )

    async def read(self) -> Reading:
        return await self.bridge.read(ReadDetail.FULL)


@asynccontextmanager
async def site(family: Family, *, index: int = 0) -> AsyncIterator[Site]:
    model = MODELS[SIMULATED[family.name]]
    # An answer that takes 21 s of true time would make the test wait: the timing is that of a demo.
    spec = FleetSpec(count=2, models=(model,), seed=3)
    spec = msgspec.structs.replace(
        spec, timing=msgspec.structs.replace(spec.timing, conf_answer_s=0.0)
    )
    clock = Hands()
    fleet = Fleet(spec, now_ns=clock, wall_s=clock.wall_s)
    async with serve(fleet, port=0, web_port=0, v3_port=0) as ports:
        yield Site(
            fleet,
            clock,
            MinerAddress(
                host=fleet.address(index),
                cgminer_port=ports.port,
                web_port=ports.web_port,
                v3_port=ports.v3_port,
            ),
            family,
        )


def effect_s(family: Family, capability: Capability) -> float:
    row = family.sheet.ability(capability)
    assert row is not None
    assert row.effect_s is not None
    return row.effect_s


def test_every_steered_family_has_a_simulator() -> None:
    assert {family.name for family in STEERED} == set(SIMULATED)
    for name in SIMULATED.values():
        assert name in MODELS


@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
async def test_a_machine_is_recognised_and_read_whole(family: Family) -> None:
    async with site(family) as place:
        prober = Prober(in_flight=asyncio.Semaphore(8), client_nonce=lambda: "c0ffee")
        found = await prober.detect(place.address)
        assert found is not None
        assert found.decoded.family is family
        reading = await place.read()
    model = MODELS[SIMULATED[family.name]]
    assert reading.is_mining is True
    assert reading.hashrate_ths == pytest.approx(model.hashrate_ths, rel=0.08)
    if reading.power_w is not None:
        assert reading.power_w == pytest.approx(model.power_w, rel=0.08)
    assert reading.failed == ()
    assert reading.rejected == ()
    assert reading.model
    assert reading.mac or family.name in WITHOUT_MAC


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
async def test_a_machine_sleeps_and_wakes_within_the_times_of_its_sheet(
    family: Family, index: int
) -> None:
    async with site(family, index=index) as place:
        before = await place.bridge.mode()
        assert before is not WorkMode.SLEEP
        told = await place.bridge.write(Sleep())
        assert told.state is WriteState.ACKNOWLEDGED
        place.clock.turn(effect_s(family, Capability.SLEEP))
        asleep = await place.read()
        assert asleep.is_mining is False
        assert await place.bridge.mode() is WorkMode.SLEEP
        assert asleep.model, "identity outlives sleep"
        woken = await place.bridge.write(Wake(mode=before))
        assert woken.state in (WriteState.ACKNOWLEDGED, WriteState.UNKNOWN)
        place.clock.turn(effect_s(family, Capability.WAKE))
        awake = await place.read()
        assert awake.is_mining is True
        assert awake.hashrate_ths is not None
        assert awake.hashrate_ths >= 0.5 * MODELS[SIMULATED[family.name]].hashrate_ths
        assert await place.bridge.mode() is before


@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
async def test_a_lying_machine_is_found_out_by_its_readings(family: Family) -> None:
    async with site(family) as place:
        place.fleet.inject(FaultKind.LYING, [0])
        told = await place.bridge.write(Sleep())
        assert told.state is WriteState.ACKNOWLEDGED
        place.clock.turn(effect_s(family, Capability.SLEEP))
        reading = await place.read()
        place.clock.turn(effect_s(family, Capability.SLEEP))
        assert reading.hashrate_ths or (await place.read()).hashrate_ths, "it hashes on"


@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
async def test_a_machine_that_stopped_for_heat_is_no_miner_and_hashes_when_it_is_well(
    family: Family,
) -> None:
    async with site(family) as place:
        before = await place.read()
        place.fleet.inject(FaultKind.HOT, [0])
        place.clock.turn(10.0)
        hot = await place.read()
        place.fleet.clear([0])
        place.clock.turn(effect_s(family, Capability.WAKE))
        well = await place.read()
    assert hot.is_mining is False
    for name in ("chip_temp_c_max", "board_temp_c_max"):
        was_c, is_c = getattr(before, name), getattr(hot, name)
        assert was_c is None or is_c is None or is_c > was_c
    if family.name in SAYS_HOT:
        assert hot.state is SAYS_HOT[family.name]
    assert well.is_mining is True


LIMITED = [f for f in STEERED if f.sheet.ability(Capability.POWER_LIMIT) is not None]


@pytest.mark.parametrize("family", LIMITED, ids=lambda family: family.name)
async def test_a_power_limit_shows_in_limit_and_power(family: Family) -> None:
    async with site(family) as place:
        full = await place.read()
        limit_w = round(0.8 * MODELS[SIMULATED[family.name]].power_w)
        told = await place.bridge.write(SetPowerLimit(power_w=limit_w))
        assert told.state is WriteState.ACKNOWLEDGED
        place.clock.turn(effect_s(family, Capability.POWER_LIMIT))
        limited = await place.read()
    assert limited.is_mining is True
    assert limited.power_limit_w is not None
    assert limited.power_limit_w <= limit_w
    if full.power_w is not None:
        assert limited.power_w is not None
        assert limited.power_w <= 1.03 * limit_w


LOCATED = [f for f in STEERED if f.sheet.ability(Capability.LOCATE) is not None]


@pytest.mark.parametrize("family", LOCATED, ids=lambda family: family.name)
async def test_the_light_is_lit_and_put_out(family: Family) -> None:
    async with site(family) as place:
        for on in (True, False):
            told = await place.bridge.write(Locate(on=on))
            assert told.state is WriteState.ACKNOWLEDGED
            seen = (await place.read()).fault_light
            assert seen in (on, None)


@pytest.mark.parametrize("command", [RestartMining(), Reboot()], ids=["restart", "reboot"])
@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
async def test_a_restart_starts_the_uptime_anew(
    family: Family, command: RestartMining | Reboot
) -> None:
    capability = Capability.RESTART if isinstance(command, RestartMining) else Capability.REBOOT
    if family.sheet.ability(capability) is None:
        return
    async with site(family) as place:
        before = await place.read()
        told = await place.bridge.write(command)
        assert told.state in (WriteState.ACKNOWLEDGED, WriteState.UNKNOWN)
        place.clock.turn(effect_s(family, capability))
        after = await place.read()
    assert before.uptime_s is not None
    assert after.uptime_s is not None
    assert after.uptime_s < min(before.uptime_s, effect_s(family, capability) + 1)


BY_PERCENT = [f for f in STEERED if f.sheet.ability(Capability.POWER_PERCENT) is not None]


@pytest.mark.parametrize("family", BY_PERCENT, ids=lambda family: family.name)
async def test_a_percent_of_the_power_shows_in_the_power(family: Family) -> None:
    async with site(family) as place:
        told = await place.bridge.write(SetPowerPercent(percent=70))
        assert told.state is WriteState.ACKNOWLEDGED
        place.clock.turn(effect_s(family, Capability.POWER_PERCENT))
        limited = await place.read()
    assert limited.is_mining is True
    assert limited.power_w is not None
    assert limited.power_w <= 1.03 * 0.7 * MODELS[SIMULATED[family.name]].power_w


POOLED = [f for f in STEERED if f.sheet.ability(Capability.POOLS) is not None]


@pytest.mark.parametrize("family", POOLED, ids=lambda family: family.name)
async def test_new_pools_take_the_place_of_the_old_ones(family: Family) -> None:
    wanted = [PoolTarget(url=f"stratum+tcp://new{n}.example:3333", user="site.1") for n in (1, 2)]
    async with site(family) as place:
        told = await place.bridge.write(SetPools(pools=tuple(wanted)))
        assert told.state is WriteState.ACKNOWLEDGED
        place.clock.turn(effect_s(family, Capability.POOLS))
        seen = (await place.read()).pools
    assert seen is not None
    assert [(pool.url, pool.user) for pool in seen] == [(pool.url, pool.user) for pool in wanted]


def test_the_names_of_the_simulated_families_exist() -> None:
    assert set(SIMULATED) <= set(FAMILY_OF)
