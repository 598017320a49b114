"""MQTT 5 over aiomqtt, with what it hides made visible.

aiomqtt 2.5 ignores PUBACK reasons, re-sends what timed out, acks a message before it is handled and
queues without bound. So: one new client per connection, publishes and acks go to the paho client
inside (private, hence pinned and tested), and the broker's reason decides.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiomqtt
from msgspec import Struct
from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import LogLevel
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from hub.ports import Inbound, MqttConnection, Will
from protocol.codec import PACKET_BYTES_MAX
from protocol.tls import explain_refusal

CONNECT_S = 10.0
PUBLISH_S = 10.0
KEEPALIVE_S = 20
# Publishes in flight at once; mosquitto.conf allows 64 (max_inflight_messages).
PUBLISHES_MAX = 48
# QoS 0 messages that may wait; QoS 1 is bounded by ReceiveMaximum.
LOSSY_WAITING_MAX = 1_000
# Small packets follow each other (an ack, then a lease): Nagle's algorithm would hold the second
# for the 40 ms of the broker's delayed TCP ack.
_NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


class BrokerAddress(Struct, frozen=True, kw_only=True):
    """Where the broker listens and who we are there."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: str | None = None


class AiomqttConnector:
    """The ``MqttConnector`` port over aiomqtt.

    Args:
        address: the broker. tls: context with our client certificate, or None for plain TCP.
    """

    def __init__(self, address: BrokerAddress, tls: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._tls = tls

    @asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: Will | None,
    ) -> AsyncIterator[MqttConnection]:
        """Connect.

        Raises:
            PermissionError: the broker does not accept our certificate. ConnectionError,
                TimeoutError: it cannot be reached, or the link ended.
        """
        client = aiomqtt.Client(
            self._address.host,
            self._address.port,
            username=self._address.username,
            password=self._address.password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=clean_start,
            properties=_connect_properties(session_expiry_s, receive_maximum),
            will=_aiomqtt_will(will),
            keepalive=KEEPALIVE_S,
            tls_context=self._tls,
            timeout=CONNECT_S,
            max_inflight_messages=PUBLISHES_MAX,
            socket_options=_NO_DELAY,
        )
        _EarlyEnd(client)
        connection = _Connection(client)
        try:
            async with asyncio.timeout(CONNECT_S + 1.0):
                await client.__aenter__()
        except aiomqtt.MqttError as exc:
            raise _connect_error(exc) from exc
        try:
            yield connection
        finally:
            connection.fail_pending()
            # The link may be gone already; there is nothing left to say goodbye to.
            with suppress(aiomqtt.MqttError, TimeoutError):
                await client.__aexit__(None, None, None)
            _retrieve(client)


class _EarlyEnd:
    """Ends the wait for the CONNACK when the broker closes before it, with what it said.

    aiomqtt would wait for its whole timeout and call that the reason, while a broker that does not
    accept our certificate says so at once.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[None] = client._connected  # noqa: SLF001 - see the module's docstring
        self._said = "it gave no reason"
        inner = client._client  # noqa: SLF001 - as above
        inner.on_log = self._on_log
        inner.on_disconnect = self._on_disconnect

    def _on_log(self, client: object, userdata: object, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._said = text

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        # Connecting is done in a thread, and what fails there is told there.
        self._loop.call_soon_threadsafe(self._fail)
        self._client._on_disconnect(client, userdata, flags, reason_code, properties)  # noqa: SLF001 - goes on as before

    def _fail(self) -> None:
        if not self._answer.done():
            text = f"closed before it answered: {self._said}"
            self._answer.set_exception(aiomqtt.MqttError(text))


class _Inbound:
    """One received message; until ``ack`` the broker counts it as outstanding."""

    def __init__(self, connection: "_Connection", message: aiomqtt.Message) -> None:
        self.topic = message.topic.value
        self.payload = message.payload
        self.retain = message.retain
        self._connection = connection
        self._mid = message.mid
        self._qos = message.qos

    async def ack(self) -> None:
        """Send the PUBACK; a dead link is no error here: the message will come again."""
        self._connection.acknowledge(self._mid, self._qos)


class _Connection:
    """One live connection over one aiomqtt client."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._paho = client._client  # noqa: SLF001 - see the module's docstring
        self._paho.manual_ack_set(on=True)
        self._paho.on_publish = self._on_publish
        self._paho.on_message = self._on_message
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._slots = asyncio.Semaphore(PUBLISHES_MAX)
        self.lossy_dropped = 0

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish; for QoS 1 return after a PUBACK that says success.

        Raises:
            ValueError: payload above 1 MiB: it would kill this and every later connection.
            PermissionError: the broker refused it. ConnectionError, TimeoutError: the link is gone.
        """
        if len(payload) > PACKET_BYTES_MAX:
            raise ValueError(f"payload of {len(payload)} bytes, at most {PACKET_BYTES_MAX}")
        async with self._slots, asyncio.timeout(PUBLISH_S):
            info = self._paho.publish(topic, payload, qos, retain)
            if info.rc != MQTT_ERR_SUCCESS:
                raise ConnectionError(f"publish: {info.rc!r}")
            if qos == 0:
                return
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pending[info.mid] = future
            try:
                await future
            finally:
                self._pending.pop(info.mid, None)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe; retained messages of the filters are delivered (again).

        Raises:
            PermissionError: a filter was refused. ConnectionError: the link is gone.
        """
        wanted = [(name, SubscribeOptions(qos=qos)) for name, qos in filters]
        try:
            granted = await self._client.subscribe(wanted, timeout=CONNECT_S)
        except aiomqtt.MqttError as exc:
            raise ConnectionError(f"subscribe: {exc}") from exc
        for (name, _), code in zip(filters, granted, strict=True):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise PermissionError(f"subscription to {name} refused: {code}")

    async def messages(self) -> AsyncIterator[Inbound]:
        """Iterate the messages; ConnectionError when the link ends."""
        try:
            async for message in self._client.messages:
                yield _Inbound(self, message)
        except aiomqtt.MqttError as exc:
            raise ConnectionError(f"receive: {exc}") from exc

    def acknowledge(self, mid: int, qos: int) -> None:
        """Send a PUBACK."""
        if qos:
            self._paho.ack(mid, qos)

    def fail_pending(self) -> None:
        """End the waits of publishes that will never be answered."""
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionError("connection closed"))

    def _on_publish(
        self,
        client: object,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: object,
    ) -> None:
        future = self._pending.get(mid)
        if future is None or future.done():
            return
        if reason.is_failure:
            future.set_exception(PermissionError(f"publish refused: {reason}"))
        else:
            future.set_result(None)

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:  # noqa: ANN401 - paho's callback
        queue = self._client._queue  # noqa: SLF001 - the library hides its bound
        if message.qos == 0 and queue.qsize() >= LOSSY_WAITING_MAX:
            self.lossy_dropped += 1
            return
        self._client._on_message(client, userdata, message)  # noqa: SLF001 - goes on as before


def _connect_properties(session_expiry_s: int, receive_maximum: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types here
    properties.SessionExpiryInterval = session_expiry_s
    properties.ReceiveMaximum = receive_maximum
    return properties


def _connect_error(exc: aiomqtt.MqttError) -> OSError:
    told = explain_refusal(str(exc))
    if told is None:
        return ConnectionError(f"connect: {exc}")
    text = f"{told.sentence} ({exc})"
    return PermissionError(text) if told.ours else ConnectionError(text)


def _aiomqtt_will(will: Will | None) -> aiomqtt.Will | None:
    if will is None:
        return None
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho has no types here
    properties.WillDelayInterval = will.delay_s
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


def _retrieve(client: aiomqtt.Client) -> None:
    # Else asyncio reports the end of the link as an exception that nobody looked at.
    ended = client._disconnected  # noqa: SLF001 - nobody else asks
    if ended.done() and not ended.cancelled():
        ended.exception()
