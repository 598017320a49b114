"""Closing periods over the real tables: nothing billed twice, nothing lost, nothing rewritten."""

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from hub.core.invoicing import Invoice, Period, encode_invoice
from hub.core.rating import ClassPrice
from hub.core.workload_states import WorkloadState
from hub.errors import IllegalTransitionError, InvoiceError
from hub.store import invoices, rate_cards, sites, usage, workloads
from hub.store.database import connect, open_store
from hub.store.long_reads import InlineReads
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from hub.store.workloads import WorkloadRow
from protocol.lease import WorkloadSpec
from protocol.units import to_ms
from protocol.usage import UsageRecord

T0 = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path / "hub.sqlite", synchronous="OFF")
    migrate(connection, MIGRATIONS, 1)
    workloads.insert_workload(connection, _workload("w1"), "user:u")
    prices = [ClassPrice(device_class="H100", price_usd_per_h=Decimal("3.60"))]
    rate_cards.add(connection, T0, prices, T0)
    sites.add(connection, "lubbock", name="Lubbock", hub_epoch=1, now=T0)
    yield connection
    connection.close()


def _workload(workload_id: str) -> WorkloadRow:
    return WorkloadRow(
        workload_id=workload_id, customer_id="c1", name="train", device_class="H100", count=1,
        priority=5, spec=WorkloadSpec(), state=WorkloadState.QUEUED, created_at=T0, updated_at=T0,
        max_price_usd_per_h=Decimal(10),
    )  # fmt: skip


def _use(db: sqlite3.Connection, n: int, minute: int, ms: int = 60_000) -> None:
    start = T0 + timedelta(minutes=minute)
    record = UsageRecord(
        usage_id=f"u{n}", site_id="lubbock", lease_id="w1.1", workload_id="w1", attempt=1,
        device_id="d1", device_class="H100", instance_id="i1", interval_no=n, start=start,
        end=start + timedelta(milliseconds=ms), active_ms=ms, energy_j=100,
    )  # fmt: skip
    usage.insert_or_compare(db, record, customer_id="c1", source=("s", n), now_ms=to_ms(start))


def _close(db: sqlite3.Connection, first: int, last: int) -> Invoice:
    period = Period(start=T0 + first * HOUR, end=T0 + last * HOUR)
    return invoices.close_period(db, "c1", period, T0 + 10 * HOUR)


def test_a_period_bills_what_it_holds_once(db: sqlite3.Connection) -> None:
    for n in range(60):
        _use(db, n, n)
    first = _close(db, 0, 1)
    assert first.total_usd == Decimal("3.60")
    assert first.number == 1
    assert encode_invoice(_close(db, 0, 1)) == encode_invoice(first)
    wider = _close(db, 0, 2)
    assert (wider.number, wider.total_usd) == (2, Decimal("0.00"))


def test_late_usage_is_on_the_next_invoice_and_only_there(db: sqlite3.Connection) -> None:
    _use(db, 1, 5)
    assert _close(db, 0, 1).total_usd == Decimal("0.06")
    _use(db, 2, 6)
    _use(db, 3, 65)
    second = _close(db, 1, 2)
    assert [(line.late_of, line.amount_usd) for line in second.lines] == [
        (None, Decimal("0.06")),
        (1, Decimal("0.06")),
    ]
    assert "late usage of 2026-03-01T00:00Z..2026-03-01T01:00Z" in second.lines[1].description
    assert _close(db, 2, 3).lines == ()


def test_usage_before_any_closed_period_waits_for_its_own(db: sqlite3.Connection) -> None:
    _use(db, 1, 5)
    assert _close(db, 1, 2).lines == ()
    assert _close(db, 0, 1).total_usd == Decimal("0.06")


def test_an_invoice_row_cannot_be_changed_or_deleted(db: sqlite3.Connection) -> None:
    _close(db, 0, 1)
    for sql in ("UPDATE invoices SET total_usd = '0'", "DELETE FROM invoices"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(sql)


def test_an_unknown_customer_is_refused(db: sqlite3.Connection) -> None:
    with pytest.raises(InvoiceError, match="no_customer"):
        invoices.close_period(db, "nobody", Period(start=T0, end=T0 + HOUR), T0 + HOUR)


def test_invoiced_time_keeps_its_prices(db: sqlite3.Connection) -> None:
    _close(db, 0, 2)
    price = [ClassPrice(device_class="H100", price_usd_per_h=Decimal(9))]
    with pytest.raises(InvoiceError, match="already_invoiced"):
        rate_cards.add(db, T0 + HOUR, price, T0 + 10 * HOUR)
    assert rate_cards.add(db, T0 + 2 * HOUR, price, T0 + 10 * HOUR).version == 2
    assert [card.version for card in rate_cards.all_cards(db)] == [1, 2]


def test_the_price_read_alone_is_that_of_the_card_in_force(db: sqlite3.Connection) -> None:
    price = [ClassPrice(device_class="A100", price_usd_per_h=Decimal("1.25"))]
    rate_cards.add(db, T0 + 2 * HOUR, price, T0)
    path = db.execute("PRAGMA database_list").fetchone()[2]
    store = open_store(Path(path), threaded=False)
    for at in (T0 - HOUR, T0, T0 + HOUR, T0 + 2 * HOUR, T0 + 9 * HOUR):
        for name in ("H100", "A100", "H200"):
            expected = rate_cards.price_now(rate_cards.list_cards(store), name, at)
            assert rate_cards.read_price(store, name, at) == expected
    store.close()


def test_the_view_of_a_window_is_what_its_invoice_will_bill(db: sqlite3.Connection) -> None:
    for n in range(7):
        _use(db, n, 10 * n, ms=7_777 * (n + 1))
    view = asyncio.run(
        InlineReads(db).run(
            lambda reader: invoices.rated_usage(
                reader, customer_id="c1", start=T0, end=T0 + HOUR, site_id="lubbock"
            )
        )
    )
    billed = _close(db, 0, 1)
    assert [(row.active_ms, row.amount_usd) for row in view] == [
        (row.active_ms, row.amount_usd) for row in billed.lines
    ]
    assert billed.lines[0].active_ms == 7_777 * (1 + 2 + 3 + 4 + 5 + 6)


def test_a_site_that_holds_a_lease_must_have_reported(db: sqlite3.Connection) -> None:
    db.execute(
        "INSERT INTO leases (lease_id, workload_id, attempt, site_id, customer_id, device_class,"
        " count, state, hub_epoch, generation, body, issued_at_ms)"
        " VALUES ('w1.1', 'w1', 1, 'lubbock', 'c1', 'H100', 1, 'run', 1, 1, x'', ?)",
        (to_ms(T0),),
    )
    with pytest.raises(InvoiceError, match=r"period_open.*lubbock"):
        _close(db, 0, 1)
    sites.set_through(db, "lubbock", T0 + HOUR)
    assert not _close(db, 0, 1).estimated


def test_workloads_come_back_as_stored_and_move_by_the_table_only(db: sqlite3.Connection) -> None:
    assert workloads.get(db, "w1") == _workload("w1")
    step = workloads.transition(
        db, "w1", WorkloadState.PLACING, reason="placed", actor="hub", at=T0 + HOUR, attempt=1,
        placed_site_id="lubbock",
    )  # fmt: skip
    assert (step.from_state, step.to_state, step.attempt, step.site_id) == (
        "queued", "placing", 1, "lubbock",
    )  # fmt: skip
    with pytest.raises(IllegalTransitionError):
        workloads.transition(
            db, "w1", WorkloadState.CANCELLED, reason="", actor="hub", at=T0 + HOUR
        )
    row = workloads.get(db, "w1")
    assert (row.state, row.attempt, row.updated_at) == (WorkloadState.PLACING, 1, T0 + HOUR)
    assert [w.workload_id for w in workloads.list_by_state(db, WorkloadState.PLACING, 9)] == ["w1"]


def test_reading_a_day_of_everybody_does_not_read_all_usage(db: sqlite3.Connection) -> None:
    sql = invoices._USED + " GROUP BY workload_id, device_class, minute"
    plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", (0, 1)).fetchall()
    assert any("usage_by_start" in row[3] for row in plan)
    sql = invoices._BY_MINUTE
    params = {"customer_id": "c", "end_ms": 1, "start_minute": 0}
    plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()
    assert any("usage_by_customer" in row[3] for row in plan)
