"""Keys of served models: made by their owner, shown once, replaced; the hub keeps hashes."""

from datetime import timedelta
from hashlib import sha256
from typing import Any

import httpx
import pytest

from hub.core.workload_states import WorkloadState
from hub.store import leases, workloads
from tests.hub.api.harness import NOW, Hub
from tests.hub.api.test_workloads import GOOD, serving

OWN = sha256(b"a key of my own").hexdigest()


async def _key(
    hub: Hub, workload_id: str, body: dict[str, Any] | None = None, role: str = "c1"
) -> httpx.Response:
    path = f"/api/v1/workloads/{workload_id}/key"
    return await hub.client.post(path, json=body or {}, headers=hub.headers(role))


async def _submit(hub: Hub, **more: str) -> str:
    answer = await hub.client.post(
        "/api/v1/workloads", json={**GOOD, **more}, headers=hub.headers("c1", Idempotency_Key="s")
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["workload_id"])


def _hashes(hub: Hub, workload_id: str) -> list[str]:
    row = workloads.find(hub.deps.store, workload_id)
    assert row is not None
    return [key.sha256 for key in row.keys]


async def test_a_key_is_shown_once_and_kept_as_its_hash(hub: Hub) -> None:
    workload_id = await _submit(hub)
    assert _hashes(hub, workload_id) == []
    answer = await _key(hub, workload_id)
    assert answer.status_code == 201
    key = answer.json()["api_key"]
    assert key.startswith("hcp_")
    assert len(key) == 47  # 32 bytes in base64
    assert _hashes(hub, workload_id) == [sha256(key.encode()).hexdigest()]
    assert answer.json()["key_sha256"] == _hashes(hub, workload_id)[0]
    read = await hub.client.get(f"/api/v1/workloads/{workload_id}", headers=hub.headers("c1"))
    assert key not in read.text
    for table in ("workloads", "idempotency", "leases"):
        if hub.deps.store.read("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)):
            assert key not in str(hub.deps.store.read(f"SELECT * FROM {table}"))


async def test_a_customer_may_bring_the_hash_of_a_key_that_the_hub_never_sees(hub: Hub) -> None:
    workload_id = await _submit(hub, key_sha256=OWN)
    assert _hashes(hub, workload_id) == [OWN]
    other = sha256(b"another").hexdigest()
    answer = (await _key(hub, workload_id, {"key_sha256": other})).json()
    assert (answer["api_key"], answer["key_sha256"]) == (None, other)
    assert _hashes(hub, workload_id) == [other]


async def test_a_new_key_goes_out_with_the_lease_that_serves(hub: Hub) -> None:
    workload_id = await serving(hub)
    first = (await _key(hub, workload_id)).json()
    second = (await _key(hub, workload_id, {"grace_s": 600})).json()
    assert second["previous_until"] == (NOW + timedelta(seconds=600)).isoformat().replace(
        "+00:00", "Z"
    )
    held = leases.find(hub.deps.store, f"{workload_id}.1")
    assert held is not None
    assert held.lease.generation == 3
    assert [(key.sha256, key.until) for key in held.lease.keys] == [
        (second["key_sha256"], None), (first["key_sha256"], NOW + timedelta(seconds=600)),
    ]  # fmt: skip
    third = (await _key(hub, workload_id)).json()
    assert third["previous_until"] is None
    assert _hashes(hub, workload_id) == [third["key_sha256"]]  # the others are revoked at once
    assert hub.dispatcher.published == [f"{workload_id}.1"] * 3


async def test_only_the_owner_makes_keys(hub: Hub) -> None:
    workload_id = await serving(hub)
    for role, status in (("c2", 404), ("admin", 403), ("op", 403), ("anonymous", 401)):
        assert (await _key(hub, workload_id, role=role)).status_code == status, role
    assert _hashes(hub, workload_id) == []
    assert (await _key(hub, "w-none")).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"grace_s": -1}, "/grace_s"),
        ({"grace_s": 86_401}, "/grace_s"),
        ({"grace_s": "60"}, "/grace_s"),
        ({"key_sha256": "abc"}, "/key_sha256"),
        ({"key_sha256": OWN.upper()}, "/key_sha256"),
        ({"key": "mine"}, "/key"),
    ],
)
async def test_a_wrong_field_is_named(hub: Hub, body: dict[str, Any], pointer: str) -> None:
    workload_id = await _submit(hub)
    answer = await _key(hub, workload_id, body)
    assert answer.status_code == 400
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert _hashes(hub, workload_id) == []


async def test_what_has_ended_gets_no_key(hub: Hub) -> None:
    workload_id = await serving(hub)
    await hub.client.delete(f"/api/v1/workloads/{workload_id}", headers=hub.headers("c1"))
    await hub.deps.store.write(
        lambda connection: workloads.transition(
            connection, workload_id, WorkloadState.CANCELLED,
            reason="", actor="hub", at=NOW,
        )
    )  # fmt: skip
    answer = await _key(hub, workload_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "has_ended")
