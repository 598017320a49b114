"""The words of the inference server: its states, a request on its way, and the reply to an act."""

import asyncio
from enum import StrEnum

from msgspec import Struct

from edge_agent.reference.decoding import Decoding, Wish


class ServerState(StrEnum):
    """Where the server stands."""

    STARTING = "starting"
    ACTIVE = "active"
    DRAINING = "draining"
    PAUSED = "paused"
    OFFLOADED = "offloaded"
    FAILED = "failed"


class PauseMode(StrEnum):
    """What becomes of open requests: they go on later, are finished first, or end."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


class ServingLimits(Struct, frozen=True, kw_only=True):
    """What is taken in.

    Args:
        running_max: sequences on the device. waiting_max: that wait for a place.
        hold_s: how long one waits for a place before it is told to try again.
        refuse_when_paused: requests are refused while it is paused, instead of waiting.
    """

    running_max: int = 8
    waiting_max: int = 64
    hold_s: float = 60.0
    refuse_when_paused: bool = False


class Piece(Struct, frozen=True, kw_only=True):
    """What a sequence said: text, and at its end how it ended; or that it was aborted."""

    text: str = ""
    finish: str | None = None
    aborted: bool = False


class ActReply(Struct, frozen=True, kw_only=True):
    """What became of an act; CLOCK_BOOTTIME. ``effect_ns``: when its effect was seen."""

    state: ServerState
    commanded_ns: int
    effect_ns: int
    in_flight: int
    tokens_out: int
    device_bytes: int
    rss_bytes: int
    freed_bytes: int = 0
    logits_sha256: str | None = None


class ServingCounts(Struct, kw_only=True):
    """What was served since the start."""

    requests: int = 0
    refused: int = 0
    aborted: int = 0
    finished: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Ticket:
    """One request: what it wants, and what came of it so far."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.placed = False
        self.decoding: Decoding | None = None
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self.ended = False
