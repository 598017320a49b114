"""Messages with their length in front, as WhatsMiner v3 sends them both ways. Pure.

A message is a u32 little-endian length and so many bytes of JSON. Source: MicroBT's own client
(whatsminer/whatsminer-mdk-worker).
"""

from typing import Final

from firmware_bridges.errors import BridgeGarbledError
from firmware_bridges.transport import ANSWER_BYTES_MAX

PREFIX_BYTES: Final = 4
PAYLOAD_BYTES_MAX: Final = ANSWER_BYTES_MAX - PREFIX_BYTES


def frame(payload: bytes) -> bytes:
    """Put the length in front of one message.

    Args:
        payload: The message.

    Raises:
        ValueError: It is empty or over 1 MiB.
    """
    if not 0 < len(payload) <= PAYLOAD_BYTES_MAX:
        raise ValueError(f"payload: {len(payload)} bytes, limits 1..{PAYLOAD_BYTES_MAX}")
    return len(payload).to_bytes(PREFIX_BYTES, "little") + payload


def is_complete(buffer: bytes | bytearray, start: int) -> bool:  # noqa: ARG001 - IsComplete
    """Tell whether nothing more needs to be waited for.

    Args:
        buffer: Everything received.
        start: Where the newest piece begins.

    Returns:
        True also where the announced length is over the limit: that many bytes are not waited for,
        and `unframe` says why.
    """
    if len(buffer) < PREFIX_BYTES:
        return False
    length = _length(buffer)
    return length > PAYLOAD_BYTES_MAX or len(buffer) >= PREFIX_BYTES + length


def unframe(data: bytes, address: str) -> bytes:
    """Take the length off one message.

    A message that the peer cut short is given as far as it came: whoever reads its JSON sees the
    cut, and what stands before it is still right.

    Args:
        data: Everything received.
        address: For the error.

    Raises:
        BridgeGarbledError: No whole length came, or it is 0 or over the limit.
    """
    if len(data) < PREFIX_BYTES:
        raise BridgeGarbledError(address, f"{len(data)} bytes, no whole length", sent=True)
    length = _length(data)
    if not 0 < length <= PAYLOAD_BYTES_MAX:
        detail = f"announces {length} bytes, limits 1..{PAYLOAD_BYTES_MAX}"
        raise BridgeGarbledError(address, detail, sent=True)
    return data[PREFIX_BYTES : PREFIX_BYTES + length]


def _length(data: bytes | bytearray) -> int:
    return int.from_bytes(data[:PREFIX_BYTES], "little")
