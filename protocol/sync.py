"""The sync conversation: batches up, acks down, birth and welcome, heartbeat and canary.

A PUBACK deletes nothing: only an ``Ack`` of the hub, sent after its commit, does. Identity of a
record is (store_id, stream, seq) and never changes.
"""

from enum import StrEnum
from hashlib import blake2b

from msgspec import Struct

from protocol.units import Count, Digest, Ident, Positive, SiteName, Text, UtcDatetime


class Stream(StrEnum):
    """Up-streams with a gap-free seq; ``hist`` is only another lane for ``tele`` and has no seq."""

    USAGE = "usage"
    EVENT = "event"
    SCHEMA = "schema"
    TELE = "tele"


class Lane(StrEnum):
    """Topics under ``up/``: the streams, the backlog lane of telemetry, and the lossy live one."""

    USAGE = "usage"
    EVENT = "event"
    SCHEMA = "schema"
    TELE = "tele"
    HIST = "hist"
    LIVE = "live"


class NackCode(StrEnum):
    """Why the hub did not take a record; usage with bad content is quarantined, never nacked."""

    BAD_HASH = "bad_hash"
    UNKNOWN_VERSION = "unknown_version"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    FORBIDDEN = "forbidden"
    NEED_SCHEMA = "need_schema"
    OUT_OF_ORDER = "out_of_order"


class Record(Struct, frozen=True, array_like=True):
    """One record: its seq (1..), the blake2b-16 of its body, and the body as encoded bytes."""

    seq: Positive
    digest: Digest
    body: bytes


class UpBatch(Struct, frozen=True, array_like=True):
    """Consecutive records of one stream in one MQTT message (<= 1 MiB; credit counts batches)."""

    version: int
    site_id: SiteName
    store_id: Ident
    stream: Stream
    records: tuple[Record, ...]


class Ack(Struct, frozen=True, kw_only=True, tag="ack"):
    """What the hub has committed of one stream.

    Args:
        wm: every seq <= wm is committed, quarantined or declared a gap.
        ranges: committed [first, last] pairs above wm (telemetry only).
        nack: (seq, code) pairs not taken.
        credit: batches that may be unacknowledged at once, over all streams of the site.
    """

    hub_epoch: Count
    store_id: Ident
    stream: Stream
    wm: Count
    hub_time: UtcDatetime
    credit: Positive
    ranges: tuple[tuple[int, int], ...] = ()
    nack: tuple[tuple[int, NackCode], ...] = ()


class StreamHead(Struct, frozen=True, kw_only=True):
    """End of one stream at the edge: the next seq to be given and the digest of the last record."""

    stream: Stream
    next_seq: Positive
    last_digest: bytes = b""
    acked_wm: Count = 0


class Birth(Struct, frozen=True, kw_only=True, tag="birth"):
    """Retained at ``state`` after each CONNACK; an older conn_no is ignored."""

    site_id: SiteName
    store_id: Ident
    boot_id: Ident
    conn_no: Positive
    at: UtcDatetime
    agent_version: Text
    heads: tuple[StreamHead, ...]


class Death(Struct, frozen=True, kw_only=True, tag="death"):
    """The Will of a connection: the site is offline if conn_no is the newest one known."""

    site_id: SiteName
    store_id: Ident
    conn_no: Positive


class LeaseHead(Struct, frozen=True, array_like=True):
    """Id and version of one lease in the manifest."""

    lease_id: str
    hub_epoch: int
    generation: int


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The hub's answer to a birth: what it has committed, and which leases the site should know.

    Args:
        owner: False makes the store a reader: it writes to no device.
        wms: (stream, watermark) pairs of this store_id.
        manifest_digest: blake2b-16 over the sorted lease heads.
        wm_digests: (stream, digest of the record at its watermark), where the hub still knows it: a
            store with another record there is an older copy that has given its numbers again.
    """

    hub_epoch: Count
    store_id: Ident
    conn_no: Positive
    owner: bool
    wms: tuple[tuple[Stream, int], ...]
    leases: tuple[LeaseHead, ...]
    manifest_digest: Digest
    hub_time: UtcDatetime
    credit: Positive
    wm_digests: tuple[tuple[Stream, bytes], ...] = ()


class Rebase(Struct, frozen=True, kw_only=True, tag="rebase"):
    """The hub knows more of this store than the store itself: it is a restored copy.

    The edge mints a new store_id, renumbers what is unacked, and sends it again.
    """

    hub_epoch: Count
    store_id: Ident
    conn_no: Positive
    reason: Text


DownAck = Ack | Welcome | Rebase


class HubState(Struct, frozen=True, kw_only=True, tag="hub_state"):
    """Retained at ``hub/state``; the Will says offline."""

    hub_epoch: Count
    online: bool
    conn_no: Count


class HubHeartbeat(Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """Every 10 s, never retained: proof that the hub was alive when it was sent."""

    hub_epoch: Count
    hub_time: UtcDatetime


class Canary(Struct, frozen=True, kw_only=True, tag="canary"):
    """Retained at ``hub/canary`` and read back: missing means the broker lost what it retained."""

    hub_epoch: Count
    nonce: Ident


def digest_of(body: bytes) -> bytes:
    """Give the blake2b-16 of a record's body."""
    return blake2b(body, digest_size=16).digest()


def manifest_digest_of(leases: tuple[LeaseHead, ...]) -> bytes:
    """Give the blake2b-16 over the lease heads in order of their ids."""
    state = blake2b(digest_size=16)
    for head in sorted(leases, key=lambda row: row.lease_id):
        state.update(f"{head.lease_id}\x1f{head.hub_epoch}\x1f{head.generation}\x1e".encode())
    return state.digest()
