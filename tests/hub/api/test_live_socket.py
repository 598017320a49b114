"""The live channel over real WebSockets."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.hub.api.harness import Hub


def _url(hub: Hub) -> str:
    return f"ws://127.0.0.1:{hub.port}/api/v1/live"


async def _heard(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(5):
        message: dict[str, Any] = json.loads(await socket.recv())
        return message


async def _closed(socket: ClientConnection) -> int:
    async with asyncio.timeout(5):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as exc:
            assert exc.rcvd is not None
            return exc.rcvd.code


async def test_a_customer_sees_its_own_workload_from_submission_on(hub: Hub) -> None:
    async with connect(_url(hub)) as own, connect(_url(hub)) as other:
        await own.send(json.dumps({"token": hub.token("c1")}))
        await other.send(json.dumps({"token": hub.token("c2"), "topics": ["workload"]}))
        hello = await _heard(own)
        assert (hello["topic"], hello["topics"]) == ("hello", ["invoice", "workload"])
        assert (await _heard(other))["topics"] == ["workload"]
        answer = await hub.client.post(
            "/api/v1/workloads", json={"name": "n", "device_class": "H100"},
            headers=hub.headers("c1", Idempotency_Key="k"),
        )  # fmt: skip
        said = await _heard(own)
        assert said["workload_id"] == answer.json()["workload_id"]
        assert (said["topic"], said["state"]) == ("workload", "queued")
        hub.deps.live.publish("workload", "c2", b'{"n":1}')
        assert await _heard(other) == {"topic": "workload", "n": 1}


async def test_staff_see_sites_and_may_change_their_topics(hub: Hub) -> None:
    protocols: Any = ["hcp.live.v1", f"bearer.{hub.token('op')}"]
    async with connect(_url(hub), subprotocols=protocols) as socket:
        assert socket.subprotocol == "hcp.live.v1"
        assert (await _heard(socket))["topics"] == ["invoice", "site", "switch", "workload"]
        hub.deps.live.publish("site", None, b'{"site_id":"lubbock"}')
        assert await _heard(socket) == {"topic": "site", "site_id": "lubbock"}
        await socket.send(json.dumps({"topics": ["switch"]}))
        assert (await _heard(socket))["topics"] == ["switch"]
        hub.deps.live.publish("site", None, b'{"n":1}')
        hub.deps.live.publish("switch", None, b'{"n":2}')
        assert await _heard(socket) == {"topic": "switch", "n": 2}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"token": "a.b.c"}, 4401),
        ({"topics": ["site"]}, 4401),
        ({"tokens": "x"}, 4400),
        ("not json", 4400),
    ],
)
async def test_who_proves_nothing_is_closed(hub: Hub, message: object, code: int) -> None:
    async with connect(_url(hub)) as socket:
        await socket.send(message if isinstance(message, str) else json.dumps(message))
        assert await _closed(socket) == code
    assert hub.deps.live.clients == 0


async def test_a_bad_message_ends_only_its_own_connection(hub: Hub) -> None:
    async with connect(_url(hub)) as good, connect(_url(hub)) as bad:
        for socket in (good, bad):
            await socket.send(json.dumps({"token": hub.token("op")}))
            await _heard(socket)
        await bad.send(json.dumps({"topics": ["secrets"]}))
        assert await _closed(bad) == 4400
        hub.deps.live.publish("site", None, b'{"n":1}')
        assert await _heard(good) == {"topic": "site", "n": 1}
    assert (await hub.client.get("/api/v1/health")).status_code == 200


async def test_an_expired_token_cannot_listen(hub: Hub) -> None:
    token = hub.token("c1")
    hub.clock.advance(hub.clock.wall() + timedelta(hours=1))
    async with connect(_url(hub)) as socket:
        await socket.send(json.dumps({"token": token}))
        assert await _closed(socket) == 4401


async def test_a_stalled_reader_delays_nobody_and_is_told_to_resync(hub: Hub) -> None:
    # A client that stops reading: its own buffers and the kernel's fill, then ours is bounded.
    stalled = connect(_url(hub), max_queue=1)
    async with stalled as slow, connect(_url(hub)) as quick:
        for socket in (slow, quick):
            await socket.send(json.dumps({"token": hub.token("op")}))
            await _heard(socket)
        body = json.dumps({"site_id": "x" * 10_000}).encode()
        loop = asyncio.get_running_loop()
        total, worst_s = 1_500, 0.0
        for n in range(total):
            before_s = loop.time()
            hub.deps.live.publish("site", None, b'{"n":%d,' % n + body[1:])
            assert (await _heard(quick))["n"] == n
            worst_s = max(worst_s, loop.time() - before_s)
        slow_client = hub.deps.live._clients[1]
        assert slow_client.dropped > 0
        assert worst_s < 2.0  # on a loaded machine; whoever waited for the other would not end
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1].get("n") != total - 1:
            heard.append(await _heard(slow))
        assert {"topic": "resync"} in heard
        numbers = [message["n"] for message in heard if "n" in message]
        assert numbers == sorted(numbers)
        assert len(numbers) == total - slow_client.dropped


async def test_leaving_is_noticed(hub: Hub) -> None:
    async with connect(_url(hub)) as socket:
        await socket.send(json.dumps({"token": hub.token("op")}))
        await _heard(socket)
        assert hub.deps.live.clients == 1
    for _ in range(500):
        if not hub.deps.live.clients:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the client is still counted")
