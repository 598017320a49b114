"""Bytes <-> Structs: one reused encoder, one reused decoder per message, limits checked first.

Anything that cannot be read ends in a ``DecodeError`` with a stable code: ``too_large``,
``malformed``, ``empty``.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from protocol import event, lease, market, node, order, sync, usage
from protocol.errors import DecodeError, EncodeError

T = TypeVar("T")

# mosquitto from 2.1 on refuses packets above 2,000,000 bytes; half of it leaves room for headers.
PACKET_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = 4 << 20
_HEADER_BYTES = 4

_encoder = msgspec.msgpack.Encoder()


class Message(Generic[T]):
    """A message type on the wire with its decoder and its size limit.

    Args:
        kind: the Struct or tagged union. bytes_max: largest encoded size accepted.
    """

    def __init__(self, kind: Any, bytes_max: int = PACKET_BYTES_MAX) -> None:  # noqa: ANN401 - a union is no type
        """Build the decoder once."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._bytes_max = bytes_max

    def decode(self, data: bytes | bytearray | memoryview) -> T:
        """Read one message.

        Raises:
            DecodeError: ``empty``, ``too_large`` or ``malformed`` with the path of the field.
        """
        if len(data) == 0:
            raise DecodeError("empty", "no bytes")
        if len(data) > self._bytes_max:
            raise DecodeError("too_large", f"{len(data)} bytes, at most {self._bytes_max}")
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as exc:
            text, _, path = str(exc).partition(" - at `")
            raise DecodeError("malformed", text, path.rstrip("`") or None) from exc
        # ArithmeticError: a huge Decimal exponent, or a timestamp outside years 1..9999.
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as exc:
            raise DecodeError("malformed", str(exc) or type(exc).__name__) from exc


def encode(value: Any, bytes_max: int = PACKET_BYTES_MAX) -> bytes:  # noqa: ANN401 - any Struct
    """Write one message.

    Raises:
        EncodeError: ``too_large``, or ``unsupported`` for a value that msgspec cannot write.
    """
    try:
        data = _encoder.encode(value)
    except (TypeError, msgspec.MsgspecError, OverflowError) as exc:
        raise EncodeError("unsupported", str(exc)) from exc
    if len(data) > bytes_max:
        raise EncodeError("too_large", f"{len(data)} bytes, at most {bytes_max}")
    return data


UP_BATCH: Message[sync.UpBatch] = Message(sync.UpBatch)
USAGE_ITEM: Message[usage.UsageItem] = Message(usage.UsageItem)
EVENT_ITEM: Message[event.EventItem] = Message(event.EventItem)
DOWN_ACK: Message[sync.DownAck] = Message(sync.DownAck)
LEASE: Message[lease.Lease] = Message(lease.Lease)
POLICY: Message[lease.SitePolicy] = Message(lease.SitePolicy)
ORDERS: Message[order.SiteOrders] = Message(order.SiteOrders)
COMMAND: Message[lease.Command] = Message(lease.Command)
SITE_STATE: Message[sync.Birth | sync.Death] = Message(sync.Birth | sync.Death)
HUB_STATE: Message[sync.HubState] = Message(sync.HubState)
HEARTBEAT: Message[sync.HubHeartbeat] = Message(sync.HubHeartbeat)
CANARY: Message[sync.Canary] = Message(sync.Canary)
SITE_LIVE: Message[event.SiteLive] = Message(event.SiteLive)
MARKET_TICK: Message[market.MarketTick] = Message(market.MarketTick)
AGENT_TO_NODE: Message[node.AgentToNode] = Message(node.AgentToNode, FRAME_BYTES_MAX)
NODE_TO_AGENT: Message[node.NodeToAgent] = Message(node.NodeToAgent, FRAME_BYTES_MAX)


def frame(body: bytes) -> bytes:
    """Put the length (u32, big-endian) before a message of the node link.

    Raises:
        EncodeError: ``too_large`` above 4 MiB.
    """
    if len(body) > FRAME_BYTES_MAX:
        raise EncodeError("too_large", f"{len(body)} bytes, at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


class Deframer:
    """Cuts a byte stream into messages; holds at most one frame and one read of unread bytes."""

    def __init__(self) -> None:
        """Start with nothing received."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take received bytes and give each message that is complete.

        Raises:
            DecodeError: ``too_large`` for a length above 4 MiB; the stream is then lost.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER_BYTES:
            size = int.from_bytes(self._buffer[:_HEADER_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise DecodeError("too_large", f"frame of {size} bytes, at most {FRAME_BYTES_MAX}")
            if len(self._buffer) < _HEADER_BYTES + size:
                return
            body = bytes(self._buffer[_HEADER_BYTES : _HEADER_BYTES + size])
            del self._buffer[: _HEADER_BYTES + size]
            yield body
