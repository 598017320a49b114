"""The seam between fleet and firmware: a dialect on every wire, and devices that are hostile."""

from __future__ import annotations

import asyncio
import socket

import pytest

from simulators import asic_fleet
from simulators.asic_dialect import Dialect, OneWire, Outcome, Unit, answer
from simulators.asic_faults import FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import S21, MinerModel
from simulators.asic_server import serve
from simulators.asic_silent import silent_port
from simulators.errors import SettingError
from simulators.http_wire import HttpRequest, response


class EchoDialect(OneWire):
    name = "echo"
    speaks_http_on_api = True

    def begin(self, unit: Unit) -> object:
        return [unit.address]

    def restart(self, unit: Unit) -> None:
        return

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        body = f"{unit.memory} {request.path}".encode()
        return answer(response(200, body, keep_alive=request.keep_alive))

    def frame(self, unit: Unit, data: bytes) -> Outcome:
        return answer(unit.mac.encode() + data)


def model(dialect: str) -> MinerModel:
    return MinerModel(
        device_type="Echo 1", hashrate_ths=1.0, power_w=30.0, power_w_asleep=1.0, boards=1,
        chips=1, frequency_mhz=1, dialect=dialect,
    )  # fmt: skip


def fleet(*models: MinerModel) -> Fleet:
    spec = FleetSpec(count=2, models=models, seed=7)
    return Fleet(spec, now_ns=lambda: 0, wall_s=lambda: 1_800_000_000.0)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    def with_echo(*_: object) -> dict[str, Dialect]:
        return {"echo": EchoDialect()}

    monkeypatch.setattr(asic_fleet, "dialects", with_echo)
    return fleet(model("echo"))


async def talk(host: str, port: int, request: bytes, count: int) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        try:
            return await reader.readexactly(count)
        finally:
            writer.transport.abort()


async def test_a_firmware_may_have_its_web_server_on_the_port_of_the_api(echo: Fleet) -> None:
    async with serve(echo, port=0, web_port=0) as ports:
        said = await talk("127.64.0.2", ports.port, b"GET /summary HTTP/1.1\r\n\r\n", 12)
    assert said == b"HTTP/1.1 200"


async def test_messages_with_a_length_in_front_are_answered_alike(echo: Fleet) -> None:
    async with serve(echo, port=0, web_port=0) as ports:
        request = b"\x02\x00\x00\x00hi\x03\x00\x00\x00you"
        said = await talk("127.64.0.1", ports.v3_port, request, 2 * 4 + 2 * 17 + 5)
    assert said == (
        b"\x13\x00\x00\x0002:00:07:00:00:00hi" + b"\x14\x00\x00\x0002:00:07:00:00:00you"
    )


async def test_a_wire_that_a_firmware_lacks_is_reset() -> None:
    async with serve(fleet(S21), port=0, web_port=0) as ports:
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await talk("127.64.0.1", ports.v3_port, b"\x02\x00\x00\x00hi", 1)


@pytest.mark.parametrize("kind", [FaultKind.FLOOD, FaultKind.CHUNKS, FaultKind.DEEP])
async def test_hostile_miners_send_more_than_anyone_may_take(kind: FaultKind) -> None:
    site = fleet(S21)
    site.inject(kind, [0])
    async with serve(site, port=0, web_port=0) as ports:
        assert (
            len(await talk("127.64.0.1", ports.port, b'{"command":"summary"}', 1 << 20)) == 1 << 20
        )


async def test_a_dripping_miner_has_sent_one_byte_at_first() -> None:
    site = fleet(S21)
    site.inject(FaultKind.DRIP, [0])
    async with serve(site, port=0, web_port=0) as ports:
        assert await talk("127.64.0.1", ports.port, b'{"command":"summary"}', 1) == b"{"


def test_a_silent_port_neither_accepts_nor_refuses() -> None:
    with silent_port() as port, socket.socket() as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.connect(("127.0.0.1", port))


def test_a_model_of_an_unknown_firmware_is_refused() -> None:
    with pytest.raises(SettingError, match="no firmware"):
        fleet(model("none such"))
