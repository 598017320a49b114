"""Owns the book of switch times of a host, kept over restarts, and asks the layout's pure part."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from edge_agent.host.config import EngineConfig, GpuConfig
from edge_agent.host.layout import MOVE, Layout, Party, key_of, lay_out
from edge_agent.host.moves import Mover, Trip
from edge_agent.host.prewarm_plan import MOVE_READY, Judged, judge
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.ports import Wish
from edge_agent.workloads.switching.errors import BookError
from edge_agent.workloads.switching.latency import Book, decode_book, encode_book, observe
from edge_agent.workloads.switching.vram import Card

logger = logging.getLogger(__name__)

# Of the host's memory: never pinned, for whatever else runs there.
HOST_RESERVE_MIB = 4_096
# At the least between two writes of the book.
KEEP_S = 1.0
_MEMINFO = Path("/proc/meminfo")
_KIB_PER_MIB = 1_024
_MODE = 0o640


class BookFile:
    """The book in a file of its own; no fsync: a lost switch time costs next to nothing.

    Args:
        path: of the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Book:
        """Give the book; one that cannot be read is begun anew."""
        try:
            return decode_book(self._path.read_bytes())
        except FileNotFoundError:
            return Book()
        except (OSError, BookError) as exc:
            logger.warning("switch times start anew: %s: %s", self._path, exc)
            return Book()

    async def write(self, book: Book) -> None:
        """Replace the book at once, or not at all; a disk that is full costs no switch."""
        await asyncio.to_thread(self._write, book)

    def _write(self, book: Book) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(encode_book(book))
            fresh.chmod(_MODE)
            os.replace(fresh, self._path)  # noqa: PTH105 - the one rename that replaces
        except OSError as exc:
            logger.warning("switch times not kept: %s: %s", self._path, exc)


class MemoryBook:
    """A book that nobody keeps: of tests, and of hosts without a folder."""

    def __init__(self, book: Book = Book()) -> None:  # noqa: B008 - frozen
        self.book = book

    def read(self) -> Book:
        """Give it."""
        return self.book

    async def write(self, book: Book) -> None:
        """Replace it."""
        await asyncio.sleep(0)
        self.book = book


class Pair(Struct, frozen=True):
    """The engines of one GPU, with what moves them."""

    config: GpuConfig
    miner: Mover | None
    server: Mover | None


class Planner:
    """Plans the GPUs of one host.

    Args:
        kept: where the book is kept. host_free_mib: memory that may be pinned; None: unknown.
    """

    def __init__(
        self, kept: BookFile | MemoryBook, host_free_mib: Callable[[], int | None]
    ) -> None:
        self._kept = kept
        self._host_free_mib = host_free_mib
        self.book = kept.read()
        self._learnt = asyncio.Event()

    async def run(self) -> None:
        """Keep what was learnt, soon after and off the loop, until cancelled."""
        while True:
            await self._learnt.wait()
            self._learnt.clear()
            await self._kept.write(self.book)
            await asyncio.sleep(KEEP_S)

    def layout(self, pair: Pair) -> Layout:
        """Lay out a GPU by what is known now."""
        gpu = pair.config
        return lay_out(
            None if gpu.vram_mib is None else Card(gpu=gpu.name, vram_mib=gpu.vram_mib),
            gpu.model,
            _party(gpu.miner, pair.miner),
            _party(gpu.server, pair.server),
            # Asked of the kernel only where a plan can be made.
            host_free_mib=None if gpu.vram_mib is None else self._host_free_mib(),
            book=self.book,
        )

    def judge(self, pair: Pair, wish: Wish, role: str) -> Judged:
        """Judge whether an engine is made ready: the ``miner`` or the ``server``."""
        gpu = pair.config
        parties = {
            "miner": _party(gpu.miner, pair.miner),
            "server": _party(gpu.server, pair.server),
        }
        return judge(
            None if gpu.vram_mib is None else Card(gpu=gpu.name, vram_mib=gpu.vram_mib),
            gpu.model,
            next(party for name, party in parties.items() if name != role),
            parties[role],
            wish,
            host_free_mib=None if gpu.vram_mib is None else self._host_free_mib(),
            book=self.book,
        )

    def took(self, config: EngineConfig | None, mover: Mover, model: str, trip: Trip) -> None:
        """Learn what an engine's way off its GPU and back took."""
        party = _party(config, mover)
        if party is not None:
            move = MOVE_READY if trip.ready else MOVE
            key = key_of(party, trip.strategy, model, move)
            self.book = observe(self.book, key, trip.seconds, done=trip.done)
            self._learnt.set()


def free_to_pin_mib() -> int | None:
    """Give the host memory that may be pinned; None: the kernel does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return max(int(rest.split()[0]) // _KIB_PER_MIB - HOST_RESERVE_MIB, 0)
    return None


def _party(config: EngineConfig | None, mover: Mover | None) -> Party | None:
    if config is None or mover is None:
        return None
    fixed: Strategy | None = config.strategy
    return Party(
        kind=config.kind,
        spec=mover.engine.spec,
        capabilities=mover.engine.capabilities(),
        fixed=fixed,
        moved_mib=mover.away_mib,
    )
