"""Submitting, listing, reading and cancelling over a real socket."""

import asyncio
import json
import sqlite3
from datetime import timedelta
from typing import Any

import httpx
import pytest

from hub.core.workload_states import WorkloadState
from hub.store import leases, workloads
from protocol.lease import Lease, LeaseState, WorkloadSpec
from tests.hub.api.harness import NOW, Hub

GOOD: dict[str, Any] = {"name": "train", "device_class": "H100", "count": 2}


async def _post(
    hub: Hub, body: dict[str, Any], key: str | None = "k1", role: str = "c1"
) -> httpx.Response:
    more = {} if key is None else {"Idempotency_Key": key}
    return await hub.client.post("/api/v1/workloads", json=body, headers=hub.headers(role, **more))


async def test_an_accepted_workload_is_stored_published_and_woken_for(hub: Hub) -> None:
    answer = await _post(hub, {**GOOD, "max_price_usd_per_h": "2.500000001", "spec": {"run_s": 60}})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/api/v1/workloads/{body['workload_id']}"
    row = workloads.find(hub.deps.store, body["workload_id"])
    assert row is not None
    assert (row.customer_id, row.state, row.spec.run_s) == ("c1", WorkloadState.QUEUED, 60)
    assert str(row.max_price_usd_per_h) == "2.500000001"
    assert hub.dispatcher.woken == 1
    read = (await hub.client.get(answer.headers["location"], headers=hub.headers("c1"))).json()
    assert {**read, "history": []} == body
    assert [(step["from_state"], step["to_state"]) for step in read["history"]] == [
        (None, "queued")
    ]


async def test_a_key_is_needed_and_gives_the_same_answer_again(hub: Hub) -> None:
    missing = await _post(hub, GOOD, None)
    assert (missing.status_code, missing.json()["code"]) == (400, "idempotency_key_missing")
    first, again = await _post(hub, GOOD), await _post(hub, GOOD)
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    other = await _post(hub, {**GOOD, "count": 3})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    foreign = await _post(hub, {**GOOD, "count": 3}, role="c2")
    assert foreign.status_code == 202
    assert hub.dispatcher.woken == 2


async def test_a_key_gives_the_same_answer_when_time_and_prices_have_gone_on(hub: Hub) -> None:
    body = {**GOOD, "expires_at": (NOW + timedelta(minutes=1)).isoformat()}
    first = await _post(hub, body)
    hub.clock.advance(NOW + timedelta(minutes=2))
    again = await _post(hub, body)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert (await _post(hub, body, "k2")).json()["errors"][0]["pointer"] == "/expires_at"
    other = await _post(hub, {**body, "count": 3})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_price_comes_back_as_it_was_written_however_small(hub: Hub) -> None:
    answer = await _post(hub, {**GOOD, "max_price_usd_per_h": "0.000000001"})
    assert answer.json()["max_price_usd_per_h"] == "0.000000001"
    listed = await hub.client.get("/api/v1/workloads", headers=hub.headers("c1"))
    assert listed.json()["items"][0]["max_price_usd_per_h"] == "0.000000001"


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:00", "2999-01-01T00:00:00.0009+05:30"])
async def test_an_end_however_far_is_read_as_it_was_answered(hub: Hub, at: str) -> None:
    answer = await _post(hub, {**GOOD, "expires_at": at})
    assert answer.status_code == 202
    listed = await hub.client.get("/api/v1/workloads", headers=hub.headers("c1"))
    assert listed.status_code == 200, listed.text
    (row,) = listed.json()["items"]
    assert row["expires_at"] == answer.json()["expires_at"]


async def test_fifty_at_once_with_one_key_make_one_workload(hub: Hub) -> None:
    answers = await asyncio.gather(*(_post(hub, GOOD, "same") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["workload_id"] for answer in answers}) == 1
    assert hub.deps.store.read("SELECT COUNT(*) FROM workloads") == [(1,)]
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"count": 0}, "/count"),
        ({"count": "2"}, "/count"),
        ({"count": 1.5}, "/count"),
        ({"priority": 11}, "/priority"),
        ({"name": ""}, "/name"),
        ({"name": None}, "/name"),
        ({"device_class": "a b"}, "/device_class"),
        ({"site_id": "UPPER"}, "/site_id"),
        ({"max_price_usd_per_h": "NaN"}, "/max_price_usd_per_h"),
        ({"max_price_usd_per_h": "Infinity"}, "/max_price_usd_per_h"),
        ({"max_price_usd_per_h": "1e9"}, "/max_price_usd_per_h"),
        ({"max_price_usd_per_h": "-1"}, "/max_price_usd_per_h"),
        ({"max_price_usd_per_h": 0.1}, "/max_price_usd_per_h"),
        ({"spec": {"run_s": -5}}, "/spec/run_s"),
        ({"spec": {"nope": 1}}, "/spec/nope"),
        ({"state": "running"}, "/state"),
        ({"cost": "0"}, "/cost"),
        ({"expires_at": "2026-03-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2026-04-01T00:00:00"}, "/expires_at"),
        ({"lapse_after_s": 1}, "/lapse_after_s"),
        ({"device_class": "H100\n"}, "/device_class"),
        ({"site_id": "lubbock\n"}, "/site_id"),
        ({"max_price_usd_per_h": "1.5\n"}, "/max_price_usd_per_h"),
        ({"key_sha256": "a" * 64 + "\n"}, "/key_sha256"),
    ],
)
async def test_a_wrong_field_is_named(hub: Hub, change: dict[str, Any], pointer: str) -> None:
    answer = await _post(hub, {**GOOD, **change})
    assert answer.status_code == 400, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert hub.deps.store.read("SELECT COUNT(*) FROM workloads") == [(0,)]


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[]", b"null", b'{"name":"\\ud800"}', b""])
async def test_a_body_that_is_no_object_is_refused(hub: Hub, data: bytes) -> None:
    headers = hub.headers("c1", Idempotency_Key="k", Content_Type="application/json")
    answer = await hub.client.post("/api/v1/workloads", content=data, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_class_without_a_price_is_not_offered(hub: Hub) -> None:
    answer = await _post(hub, {**GOOD, "device_class": "H999"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/device_class")


async def test_administrators_say_for_whom_and_customers_may_not(hub: Hub) -> None:
    assert (await _post(hub, GOOD, role="admin")).status_code == 400
    answer = await _post(hub, {**GOOD, "customer_id": "c2"}, role="admin")
    assert answer.json()["customer_id"] == "c2"
    assert (await _post(hub, {**GOOD, "customer_id": "c2"}, "k9")).status_code == 403


async def test_foreign_workloads_are_not_there(hub: Hub) -> None:
    location = (await _post(hub, GOOD)).headers["location"]
    for method in ("GET", "DELETE"):
        answer = await hub.client.request(method, location, headers=hub.headers("c2"))
        assert (answer.status_code, answer.json()["code"]) == (404, "no_workload")
    listed = (await hub.client.get("/api/v1/workloads", headers=hub.headers("c2"))).json()
    assert listed["items"] == []
    assert (await hub.client.get(location, headers=hub.headers("op"))).status_code == 200


URL = "https://g1.test/l/LEASE/v1"


async def serving(hub: Hub, key: str = "k1") -> str:
    """Have a workload of c1 serve, as if a site had said so."""
    workload_id = str((await _post(hub, GOOD, key)).json()["workload_id"])
    now = hub.clock.wall()
    lease = Lease(
        hub_epoch=1, generation=1, lease_id=f"{workload_id}.1", workload_id=workload_id, attempt=1,
        site_id="lubbock", state=LeaseState.RUN, device_class="H100", count=2, priority=5,
        spec=WorkloadSpec(), issued_at=now,
    )  # fmt: skip

    def job(connection: sqlite3.Connection) -> None:
        leases.insert(connection, lease, "c1")
        leases.set_endpoint(connection, lease.lease_id, "lubbock", URL)
        for to in (WorkloadState.PLACING, WorkloadState.RUNNING):
            workloads.transition(
                connection, workload_id, to, reason="", actor="hub", at=now, attempt=1
            )

    await hub.deps.store.write(job)
    return workload_id


async def move(hub: Hub, workload_id: str, *states: WorkloadState) -> None:
    def job(connection: sqlite3.Connection) -> None:
        for to in states:
            workloads.transition(
                connection, workload_id, to, reason="", actor="hub", at=hub.clock.wall()
            )

    await hub.deps.store.write(job)


async def test_the_owner_alone_is_told_where_its_model_listens_while_it_serves(hub: Hub) -> None:
    workload_id = await serving(hub)
    path = f"/api/v1/workloads/{workload_id}"

    async def shown(role: str) -> list[object]:
        one = (await hub.client.get(path, headers=hub.headers(role))).json()
        page = (await hub.client.get("/api/v1/workloads", headers=hub.headers(role))).json()
        return [one["endpoint_url"], *(row["endpoint_url"] for row in page["items"])]

    assert await shown("c1") == [URL, URL]
    for role in ("admin", "op"):
        assert await shown(role) == [None, None]
    for role, status in (("c2", 404), ("anonymous", 401)):
        assert (await hub.client.get(path, headers=hub.headers(role))).status_code == status
    await move(hub, workload_id, WorkloadState.STARTING)
    assert await shown("c1") == [URL, URL]
    await move(hub, workload_id, WorkloadState.PREEMPTED, WorkloadState.QUEUED)
    assert await shown("c1") == [None, None]


async def test_pages_hold_every_workload_once(hub: Hub) -> None:
    sent = [(await _post(hub, GOOD, f"k{n}")).json()["workload_id"] for n in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = (
            await hub.client.get("/api/v1/workloads", params=params, headers=hub.headers("c1"))
        ).json()
        seen += [item["workload_id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == sorted(sent, reverse=True)
    for query in ("limit=0", "limit=201", "limit=x", "state=asleep", "cursor=%00"):
        answer = await hub.client.get(f"/api/v1/workloads?{query}", headers=hub.headers("c1"))
        assert answer.status_code in (200, 400) if "cursor" in query else 400
        if answer.status_code == 400:
            assert answer.json()["errors"][0]["pointer"] == "?" + query.split("=", maxsplit=1)[0]


async def test_cancel_is_accepted_once_and_stays_accepted(hub: Hub) -> None:
    location = (await _post(hub, GOOD)).headers["location"]
    first = await hub.client.delete(location, headers=hub.headers("c1"))
    assert (first.status_code, first.json()["state"]) == (202, "cancelling")
    assert first.json()["cancel_accepted_at"] == "2026-03-01T12:30:00Z"
    again = await hub.client.delete(location, headers=hub.headers("c1"))
    assert again.json()["cancel_accepted_at"] == first.json()["cancel_accepted_at"]
    assert hub.dispatcher.woken == 2


async def test_what_has_ended_cannot_be_cancelled(hub: Hub) -> None:
    body = (await _post(hub, GOOD)).json()
    now = hub.clock.wall()
    await hub.deps.store.write(
        lambda conn: workloads.transition(
            conn, body["workload_id"], WorkloadState.EXPIRED, reason="expired", actor="hub", at=now
        )
    )
    answer = await hub.client.delete(
        f"/api/v1/workloads/{body['workload_id']}", headers=hub.headers("c1")
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "has_ended")


async def test_a_quote_names_price_and_reason_and_reserves_nothing(hub: Hub) -> None:
    body = {"device_class": "H100", "count": 3}
    answer = await hub.client.post("/api/v1/route", json=body, headers=hub.headers("c1"))
    assert json.loads(answer.text) == {
        "site_id": None, "reason": "no_site", "price_usd_per_h": "2.50",
        "total_usd_per_h": "7.50", "card_version": 1, "candidates": [],
    }  # fmt: skip
    dear = {**body, "max_price_usd_per_h": "2.49"}
    answer = await hub.client.post("/api/v1/route", json=dear, headers=hub.headers("c1"))
    assert answer.json()["reason"] == "price_above_max"
