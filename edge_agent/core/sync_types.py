"""Vocabulary of the sync machine: its limits, what it wants sent, and the effects it asks for."""

from msgspec import Struct

from protocol.sync import Lane, LeaseHead, NackCode, Stream

_S = 1_000_000_000


class SyncLimits(Struct, frozen=True, kw_only=True):
    """Bounds of the conversation.

    Args:
        unacked_bytes_max: of all batches in flight. fresh_max: segments sent newest first; older
            ones join the backlog. hist_bytes_per_s, hist_burst_bytes: token bucket of the backlog.
        resend_after_ns: without an ack, doubled up to ``resend_max_ns``.
        birth_after_ns: without a welcome the birth is sent again, doubled up to ``birth_max_ns``.
    """

    unacked_bytes_max: int = 8 << 20
    batch_records_max: int = 256
    batch_bytes_max: int = 256 << 10
    fresh_max: int = 64
    hist_bytes_per_s: int = 4 << 20
    hist_burst_bytes: int = 4 << 20
    resend_after_ns: int = 30 * _S
    resend_max_ns: int = 600 * _S
    birth_after_ns: int = 15 * _S
    birth_max_ns: int = 120 * _S
    schema_again_ns: int = 10 * _S
    rewind_again_ns: int = 1 * _S


class Want(Struct, frozen=True, kw_only=True):
    """Publish the records above ``after_seq`` as one batch; of telemetry just the next one."""

    lane: Lane
    stream: Stream
    after_seq: int
    max_records: int
    max_bytes: int
    turn: int


class MarkAcked(Struct, frozen=True):
    """The hub has every record of an ordered stream up to ``wm``."""

    stream: Stream
    wm: int


class LowerMark(Struct, frozen=True):
    """The hub has less than it once acked."""

    stream: Stream
    wm: int


class TeleAcked(Struct, frozen=True):
    """The hub has these segments: trim them, and note the watermark."""

    wm: int
    seqs: tuple[int, ...]


class TeleLost(Struct, frozen=True):
    """The hub no longer has segments that were trimmed after its ack: name the hole."""

    seq_first: int
    seq_last: int


class DeadLetter(Struct, frozen=True):
    """The hub will never take this segment: put it aside and name the hole."""

    seq: int
    code: NackCode


class Complaint(Struct, frozen=True):
    """Something a person should look at; the conversation goes on."""

    code: str
    detail: str


class SendBirth(Struct, frozen=True):
    """The hub has not answered the birth: say it again."""


class StartOver(Struct, frozen=True):
    """Mint a new store_id, renumber what is unacked, and connect anew."""

    reason: str


class CheckManifest(Struct, frozen=True):
    """Compare the leases that the hub lists with those held."""

    leases: tuple[LeaseHead, ...]
    owner: bool


Effect = (
    MarkAcked
    | LowerMark
    | TeleAcked
    | TeleLost
    | DeadLetter
    | Complaint
    | SendBirth
    | StartOver
    | CheckManifest
)
