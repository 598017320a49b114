"""The port to the telemetry store, and what a query of it answers."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from hub.core.sync import SeqSet
from hub.metrics.ledger import TeleAnswer, TeleBatch
from protocol.telemetry import SchemaItem


class Totals(Struct, frozen=True, kw_only=True):
    """Count of the known values of a metric and the exact sum of them in steps of its scale."""

    known: int
    steps: int


class Latest(Struct, frozen=True, kw_only=True):
    """Newest value of a metric of a device; None is unknown."""

    device_id: str
    t_ms: int
    value: float | None


class Metrics(Protocol):
    """Telemetry store: rows and ledger of many batches in one transaction."""

    async def commit(self, batches: Sequence[TeleBatch]) -> tuple[TeleAnswer, ...]:
        """Store batches durably; one answer each, in order.

        Raises:
            MetricsError: nothing of it was kept.
        """
        ...

    def known(self, store_id: str) -> SeqSet:
        """Give the seqs of a store that are committed or passed."""
        ...

    def last_digest(self, store_id: str) -> bytes | None:
        """Give the digest of the highest committed seq; None when there is none or it is a gap."""
        ...

    def add_schema(self, digest: bytes, item: SchemaItem) -> None:
        """Make a schema or device list known."""
        ...

    def pass_gap(self, store_id: str, first: int, last: int) -> None:
        """Note seqs that will never come; the operational store keeps them."""
        ...

    async def totals(self, site_id: str, metric: str) -> Totals:
        """Count and sum one metric of a site."""
        ...

    async def latest(self, site_id: str, metric: str) -> tuple[Latest, ...]:
        """Give the newest value of a metric per device of a site, by device."""
        ...

    def close(self) -> None:
        """Finish what is queued and close the file."""
        ...
