"""What the services rely on of MQTT 5: the same on the simulated link and on mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import aiomqtt
import pytest
from aiomqtt.client import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from simulators.broker import WillLike
from simulators.link import SimLink
from simulators.virtual_loop import run
from tests.simulators.mqtt_port import Connector, Inbound, Will, join, take

# --- scenarios, run on the simulated link and on mosquitto -------------------------------------

Kill = Callable[[str], Awaitable[None]]
Log = list[object]


async def order_per_topic(connector: Connector, kill: Kill) -> Log:
    del kill
    async with join(connector, "sub") as sub, join(connector, "pub") as pub:
        await sub.subscribe([("t/#", 1)])
        for number in range(12):
            await pub.publish("t/a", str(number).encode())
        return [payload for _, payload in await take(sub, 12)]


async def retained_is_kept_replaced_and_cleared(connector: Connector, kill: Kill) -> Log:
    del kill
    log: Log = []
    async with join(connector, "pub") as pub:
        for payload in (b"old", b"new"):
            await pub.publish("r/1", payload, retain=True)
        await pub.publish("r/2", b"gone", retain=True)
        await pub.publish("r/2", b"", retain=True)
        async with join(connector, "sub") as sub:
            await sub.subscribe([("r/+", 1)])
            async for message in sub.messages():
                log.append((message.topic, message.payload, message.retain))
                await message.ack()
                break
            await pub.publish("r/1", b"live", retain=True)
            async for message in sub.messages():
                log.append((message.topic, message.payload, message.retain))
                await message.ack()
                break
            log.append(await take(sub, 1, within_s=0.5))
    return log


async def unacked_comes_again_in_order(connector: Connector, kill: Kill) -> Log:
    del kill
    log: Log = []
    async with join(connector, "pub") as pub:
        async with join(connector, "sub") as sub:
            await sub.subscribe([("q", 1)])
            for number in range(5):
                await pub.publish("q", str(number).encode())
            log.append(await take(sub, 2, ack=True))
            log.append(await take(sub, 2, ack=False))
        await pub.publish("q", b"while away")
        async with join(connector, "sub") as sub:
            log.append(await take(sub, 4))
            log.append(await take(sub, 1, within_s=0.5))
        async with join(connector, "sub", clean_start=True) as sub:
            log.append(await take(sub, 1, within_s=0.5))
    return log


async def receive_maximum_holds_back(connector: Connector, kill: Kill) -> Log:
    del kill
    async with join(connector, "sub", receive_maximum=3) as sub, join(connector, "pub") as pub:
        await sub.subscribe([("q", 1)])
        for number in range(8):
            await pub.publish("q", str(number).encode())
        held = await take(sub, 99, ack=False, within_s=0.5)
        return [len(held)]


async def absent_clients_get_no_qos_0(connector: Connector, kill: Kill) -> Log:
    del kill
    async with join(connector, "sub") as sub:
        await sub.subscribe([("z", 1)])
    async with join(connector, "pub") as pub:
        await pub.publish("z", b"zero", qos=0)
        await pub.publish("z", b"one", qos=1)
        async with join(connector, "sub") as sub:
            return [await take(sub, 9, within_s=0.5)]


async def expired_sessions_are_forgotten(connector: Connector, kill: Kill) -> Log:
    del kill
    async with join(connector, "sub", expiry_s=0) as sub:
        await sub.subscribe([("e", 1)])
    async with join(connector, "pub") as pub:
        await pub.publish("e", b"lost")
        async with join(connector, "sub", expiry_s=0) as sub:
            return [await take(sub, 1, within_s=0.5)]


async def overlapping_filters_deliver_twice(connector: Connector, kill: Kill) -> Log:
    del kill
    async with join(connector, "sub") as sub, join(connector, "pub") as pub:
        await sub.subscribe([("o/#", 1), ("o/+", 1)])
        await pub.publish("o/1", b"x")
        return [await take(sub, 3, within_s=2.0)]


async def will_follows_a_loss_and_not_a_goodbye(connector: Connector, kill: Kill) -> Log:
    log: Log = []
    will = Will(topic="w", payload=b"dead", delay_s=0)
    async with join(connector, "sub") as sub:
        await sub.subscribe([("w", 1)])
        async with join(connector, "mortal", will=will):
            await asyncio.sleep(0)
        log.append(await take(sub, 1, within_s=0.5))
        with contextlib.suppress(ConnectionError, aiomqtt.MqttError):
            async with join(connector, "mortal", will=will):
                await kill("mortal")
        log.append(await take(sub, 1))
    return log


async def delayed_will_is_called_off_by_a_return(connector: Connector, kill: Kill) -> Log:
    log: Log = []
    will = Will(topic="w", payload=b"dead", delay_s=1)
    async with join(connector, "sub") as sub:
        await sub.subscribe([("w", 1)])
        with contextlib.suppress(ConnectionError, aiomqtt.MqttError):
            async with join(connector, "mortal", will=will):
                await kill("mortal")
        async with join(connector, "mortal", will=will):
            log.append(await take(sub, 1, within_s=2))
            with contextlib.suppress(ConnectionError, aiomqtt.MqttError):
                await kill("mortal")
            log.append(await take(sub, 1))
    return log


async def a_second_connection_takes_the_session_over(connector: Connector, kill: Kill) -> Log:
    del kill
    log: Log = []
    async with join(connector, "pub") as pub:
        with contextlib.suppress(ConnectionError, aiomqtt.MqttError):
            async with join(connector, "sub") as first:
                await first.subscribe([("k", 1)])
                async with join(connector, "sub") as second:
                    await pub.publish("k", b"for the second")
                    log.append(await take(second, 1))
                    try:
                        async with asyncio.timeout(1):
                            async for _ in first.messages():
                                log.append("first got it")
                    except (ConnectionError, aiomqtt.MqttError):
                        log.append("first is lost")
    return log


SCENARIOS: dict[Callable[[Connector, Kill], Awaitable[Log]], Log] = {
    order_per_topic: [str(number).encode() for number in range(12)],
    retained_is_kept_replaced_and_cleared: [
        ("r/1", b"new", True),
        ("r/1", b"live", False),
        [],
    ],
    unacked_comes_again_in_order: [
        [("q", b"0"), ("q", b"1")],
        [("q", b"2"), ("q", b"3")],
        [("q", b"2"), ("q", b"3"), ("q", b"4"), ("q", b"while away")],
        [],
        [],
    ],
    receive_maximum_holds_back: [3],
    absent_clients_get_no_qos_0: [[("z", b"one")]],
    expired_sessions_are_forgotten: [[]],
    overlapping_filters_deliver_twice: [[("o/1", b"x"), ("o/1", b"x")]],
    will_follows_a_loss_and_not_a_goodbye: [[], [("w", b"dead")]],
    delayed_will_is_called_off_by_a_return: [[], [("w", b"dead")]],
    a_second_connection_takes_the_session_over: [[("k", b"for the second")], "first is lost"],
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_simulated_broker_plays_the_scenario(
    scenario: Callable[[Connector, Kill], Awaitable[Log]],
) -> None:
    async def play() -> Log:
        link = SimLink(seed=1)

        async def kill(client_id: str) -> None:
            link.cut(client_id)

        return await scenario(link, kill)

    assert run(play()) == SCENARIOS[scenario]


# --- the same on mosquitto ----------------------------------------------------------------------


class RealInbound:
    def __init__(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        self.topic = str(message.topic)
        assert isinstance(message.payload, bytes)
        self.payload = message.payload
        self.retain = message.retain
        self._client = client
        self._message = message

    async def ack(self) -> None:
        self._client._client.ack(self._message.mid, self._message.qos)


class RealConnection:
    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        await self.client.publish(topic, payload, qos=qos, retain=retain, timeout=5)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        await self.client.subscribe(list(filters), timeout=5)

    async def messages(self) -> AsyncIterator[Inbound]:
        async for message in self.client.messages:
            yield RealInbound(self.client, message)


class RealConnector:
    """aiomqtt, just enough for the scenarios."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: dict[str, socket.socket] = {}

    @contextlib.asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: WillLike | None,
    ) -> AsyncIterator[RealConnection]:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = session_expiry_s
        properties.ReceiveMaximum = receive_maximum
        will_properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        will_properties.WillDelayInterval = 0 if will is None else will.delay_s
        client = aiomqtt.Client(
            "127.0.0.1",
            self._port,
            identifier=client_id,
            protocol=ProtocolVersion.V5,
            clean_start=clean_start,
            properties=properties,
            will=None
            if will is None
            else aiomqtt.Will(
                will.topic, will.payload, will.qos, will.retain, properties=will_properties
            ),
        )
        client._client.manual_ack_set(True)  # noqa: FBT003 - the signature of paho
        async with client:
            sock = client._client.socket()
            assert isinstance(sock, socket.socket)
            self._sockets[client_id] = sock
            yield RealConnection(client)

    async def kill(self, client_id: str) -> None:
        self._sockets[client_id].shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def mosquitto_port() -> Iterator[int]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("no mosquitto on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with subprocess.Popen(
        [program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(250):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            time.sleep(0.02)
        yield port
        process.terminate()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_mosquitto_plays_the_scenario_the_same(
    scenario: Callable[[Connector, Kill], Awaitable[Log]], mosquitto_port: int
) -> None:
    connector = RealConnector(mosquitto_port)
    for client_id in ("sub", "pub", "mortal"):  # no session of the last scenario
        async with join(connector, client_id, clean_start=True, expiry_s=0):
            pass
    assert await scenario(connector, connector.kill) == SCENARIOS[scenario]
