"""``node.sqlite``: what the node must not forget, one transaction per change.

Written unsynced (``sync=False``) is what matters only while the host runs: the write survives the
death of the node's process, and when the host dies its instances die with it.
"""

import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Struct

from edge_agent.node.errors import NodeStoreError
from edge_agent.node.lapse import HubHeard
from edge_agent.node.state import Assignment, MeterState
from edge_agent.storage.writer import Writer
from protocol.node import DeviceOutcome, MeterReading, Phase

T = TypeVar("T")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE assignment (device_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        """CREATE TABLE meter (instance_id TEXT PRIMARY KEY, position INTEGER NOT NULL,
        body BLOB NOT NULL) WITHOUT ROWID""",
        "CREATE TABLE reading (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
        """CREATE TABLE result (id INTEGER PRIMARY KEY, switch_id TEXT NOT NULL,
        phase TEXT NOT NULL, device_id TEXT NOT NULL, body BLOB NOT NULL,
        UNIQUE (switch_id, phase, device_id))""",
    ),
)
# One switch of one device leaves at most ten results: room for some hundred switches in flight.
RESULTS_MAX = 8_192
READINGS_PER_FRAME = 500
# Acked readings stay, as the agent's acked usage does: five weeks of 8 devices that serve all day.
ACKED_READINGS_KEPT = 400_000


class ResultKey(Struct, frozen=True):
    """What a phase result is stored under."""

    switch_id: str
    phase: Phase
    device_id: str


class Metering(Struct, frozen=True, kw_only=True):
    """Where the readings stand: the last seq given, and what they are complete up to."""

    last_seq: int = 0
    through: datetime | None = None


class NodeChange(Struct, frozen=True, kw_only=True):
    """Everything that must become durable together."""

    assignments: tuple[Assignment, ...] = ()
    meters: tuple[MeterState, ...] = ()
    dropped_meters: tuple[str, ...] = ()
    readings: tuple[MeterReading, ...] = ()
    results: tuple[tuple[ResultKey, DeviceOutcome], ...] = ()
    metering: Metering | None = None
    epoch: int | None = None
    heard: HubHeard | None = None
    acked_seq: int | None = None


class NodeLoaded(Struct, frozen=True, kw_only=True):
    """What the file held at start; start-up is recovery, one path."""

    assignments: tuple[Assignment, ...]
    meters: tuple[MeterState, ...]
    results: tuple[tuple[ResultKey, DeviceOutcome], ...]
    metering: Metering
    epoch: int
    heard: HubHeard | None
    acked_seq: int


class _Identity(Struct, frozen=True, kw_only=True):
    node_id: str
    site_id: str


_encode = msgspec.msgpack.Encoder().encode
_assignments = msgspec.msgpack.Decoder(Assignment)
_meters = msgspec.msgpack.Decoder(MeterState)
_outcomes = msgspec.msgpack.Decoder(DeviceOutcome)
_readings = msgspec.msgpack.Decoder(MeterReading)
_metering = msgspec.msgpack.Decoder(Metering)
_heard = msgspec.msgpack.Decoder(HubHeard)
_number = msgspec.msgpack.Decoder(int)
_identity = msgspec.msgpack.Decoder(_Identity)


class NodeStore:
    """The node's durable state.

    Args:
        writer: of ``node.sqlite``, made with ``MIGRATIONS``; threaded live, inline in simulation.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def load(self, node_id: str, site_id: str) -> NodeLoaded:
        """Open the file and give what it holds.

        Raises:
            NodeStoreError: the file belongs to another node or site. StorageError: the disk.
        """
        await self._writer.start()
        await self._writer.run(lambda db: _claim(db, _Identity(node_id=node_id, site_id=site_id)))
        loaded: NodeLoaded = await self._writer.run(_load, sync=False)
        return loaded

    async def apply(
        self, change: NodeChange, *, sync: bool = True, on_done: Callable[[None], None]
    ) -> None:
        """Store a change, whole or not at all.

        Args:
            on_done: called in commit order once it is stored, even if the caller was cancelled.

        Raises:
            StorageError: nothing of it was stored.
        """
        await self._writer.run(lambda db: _apply(db, change), sync=sync, on_done=on_done)

    def readings_after(self, seq: int, limit: int = READINGS_PER_FRAME) -> tuple[MeterReading, ...]:
        """Give stored readings above ``seq``, in order."""
        rows = self._writer.read(
            "SELECT body FROM reading WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        )
        return tuple(_readings.decode(body) for (body,) in rows)

    def first_reading(self) -> int:
        """Give the seq of the oldest reading kept, or 1 when there is none."""
        rows = self._writer.read("SELECT MIN(seq) FROM reading")
        return 1 if rows[0][0] is None else int(rows[0][0])

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await self._writer.close()


def _claim(db: sqlite3.Connection, identity: _Identity) -> None:
    body = _meta(db, "identity")
    if body is None:
        _put_meta(db, "identity", identity)
        return
    found = _identity.decode(body)
    if found != identity:
        raise NodeStoreError(
            f"the store belongs to node {found.node_id} of site {found.site_id},"
            f" not to {identity.node_id} of {identity.site_id}"
        )


def _load(db: sqlite3.Connection) -> NodeLoaded:
    metering, epoch = _meta(db, "metering"), _meta(db, "epoch")
    heard, acked = _meta(db, "heard"), _meta(db, "acked")
    return NodeLoaded(
        assignments=tuple(
            _assignments.decode(body)
            for (body,) in db.execute("SELECT body FROM assignment ORDER BY device_id")
        ),
        meters=tuple(
            _meters.decode(body)
            for (body,) in db.execute("SELECT body FROM meter ORDER BY position, instance_id")
        ),
        results=tuple(
            (ResultKey(switch_id, Phase(phase), device_id), _outcomes.decode(body))
            for switch_id, phase, device_id, body in db.execute(
                "SELECT switch_id, phase, device_id, body FROM result ORDER BY id"
            )
        ),
        metering=Metering() if metering is None else _metering.decode(metering),
        epoch=0 if epoch is None else _number.decode(epoch),
        heard=None if heard is None else _heard.decode(heard),
        acked_seq=0 if acked is None else _number.decode(acked),
    )


def _apply(db: sqlite3.Connection, change: NodeChange) -> None:
    # Once a second nothing but the metering has moved: an empty statement costs as much as a row.
    if change.assignments:
        db.executemany(
            "INSERT INTO assignment VALUES (?, ?)"
            " ON CONFLICT (device_id) DO UPDATE SET body = excluded.body",
            [(one.device_id, _encode(one)) for one in change.assignments],
        )
    if change.meters:
        db.executemany(
            "INSERT INTO meter VALUES (?, (SELECT COALESCE(MAX(position), 0) + 1 FROM meter), ?)"
            " ON CONFLICT (instance_id) DO UPDATE SET body = excluded.body",
            [(one.work.instance_id, _encode(one)) for one in change.meters],
        )
    if change.dropped_meters:
        db.executemany(
            "DELETE FROM meter WHERE instance_id = ?", [(one,) for one in change.dropped_meters]
        )
    if change.readings:
        db.executemany(
            "INSERT INTO reading VALUES (?, ?)",
            [(one.seq, _encode(one)) for one in change.readings],
        )
    _put_results(db, change)
    if change.metering is not None:
        _put_meta(db, "metering", change.metering)
    if change.epoch is not None:
        _put_meta(db, "epoch", change.epoch)
    if change.heard is not None:
        _put_meta(db, "heard", change.heard)
    if change.acked_seq is not None:
        _put_meta(db, "acked", change.acked_seq)
        db.execute("DELETE FROM reading WHERE seq <= ?", (change.acked_seq - ACKED_READINGS_KEPT,))


def _put_results(db: sqlite3.Connection, change: NodeChange) -> None:
    if not change.results:
        return
    db.executemany(
        "INSERT INTO result (switch_id, phase, device_id, body) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (switch_id, phase, device_id) DO UPDATE SET body = excluded.body",
        [
            (key.switch_id, key.phase.value, key.device_id, _encode(outcome))
            for key, outcome in change.results
        ],
    )
    db.execute("DELETE FROM result WHERE id <= (SELECT MAX(id) FROM result) - ?", (RESULTS_MAX,))


def _meta(db: sqlite3.Connection, key: str) -> bytes | None:
    row = db.execute("SELECT body FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


def _put_meta(db: sqlite3.Connection, key: str, value: Struct | int) -> None:
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
        (key, _encode(value)),
    )
