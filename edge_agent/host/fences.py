"""What the host remembers of fenced cards beyond its own end: by UUID, in a file of its own.

An Xid is told once. A host that forgot it at its next start would give a card to customers that
nobody has looked at. So what stays true until it is released is written down as soon as it is
seen, and a release is written before it is told. A record that cannot be read may have named any
card: it stands for a fence of each, which an operator releases one by one.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from firmware_bridges.nvml.health import XIDS_KEPT, GpuHealth, remembered, unjudged

FENCES_MAX = 64
FILE_BYTES_MAX = 256 * 1_024
_MODE = 0o640

logger = logging.getLogger(__name__)


class Fence(Struct, frozen=True, kw_only=True):
    """What is remembered of one card.

    Args:
        since_s: UTC seconds since 1970 at which the first of it was seen.
        boot_id: of the boot in which its newest Xid was seen.
        unreadable: the record that may have told of it could not be read.
        quarantined: it failed again and again.
    """

    card: Annotated[str, Meta(max_length=200)]
    since_s: int
    boot_id: str
    xids: Annotated[tuple[int, ...], Meta(max_length=XIDS_KEPT)] = ()
    new_uncorrected: bool = False
    unavailable: bool = False
    unreadable: bool = False
    quarantined: bool = False


class FencePage(Struct, frozen=True, kw_only=True):
    """All fences of a host; ``v`` is the version of this shape."""

    v: int = 1
    fences: Annotated[tuple[Fence, ...], Meta(max_length=FENCES_MAX)] = ()


_page = msgspec.json.Decoder(FencePage)


def fence_of(before: Fence | None, health: GpuHealth, boot_id: str, wall_s: int) -> Fence | None:
    """Give what is to be remembered of a card after a verdict; None: nothing.

    Args:
        before: what was remembered of it; given back as it is when nothing changed.
        wall_s: UTC seconds since 1970.
    """
    if not remembered(health):
        return None
    if before is None:
        before = Fence(card=health.card, since_s=wall_s, boot_id=boot_id)
    fresh = set(health.xids) - set(before.xids)
    after = structs.replace(
        before,
        boot_id=boot_id if fresh else before.boot_id,
        xids=health.xids,
        new_uncorrected=health.new_uncorrected,
        unavailable=health.unavailable,
        unreadable=health.unreadable,
        quarantined=health.quarantined,
    )
    return before if after == before else after


def health_of(fence: Fence) -> GpuHealth:
    """Give the verdict that a host begins with on a card that it remembers."""
    return structs.replace(
        unjudged(fence.card),
        xids=fence.xids,
        new_uncorrected=fence.new_uncorrected,
        unavailable=fence.unavailable,
        unreadable=fence.unreadable,
        quarantined=fence.quarantined,
    )


def unreadable(cards: Iterable[str], boot_id: str, wall_s: int) -> tuple[Fence, ...]:
    """Give what is to be remembered of a host's cards when its record cannot be read.

    Args:
        wall_s: UTC seconds since 1970.
    """
    return tuple(
        Fence(card=card, since_s=wall_s, boot_id=boot_id, unreadable=True) for card in cards
    )


def newest(fences: Mapping[str, Fence]) -> tuple[Fence, ...]:
    """Give the fences in the order of their cards; of too many the newest."""
    kept = sorted(fences.values(), key=lambda one: (-one.since_s, one.card))[:FENCES_MAX]
    return tuple(sorted(kept, key=lambda one: one.card))


class FenceFile:
    """The fences in a file; what was written outlives a power cut.

    Args:
        path: of the file; its folder is there when it is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one = asyncio.Lock()

    def read(self) -> tuple[Fence, ...] | None:
        """Give the fences; None: the file cannot be read, which is said, and it is kept aside.

        It also stays where it is until other fences are written over it: a host that dies before
        that begins with the same.
        """
        try:
            with self._path.open("rb") as file:
                return _page.decode(file.read(FILE_BYTES_MAX)).fences
        except FileNotFoundError:
            return ()
        except (msgspec.MsgspecError, OSError) as exc:
            aside = self._path.with_suffix(".unread")
            logger.error("fence record unreadable, kept as %s: %s", aside, exc)  # noqa: TRY400 - the file, no defect
            self._keep_aside(aside)
            return None

    def _keep_aside(self, aside: Path) -> None:
        """Give the file a second name, under which a new one leaves it."""
        try:
            aside.unlink(missing_ok=True)
            aside.hardlink_to(self._path)
        except OSError as exc:
            logger.error("%s is not kept for a technician: %s", self._path, exc)  # noqa: TRY400 - the disk, no defect

    async def write(self, fences: Mapping[str, Fence]) -> None:
        """Replace the file at once, or not at all; the last call stands.

        Raises:
            OSError: the disk.
        """
        async with self._one:
            # Taken within the lock: an older table never lands on a newer one.
            data = msgspec.json.encode(FencePage(fences=newest(fences)))
            await asyncio.shield(asyncio.to_thread(self._write, data))

    def _write(self, data: bytes) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(_MODE)
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class MemoryFences:
    """Fences that nobody keeps: of tests, and of hosts without a folder."""

    def __init__(self) -> None:
        self.fences: tuple[Fence, ...] = ()

    def read(self) -> tuple[Fence, ...] | None:
        """Give them."""
        return self.fences

    async def write(self, fences: Mapping[str, Fence]) -> None:
        """Replace them."""
        await asyncio.sleep(0)
        self.fences = newest(fences)
