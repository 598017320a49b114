"""Which telemetry batches are in: seqs and digests per store, in memory beside the database."""

from collections import OrderedDict

from msgspec import Struct

from hub.core.sync import NACK_OF, SeqSet, Verdict, judge
from protocol.sync import NackCode, Record

# Digests kept per store to recognise a double; for older ones the database is asked.
DIGESTS_KEPT = 1_024


class TeleBatch(Struct, frozen=True, kw_only=True):
    """One message of the ``tele`` or ``hist`` lane."""

    site_id: str
    store_id: str
    records: tuple[Record, ...]


class TeleAnswer(Struct, frozen=True, kw_only=True):
    """What became of a batch.

    Args:
        known: all that is committed of the store. nack: (seq, code) not taken.
        conflicts: seqs whose digest differs from the one committed.
        points: values stored, unknown ones included.
    """

    known: SeqSet
    nack: tuple[tuple[int, NackCode], ...] = ()
    conflicts: tuple[int, ...] = ()
    points: int = 0


class StoreLedger:
    """Ledger of one edge store."""

    def __init__(self) -> None:
        self.known = SeqSet()
        self.last_digest: bytes | None = None
        self._digests: OrderedDict[int, bytes] = OrderedDict()

    def digest(self, seq: int) -> bytes | None:
        """Give a digest that is still in memory."""
        return self._digests.get(seq)

    def judge(self, record: Record, known_digest: bytes | None) -> Verdict:
        """Judge one record."""
        return judge(record, self.known, known_digest)

    def add(self, seq: int, digest: bytes) -> None:
        """Note a committed batch."""
        self.known = self.known.add(seq, seq)
        if seq == self.known.highest:
            self.last_digest = digest
        self._digests[seq] = digest
        while len(self._digests) > DIGESTS_KEPT:
            self._digests.popitem(last=False)

    def pass_gap(self, first: int, last: int) -> None:
        """Note seqs that will never come."""
        self.known = self.known.add(first, last)
        if last == self.known.highest:
            self.last_digest = None


def nack_of(verdict: Verdict) -> NackCode | None:
    """Give the nack code of a verdict, if it has one."""
    return NACK_OF.get(verdict)
