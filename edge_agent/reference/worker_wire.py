"""What a miner and its worker processes say to each other, and the memory they share.

A message to a worker is announced by its slot's ``mail`` count, which the worker looks at after
each batch: that is its stop word. Messages are whole packets of a socket pair, so a worker whose
miner died reads the end of it.
"""

import mmap

import msgspec
from msgspec import Struct

PACKET_BYTES_MAX = 4_096
SLOT_WORDS = 8  # one cache line: no two workers write to the same one
_MAIL, _HASHES, _NEXT, _GENERATION = range(4)


class Assign(Struct, frozen=True, kw_only=True, tag=True):
    """Search this range of this header instead of what was searched before."""

    generation: int
    prefix: bytes
    target: bytes
    first: int
    end: int


class Pause(Struct, frozen=True, kw_only=True, tag=True):
    """Stop; answer with ``Idle`` when nothing of it is under way."""

    epoch: int


class Resume(Struct, frozen=True, kw_only=True, tag=True):
    """Go on; answer with ``Proven`` when the first batch was checked."""

    epoch: int


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The worker passed its self-check and waits, paused."""

    backend: str
    checked: int


class Idle(Struct, frozen=True, kw_only=True, tag=True):
    """The worker stands still at this count; CLOCK_BOOTTIME."""

    epoch: int
    hashes: int
    at_ns: int


class Proven(Struct, frozen=True, kw_only=True, tag=True):
    """The first batch after a resume was held to hashlib; ``best`` is its lowest nonce."""

    epoch: int
    generation: int
    checked: int
    best: int
    at_ns: int


class Found(Struct, frozen=True, kw_only=True, tag=True):
    """A nonce that the backend says meets the target."""

    generation: int
    nonce: int


class Exhausted(Struct, frozen=True, kw_only=True, tag=True):
    """The range of this generation was searched through."""

    generation: int


class Broken(Struct, frozen=True, kw_only=True, tag=True):
    """The worker cannot hash, and ends."""

    reason: str


ToWorker = Assign | Pause | Resume
ToMiner = Ready | Idle | Proven | Found | Exhausted | Broken

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_miner = msgspec.msgpack.Decoder(ToMiner).decode


class Slots:
    """The shared words of all workers; each word has one writer.

    Args:
        descriptor: of a memory file. count: how many workers.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self._words = memoryview(mmap.mmap(descriptor, slots_bytes(count))).cast("Q")

    def mail(self, index: int) -> int:
        """Give how many messages the miner sent to this worker."""
        return self._words[index * SLOT_WORDS + _MAIL]

    def announce(self, index: int) -> None:
        """Count a message that was sent."""
        self._words[index * SLOT_WORDS + _MAIL] += 1

    def reset_mail(self, index: int) -> None:
        """Begin again for a new process."""
        self._words[index * SLOT_WORDS + _MAIL] = 0

    def hashes(self, index: int) -> int:
        """Give how many hashes were made in this slot, by whatever process."""
        return self._words[index * SLOT_WORDS + _HASHES]

    def next_nonce(self, index: int) -> int:
        """Give the first nonce of the present range that was not tried."""
        return self._words[index * SLOT_WORDS + _NEXT]

    def generation(self, index: int) -> int:
        """Give which range is searched."""
        return self._words[index * SLOT_WORDS + _GENERATION]

    def take_up(self, index: int, generation: int, first: int) -> None:
        """Begin a range; its number comes last, so that it never stands by an older nonce."""
        self._words[index * SLOT_WORDS + _NEXT] = first
        self._words[index * SLOT_WORDS + _GENERATION] = generation

    def advance(self, index: int, hashes: int, upto: int) -> None:
        """Count hashes, and say up to which nonce all are tried."""
        self._words[index * SLOT_WORDS + _HASHES] += hashes
        self._words[index * SLOT_WORDS + _NEXT] = upto


def slots_bytes(count: int) -> int:
    """Give the size of the memory file."""
    return count * SLOT_WORDS * 8
