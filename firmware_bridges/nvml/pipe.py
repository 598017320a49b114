"""The pipe between the telemetry child and its parent: frames of MessagePack, bounded. Pure."""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from firmware_bridges.nvml.samples import FromChild, ToChild
from protocol.codec import Deframer, Message, encode, frame

T = TypeVar("T")

# A list of 512 processes takes some 12 kB; a beat of 16 workers 1 kB.
MESSAGE_BYTES_MAX: Final = 64 * 1024

FROM_CHILD: Final[Message[FromChild]] = Message(FromChild, MESSAGE_BYTES_MAX)
TO_CHILD: Final[Message[ToChild]] = Message(ToChild, MESSAGE_BYTES_MAX)


def pack(message: FromChild | ToChild) -> bytes:
    """Write one message with its length in front.

    Raises:
        EncodeError: it is over the limit.
    """
    return frame(encode(message, MESSAGE_BYTES_MAX))


class Unpacker(Generic[T]):
    """Cuts what arrives into messages; holds at most one message and one read."""

    def __init__(self, kind: Message[T]) -> None:
        """Start with nothing received."""
        self._kind = kind
        self._deframer = Deframer()

    def feed(self, data: bytes) -> Iterator[T]:
        """Take received bytes and give each message that is whole.

        Raises:
            DecodeError: this is no such stream; nothing after it can be read.
        """
        for body in self._deframer.feed(data):
            yield self._kind.decode(body)
