"""Workloads and every transition they ever made."""

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

from hub.core.workload_states import FINAL, WorkloadState, is_allowed
from hub.errors import IllegalTransitionError, NotFoundError
from hub.ports import Store
from hub.store.migrations import Migration
from protocol.lease import AccessKeys, OnPartition, WorkloadSpec
from protocol.units import from_ms, to_ms

Read = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]

MIGRATIONS = (
    Migration(
        module="workloads",
        number=1,
        sql=(
            """
            CREATE TABLE workloads (
                workload_id TEXT PRIMARY KEY,
                customer_id TEXT NOT NULL,
                name TEXT NOT NULL,
                site_id TEXT,
                device_class TEXT NOT NULL,
                count INTEGER NOT NULL,
                priority INTEGER NOT NULL,
                spec TEXT NOT NULL,
                on_partition TEXT NOT NULL,
                lapse_after_s INTEGER NOT NULL,
                max_price_usd_per_h TEXT,
                expires_at_ms INTEGER,
                state TEXT NOT NULL,
                reason TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                placed_site_id TEXT,
                checkpoint_id TEXT,
                created_at_ms INTEGER NOT NULL,
                running_at_ms INTEGER,
                cancel_accepted_at_ms INTEGER,
                ended_at_ms INTEGER,
                updated_at_ms INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            "CREATE INDEX workloads_by_customer ON workloads (customer_id, workload_id)",
            """
            CREATE INDEX workloads_live ON workloads (state, priority, created_at_ms)
            WHERE state NOT IN ('completed', 'failed', 'cancelled', 'expired')
            """,
            """
            CREATE TABLE transitions (
                seq INTEGER PRIMARY KEY,
                workload_id TEXT NOT NULL,
                from_state TEXT,
                to_state TEXT NOT NULL,
                reason TEXT NOT NULL,
                actor TEXT NOT NULL,
                at_ms INTEGER NOT NULL,
                detail TEXT NOT NULL
            )
            """,
            "CREATE INDEX transitions_by_workload ON transitions (workload_id, seq)",
        ),
    ),
    Migration(
        module="workloads",
        number=2,
        sql=("ALTER TABLE workloads ADD COLUMN keys TEXT NOT NULL DEFAULT '[]'",),
    ),
)


class WorkloadRow(Struct, frozen=True, kw_only=True):
    """One workload.

    Args:
        site_id: the site the customer wishes, or None for any. placed_site_id: where the newest
            attempt went. attempt: number of the newest attempt, 0 before the first.
        max_price_usd_per_h: highest price per device-hour the customer pays; None: any.
        reason: stable code of why it is in its state, ``""`` when that says nothing.
        keys: who may use what it serves, by hash; the newest first.
        cancel_accepted_at: when the hub took the customer's cancel; minutes that start later are
            not charged.
    """

    workload_id: str
    customer_id: str
    name: str
    device_class: str
    count: int
    priority: int
    spec: WorkloadSpec
    state: WorkloadState
    created_at: datetime
    updated_at: datetime
    site_id: str | None = None
    on_partition: OnPartition = OnPartition.STAY
    lapse_after_s: int = 300
    max_price_usd_per_h: Decimal | None = None
    expires_at: datetime | None = None
    reason: str = ""
    attempt: int = 0
    placed_site_id: str | None = None
    checkpoint_id: str | None = None
    running_at: datetime | None = None
    cancel_accepted_at: datetime | None = None
    ended_at: datetime | None = None
    keys: AccessKeys = ()


class Transition(Struct, frozen=True, kw_only=True):
    """One step of one workload, as stored: the source of live messages and of the history."""

    seq: int
    workload_id: str
    customer_id: str
    from_state: WorkloadState | None
    to_state: WorkloadState
    reason: str
    actor: str
    at: datetime
    attempt: int
    site_id: str | None
    detail: dict[str, str] = {}


COLUMNS = (
    "workload_id, customer_id, name, device_class, count, priority, spec, state, created_at_ms,"
    " updated_at_ms, site_id, on_partition, lapse_after_s, max_price_usd_per_h, expires_at_ms,"
    " reason, attempt, placed_site_id, checkpoint_id, running_at_ms, cancel_accepted_at_ms,"
    " ended_at_ms, keys"
)
_SELECT = f"SELECT {COLUMNS} FROM workloads"  # noqa: S608 - a constant
_INSERT = f"INSERT INTO workloads ({COLUMNS}) VALUES ({', '.join('?' * 23)})"  # noqa: S608 - as above
_INSERT_TRANSITION = (
    "INSERT INTO transitions (workload_id, from_state, to_state, reason, actor, at_ms, detail)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
# Columns that a transition may set beside the state, with how their values are stored.
_SETTABLE: dict[str, str] = {
    "attempt": "attempt",
    "placed_site_id": "placed_site_id",
    "checkpoint_id": "checkpoint_id",
    "running_at": "running_at_ms",
    "cancel_accepted_at": "cancel_accepted_at_ms",
}
_KEYS = msgspec.json.Decoder(AccessKeys)
Settable = str | int | datetime | None


def insert_workload(connection: sqlite3.Connection, row: WorkloadRow, actor: str) -> Transition:
    """Store a new workload with its first transition (from nothing to its state)."""
    connection.execute(_INSERT, _values(row))
    cursor = connection.execute(
        _INSERT_TRANSITION,
        (row.workload_id, None, row.state, row.reason, actor, to_ms(row.created_at), "{}"),
    )
    assert cursor.lastrowid is not None
    return Transition(
        seq=cursor.lastrowid,
        workload_id=row.workload_id,
        customer_id=row.customer_id,
        from_state=None,
        to_state=row.state,
        reason=row.reason,
        actor=actor,
        at=row.created_at,
        attempt=row.attempt,
        site_id=row.placed_site_id,
    )


def get(connection: sqlite3.Connection, workload_id: str) -> WorkloadRow:
    """Read one workload inside a write job.

    Raises:
        NotFoundError: there is no such workload.
    """
    row = _find(_reader(connection), workload_id)
    if row is None:
        raise NotFoundError("no_workload", f"no workload {workload_id}")
    return row


def find(store: Store, workload_id: str) -> WorkloadRow | None:
    """Read one workload on the query-only connection; None when there is none."""
    return _find(store.read, workload_id)


def list_by_state(
    connection: sqlite3.Connection, state: WorkloadState, limit: int
) -> tuple[WorkloadRow, ...]:
    """Read workloads of one live state inside a write job, by priority, then age."""
    return _by_state(_reader(connection), state, limit)


def find_by_state(store: Store, state: WorkloadState, limit: int) -> tuple[WorkloadRow, ...]:
    """Read workloads of one live state on the query-only connection, by priority, then age."""
    return _by_state(store.read, state, limit)


def page(
    store: Store,
    *,
    customer_id: str | None,
    state: WorkloadState | None,
    before: str | None,
    limit: int,
    live_only: bool = False,
) -> tuple[WorkloadRow, ...]:
    """Read one page, newest first.

    Args:
        store: the store.
        customer_id: owner, or None for all customers. state: only this state.
        before: workload_id of the last row of the page before this one.
        limit: highest number of rows.
        live_only: leave out workloads that have ended.
    """
    where, params = ["1"], list[object]()
    for clause, value in (
        ("customer_id = ?", customer_id),
        ("state = ?", state),
        ("workload_id < ?", before),
    ):
        if value is not None:
            where.append(clause)
            params.append(value)
    if live_only:
        where.append(f"state NOT IN ({', '.join('?' * len(FINAL))})")
        params.extend(sorted(FINAL))
    sql = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY workload_id DESC LIMIT ?"
    return tuple(_row(values) for values in store.read(sql, (*params, limit)))


def transition(
    connection: sqlite3.Connection,
    workload_id: str,
    to: WorkloadState,
    *,
    reason: str,
    actor: str,
    at: datetime,
    detail: dict[str, str] | None = None,
    **columns: Settable,
) -> Transition:
    """Move a workload to another state and write the row that says so, or change nothing.

    Args:
        connection: the write connection, inside a job.
        workload_id: which one. to: the new state.
        reason: stable code. actor: ``user:<id>``, ``site:<id>`` or ``hub``.
        at: aware UTC time. detail: further facts for a person.
        columns: attempt, placed_site_id, checkpoint_id, running_at, cancel_accepted_at.

    Raises:
        NotFoundError: there is no such workload.
        IllegalTransitionError: it may not go from its present state to ``to``.
    """
    row = get(connection, workload_id)
    if not is_allowed(row.state, to):
        raise IllegalTransitionError(
            "illegal_transition", f"{workload_id} cannot go from {row.state} to {to}"
        )
    at_ms = to_ms(at)
    values: dict[str, object] = {
        _SETTABLE[name]: to_ms(value) if isinstance(value, datetime) else value
        for name, value in columns.items()
    }
    values |= {"state": to, "reason": reason, "updated_at_ms": at_ms}
    if to in FINAL:
        values["ended_at_ms"] = at_ms
    changes = ", ".join(f"{name} = ?" for name in values)
    connection.execute(
        f"UPDATE workloads SET {changes} WHERE workload_id = ?",  # noqa: S608 - names from a constant
        (*values.values(), workload_id),
    )
    said = msgspec.json.encode(detail or {}).decode()
    cursor = connection.execute(
        _INSERT_TRANSITION, (workload_id, row.state, to, reason, actor, at_ms, said)
    )
    assert cursor.lastrowid is not None
    attempt, site = columns.get("attempt"), columns.get("placed_site_id", row.placed_site_id)
    return Transition(
        seq=cursor.lastrowid,
        workload_id=workload_id,
        customer_id=row.customer_id,
        from_state=row.state,
        to_state=to,
        reason=reason,
        actor=actor,
        at=at,
        attempt=attempt if isinstance(attempt, int) else row.attempt,
        site_id=site if isinstance(site, str) else None,
        detail=detail or {},
    )


def set_keys(connection: sqlite3.Connection, workload_id: str, keys: AccessKeys) -> None:
    """Store who may use what a workload serves."""
    connection.execute(
        "UPDATE workloads SET keys = ? WHERE workload_id = ?",
        (msgspec.json.encode(keys).decode(), workload_id),
    )


def transitions_of(store: Store, workload_id: str, limit: int = 200) -> tuple[Transition, ...]:
    """Read the history of one workload, oldest first."""
    rows = store.read(
        "SELECT t.seq, t.workload_id, w.customer_id, t.from_state, t.to_state, t.reason, t.actor,"
        " t.at_ms, w.attempt, w.placed_site_id, t.detail FROM transitions t"
        " JOIN workloads w USING (workload_id) WHERE t.workload_id = ? ORDER BY t.seq LIMIT ?",
        (workload_id, limit),
    )
    return tuple(
        Transition(
            seq=seq,
            workload_id=workload,
            customer_id=customer,
            from_state=WorkloadState(before) if before else None,
            to_state=WorkloadState(after),
            reason=reason,
            actor=actor,
            at=from_ms(at_ms),
            attempt=attempt,
            site_id=site,
            detail=msgspec.json.decode(detail, type=dict[str, str]),
        )
        for (
            seq,
            workload,
            customer,
            before,
            after,
            reason,
            actor,
            at_ms,
            attempt,
            site,
            detail,
        ) in rows
    )


def _reader(connection: sqlite3.Connection) -> Read:
    def read(sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = connection.execute(sql, tuple(params)).fetchall()
        return rows

    return read


def _find(read: Read, workload_id: str) -> WorkloadRow | None:
    rows = read(f"{_SELECT} WHERE workload_id = ?", (workload_id,))
    return _row(rows[0]) if rows else None


def _by_state(read: Read, state: WorkloadState, limit: int) -> tuple[WorkloadRow, ...]:
    # Repeating the index's condition lets SQLite use it.
    sql = (
        f"{_SELECT} WHERE state = ?"
        " AND state NOT IN ('completed', 'failed', 'cancelled', 'expired')"
        " ORDER BY priority, created_at_ms, workload_id LIMIT ?"
    )
    return tuple(_row(values) for values in read(sql, (state, limit)))


def _ms(at: datetime | None) -> int | None:
    return None if at is None else to_ms(at)


def _time(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else from_ms(at_ms)


def _values(row: WorkloadRow) -> tuple[object, ...]:
    price = row.max_price_usd_per_h
    return (
        row.workload_id, row.customer_id, row.name, row.device_class, row.count, row.priority,
        msgspec.json.encode(row.spec).decode(), row.state, to_ms(row.created_at),
        to_ms(row.updated_at), row.site_id, row.on_partition, row.lapse_after_s,
        None if price is None else str(price), _ms(row.expires_at), row.reason, row.attempt,
        row.placed_site_id, row.checkpoint_id, _ms(row.running_at), _ms(row.cancel_accepted_at),
        _ms(row.ended_at), msgspec.json.encode(row.keys).decode(),
    )  # fmt: skip


def _row(values: tuple[Any, ...]) -> WorkloadRow:
    return WorkloadRow(
        workload_id=values[0],
        customer_id=values[1],
        name=values[2],
        device_class=values[3],
        count=values[4],
        priority=values[5],
        spec=msgspec.json.decode(values[6], type=WorkloadSpec),
        state=WorkloadState(values[7]),
        created_at=from_ms(values[8]),
        updated_at=from_ms(values[9]),
        site_id=values[10],
        on_partition=OnPartition(values[11]),
        lapse_after_s=values[12],
        max_price_usd_per_h=None if values[13] is None else Decimal(values[13]),
        expires_at=_time(values[14]),
        reason=values[15],
        attempt=values[16],
        placed_site_id=values[17],
        checkpoint_id=values[18],
        running_at=_time(values[19]),
        cancel_accepted_at=_time(values[20]),
        ended_at=_time(values[21]),
        keys=_KEYS.decode(values[22]),
    )
