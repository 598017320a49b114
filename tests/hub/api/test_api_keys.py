"""API keys of users: shown once, kept as hashes, good for what their user may, until they end."""

import asyncio
import json
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from hub.api.live import CLOSE_UNAUTHORISED
from hub.core.api_keys import STANDING_MAX, KeyState, state_of, use_is_news
from hub.errors import StoreBusyError
from tests.hub.api.harness import NOW, Hub

PATH = "/api/v1/api-keys"


async def _make(hub: Hub, role: str = "c1", **body: object) -> httpx.Response:
    return await hub.client.post(PATH, json={"name": "ci", **body}, headers=hub.headers(role))


async def _key(hub: Hub, role: str = "c1", **body: object) -> dict[str, Any]:
    answer = await _make(hub, role, **body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _list(hub: Hub, role: str = "c1") -> list[dict[str, Any]]:
    answer = await hub.client.get(PATH, headers=hub.headers(role))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def _with(
    hub: Hub,
    key: str,
    path: str = "/api/v1/auth/me",
    *,
    method: str = "GET",
    json: object = None,
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await hub.client.request(method, path, headers=headers, json=json)


async def test_a_key_is_shown_once_and_kept_as_its_hash(hub: Hub) -> None:
    made = await _key(hub, expires_in_days=30)
    key = made["api_key"]
    assert key.startswith("hcpk_")
    assert len(key) == 48  # 32 bytes in base64
    (row,) = await _list(hub)
    assert row == made["key"]
    assert (row["name"], row["state"], row["last_used_at"]) == ("ci", "active", None)
    assert datetime.fromisoformat(row["expires_at"]) == NOW + timedelta(days=30)
    assert key.startswith(row["prefix"])
    assert len(row["prefix"]) <= 12
    ((stored,),) = hub.deps.store.read("SELECT sha256 FROM api_keys")
    assert stored == sha256(key.encode()).hexdigest()
    assert key not in str(hub.deps.store.read("SELECT * FROM api_keys"))


@pytest.mark.parametrize("role", ["c1", "op", "admin"])
async def test_a_key_is_its_user_and_no_more(hub: Hub, role: str) -> None:
    key = (await _key(hub, role))["api_key"]
    by_key = await _with(hub, key)
    by_login = await hub.client.get("/api/v1/auth/me", headers=hub.headers(role))
    assert by_key.json() == by_login.json()
    resources = await _with(hub, key, "/api/v1/resources")
    assert resources.status_code == (403 if role == "c1" else 200)


async def test_a_role_that_changed_counts_for_its_keys_at_once(hub: Hub) -> None:
    key = (await _key(hub, "op"))["api_key"]
    await hub.deps.store.write(
        lambda connection: connection.execute(
            "UPDATE users SET role = 'customer', customer_id = 'c9' WHERE user_id = 'u-op'"
        )
    )
    assert (await _with(hub, key, "/api/v1/resources")).status_code == 403


async def test_use_is_noted_to_the_minute(hub: Hub) -> None:
    key = (await _key(hub))["api_key"]
    for after_s, noted_s in ((10, 10), (40, 10), (69, 10), (70, 70)):
        hub.clock.advance(NOW + timedelta(seconds=after_s))
        assert (await _with(hub, key)).status_code == 200
        (row,) = await _list(hub)
        assert datetime.fromisoformat(row["last_used_at"]) == NOW + timedelta(seconds=noted_s)


async def test_a_busy_store_keeps_no_key_out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (await _key(hub))["api_key"]

    async def busy(_: object) -> None:
        raise StoreBusyError("store_busy", "too many writes wait")

    monkeypatch.setattr(hub.deps.store, "write", busy)
    assert (await _with(hub, key)).status_code == 200


async def test_a_revoked_key_opens_nothing_and_stays_in_the_list(hub: Hub) -> None:
    made = await _key(hub)
    path = f"{PATH}/{made['key']['key_id']}"
    for _ in range(2):
        answer = await hub.client.delete(path, headers=hub.headers("c1"))
        assert answer.status_code == 200
        assert answer.json()["state"] == "revoked"
        assert datetime.fromisoformat(answer.json()["revoked_at"]) == NOW  # the first time counts
        hub.clock.advance(hub.clock.wall() + timedelta(minutes=1))
    refused = await _with(hub, made["api_key"])
    assert (refused.status_code, refused.json()["code"]) == (401, "key_revoked")
    assert [row["state"] for row in await _list(hub)] == ["revoked"]


async def test_a_key_ends_with_its_last_day(hub: Hub) -> None:
    key = (await _key(hub, expires_in_days=1))["api_key"]
    hub.clock.advance(NOW + timedelta(days=1) - timedelta(milliseconds=1))
    assert (await _with(hub, key)).status_code == 200
    hub.clock.advance(NOW + timedelta(days=1))
    refused = await _with(hub, key)
    assert (refused.status_code, refused.json()["code"]) == (401, "key_expired")
    assert [row["state"] for row in await _list(hub)] == ["expired"]


async def test_a_key_that_nobody_made_is_refused(hub: Hub) -> None:
    refused = await _with(hub, "hcpk_" + "A" * 43)
    assert (refused.status_code, refused.json()["code"]) == (401, "key_unknown")
    assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_nobody_sees_or_revokes_the_key_of_another(hub: Hub) -> None:
    made = await _key(hub)
    for role in ("c2", "op", "admin"):
        assert await _list(hub, role) == []
        answer = await hub.client.delete(
            f"{PATH}/{made['key']['key_id']}", headers=hub.headers(role)
        )
        assert (answer.status_code, answer.json()["code"]) == (404, "no_key")
    assert (await _with(hub, made["api_key"])).status_code == 200


async def test_a_key_makes_no_keys_and_revokes_none(hub: Hub) -> None:
    made = await _key(hub)
    key = made["api_key"]
    own = f"{PATH}/{made['key']['key_id']}"
    for answer in (
        await _with(hub, key, PATH, method="POST", json={"name": "mine for ever"}),
        await _with(hub, key, own, method="DELETE"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "needs_login")
    listed = (await _with(hub, key, PATH)).json()
    assert (len(listed["items"]), listed["may_change"]) == (1, False)


async def test_active_keys_are_bounded(hub: Hub) -> None:
    made = [await _key(hub) for _ in range(STANDING_MAX)]
    answer = await _make(hub)
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_keys")
    assert (await _make(hub, "c2")).status_code == 201
    await hub.client.delete(f"{PATH}/{made[0]['key']['key_id']}", headers=hub.headers("c1"))
    assert (await _make(hub)).status_code == 201


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x" * 81}, "/name"),
        ({"expires_in_days": 0}, "/expires_in_days"),
        ({"expires_in_days": 366}, "/expires_in_days"),
        ({"expires_in_days": "30"}, "/expires_in_days"),
        ({"scope": "all"}, "/scope"),
    ],
)
async def test_a_wrong_field_is_named(hub: Hub, change: dict[str, Any], pointer: str) -> None:
    answer = await _make(hub, **change)
    assert answer.status_code == 400
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert await _list(hub) == []


async def test_the_live_channel_takes_a_key_until_it_is_revoked(hub: Hub) -> None:
    made = await _key(hub)
    async with _connected(hub, made["api_key"]) as socket, asyncio.timeout(5):
        assert json.loads(await socket.recv())["customer_id"] == "c1"
    await hub.client.delete(f"{PATH}/{made['key']['key_id']}", headers=hub.headers("c1"))
    async with _connected(hub, made["api_key"]) as socket, asyncio.timeout(5):
        with pytest.raises(ConnectionClosed, match=str(CLOSE_UNAUTHORISED)):
            await socket.recv()


def _connected(hub: Hub, key: str) -> connect:
    protocols: Any = ["hcp.live.v1", f"bearer.{key}"]
    return connect(f"ws://127.0.0.1:{hub.port}/api/v1/live", subprotocols=protocols)


def test_the_state_of_a_key() -> None:
    end, now = NOW + timedelta(days=1), NOW
    assert state_of(end, None, now) is KeyState.ACTIVE
    assert state_of(end, None, end) is KeyState.EXPIRED
    assert state_of(end, now, now) is KeyState.REVOKED
    assert use_is_news(None, now)
    assert use_is_news(now + timedelta(hours=1), now)
