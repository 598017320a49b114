"""A site's MQTT link in memory, with faults: the connector that edge and hub use in simulation.

`SimLink` is one broker and the network to it. It has the shape of the MqttConnector port of both
sides. A connection is two ordered pipes; a fault holds a pipe, cuts a connection, crashes the
broker, or spoils the way from the broker to a subscriber (loss, doubling, delay that reorders
topics). All chance comes from the seed, all time from the running loop, so that a run on the
virtual loop repeats.

What the services may rely on here is what they may rely on in the world: QoS 1 comes at least once
and in order per publisher and topic, except that a PUBACK does not prove delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum

import msgspec

from simulators.broker import PACKET_BYTES_MAX, Broker, Message, WillLike
from simulators.errors import SettingError

CLIENT_INFLIGHT_MAX = 20
INBOUND_MAX = 10_000


class LinkLostError(ConnectionError):
    """The connection is gone; whether the broker has what was being published is not known."""

    code = "link_lost"


class PublishRefusedError(PermissionError):
    """The broker refused a publish with a reason code."""

    code = "publish_refused"

    def __init__(self, topic: str, reason_code: int) -> None:
        super().__init__(f"{topic}: refused with reason code 0x{reason_code:02x}")
        self.topic = topic
        self.reason_code = reason_code


class Direction(StrEnum):
    """Which way a partition blocks: up = client to broker."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How the link treats messages.

    Args:
        delay_s: Delay each way. jitter_s: Mean of an exponential delay on top.
        loss: Share of messages that the broker acknowledges and never delivers.
        duplication: Share that is delivered twice. duplicate_within_s: The second by then.
        reorder_s: Largest extra delay, drawn for each message; order holds within a topic only.
    """

    delay_s: float = 0.01
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    duplicate_within_s: float = 5.0
    reorder_s: float = 0.0


class Counts(msgspec.Struct, kw_only=True):
    """What the link did, for the report of a run."""

    published: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    refused: int = 0
    connections: int = 0
    cuts: int = 0
    crashes: int = 0


class SimLink:
    """A broker and the network to it.

    Args:
        seed: Seed of every chance.
        weather: How messages are treated, until `set_weather`.
        keepalive_s: After which a blocked connection ends.
        connect_timeout_s: After which a connect into a partition fails.
        allowed: Whether a client may publish on a topic; others get reason code 0x87.
    """

    def __init__(
        self,
        *,
        seed: int,
        weather: Weather | None = None,
        keepalive_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        allowed: Callable[[str, str], bool] = lambda _client, _topic: True,
    ) -> None:
        self.counts = Counts()
        self.broker = Broker(self._fate, allowed)
        self.keepalive_s = keepalive_s
        self._connect_timeout_s = connect_timeout_s
        self._rng = random.Random(seed)
        self._weather = weather or Weather()
        self._weather_of: dict[str, Weather] = {}
        self._blocked: dict[str, tuple[Direction, float]] = {}
        self._connections: dict[str, SimConnection] = {}
        self._down = 0

    @contextlib.asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: WillLike | None,
    ) -> AsyncIterator[SimConnection]:
        """Connect; leaving the block disconnects gracefully, unless the link is lost or blocked.

        A process that is killed sends no DISCONNECT: `cut` it first, then cancel its tasks.

        Raises:
            LinkLostError: When the broker is down.
            TimeoutError: When a partition lies between.
        """
        if client_id in self._blocked:
            await asyncio.sleep(self._connect_timeout_s)
            raise TimeoutError(f"no answer to the connect of {client_id}")
        await asyncio.sleep(self.delay_s(client_id) + self.delay_s(client_id))
        if self._down:
            raise LinkLostError("connection refused: the broker is down")
        connection = SimConnection(self, client_id)
        self.counts.connections += 1
        self.broker.connect(
            connection,
            client_id,
            clean_start=clean_start,
            session_expiry_s=session_expiry_s,
            receive_maximum=receive_maximum,
            will=will,
        )
        self._connections[client_id] = connection
        if client_id in self._blocked:  # the partition began during the handshake
            connection.block(self._blocked[client_id][0])
        try:
            yield connection
        finally:
            self._leave(connection)

    def cut(self, client_id: str) -> None:
        """Break a client's connection: both sides learn of it at once, and the will begins."""
        connection = self._connections.pop(client_id, None)
        if connection is not None:
            self.counts.cuts += 1
            self.broker.disconnect(client_id, connection, graceful=False)
            connection.lose("the connection was cut")

    def partition(self, client_id: str, direction: Direction, for_s: float) -> None:
        """Block one or both ways for a time; a connection that stays blocked ends by keepalive.

        A partition that begins within another joins it: both ways, until the later end.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        if client_id in self._blocked:
            other, other_until_s = self._blocked[client_id]
            until_s = max(until_s, other_until_s)
            direction = direction if direction is other else Direction.BOTH
        self._blocked[client_id] = (direction, until_s)
        connection = self._connections.get(client_id)
        if connection is not None:
            connection.block(direction)
        loop.call_at(until_s, self._heal, client_id, until_s)

    def crash(self, *, down_s: float, keep_state: bool) -> None:
        """Crash the broker; it comes back after `down_s`, wiped unless it keeps its state."""
        self.counts.crashes += 1
        self._down += 1
        self.broker.crash(keep_state=keep_state)
        asyncio.get_running_loop().call_later(down_s, self._restart)

    def set_weather(self, weather: Weather | None, client_id: str | None = None) -> None:
        """Change the weather, for all or for the way to one client; None = back to normal."""
        for share in () if weather is None else (weather.loss, weather.duplication):
            if not 0 <= share <= 1:
                raise SettingError("weather", f"{share} is outside 0..1")
        if client_id is None:
            self._weather = weather or Weather()
        elif weather is None:
            self._weather_of.pop(client_id, None)
        else:
            self._weather_of[client_id] = weather

    def clear_weather(self, weather: Weather, client_id: str) -> None:
        """End the weather of one client, unless other weather has come since."""
        if self._weather_of.get(client_id) is weather:
            del self._weather_of[client_id]

    def delay_s(self, client_id: str) -> float:
        """Draw the delay of one packet."""
        weather = self._weather_of.get(client_id, self._weather)
        jitter_s = self._rng.expovariate(1 / weather.jitter_s) if weather.jitter_s > 0 else 0.0
        return weather.delay_s + jitter_s

    def _fate(self, publisher: str, subscriber: str, message: Message) -> Sequence[float]:
        weather = self._weather_of.get(subscriber, self._weather)
        if weather.loss > 0 and self._rng.random() < weather.loss:
            self.counts.lost += 1
            return ()
        first_s = self._rng.uniform(0, weather.reorder_s) if weather.reorder_s > 0 else 0.0
        if message.qos and weather.duplication > 0 and self._rng.random() < weather.duplication:
            self.counts.duplicated += 1
            return (first_s, self._rng.uniform(0, weather.duplicate_within_s))
        return (first_s,)

    def _leave(self, connection: SimConnection) -> None:
        if self._connections.get(connection.client_id) is connection:
            del self._connections[connection.client_id]
        graceful = connection.client_id not in self._blocked
        if graceful:
            connection.flush()
        self.broker.disconnect(connection.client_id, connection, graceful=graceful)
        connection.lose("disconnected")

    def _heal(self, client_id: str, until_s: float) -> None:
        if client_id not in self._blocked or self._blocked[client_id][1] > until_s:
            return  # a later partition has joined this one
        del self._blocked[client_id]
        connection = self._connections.get(client_id)
        if connection is not None:
            connection.unblock()

    def _restart(self) -> None:
        self._down -= 1
        if not self._down:
            self.broker.restart()


class SimInbound:
    """One received message; it comes again on the next connection unless acknowledged."""

    def __init__(self, connection: SimConnection, packet_id: int | None, message: Message) -> None:
        self.topic = message.topic
        self.payload = message.payload
        self.retain = message.retain
        self._connection = connection
        self._packet_id = packet_id

    async def ack(self) -> None:
        """Acknowledge; on a lost connection this does nothing, and the message comes again."""
        if self._packet_id is not None:
            self._connection.acknowledge(self._packet_id)


class SimConnection:
    """One connection, of the shape of the MqttConnection port; the broker sees it as a Peer."""

    def __init__(self, link: SimLink, client_id: str) -> None:
        self.client_id = client_id
        self._link = link
        self._up = _Pipe(lambda: link.delay_s(client_id))
        self._down = _Pipe(lambda: link.delay_s(client_id))
        self._slots = asyncio.Semaphore(CLIENT_INFLIGHT_MAX)
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._inbound: deque[SimInbound] = deque()
        self._arrived = asyncio.Event()
        self._lost: str | None = None
        self._keepalive: asyncio.TimerHandle | None = None

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish; for QoS 1 return after the PUBACK.

        Raises:
            PublishRefusedError: When the broker answers with an error code.
            LinkLostError: When the connection ends first.
        """
        self._check()
        message = Message(topic, payload, qos, retain)
        if qos == 0:
            self._up.send(lambda: self._broker_takes(message, None))
            return
        async with self._slots:
            self._check()
            puback = self._expect()
            self._up.send(lambda: self._broker_takes(message, puback))
            reason_code = await puback
        if reason_code >= 0x80:
            self._link.counts.refused += 1
            raise PublishRefusedError(topic, reason_code)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs; return after the SUBACK.

        Raises:
            LinkLostError: When the connection ends first.
        """
        self._check()
        wanted = tuple(filters)
        suback = self._expect()

        def take() -> None:
            self._link.broker.subscribe(self.client_id, wanted)
            self._down.send(lambda: _settle(suback, 0))

        self._up.send(take)
        await suback

    async def messages(self) -> AsyncIterator[SimInbound]:
        """Iterate the messages.

        Raises:
            LinkLostError: When the connection has ended and all that had arrived was handed over.
        """
        while True:
            while self._inbound:
                yield self._inbound.popleft()
            self._check()
            self._arrived.clear()
            await self._arrived.wait()

    def acknowledge(self, packet_id: int) -> None:
        """Send the PUBACK of a received message."""
        if self._lost is None:
            broker, client_id = self._link.broker, self.client_id
            self._up.send(lambda: broker.acknowledge(client_id, self, packet_id))

    def deliver(self, packet_id: int | None, message: Message) -> None:
        """Carry a message from the broker to the client."""
        self._down.send(lambda: self._client_takes(packet_id, message))

    def taken_over(self) -> None:
        """Lose the connection because the broker closed it."""
        self.lose("the broker closed the connection")

    def lose(self, reason: str) -> None:
        """End the connection on the client's side; whatever waits for an answer fails."""
        if self._lost is not None:
            return
        self._lost = reason
        self._stop_keepalive()
        self._up.close()
        self._down.close()
        self._arrived.set()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(LinkLostError(reason))

    def flush(self) -> None:
        """Let the broker take all that was sent, as a socket closed in order does."""
        self._up.flush()

    def block(self, direction: Direction) -> None:
        """Hold packets; after the keepalive time the connection ends."""
        if direction is not Direction.DOWN:
            self._up.hold()
        if direction is not Direction.UP:
            self._down.hold()
        if self._keepalive is None:
            loop = asyncio.get_running_loop()
            self._keepalive = loop.call_later(
                self._link.keepalive_s, self._link.cut, self.client_id
            )

    def unblock(self) -> None:
        """Let the held packets go, in order."""
        self._stop_keepalive()
        self._up.release()
        self._down.release()

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def _check(self) -> None:
        if self._lost is not None:
            raise LinkLostError(self._lost)

    def _expect(self) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        self._waiting.append(future)
        return future

    def _broker_takes(self, message: Message, puback: asyncio.Future[int] | None) -> None:
        if len(message.payload) + len(message.topic) > PACKET_BYTES_MAX:
            self._link.cut(self.client_id)
            return
        self._link.counts.published += 1
        reason_code = self._link.broker.publish(self.client_id, message)
        if puback is not None:
            self._down.send(lambda: _settle(puback, reason_code))

    def _client_takes(self, packet_id: int | None, message: Message) -> None:
        if len(self._inbound) >= INBOUND_MAX:
            return  # only QoS 0 can flood: QoS 1 is bounded by the receive maximum
        self._link.counts.delivered += 1
        self._inbound.append(SimInbound(self, packet_id, message))
        self._arrived.set()


class _Pipe:
    """One direction of a connection: ordered, delayed, and held by a partition."""

    def __init__(self, delay_s: Callable[[], float]) -> None:
        self.held = False
        self._delay_s = delay_s
        self._packets: deque[Callable[[], None]] = deque()
        self._due_s = 0.0
        self._holds = 0

    def send(self, packet: Callable[[], None]) -> None:
        self._packets.append(packet)
        if not self.held:
            self._schedule()

    def hold(self) -> None:
        self.held = True
        self._holds += 1  # timers set before this no longer count

    def release(self) -> None:
        if self.held:
            self.held = False
            for _ in range(len(self._packets)):
                self._schedule()

    def flush(self) -> None:
        self._holds += 1
        while self._packets:
            self._packets.popleft()()

    def close(self) -> None:
        self.hold()
        self._packets.clear()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = max(self._due_s, loop.time() + self._delay_s())
        loop.call_at(self._due_s, self._arrive, self._holds)

    def _arrive(self, holds: int) -> None:
        # Timers of one instant fire in any order; the packets leave in theirs.
        if holds == self._holds:
            self._packets.popleft()()


def _settle(future: asyncio.Future[int], value: int) -> None:
    if not future.done():
        future.set_result(value)
