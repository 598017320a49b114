"""Decisions of the sync conversation, as values: what to take, what to ack, who owns a site.

Usage, event and schema records are taken in order only; telemetry in any order, as ranges. One
store per site owns the devices, and only a rebase hands that on.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from msgspec import Struct

from protocol.sync import (
    Ack,
    Birth,
    LeaseHead,
    NackCode,
    Rebase,
    Record,
    Stream,
    Welcome,
    digest_of,
    manifest_digest_of,
)
from protocol.units import to_ms

CREDIT_MAX = 16
# Acks to a site since the hub started after which its credit doubles.
_ACKS_PER_DOUBLING = 2
# Ranges named in one ack; more only means that some batches are sent again.
ACK_RANGES_MAX = 1_000

T = TypeVar("T")


class Verdict(StrEnum):
    """What to do with one record."""

    TAKE = "take"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    OUT_OF_ORDER = "out_of_order"
    BAD_HASH = "bad_hash"


class SeqSet(Struct, frozen=True):
    """Seqs that are dealt with: all up to ``wm``, and the disjoint sorted ``ranges`` above."""

    wm: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    def holds(self, seq: int) -> bool:
        """Tell whether ``seq`` is in the set."""
        return seq <= self.wm or any(first <= seq <= last for first, last in self.ranges)

    @property
    def highest(self) -> int:
        """The greatest seq of the set; 0 when empty."""
        return self.ranges[-1][1] if self.ranges else self.wm

    def add(self, first: int, last: int) -> "SeqSet":
        """Give the set with ``first..last`` in it."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted((*self.ranges, (first, last))):
            if high <= self.wm:
                continue
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        wm = self.wm
        while merged and merged[0][0] <= wm + 1:
            wm = max(wm, merged.pop(0)[1])
        return SeqSet(wm, tuple(merged))


class BirthRow(Struct, frozen=True):
    """One birth seen before: what tells a late one from that of a restored copy."""

    conn_no: int
    at_ms: int


class StoreView(Struct, frozen=True, kw_only=True):
    """What the hub knows of the store that gave birth.

    Args:
        heads: per stream the highest seq known and the digest there (None: not kept).
        births: the last births of this store.
    """

    heads: tuple[tuple[Stream, int, bytes | None], ...]
    births: tuple[BirthRow, ...]


class SiteView(Struct, frozen=True, kw_only=True):
    """Who owns the site: a store, or nobody yet.

    Args:
        rebase_of: store that was told to rebase.
        boot_id, conn_no: of the owner's last birth.
    """

    owner_store_id: str | None = None
    rebase_of: str | None = None
    boot_id: str = ""
    conn_no: int = 0


class BirthKind(StrEnum):
    """What a birth turned out to be."""

    STALE = "stale"
    WELCOME = "welcome"
    REBASE = "rebase"


class BirthDecision(Struct, frozen=True, kw_only=True):
    """Answer to a birth.

    Args:
        owner: the store owns the site from now on. became_owner: it did not before.
        reason: why it must rebase. alarm: code for staff.
    """

    kind: BirthKind
    owner: bool = False
    became_owner: bool = False
    reason: str = ""
    alarm: str | None = None


def judge(record: Record, known: SeqSet, known_digest: bytes | None) -> Verdict:
    """Judge one record of any stream by identity and hash; order is the caller's question.

    Args:
        known: seqs committed. known_digest: digest under that seq; None when it is not kept.
    """
    if digest_of(record.body) != record.digest:
        return Verdict.BAD_HASH
    if not known.holds(record.seq):
        return Verdict.TAKE
    if known_digest is not None and known_digest != record.digest:
        return Verdict.CONFLICT
    return Verdict.DUPLICATE


def judge_ordered(record: Record, wm: int, known_digest: bytes | None) -> Verdict:
    """Judge one record of a stream that is taken in order only."""
    verdict = judge(record, SeqSet(wm), known_digest)
    if verdict is Verdict.TAKE and record.seq != wm + 1:
        return Verdict.OUT_OF_ORDER
    return verdict


NACK_OF: dict[Verdict, NackCode] = {
    Verdict.OUT_OF_ORDER: NackCode.OUT_OF_ORDER,
    Verdict.BAD_HASH: NackCode.BAD_HASH,
}


def credit_after(acks_sent: int) -> int:
    """Give the credit of a site: 1 after a restart of the hub, doubling up to 16."""
    return min(CREDIT_MAX, 1 << min(8, acks_sent // _ACKS_PER_DOUBLING))


def build_ack(
    *,
    hub_epoch: int,
    store_id: str,
    stream: Stream,
    known: SeqSet,
    hub_time: datetime,
    credit: int,
    nack: Sequence[tuple[int, NackCode]] = (),
) -> Ack:
    """Build the application ack of one stream."""
    return Ack(
        hub_epoch=hub_epoch,
        store_id=store_id,
        stream=stream,
        wm=known.wm,
        hub_time=hub_time,
        credit=max(1, credit),
        ranges=known.ranges[:ACK_RANGES_MAX],
        nack=tuple(nack),
    )


def decide_birth(birth: Birth, site: SiteView, store: StoreView | None) -> BirthDecision:
    """Decide what a birth means.

    A store that the hub knows with a conn_no from before is either a late delivery (the hub has
    seen exactly that birth) or a restored copy (it has not): the copy must rebase.
    """
    if store is None:
        return _first_birth(birth, site)
    owner = site.owner_store_id == birth.store_id
    newest = max((row.conn_no for row in store.births), default=0)
    seen = BirthRow(birth.conn_no, to_ms(birth.at)) in store.births
    if seen and birth.conn_no < newest:
        return BirthDecision(kind=BirthKind.STALE, owner=owner)
    reason = ""
    if not seen and birth.conn_no <= newest:
        reason = f"conn_no {birth.conn_no} after {newest}"
    elif not seen:
        reason = _knows_more(birth, store)
    if reason:
        return BirthDecision(
            kind=BirthKind.REBASE, owner=owner, reason=reason, alarm="store_restored"
        )
    if site.owner_store_id is None:
        return BirthDecision(kind=BirthKind.WELCOME, owner=True, became_owner=True)
    return BirthDecision(
        kind=BirthKind.WELCOME, owner=owner, alarm=None if owner or seen else "second_store"
    )


def _first_birth(birth: Birth, site: SiteView) -> BirthDecision:
    told_to = site.rebase_of is not None and site.rebase_of == site.owner_store_id
    # An edge may start over by itself (what the hub asks for is past its retention): the same boot
    # of the same host then goes on counting its connections. A copy on another host does not.
    by_itself = bool(birth.boot_id) and birth.boot_id == site.boot_id
    if site.owner_store_id is None or told_to or (by_itself and birth.conn_no > site.conn_no):
        return BirthDecision(kind=BirthKind.WELCOME, owner=True, became_owner=True)
    return BirthDecision(kind=BirthKind.WELCOME, owner=False, alarm="second_store")


def _knows_more(birth: Birth, store: StoreView) -> str:
    heads = {head.stream: head for head in birth.heads}
    for stream, seq, digest in store.heads:
        head = heads.get(stream)
        if head is None:
            continue
        if seq > head.next_seq - 1:
            return f"{stream.value}: hub has {seq}, store ends at {head.next_seq - 1}"
        if (
            0 < seq == head.next_seq - 1
            and digest is not None
            and head.last_digest
            and digest != head.last_digest
        ):
            return f"{stream.value}: another record at {seq}"
    return ""


def build_welcome(
    birth: Birth,
    *,
    hub_epoch: int,
    owner: bool,
    wms: Sequence[tuple[Stream, int]],
    leases: Sequence[LeaseHead],
    hub_time: datetime,
    credit: int,
    wm_digests: Sequence[tuple[Stream, bytes]] = (),
) -> Welcome:
    """Build the answer to a birth that the hub accepts."""
    heads = tuple(sorted(leases, key=lambda row: row.lease_id))
    return Welcome(
        hub_epoch=hub_epoch,
        store_id=birth.store_id,
        conn_no=birth.conn_no,
        owner=owner,
        wms=tuple(wms),
        leases=heads,
        manifest_digest=manifest_digest_of(heads),
        hub_time=hub_time,
        credit=max(1, credit),
        wm_digests=tuple(wm_digests),
    )


def build_rebase(birth: Birth, *, hub_epoch: int, reason: str) -> Rebase:
    """Build the answer to the birth of a restored copy."""
    return Rebase(
        hub_epoch=hub_epoch, store_id=birth.store_id, conn_no=birth.conn_no, reason=reason
    )


def release_ready_at(
    *, event_seq: int, final_usage_seq: int, base_event_seq: int, base_usage_seq: int
) -> int:
    """Give the usage watermark at which a release may be applied.

    A rebased store renumbers what was unacked but keeps the bodies: a release that stood in the
    store at its first birth may name a seq of the old numbering. All usage that it can mean stood
    there too, so the usage head of that birth bounds it.
    """
    if event_seq <= base_event_seq:
        return min(final_usage_seq, base_usage_seq)
    return final_usage_seq
