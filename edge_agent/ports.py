"""Ports of the agent and the node: what the core and the services need from the world.

Each port ships with its fake beside the real one; the composition root (``main.py``) picks. Every
value that crosses a port is frozen. Implementations raise the builtin bases named here, so that a
service needs no knowledge of a library: ``ConnectionError`` (link lost), ``PermissionError``
(refused for good), ``TimeoutError``.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from protocol.event import EventItem
from protocol.lease import Lease, SitePolicy
from protocol.node import (
    GpuRelease,
    Inventory,
    LeaseKeys,
    MeterReading,
    NodeEvent,
    NodeFacts,
    PhaseDo,
    PhaseDone,
    Prepare,
    Readings,
)
from protocol.sync import StreamHead
from protocol.usage import UsageItem


class Clock(Protocol):
    """Time of one host; elapsed time is boottime, stamps are wall, the two never mix."""

    def boottime_ns(self) -> int:
        """Give CLOCK_BOOTTIME in nanoseconds: grows within one boot_id, also in suspend."""
        ...

    def wall(self) -> datetime:
        """Give the aware UTC time; it may step, so it is never subtracted."""
        ...

    def boot_id(self) -> str:
        """Give the identity of this boot."""
        ...


class Will(Struct, frozen=True, kw_only=True):
    """What the broker publishes when the connection dies."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    delay_s: int = 0


class Inbound(Protocol):
    """One message received; it is redelivered until ``ack`` is called."""

    topic: str
    payload: bytes
    retain: bool

    async def ack(self) -> None:
        """Tell the broker that the message has been dealt with."""
        ...


class MqttConnection(Protocol):
    """One live connection; dies as a whole."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish, and for QoS 1 return after the PUBACK.

        Raises:
            PermissionError: the broker refused with a reason code.
            ConnectionError: the connection is gone; whether the broker has it is unknown.
        """
        ...

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs."""
        ...

    def messages(self) -> AsyncIterator[Inbound]:
        """Iterate the messages; raises ConnectionError when the connection ends."""
        ...


class MqttConnector(Protocol):
    """Makes a new client object for every connection; one kept alive re-sends old messages."""

    def connect(
        self,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: Will | None,
    ) -> AbstractAsyncContextManager[MqttConnection]:
        """Connect; raises ConnectionError or TimeoutError."""
        ...


class MeterHead(Struct, frozen=True, kw_only=True):
    """Where the metering of one instance stands: last reading, and number of the next interval."""

    reading: MeterReading
    next_interval_no: int
    closed: bool = False


class SwitchRow(Struct, frozen=True, kw_only=True):
    """Stored form of a switch: encoded by the core, opaque to the store."""

    switch_id: str
    body: bytes
    closed: bool


class CommitBatch(Struct, frozen=True, kw_only=True):
    """Everything that must become durable together, in one transaction of ``core.sqlite``.

    Args:
        facts: one encoded journal row (the facts of one pass), or None.
        site: with the row of a run's first pass, the encoded site by which it decides.
        switches: opened, advanced or closed switches.
        usage: items for the usage stream, in order. events: items for the event stream, in order.
        leases: desired leases as received. policy: as received.
        dropped_leases: lease ids whose retained topic the hub cleared after release.
        meter_heads: new metering state. node_marks: (node_id, reading seq now durable as usage).
        asic_modes: (device_id, mode before its sleep).
        one_offs: ids of one-off commands that are begun now.
        sync: False lets the row ride with the next synced commit (phase notes).
    """

    facts: bytes | None = None
    site: bytes | None = None
    switches: tuple[SwitchRow, ...] = ()
    usage: tuple[UsageItem, ...] = ()
    events: tuple[EventItem, ...] = ()
    leases: tuple[Lease, ...] = ()
    dropped_leases: tuple[str, ...] = ()
    policy: SitePolicy | None = None
    meter_heads: tuple[MeterHead, ...] = ()
    node_marks: tuple[tuple[str, int], ...] = ()
    asic_modes: tuple[tuple[str, str], ...] = ()
    one_offs: tuple[str, ...] = ()
    sync: bool = True


class Committed(Struct, frozen=True, kw_only=True):
    """What a commit gave: the journal seq of the facts row, and the last seq of each stream."""

    fact_seq: int
    usage_seq: int
    event_seq: int


class Recovered(Struct, frozen=True, kw_only=True):
    """What the store holds at start: start-up is recovery, one path."""

    store_id: str
    agent_epoch: int
    snapshot: bytes | None
    facts: tuple[tuple[int, bytes], ...]
    open_switches: tuple[SwitchRow, ...]
    leases: tuple[Lease, ...]
    policy: SitePolicy | None
    meter_heads: tuple[MeterHead, ...]
    node_marks: tuple[tuple[str, int], ...]
    asic_modes: tuple[tuple[str, str], ...] = ()
    one_offs: tuple[str, ...] = ()


class CoreStore(Protocol):
    """The agent's durable store: one storage thread group-commits (inline in simulation)."""

    async def recover(self) -> Recovered:
        """Open or create, raise and store the agent epoch, and give all that survived."""
        ...

    async def commit(self, batch: CommitBatch) -> Committed:
        """Make the batch durable, whole or not at all; returns after the sync when ``sync``."""
        ...

    async def save_snapshot(self, fact_seq: int, body: bytes) -> None:
        """Keep a snapshot of the state after ``fact_seq`` and trim facts past their retention."""
        ...

    def heads(self) -> tuple[StreamHead, ...]:
        """Give the heads of all streams (in memory, as of the last commit)."""
        ...


class StoredRow(Struct, frozen=True, kw_only=True):
    """One journal row as it lies in the store; an older agent's has no digest."""

    seq: int
    body: bytes
    digest: bytes | None


class SnapshotMark(Struct, frozen=True, kw_only=True):
    """A snapshot that is kept: of the state after ``fact_seq``, taken at ``at_ms`` (wall)."""

    fact_seq: int
    at_ms: int


class JournalSource(Protocol):
    """The history of decisions, read-only: what replay needs of the store."""

    def snapshots(self) -> tuple[SnapshotMark, ...]:
        """Give the snapshots that are kept, oldest first."""
        ...

    def snapshot(self, fact_seq: int) -> bytes | None:
        """Give the snapshot of the state after a row."""
        ...

    def state_digest(self, fact_seq: int) -> bytes | None:
        """Give what the state hashed to after a row, where a snapshot was taken."""
        ...

    def sites(self) -> tuple[tuple[int, bytes], ...]:
        """Give each site, with the first row decided by it, oldest first."""
        ...

    def rows(self, after_seq: int) -> Iterator[StoredRow]:
        """Give the rows above ``after_seq`` in order."""
        ...


class NodeSink(Protocol):
    """Where a node link delivers; called in order per node, one call at a time."""

    def reading_mark(self, node_id: str) -> int:
        """Give the last reading of the node whose usage is durable; 0 is none."""
        ...

    def lease_keys(self, node_id: str) -> tuple[LeaseKeys, ...]:
        """Give the leases held on the node's devices, and who may use what they serve."""
        ...

    def prepare(self, node_id: str) -> tuple[Prepare, ...]:
        """Give all that is to be held ready on the node's devices now."""
        ...

    def release(self, node_id: str) -> tuple[GpuRelease, ...]:
        """Give the fences of the node's devices that an operator ends now."""
        ...

    async def on_inventory(self, inventory: Inventory) -> None:
        """The node answered Hello: adopt what it holds."""
        ...

    async def on_readings(self, node_id: str, readings: Readings) -> None:
        """Meter readings in order; the link sends ReadingsAck after this returns."""
        ...

    async def on_facts(self, node_id: str, facts: NodeFacts) -> None:
        """Samples and activities, once a second."""
        ...

    async def on_event(self, node_id: str, event: NodeEvent) -> None:
        """A workload or device changed by itself."""
        ...

    async def on_lost(self, node_id: str) -> None:
        """The link to the node is down."""
        ...


class NodeLinks(Protocol):
    """The agent's end of all node links."""

    async def do(self, node_id: str, request: PhaseDo) -> PhaseDone:
        """Ask for one phase and wait for its stored result.

        Raises:
            ConnectionError: the node is not reachable now. TimeoutError: no answer in time; in both
                cases whether the phase ran is unknown, and asking again is safe.
        """
        ...

    def connected(self, node_id: str) -> bool:
        """Tell whether the node answered Hello on the present connection."""
        ...
