"""The traps of aiomqtt and mosquitto, against a real broker."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from hub.ports import Inbound, MqttConnection, Will
from hub.transport.mqtt import AiomqttConnector, BrokerAddress

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto") is None, reason="mosquitto is not installed"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 5.0
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=0.2):
                return
        except OSError:
            assert time.monotonic() < deadline, "mosquitto did not start"
            time.sleep(0.02)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    number = free_port()
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite open/#\ntopic read denied/#\n")
    acl.chmod(0o600)
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {number} 127.0.0.1\nallow_anonymous true\nacl_file {acl}\n"
        "message_size_limit 2000000\nmax_inflight_messages 64\nlog_type none\nuser root\n"
    )
    with subprocess.Popen(["mosquitto", "-c", config]) as broker:
        try:
            wait_for_port(number)
            yield number
        finally:
            broker.terminate()


def connect(
    port: int, client_id: str, *, receive_maximum: int = 16, will: Will | None = None
) -> AbstractAsyncContextManager[MqttConnection]:
    return AiomqttConnector(BrokerAddress(port=port)).connect(
        client_id=client_id,
        clean_start=False,
        session_expiry_s=60,
        receive_maximum=receive_maximum,
        will=will,
    )


async def take(
    messages: AsyncIterator[Inbound], count: int, within_s: float = 3.0
) -> list[Inbound]:
    found: list[Inbound] = []
    try:
        async with asyncio.timeout(within_s):
            while len(found) < count:
                found.append(await anext(messages))
    except TimeoutError:
        pass
    return found


async def test_refused_publish_is_an_error(port: int) -> None:
    async with connect(port, "a") as link:
        with pytest.raises(PermissionError):
            await link.publish("denied/x", b"1")
        await link.publish("open/x", b"1")


async def test_oversized_packet_is_refused_before_it_poisons_the_link(port: int) -> None:
    async with connect(port, "a") as link:
        with pytest.raises(ValueError, match="payload"):
            await link.publish("open/x", bytes((1 << 20) + 1))
        await link.publish("open/x", bytes(1 << 20))


async def test_unacked_messages_bound_the_flow_and_come_again_in_order(port: int) -> None:
    async with connect(port, "hub", receive_maximum=4) as link:
        await link.subscribe([("open/#", 1)])
        async with connect(port, "edge") as other:
            for number in range(10):
                await other.publish("open/x", b"%d" % number)
        held = await take(link.messages(), 10, within_s=0.5)
        assert [message.payload for message in held] == [b"0", b"1", b"2", b"3"]
        await held[0].ack()
        (fifth,) = await take(link.messages(), 1)
        assert fifth.payload == b"4"
    # A new client object, as after a restart of the process: the session still holds them.
    async with connect(port, "hub") as link:
        messages = link.messages()
        again = await take(messages, 9)
        assert [message.payload for message in again] == [b"%d" % n for n in range(1, 10)]
        for message in again:
            await message.ack()
    async with connect(port, "hub") as link:
        assert await take(link.messages(), 1, within_s=0.3) == []


async def test_retained_state_is_read_back_by_subscribing_again(port: int) -> None:
    async with connect(port, "hub") as link:
        await link.publish("open/canary", b"c1", retain=True)
        for _ in range(2):
            await link.subscribe([("open/canary", 1)])
            (message,) = await take(link.messages(), 1)
            assert (message.payload, message.retain) == (b"c1", True)
            await message.ack()


async def test_lost_link_ends_the_messages_and_the_will_speaks(port: int) -> None:
    will = Will(topic="open/state", payload=b"offline", retain=True)
    async with connect(port, "watcher") as watcher:
        await watcher.subscribe([("open/state", 1)])
        async with connect(port, "hub", will=will) as link:
            broken: Any = link
            broken._paho.socket().shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionError):
                await anext(link.messages())
            with pytest.raises(ConnectionError):
                await link.publish("open/x", b"1")
        (message,) = await take(watcher.messages(), 1)
        assert message.payload == b"offline"


async def test_no_broker_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError):
        async with connect(free_port(), "a"):
            pass
