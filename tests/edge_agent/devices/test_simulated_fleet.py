"""The real fleet through real sockets against the ASIC simulator, which shares no code with it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

from edge_agent.devices.asic_driver import DriverSettings
from edge_agent.devices.fleet import AsicUnit, FleetSettings, MinerFleet
from edge_agent.devices.poller import PollSettings
from edge_agent.devices.ports import AsicAction, AsicNameplate, OutcomeState, StateCode
from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import MinerAddress, ReadDetail, WorkMode
from firmware_bridges.bridge import bridge_of
from tests.edge_agent.devices.scripted import loop_clock

ROOT = Path(__file__).parents[3]
# Nameplates of the two models (maker's product pages): TH/s, W.
PLATES = {"Antminer S21": (200.0, 3_500.0), "Antminer S19 XP": (140.0, 3_010.0)}
SETTINGS = FleetSettings(
    poll=PollSettings(tick_s=0.5, slot_s=0.01),
    drive=DriverSettings(watch_s=0.05, watch_s_max=0.2, hold_s=0.2),
)


@asynccontextmanager
async def simulator(*options: str) -> AsyncIterator[list[MinerAddress]]:
    """Start the simulator as its own process and give the miners' addresses."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators", "asic", "--port", "0", "--web-port", "0", *options,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(15):
            ready = json.loads(await process.stdout.readline())
        first = int(IPv4Address(ready["first"]))
        yield [
            MinerAddress(
                host=str(IPv4Address(first + number)),
                cgminer_port=ready["port"],
                web_port=ready["web_port"],
            )
            for number in range(ready["count"])
        ]
    finally:
        process.terminate()
        await process.wait()


def fleet_at(addresses: list[MinerAddress], model: str) -> MinerFleet:
    hashrate_ths, power_w = PLATES[model]
    plate = AsicNameplate(hashrate_ths=hashrate_ths, power_w=power_w, sleep_power_w=20.0)
    fresh = count(1)
    return MinerFleet(
        [
            AsicUnit(device_id=f"asic-{number}", address=address, nameplate=plate)
            for number, address in enumerate(addresses)
        ],
        clock=loop_clock(),
        client_nonce=lambda: f"{next(fresh):016x}",
        settings=SETTINGS,
    )


async def settled(fleet: MinerFleet, state: StateCode) -> None:
    """Wait until polling itself shows every device in one state."""
    while (await fleet.next_batch()).state.tolist() != [state] * 4:
        assert fleet.counts().ticks < 100


async def test_read_sleep_confirm_wake_confirm() -> None:
    async with (
        simulator("--count", "4", "--model", "s21", "--time-scale", "300", "--seed", "1")
        as addresses,
        asyncio.timeout(40),
        asyncio.TaskGroup() as group,
    ):  # fmt: skip
        fleet = fleet_at(addresses, "Antminer S21")
        ids = [f"asic-{number}" for number in range(4)]
        polling = group.create_task(fleet.run())
        await settled(fleet, StateCode.MINING)
        readings = await fleet.read()
        assert all(160 <= rate <= 240 for rate in readings.hashrate_ths)
        assert all(30 <= temp <= 100 for temp in readings.temp_c)

        asleep = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ids, 20.0)
        assert [outcome.state for outcome in asleep] == [OutcomeState.CONFIRMED] * 4
        assert all(not outcome.hashrate_ths for outcome in asleep)
        await settled(fleet, StateCode.ASLEEP)

        awake = await fleet.apply("s2", "activate", AsicAction.MINE, ids, 20.0)
        assert [outcome.state for outcome in awake] == [OutcomeState.CONFIRMED] * 4
        assert all((outcome.hashrate_ths or 0) >= 100 for outcome in awake)
        await settled(fleet, StateCode.MINING)
        polling.cancel()


async def test_a_full_reading_knows_the_machine() -> None:
    async with simulator("--count", "2", "--model", "s21,s19xp", "--seed", "2") as addresses:
        for address, model in zip(addresses, PLATES, strict=True):
            bridge = bridge_of(
                ANTMINER_STOCK,
                address,
                credentials=None,
                in_flight=asyncio.Semaphore(4),
                client_nonce=lambda: "c0ffee",
                wall_s=lambda: 0.0,
            )
            reading = await bridge.read(ReadDetail.FULL)
            assert reading.model == model
            assert (reading.make, reading.firmware) == ("Bitmain", "stock")
            assert reading.is_mining is True
            assert reading.failed == ()
            assert reading.rejected == ()
            assert reading.mac is not None
            assert reading.uptime_s is not None
            assert reading.pools is not None
            assert len(reading.fans_rpm or ()) == 4
            assert await bridge.mode() is WorkMode.NORMAL


async def test_hung_and_dead_miners_do_not_hold_up_the_others() -> None:
    async with (
        simulator("--count", "40", "--model", "s21", "--faults", "hung=0.1,dead=0.1", "--seed", "5")
        as addresses,
        asyncio.timeout(30),
        asyncio.TaskGroup() as group,
    ):  # fmt: skip
        fleet = fleet_at(addresses, "Antminer S21")
        polling = group.create_task(fleet.run())
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(3):
            readings = await fleet.next_batch()
        assert loop.time() - begin < 4.0, "three ticks of 0.5 s, and not the deadlines of 8 miners"
        healthy = int((readings.reachable == 1).sum())
        assert healthy == 40 - 4 - 4
        polling.cancel()


async def test_a_miner_that_lies_is_never_confirmed() -> None:
    async with (
        simulator("--count", "2", "--model", "s21", "--faults", "lying=1", "--time-scale", "100")
        as addresses,
        asyncio.timeout(20),
    ):  # fmt: skip
        fleet = fleet_at(addresses, "Antminer S21")
        ids = ["asic-0", "asic-1"]
        for outcome in await fleet.apply("s1", "pause", AsicAction.CURTAIL, ids, 2.5):
            assert outcome.state is OutcomeState.UNKNOWN
            assert outcome.acknowledged_ns is not None
            assert outcome.confirmed_ns is None
            assert (outcome.hashrate_ths or 0) > 100


async def test_miners_of_unknown_firmware_are_found_out_and_read() -> None:
    async with (
        simulator("--count", "2", "--model", "s21,a1566", "--time-scale", "300") as addresses,
        asyncio.timeout(20),
        asyncio.TaskGroup() as group,
    ):
        plate = AsicNameplate(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)
        fleet = MinerFleet(
            [
                AsicUnit(device_id=address.host, address=address, nameplate=plate, family=None)
                for address in addresses
            ],
            clock=loop_clock(),
            client_nonce=lambda: "c0ffee",
            settings=SETTINGS,
        )
        polling = group.create_task(fleet.run())
        while (await fleet.next_batch()).state.tolist() != [StateCode.MINING] * 2:
            assert fleet.counts().ticks < 20
        known = [fleet.known(address.host).reading for address in addresses]
        assert [reading and reading.make for reading in known] == ["Bitmain", "Canaan"]
        assert await fleet.act("locate", "nobody") == ("refused", "no miner nobody on this site")
        for address in addresses:
            assert (await fleet.act("locate", address.host))[0] == "done"
        polling.cancel()
