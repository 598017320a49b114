"""MQTT 5 on aiomqtt: one new client object per connection, reason codes read, manual acks.

What aiomqtt 2.5 hides and this module undoes: it ignores the reason code of a PUBACK; it acks what
it received as soon as it is queued; it keeps timed-out publishes and sends them again on the next
connection of the same object. So publishes go to the paho client beneath, manual ack is switched on
there, and an object serves one connection only. The private attributes touched are pinned by tests.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence

import aiomqtt
import paho.mqtt.client as paho
from aiomqtt.exceptions import MqttConnectError
from msgspec import Struct
from paho.mqtt.enums import LogLevel
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.ports import Inbound, MqttConnection, Will
from protocol.tls import explain_refusal

_KEEPALIVE_S = 30
# QoS 0 messages have no window of their own; what comes beyond this is discarded and counted.
_INBOUND_MAX = 1_024
_FAILURE = 0x80


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where the broker is and how to wait for it.

    Args:
        timeout_s: for connect, subscribe, and the PUBACK of one publish.
    """

    host: str
    port: int
    timeout_s: float = 20.0


class AiomqttConnector:
    """Implements ``MqttConnector``.

    Args:
        tls: a context with the client's certificate (its CN is the site id), or None for a
            broker on loopback.
    """

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> None:
        self._endpoint = endpoint
        self._tls = tls

    @contextlib.asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: Will | None,
    ) -> AsyncIterator[MqttConnection]:
        """Connect and hold the connection for the block.

        Raises:
            PermissionError: the broker refuses this client. ConnectionError, TimeoutError: it can
                not be reached, or the connection ended.
        """
        client = aiomqtt.Client(
            self._endpoint.host,
            self._endpoint.port,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=clean_start,
            properties=_connect_properties(session_expiry_s, receive_maximum),
            will=None if will is None else _aiomqtt_will(will),
            keepalive=_KEEPALIVE_S,
            timeout=self._endpoint.timeout_s,
            tls_context=self._tls,
            max_queued_incoming_messages=_INBOUND_MAX,
            max_inflight_messages=64,
            max_queued_outgoing_messages=256,
            # An event right after an ack would wait 40 ms: Nagle against the delayed TCP ack.
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )
        _EarlyEnd(client)
        client._client.manual_ack_set(True)  # noqa: FBT003, SLF001 - paho's own signature
        try:
            # The library's own timeouts are shorter; this one bounds a name lookup that hangs.
            async with asyncio.timeout(2 * self._endpoint.timeout_s):
                await client.__aenter__()
        except aiomqtt.MqttError as exc:
            client._client.disconnect()  # noqa: SLF001 - aiomqtt leaves the socket open here
            raise _connect_error(exc) from exc
        connection = _Connection(client, self._endpoint.timeout_s)
        try:
            yield connection
        finally:
            connection.close()
            await _leave(client)


class _Connection:
    """One live connection."""

    def __init__(self, client: aiomqtt.Client, timeout_s: float) -> None:
        self._client = client
        self._paho: paho.Client = client._client  # noqa: SLF001 - see the module's docstring
        self._timeout_s = timeout_s
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._closed = False
        self._paho.on_publish = self._on_publish
        client._disconnected.add_done_callback(self._on_end)  # noqa: SLF001 - as above

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish; for QoS 1 return after a PUBACK that says yes."""
        if self._closed:
            raise ConnectionError("the connection is closed")
        info = self._paho.publish(topic, payload, qos, retain)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise ConnectionError(f"publish: {paho.error_string(info.rc)}")
        if qos == 0:
            return
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[info.mid] = answer
        try:
            async with asyncio.timeout(self._timeout_s):
                reason = await answer
        except TimeoutError as exc:
            # Whether the broker has it is unknown; the object would send it again, so it must go.
            raise ConnectionError(f"no PUBACK within {self._timeout_s:g} s") from exc
        finally:
            self._waiting.pop(info.mid, None)
        if reason >= _FAILURE:
            raise PermissionError(f"{topic}: refused with reason code 0x{reason:02x}")

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe; a SUBACK grants more than the ACL lets through, so it proves nothing."""
        try:
            codes = await self._client.subscribe(list(filters), timeout=self._timeout_s)
        except aiomqtt.MqttError as exc:
            raise ConnectionError(str(exc)) from exc
        for (pattern, _), code in zip(filters, codes, strict=True):
            reason = int(code.value) if isinstance(code, ReasonCode) else _FAILURE
            if reason >= _FAILURE:
                raise PermissionError(f"{pattern}: refused with reason code 0x{reason:02x}")

    async def messages(self) -> AsyncIterator[Inbound]:
        """Iterate the messages until the connection ends."""
        try:
            async for message in self._client.messages:
                yield _Inbound(self._paho, message, message.payload)
        except aiomqtt.MqttError as exc:
            self.close()
            raise ConnectionError(str(exc)) from exc

    def close(self) -> None:
        """Fail everybody who still waits for a PUBACK."""
        self._closed = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the connection ended before the PUBACK"))

    def _on_end(self, ended: asyncio.Future[None]) -> None:
        if not ended.cancelled():
            ended.exception()  # read, so that asyncio does not report it as lost
        self.close()

    def _on_publish(
        self,
        client: paho.Client,
        userdata: object,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        answer = self._waiting.get(mid)
        if answer is not None and not answer.done():
            answer.set_result(int(reason_code.value))


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
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
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
    """One message received, un-acked until ``ack``."""

    __slots__ = ("_mid", "_paho", "_qos", "payload", "retain", "topic")

    def __init__(self, client: paho.Client, message: aiomqtt.Message, payload: bytes) -> None:
        self.topic = message.topic.value
        self.payload = payload
        self.retain = message.retain
        self._paho = client
        self._mid = message.mid
        self._qos = message.qos

    async def ack(self) -> None:
        """Send the PUBACK, which makes room in the receive window."""
        if self._qos > 0:
            self._paho.ack(self._mid, self._qos)


def _connect_properties(session_expiry_s: int, receive_maximum: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types here
    properties.SessionExpiryInterval = session_expiry_s
    properties.ReceiveMaximum = receive_maximum
    return properties


def _aiomqtt_will(will: Will) -> aiomqtt.Will:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # as above
    properties.WillDelayInterval = will.delay_s
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


def _connect_error(exc: aiomqtt.MqttError) -> OSError:
    if isinstance(exc, MqttConnectError):
        return PermissionError(f"the broker refused the connection: {exc}")
    told = explain_refusal(str(exc))
    if told is None:
        return ConnectionError(str(exc))
    text = f"{told.sentence} ({exc})"
    return PermissionError(text) if told.ours else ConnectionError(text)


async def _leave(client: aiomqtt.Client) -> None:
    # A connection that is dead already can not be left in good order, and need not be.
    with contextlib.suppress(aiomqtt.MqttError):
        await client.__aexit__(None, None, None)
