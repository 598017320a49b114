"""The traps of aiomqtt and mosquitto, against a real mosquitto."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from edge_agent.ports import Inbound, MqttConnection, Will
from edge_agent.transport.mqtt import AiomqttConnector, Endpoint

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not on PATH"),
]

CONFIG = """
listener {port} 127.0.0.1
allow_anonymous true
acl_file {acl}
message_size_limit 100000
persistence false
user root
"""
ACL = "topic readwrite open/#\ntopic read closed/#\n"


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    acl = tmp_path / "acl"
    acl.write_text(ACL)
    acl.chmod(0o644)
    config = tmp_path / "mosquitto.conf"
    config.write_text(CONFIG.format(port=number, acl=acl))
    broker = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        ["mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", number)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield number
    finally:
        broker.kill()
        broker.wait()


def _connect(
    port: int, client_id: str, *, window: int = 16, will: Will | None = None
) -> AbstractAsyncContextManager[MqttConnection]:
    connector = AiomqttConnector(Endpoint(host="127.0.0.1", port=port, timeout_s=5))
    return connector.connect(
        client_id=client_id,
        clean_start=False,
        session_expiry_s=60,
        receive_maximum=window,
        will=will,
    )


async def _take(connection: MqttConnection, count: int) -> list[Inbound]:
    found: list[Inbound] = []
    async with asyncio.timeout(5):
        async for message in connection.messages():
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_puback_that_says_no_is_an_error(port: int) -> None:
    async with _connect(port, "a") as connection:
        await connection.publish("open/x", b"1")
        with pytest.raises(PermissionError, match="0x87"):
            await connection.publish("closed/x", b"1")
        await connection.publish("open/x", b"2")


async def test_poison_packet_dies_with_its_connection(port: int) -> None:
    with pytest.raises(ConnectionError):
        async with _connect(port, "a") as connection:
            await connection.publish("open/x", bytes(200_000))
    async with _connect(port, "a") as connection:
        await connection.publish("open/x", b"fine")


async def test_session_keeps_what_came_while_away(port: int) -> None:
    async with _connect(port, "away") as connection:
        await connection.subscribe([("open/#", 1)])
    async with _connect(port, "other") as connection:
        for number in range(5):
            await connection.publish("open/x", b"%d" % number)
    async with _connect(port, "away") as connection:
        got = await _take(connection, 5)
    assert [message.payload for message in got] == [b"0", b"1", b"2", b"3", b"4"]


async def test_unacked_messages_fill_the_window_and_come_again(port: int) -> None:
    async with _connect(port, "slow", window=4) as slow:
        await slow.subscribe([("open/#", 1)])
        async with _connect(port, "fast") as fast:
            for number in range(10):
                await fast.publish("open/x", b"%d" % number)
        first = await _take(slow, 4)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await _take(slow, 1)
        await first[0].ack()
        assert [m.payload for m in await _take(slow, 1)] == [b"4"]
    async with _connect(port, "slow", window=4) as slow:
        again: list[bytes] = []
        for _ in range(9):
            (message,) = await _take(slow, 1)
            again.append(message.payload)
            await message.ack()
    assert again == [b"%d" % number for number in range(1, 10)]


async def test_will_speaks_for_the_dead(port: int) -> None:
    will = Will(topic="open/state", payload=b"dead", retain=True)
    async with _connect(port, "watch") as watch:
        await watch.subscribe([("open/state", 1)])
        with pytest.raises(ConnectionError):
            async with _connect(port, "mortal", will=will) as mortal:
                await mortal.publish("open/x", bytes(200_000))
        (message,) = await _take(watch, 1)
    assert message.payload == b"dead"


async def test_nobody_listens(port: int) -> None:
    with pytest.raises(ConnectionError):
        async with _connect(1, "a"):
            pass
    assert port
