"""The WhatsMiner controls against the simulators over real sockets, where rights and tokens end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from firmware_bridges.base import MinerAddress, ReadDetail, WorkMode, WriteState
from firmware_bridges.bridge import MinerBridge, bridge_of
from firmware_bridges.commands import Locate, Reboot, SetMode, Sleep
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.http.digest import Credentials
from simulators.asic_faults import FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS
from simulators.asic_server import serve


class Place:
    """One simulated miner, the bridge to it, and its clock."""

    def __init__(self) -> None:
        self.now_ns = 10**12
        self.fleet: Fleet
        self.bridge: MinerBridge

    def wall_s(self) -> float:
        return 1_800_000_000 + self.now_ns / 1e9

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@asynccontextmanager
async def place(
    model: str, family: str, credentials: Credentials | None = None
) -> AsyncIterator[Place]:
    here = Place()
    spec = FleetSpec(count=1, models=(MODELS[model],), seed=3)
    here.fleet = Fleet(spec, now_ns=lambda: here.now_ns, wall_s=here.wall_s)
    async with serve(here.fleet, port=0, web_port=0, v3_port=0) as ports:
        address = MinerAddress(
            host=here.fleet.address(0), cgminer_port=ports.port, v3_port=ports.v3_port
        )
        here.bridge = bridge_of(
            FAMILY_OF[family],
            address,
            credentials=credentials,
            in_flight=asyncio.Semaphore(4),
            client_nonce=lambda: "0123456789abcdef",
            wall_s=here.wall_s,
        )
        yield here


BOTH = [("m50s", "whatsminer-v2"), ("m60s", "whatsminer-v3")]


@pytest.mark.parametrize(
    ("model", "family", "code"),
    [("m50s-locked", "whatsminer-v2", "45"), ("m60s-locked", "whatsminer-v3", "-4")],
)
async def test_a_write_api_that_the_owner_has_not_enabled_is_told_as_such(
    model: str, family: str, code: str
) -> None:
    async with place(model, family) as here:
        told = await here.bridge.write(Sleep())
        assert (told.state, told.code) == (WriteState.REFUSED, code)
        assert "not enabled" in told.detail
        here.turn(60)
        assert (await here.bridge.read(ReadDetail.FAST)).is_mining is True


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_a_wrong_password_is_refused_and_printed_nowhere(model: str, family: str) -> None:
    async with place(model, family, Credentials("super", "not-the-password")) as here:
        told = await here.bridge.write(Sleep())
    assert told.state is WriteState.REFUSED
    assert told.code in ("135", "-4")
    assert "not-the-password" not in repr(told)


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_rights_are_renewed_when_they_end(model: str, family: str) -> None:
    async with place(model, family) as here:
        assert (await here.bridge.write(Locate(on=True))).state is WriteState.ACKNOWLEDGED
        # A boot forgets the tokens of v2 and makes another salt of v3.
        assert (await here.bridge.write(Reboot())).state is WriteState.ACKNOWLEDGED
        here.turn(120)
        assert (await here.bridge.write(Locate(on=False))).state is WriteState.ACKNOWLEDGED
        here.turn(1_700)
        assert (await here.bridge.write(Locate(on=True))).state is WriteState.ACKNOWLEDGED


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_many_writes_need_one_token(model: str, family: str) -> None:
    async with place(model, family) as here:
        for turn in range(40):
            told = await here.bridge.write(Locate(on=turn % 2 == 0))
            assert told.state is WriteState.ACKNOWLEDGED


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_a_mode_is_taken_and_shows_in_power(model: str, family: str) -> None:
    async with place(model, family) as here:
        full = await here.bridge.read(ReadDetail.FULL)
        assert (await here.bridge.write(SetMode(WorkMode.LOW))).state is WriteState.ACKNOWLEDGED
        here.turn(900)
        low = await here.bridge.read(ReadDetail.FULL)
    assert low.configured_mode is WorkMode.LOW
    assert full.power_w is not None
    assert low.power_w == pytest.approx(0.75 * full.power_w, rel=0.05)


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_a_machine_that_runs_up_says_so(model: str, family: str) -> None:
    async with place(model, family) as here:
        await here.bridge.write(SetMode(WorkMode.HIGH))
        here.turn(300)
        found = await here.bridge.read(ReadDetail.FULL)
    assert found.state is not None
    assert found.state.value == "auto-tuning"
    assert found.error_codes == (2320,)


@pytest.mark.parametrize(("model", "family"), BOTH)
async def test_a_reset_connection_to_a_dead_miner_writes_nothing(model: str, family: str) -> None:
    async with place(model, family) as here:
        await here.bridge.write(Locate(on=True))
        here.fleet.inject(FaultKind.DEAD, [0])
        told = await here.bridge.write(Sleep())
    assert told.state is WriteState.UNKNOWN, "the request may have reached it"
