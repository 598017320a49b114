"""Faults of single miners: what they are, and how a fleet is given them."""

from __future__ import annotations

from enum import Enum, StrEnum

import msgspec

from simulators.errors import SettingError


class Action(Enum):
    """What the server does with a connection."""

    ANSWER = "answer"
    HANG = "hang"
    RESET = "reset"
    FLOOD = "flood"
    """Send the payload again and again, as fast as it is taken."""
    DRIP = "drip"
    """Send the payload one byte a second."""


class FaultKind(StrEnum):
    """What is wrong with a miner."""

    HUNG = "hung"
    """Accepts connections and never answers; hashes on."""
    DEAD = "dead"
    """Without power: every connection is reset, nothing is drawn."""
    LYING = "lying"
    """Acknowledges every change of mode, reports it as set, and does not follow."""
    HOT = "hot"
    """Stopped hashing for heat; its API goes on, and says so where the firmware has words."""
    SLOW = "slow"
    """Answers late."""
    GARBAGE = "garbage"
    """Answers with damaged bytes."""
    FLOOD = "flood"
    """Answers with one line that does not end."""
    DRIP = "drip"
    """Answers one byte a second."""
    DEEP = "deep"
    """Answers with a megabyte of opening brackets."""
    CHUNKS = "chunks"
    """Answers with an HTTP head and chunks without end."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault in force.

    Args:
        until_ns: End of the fault; None = till it is cleared.
        delay_s: Extra seconds before each answer of a slow miner.
    """

    kind: FaultKind
    until_ns: int | None = None
    delay_s: float = 5.0


# Hostile whatever is asked: what is sent, and how.
HOSTILE: dict[FaultKind | None, tuple[bytes, Action]] = {
    FaultKind.FLOOD: (b'{"STATUS":[{"STATUS":"S"' + b" " * 65_536, Action.FLOOD),
    FaultKind.DRIP: (b'{"STATUS":[{"STATUS":"S","When":1800000000,"Code":11,"Msg":"', Action.DRIP),
    FaultKind.DEEP: (b'{"STATUS":' + b"[" * (1 << 20), Action.ANSWER),
    FaultKind.CHUNKS: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024,
        Action.FLOOD,
    ),
}


def parse_shares(text: str) -> tuple[tuple[FaultKind, float], ...]:
    """Read a list such as `hung=0.02,slow=0.01`: shares of the fleet that start with a fault.

    Raises:
        SettingError: When a kind is not known, a share is no share, or they exceed 1 together.
    """
    shares: list[tuple[FaultKind, float]] = []
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            kind, share = FaultKind(name), float(value)
        except ValueError as error:
            raise SettingError("faults", f"{part!r} is not kind=share") from error
        if not 0 <= share <= 1:
            raise SettingError("faults", f"{part!r} is outside 0..1")
        shares.append((kind, share))
    if sum(share for _, share in shares) > 1:
        raise SettingError("faults", "the shares add up to more than 1")
    return tuple(shares)


def damaged(answer: bytes, salt: int) -> bytes:
    """Return an answer as a failing controller sends it: cut off, torn or not JSON at all."""
    way = salt % 4
    if way == 0:
        return answer[: len(answer) // 2]
    if way == 1:
        return b"\xff\xfe\x00garbage\x01" + answer[:16]
    if way == 2:
        return answer.replace(b",", b"}", 3).replace(b'"', b"", 5)
    return b"\x00"
