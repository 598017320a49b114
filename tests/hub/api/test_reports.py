"""Usage and revenue over the wire: what they add up to, and that nobody waits for them."""

import asyncio
import json
import threading
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256

import pytest

from hub.core.invoicing import Period, encode_invoice
from hub.core.workload_states import WorkloadState
from hub.ports import Reader
from hub.store import invoices, sites, usage, workloads
from hub.store.long_reads import THREADS, WAITING_MAX
from protocol.lease import WorkloadSpec
from protocol.units import to_ms
from protocol.usage import UsageRecord
from tests.hub.api.harness import NOW, Hub

PATIENCE_S = 20.0


async def use(hub: Hub, site_id: str, customer: str, minutes: int) -> None:
    """Meter whole minutes of an H100 up to now: 2.50 USD an hour by the harness's rate card."""
    row = workloads.WorkloadRow(
        workload_id=f"w-{site_id}-{customer}", customer_id=customer, name="train",
        device_class="H100", count=1, priority=5, spec=WorkloadSpec(),
        state=WorkloadState.QUEUED, created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    await hub.deps.store.write(lambda conn: workloads.insert_workload(conn, row, "user:u"))
    await hub.deps.store.write(
        lambda conn: sites.add(conn, site_id, name=site_id, hub_epoch=1, now=NOW)
    )
    for number in range(minutes):
        start = NOW - timedelta(minutes=minutes - number)
        record = UsageRecord(
            usage_id=f"{row.workload_id}-{number}", site_id=site_id, workload_id=row.workload_id,
            lease_id=f"{row.workload_id}.1", attempt=1, device_id="d", device_class="H100",
            instance_id="i", interval_no=number, start=start, end=start + timedelta(minutes=1),
            active_ms=60_000, energy_j=100,
        )  # fmt: skip
        await hub.deps.store.write(
            lambda conn, record=record, number=number: usage.insert_or_compare(  # type: ignore[misc]
                conn, record, customer_id=customer, source=(site_id, number), now_ms=to_ms(NOW)
            )
        )


async def test_usage_is_ones_own_and_revenue_is_everybodys_by_site(hub: Hub) -> None:
    await use(hub, "houston", "c1", 24)
    await use(hub, "lubbock", "c1", 6)
    await use(hub, "lubbock", "c2", 12)
    await hub.deps.store.write(lambda conn: sites.set_retired(conn, "lubbock", NOW))
    for role, minutes in (("c1", 30), ("c2", 12), ("op", 42)):
        answer = await hub.client.get("/api/v1/usage", headers=hub.headers(role))
        body = answer.json()
        assert body["active_ms"] == minutes * 60_000
        # 2.50 USD an hour: every workload here is a whole number of cents.
        assert Decimal(body["total_usd"]) == Decimal("2.50") * minutes / 60
    answer = await hub.client.get("/api/v1/revenue", headers=hub.headers("admin"))
    body = answer.json()
    by_site = {row["site_id"]: Decimal(row["total_usd"]) for row in body["sites"]}
    # A retired site's past is revenue all the same.
    assert by_site == {"houston": Decimal("1.00"), "lubbock": Decimal("0.75")}
    assert body["total_usd"] == "1.75"


async def test_reports_that_find_no_place_are_refused_and_the_rest_of_the_hub_answers(
    hub: Hub,
) -> None:
    let_go = threading.Event()

    def stuck(_: Reader) -> bool:
        return let_go.wait(PATIENCE_S)

    held = [asyncio.create_task(hub.long_reads.run(stuck)) for _ in range(THREADS + WAITING_MAX)]
    await asyncio.sleep(0)
    for path in ("usage", "revenue"):
        answer = await hub.client.get(f"/api/v1/{path}", headers=hub.headers("op"))
        assert answer.status_code == 503
        assert answer.json()["code"] == "reports_busy"
        assert answer.headers["retry-after"] == "1"
    assert (await hub.client.get("/api/v1/health")).status_code == 200
    answer = await hub.client.get("/api/v1/resources", headers=hub.headers("op"))
    assert answer.status_code == 200
    let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        assert all(await asyncio.gather(*held))
    answer = await hub.client.get("/api/v1/usage", headers=hub.headers("op"))
    assert answer.status_code == 200


async def test_a_window_too_large_for_the_time_it_may_take_says_so(hub: Hub) -> None:
    hub.long_reads._limit_s = -1.0
    answer = await hub.client.get("/api/v1/revenue", headers=hub.headers("op"))
    assert answer.status_code == 422
    assert answer.json()["code"] == "too_long"
    assert "shorter window" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("to=0001-01-01T00:00:00Z", "?to"),
        ("to=0001-01-01T00:00:00%2B23:00", "?to"),
        ("from=1969-12-31T23:59:59Z&to=1970-01-02T00:00:00Z", "?from"),
        ("from=2026-03-01T00:00:00", "?from"),
        ("from=2026-02-29T00:00:00Z", "?from"),
        ("from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "?from"),
        ("from=2026-01-01T00:00:00Z&to=2027-01-01T00:00:00Z", "?from"),
    ],
)
async def test_a_window_that_is_none_names_the_parameter(
    hub: Hub, query: str, pointer: str
) -> None:
    for path in ("usage", "revenue"):
        answer = await hub.client.get(f"/api/v1/{path}?{query}", headers=hub.headers("op"))
        assert answer.status_code == 400, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_a_window_at_the_end_of_time_is_empty(hub: Hub) -> None:
    query = "to=9999-12-31T23:59:59-23:00"
    answer = await hub.client.get(f"/api/v1/usage?{query}", headers=hub.headers("c1"))
    assert (answer.status_code, answer.json()["lines"]) == (200, [])


async def test_an_invoice_is_checked_by_what_its_document_says_alone(hub: Hub) -> None:
    await use(hub, "lubbock", "c1", 7)
    period = Period(start=NOW - timedelta(hours=1), end=NOW)
    later = NOW + timedelta(days=2)
    closed = await hub.deps.store.write(
        lambda conn: invoices.close_period(conn, "c1", period, later)
    )
    answer = await hub.client.get(f"/api/v1/invoices/{closed.number}", headers=hub.headers("c1"))
    assert answer.content == encode_invoice(closed)  # what the command line prints
    told = json.loads(answer.content)
    claimed = told["content_hash"]
    bare = json.dumps({**told, "content_hash": ""}, separators=(",", ":"), ensure_ascii=False)
    assert sha256(bare.encode()).hexdigest() == claimed
    cents = [
        int(Fraction(line["price_usd_per_h"]) * line["active_ms"] / 36_000 + Fraction(1, 2))
        for line in told["lines"]
    ]
    assert [Fraction(line["amount_usd"]) * 100 for line in told["lines"]] == cents == [29]
    assert Fraction(told["total_usd"]) * 100 == sum(cents)
    foreign = await hub.client.get(f"/api/v1/invoices/{closed.number}", headers=hub.headers("c2"))
    assert foreign.status_code == 404
