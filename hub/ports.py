"""Ports of the hub: what its core and services need from the world.

Each port ships with its fake beside the real one; the composition root (``main.py``) picks.
Implementations raise the builtin bases ``ConnectionError``, ``PermissionError``, ``TimeoutError``.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Clock(Protocol):
    """Time of the hub's host; elapsed time is boottime, stamps are wall, the two never mix."""

    def boottime_ns(self) -> int:
        """Give CLOCK_BOOTTIME in nanoseconds."""
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
        """Publish, and for QoS 1 return after the PUBACK (PermissionError when refused)."""
        ...

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, QoS) pairs."""
        ...

    def messages(self) -> AsyncIterator[Inbound]:
        """Iterate the messages; raises ConnectionError when the connection ends."""
        ...


class MqttConnector(Protocol):
    """Makes a new client object for every connection."""

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


class Reader(Protocol):
    """Reads inside one job: all on the same snapshot of the store."""

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SELECT."""
        ...

    def stream(self, sql: str, params: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Run one SELECT and give its rows one by one, for results that may be large."""
        ...


class LongReads(Protocol):
    """Reads that may be long, kept off the loop."""

    async def run(self, job: Callable[[Reader], T]) -> T:
        """Run the job in a worker thread and return its value; it must not touch the loop."""
        ...


class SupportsRead(Protocol):
    """What a short question needs: a store, or the reader of a job."""

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SELECT."""
        ...


class Store(Protocol):
    """The operational store: one writer that group-commits, reads on a query-only connection."""

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``job`` inside the next group commit and return its value after the sync.

        The job runs in a savepoint of its own: when it raises, only its changes are undone and the
        exception comes out here. It must not commit, await or keep the connection.
        """
        ...

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one short SELECT on the query-only connection: it runs on the loop."""
        ...


class Live(Protocol):
    """Fan-out to the live channel; never blocks, never fails the caller."""

    def publish(
        self, topic: str, customer_id: str | None, body: bytes, owner_body: bytes | None = None
    ) -> None:
        """Send an encoded JSON object to the subscribers of ``topic``.

        Args:
            topic: ``workload``, ``site``, ``switch``, ``invoice``.
            customer_id: owner whose customer connections may see it; None: staff only.
            owner_body: what those are sent instead of ``body``; None: the same.
        """
        ...


class Dispatcher(Protocol):
    """Sees to what a commit of the API leaves to be done."""

    def wake(self) -> None:
        """Ask for a placement pass soon; calls are coalesced."""
        ...

    def publish(self, lease_ids: Sequence[str]) -> None:
        """Have newer generations of these leases sent to their sites at once."""
        ...

    def publish_orders(self) -> None:
        """Have changed grid orders sent to their sites at once."""
        ...
