"""The one session of LuxOS over real sockets, against the simulator."""

import asyncio
import json

from firmware_bridges.base import WorkMode, WriteState
from firmware_bridges.commands import SetMode, Sleep
from firmware_bridges.family import ControlContext
from firmware_bridges.link import MinerLink
from firmware_bridges.luxos.control import LuxosControl
from firmware_bridges.query import Wire, cgminer
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS
from simulators.asic_server import serve


async def test_another_client_s_session_is_left_alone_until_it_ends() -> None:
    now_ns = [10**12]
    spec = FleetSpec(count=1, models=(MODELS["s21-luxos"],), seed=1)
    fleet = Fleet(spec, now_ns=lambda: now_ns[0], wall_s=lambda: 1_800_000_000.0)
    async with serve(fleet, port=0, web_port=0) as ports:
        link = MinerLink(
            fleet.address(0),
            {Wire.CGMINER: ports.port},
            in_flight=asyncio.Semaphore(2),
            client_nonce=lambda: "nonce",
        )
        control = LuxosControl(
            ControlContext(
                asker=link,
                credentials=None,
                address=fleet.address(0),
                wall_s=lambda: 1_800_000_000.0,
                random_text=lambda: "text",
            )
        )
        theirs = json.loads((await link.ask(cgminer("logon"))).rstrip(b"\0"))["SESSION"]
        held = await control.write(Sleep())
        assert (held.state, held.code) == (WriteState.REFUSED, "luxos.session_held")
        shown = json.loads((await link.ask(cgminer("session"))).rstrip(b"\0"))["SESSION"]
        assert shown == theirs
        assert fleet.truth()[0].hashrate_ths > 100

        now_ns[0] += 61 * 10**9
        assert (await control.write(SetMode(mode=WorkMode.LOW))).state is WriteState.ACKNOWLEDGED
        assert await control.mode() is WorkMode.LOW
        ended = json.loads((await link.ask(cgminer("session"))).rstrip(b"\0"))["SESSION"]
        assert ended == [{"SessionID": ""}]
