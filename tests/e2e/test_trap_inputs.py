"""Hostile input on every door of a running stack: refused by name, counted, and life goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest

from protocol import codec, topics
from protocol.lease import Lease, LeaseState, SitePolicy, WorkloadSpec
from protocol.node import Hello
from protocol.sync import Ack, Lane, Record, Stream, UpBatch, digest_of
from simulators.stack import Stack
from simulators.stack_config import (
    AsicGroup,
    GpuGroup,
    HttpMarket,
    SiteSpec,
    Tuning,
    asic_control,
    node_home,
)
from tests.e2e import books
from tests.e2e.hostile import (
    FakeMarket,
    good_tick,
    hours_ago,
    http_200,
    raw_http,
    raw_tcp,
    raw_unix,
)
from tests.e2e.watch import ask_agent, ask_line

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

GPUS = GpuGroup(node_id="cedar-g1", model="H100", count=2)
ASICS = AsicGroup(model="S21", count=3, first_address="127.73.0.1")
CEDAR = SiteSpec(site_id="cedar", power_cap_w=100_000.0, asics=(ASICS,), gpus=(GPUS,))
MIB = 1 << 20


async def test_hostile_input_is_refused_by_name_and_nothing_stops(
    root: Path, stacks: list[Stack]
) -> None:
    market = FakeMarket()
    feed = HttpMarket(port=await market.start(), period_s=0.1)
    stack = Stack(root, (CEDAR,), market=feed, tuning=Tuning(tick_s=1.0))
    stacks.append(stack)
    async with asyncio.timeout(160.0):
        await stack.start()
        await _serve_once(stack, "before")
        await _hostile_market(stack, market)
        await _hostile_uplink(stack)
        await _hostile_downlink(stack)
        await _hostile_api(stack)
        await _hostile_node_link(stack)
        await _hostile_gpu_socket(stack)
        await _hostile_miner(stack)
        await _serve_once(stack, "after")
        await books.wait_acked(stack)
        truth, found = books.truth_of(stack), books.metered(stack)
        assert len(truth) == 4
        assert not (problems := books.usage_problems(truth, found)), books.shown(problems)
        usage = await stack.customer.get("/api/v1/usage")
        assert usage["active_ms"] == sum(stay.served_ms for stay in truth) == 4 * 1_000
        statuses = await stack.stop()
    await market.stop()
    assert {name: code for name, code in statuses.items() if code} == {}


async def _serve_once(stack: Stack, name: str) -> None:
    body = {"name": name, "device_class": "H100", "count": 2, "spec": {"run_s": 1}}
    workload_id = (await stack.submit(body, f"trap-{name}"))["workload_id"]
    await stack.wait_state(workload_id, {"completed"}, 20.0)


# --- market -------------------------------------------------------------------------------------


async def _hostile_market(stack: Stack, market: FakeMarket) -> None:
    bad: dict[str, list[object]] = {
        "price_usd_per_mwh": [float("nan"), float("inf"), 1e9, -1e9, "cheap", [1], 10**400],
        "btc_price_usd": [0.0, -1.0, 1e300, "much"],
        "difficulty": [0.0, float("nan"), -5.0],
        "fees_btc": [-0.1, 1e9],
        "measured_at": ["2026-01-01T00:00:00", "yesterday", 12],
        "feed": ["", "x" * 10_000, None],
    }
    for field, values in bad.items():
        for value in values:
            await market.say(good_tick(**{field: value}))
            # A good tick between makes the agent say each refusal once.
            await market.say(good_tick())
    for answer in (
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\n\r\n",
        http_200(b"{"),
        http_200(b"[" * 100_000),
        http_200(b" " * (2 * MIB)),
        http_200(b"\xff\xfe"),
    ):
        await market.say(answer)
        assert await _price(stack) == 25.0
        await market.say(good_tick())
    refusals = [line for line in _log(stack, "agent-cedar") if "market source away" in line]
    assert len(refusals) >= sum(len(values) for values in bad.values())
    for field in ("price_usd_per_mwh", "btc_price_usd", "difficulty", "fees_btc", "measured_at"):
        named = [line for line in refusals if field in line]
        assert len(named) >= 2, f"{field}: {named}"
    line = await _input(stack, "market")
    assert line["refused"] >= len(refusals)
    assert line["taken"] > 0
    # A negative price is a price.
    await market.say(good_tick(price_usd_per_mwh=-180.5))
    await _until(lambda: _is_price(stack, -180.5))
    # An old one is known to be old.
    await market.say(good_tick(price_usd_per_mwh=31.0, measured_at=hours_ago(5.0)))
    status = await _status(stack)
    price = next(row for row in status["market"] if row["name"] == "price_usd_per_mwh")
    assert price["value"] == -180.5 or price["age_s"] > 4 * 3_600
    await market.say(good_tick())
    await _until(lambda: _is_price(stack, 25.0))


async def _price(stack: Stack) -> float | None:
    rows = (await _status(stack))["market"]
    value: float | None = next(row["value"] for row in rows if row["name"] == "price_usd_per_mwh")
    return value


async def _is_price(stack: Stack, wanted: float) -> bool:
    return await _price(stack) == wanted


# --- MQTT ---------------------------------------------------------------------------------------


async def _hostile_uplink(stack: Stack) -> None:
    store_id = _store_id(stack)
    before = await _counters(stack)
    garbage = (b"\xc1", b"\x00" * 1_000, b"\xff" * (MIB - 100), b"[" * 5_000, b"\x9f" * 5_000)
    async with _mqtt(stack) as client:
        for lane in Lane:
            for payload in garbage:
                await client.publish(topics.up("cedar", lane), payload, qos=1)
        for payload in garbage[:3]:
            await client.publish(topics.site_state("cedar"), payload, qos=1)
        await client.publish("hcp/v1/cedar/up/nothing", b"x", qos=1)
        for stream, lane in ((Stream.USAGE, Lane.USAGE), (Stream.TELE, Lane.TELE)):
            for body in (b"", b"\xc1", b"\x28\xb5\x2f\xfd" + b"\xff" * 100):
                record = Record(10**9, digest_of(body), body)
                batch = UpBatch(1, "cedar", store_id, stream, (record,))
                await client.publish(topics.up("cedar", lane), codec.encode(batch), qos=1)
        record = Record(1, digest_of(b"x"), b"x")
        foreign = UpBatch(1, "dogwood", store_id, Stream.USAGE, (record,))
        await client.publish(topics.up("cedar", Lane.USAGE), codec.encode(foreign), qos=1)
        unknown = UpBatch(1, "dogwood", "no-such-store", Stream.USAGE, (record,))
        await client.publish(topics.up("dogwood", Lane.USAGE), codec.encode(unknown), qos=1)
    await _oversized(stack, topics.up("cedar", Lane.USAGE))
    malformed = len(garbage) * len(Lane) + 3

    async def counted() -> bool:
        now = await _counters(stack)
        grown = {name: now[name] - before.get(name, 0) for name in now}
        found = sum(count for name, count in grown.items() if name.startswith("malformed_"))
        return (
            found >= malformed
            and grown.get("unknown_topic", 0) >= 1
            and grown.get("nack_forbidden", 0) >= 1
        )

    await _until(counted)
    hub = stack.root / "hub" / "hub.sqlite"
    assert books.rows(hub, "SELECT count(*) FROM alarms WHERE code = 'batch_forbidden'") == [(1,)]
    refused = [line for line in _log(stack, "hub") if "message=refused" in line]
    assert any(f"topic={topics.site_state('cedar')}" in line for line in refused)
    assert all("field=" in line for line in refused)


async def _hostile_downlink(stack: Stack) -> None:
    store_id = _store_id(stack)
    passes = (await _status(stack))["passes"]
    now = datetime.now(UTC)
    lease = Lease(
        hub_epoch=1, generation=1, lease_id="w-0.1", workload_id="w-0", attempt=1,
        site_id="dogwood", state=LeaseState.RUN, device_class="H100", count=1, priority=1,
        spec=WorkloadSpec(), issued_at=now,
    )  # fmt: skip
    nonsense = msgspec.msgpack.encode({"type": "lease", "count": -1, "lease_id": "w-0.1"})
    policy = SitePolicy(hub_epoch=10**9, generation=1, site_id="dogwood", power_cap_w=1.0)
    beyond = Ack(
        hub_epoch=1, store_id=store_id, stream=Stream.USAGE, wm=10**9, hub_time=now, credit=1
    )
    async with _mqtt(stack) as client:
        for topic in (
            topics.down_ack("cedar"),
            topics.down_policy("cedar"),
            topics.down_cmd("cedar"),
            topics.down_lease("cedar", "w-0.1"),
            topics.HUB_STATE,
            topics.HUB_HEARTBEAT,
            topics.HUB_CANARY,
        ):
            for payload in (b"\xc1", b"{}", b"\xff" * 10_000, nonsense):
                await client.publish(topic, payload, qos=1)
        await client.publish(topics.down_lease("cedar", "w-0.1"), codec.encode(lease), qos=1)
        await client.publish(topics.down_policy("cedar"), codec.encode(policy), qos=1)
        await client.publish(topics.down_ack("cedar"), codec.encode(beyond), qos=1)

    async def told() -> bool:
        hub = stack.root / "hub" / "hub.sqlite"
        sql = "SELECT detail FROM alarms WHERE source = 'edge' AND code = 'malformed_message'"
        return any("hcp/v1/cedar/down/ack" in row[0] for row in books.rows(hub, sql))

    await _until(told)

    async def counted() -> bool:
        # Four kinds of garbage on six topics it listens to, and a lease and a policy of others.
        return bool((await _input(stack, "hub"))["refused"] >= 4 * 6 + 2)

    await _until(counted)
    status = await _status(stack)
    assert status["power_cap_w"] == CEDAR.power_cap_w
    assert status["leases"] == []
    await _until(lambda: _has_passed(stack, passes + 1))
    log = "SELECT max(acked_wm) FROM log WHERE name = 'usage'"
    assert books.rows(stack.home(CEDAR) / "data" / "core.sqlite", log)[0][0] < 10**9


async def _oversized(stack: Stack, topic: str) -> None:
    """Publish more than a packet may hold; the broker cuts us off."""
    payload = topic.encode()
    publish = len(payload).to_bytes(2, "big") + payload + b"\x00\x01\x00" + b"\x00" * (3 * MIB)
    connect = b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04evil"
    data = b"\x10" + _mqtt_length(len(connect)) + connect
    data += b"\x32" + _mqtt_length(len(publish)) + publish
    await raw_tcp(stack.broker_port, data)


def _mqtt_length(count: int) -> bytes:
    out = b""
    while True:
        count, low = divmod(count, 128)
        if not count:
            return out + bytes([low])
        out += bytes([low | 0x80])


@asynccontextmanager
async def _mqtt(stack: Stack) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        "127.0.0.1", stack.broker_port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        yield client


async def _counters(stack: Stack) -> dict[str, int]:
    summary = await stack.admin.get("/api/v1/metrics/summary")
    return {row["name"]: row["count"] for row in summary["counters"]}


# --- API ----------------------------------------------------------------------------------------


async def _hostile_api(stack: Stack) -> None:
    good = {"name": "n", "device_class": "H100"}
    fields: list[tuple[str, dict[str, Any]]] = [
        ("/name", {"device_class": "H100"}),
        ("/device_class", {"name": "n"}),
        ("/count", good | {"count": 0}),
        ("/count", good | {"count": 10**30}),
        ("/count", good | {"count": 1.5}),
        ("/count", good | {"count": "two"}),
        ("/priority", good | {"priority": 11}),
        ("/spec/run_s", good | {"spec": {"run_s": -5}}),
        ("/spec/run_s", good | {"spec": {"run_s": "1 h"}}),
        ("/spec/args/1", good | {"spec": {"args": ["a", 2]}}),
        ("/max_price_usd_per_h", good | {"max_price_usd_per_h": "NaN"}),
        ("/max_price_usd_per_h", good | {"max_price_usd_per_h": "-1"}),
        ("/max_price_usd_per_h", good | {"max_price_usd_per_h": 1.5}),
        ("/expires_at", good | {"expires_at": "2020-01-01T00:00:00Z"}),
        ("/expires_at", good | {"expires_at": "tomorrow"}),
        ("/prio", good | {"prio": 1}),
        ("/site_id", good | {"site_id": "../../etc"}),
        ("/device_class", good | {"device_class": "Z80"}),
    ]
    for place, (pointer, body) in enumerate(fields):
        reply = await _post(stack, msgspec.json.encode(body), key=f"bad-{place}")
        assert reply.status in {400, 422}, (body, reply.body)
        assert reply.media_type == "application/problem+json"
        assert pointer in reply.pointers, (body, reply.body)
    text = msgspec.json.encode(good)
    for wanted, payload, headers in (
        (400, b"{", {}),
        (400, b"\xff\xfe", {}),
        (400, b"", {}),
        (400, b"[]", {}),
        (400, b'{"name": "n", "device_class": "H100", "count": NaN}', {}),
        (400, b"[" * 50_000, {}),
        # The claim is enough: a client that sends it all may lose the answer to the reset.
        (413, b"", {"Content-Length": str(3 * MIB)}),
        (415, text, {"Content-Type": "text/xml"}),
        (400, text, {"Idempotency-Key": "x" * 300}),
        (401, text, {"Authorization": "Bearer garbage"}),
        (401, text, {"Authorization": "Basic YTpi"}),
    ):
        reply = await _post(stack, payload, key="bad", headers=headers)
        assert reply.status == wanted, (payload[:40], headers, reply.body)
        assert reply.body["code"], reply.body
    with contextlib.suppress(ConnectionError):
        assert (await _post(stack, b" " * (3 * MIB), key="bad")).status == 413
    for path in ("?state=nonsense", "?cursor=%FF%FE", "?limit=-1", "/..%2f..", "/%00"):
        reply = await _get(stack, f"/api/v1/workloads{path}")
        assert 400 <= reply.status < 500, (path, reply.body)
    listed = (await stack.customer.get("/api/v1/workloads"))["items"]
    assert [row["name"] for row in listed] == ["before"]


async def _post(
    stack: Stack, body: bytes, *, key: str, headers: dict[str, str] | None = None
) -> Any:  # noqa: ANN401 - a reply
    given = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "Authorization": f"Bearer {stack.customer.token}",
    }
    path = "/api/v1/workloads"
    return await raw_http(stack.hub_port, "POST", path, body, given | (headers or {}))


async def _get(stack: Stack, path: str) -> Any:  # noqa: ANN401 - a reply
    headers = {"Authorization": f"Bearer {stack.customer.token}"}
    return await raw_http(stack.hub_port, "GET", path, b"", headers)


# --- node, workload host, miner -----------------------------------------------------------------


async def _hostile_node_link(stack: Stack) -> None:
    link = node_home(stack.home(CEDAR), GPUS) / "link.sock"
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff" + b"x" * 1_000,
        codec.frame(b"\xc1"),
        codec.frame(b""),
        codec.frame(msgspec.msgpack.encode({"type": "phase_do", "steps": -1})),
        codec.frame(msgspec.msgpack.encode([1] * 10_000)),
        b"\x00\x00",
    ):
        await raw_unix(link, data)
    wrong = Hello(site_id="dogwood", agent_epoch=10**6)
    assert b"wrong_site" in await raw_unix(link, codec.frame(codec.encode(wrong)))
    stale = Hello(site_id="cedar", agent_epoch=0)
    assert b"stale_epoch" in await raw_unix(link, codec.frame(codec.encode(stale)))
    ended = [line for line in _log(stack, "node-cedar-g1") if "agent session ended" in line]
    told = [line for line in ended if "malformed" in line or "too_large" in line]
    assert len(told) == 6, told
    assert (await _status(stack))["nodes"] == [["cedar-g1", True]]


async def _hostile_gpu_socket(stack: Stack) -> None:
    socket = node_home(stack.home(CEDAR), GPUS) / "gpu.sock"
    for data, wanted in (
        (b"garbage\n", b"bad_request"),
        (b'{"id": 1, "op": "format"}\n', b"bad_request"),
        (b'{"id": 1, "op": "mine", "gpu": "gpu9", "on": true}\n', b"no_gpu"),
        (b'{"id": 1, "op": "gate", "gpu": "gpu0", "open": true}\n', b"no_instance"),
        (b"x" * (1 << 20) + b"\n", b""),
    ):
        assert wanted in await raw_unix(socket, data)


async def _hostile_miner(stack: Stack) -> None:
    control = asic_control(stack.home(CEDAR), ASICS)
    # The first one's answers come cut off, the second one's are no JSON at all.
    answer = await ask_line(control, {"do": "fault", "kind": "garbage", "miners": [0, 1]})
    assert answer["ok"]
    await _until(lambda: _is_reachable(stack, "cedar-s21-0002", wanted=False), 20.0)

    async def has_no_power() -> bool:
        return (await _device(stack, "cedar-s21-0001"))["power_w"] is None

    await _until(has_no_power)
    assert (await _input(stack, "asics"))["refused"] >= 1
    assert await _is_reachable(stack, "cedar-s21-0003", wanted=True)
    await ask_line(control, {"do": "clear", "miners": [0, 1]})
    # The breaker lets a silent miner rest for some seconds.
    await _until(lambda: _is_reachable(stack, "cedar-s21-0002", wanted=True), 30.0)


async def _device(stack: Stack, device_id: str) -> dict[str, Any]:
    items = (await ask_agent(_view(stack), "/v1/devices"))["items"]
    return next(row["device"] for row in items if row["device"]["device_id"] == device_id)


async def _is_reachable(stack: Stack, device_id: str, *, wanted: bool) -> bool:
    return bool((await _device(stack, device_id))["reachable"]) is wanted


# --- helpers ------------------------------------------------------------------------------------


async def _status(stack: Stack) -> dict[str, Any]:
    status: dict[str, Any] = (await ask_agent(_view(stack), "/v1/status"))["site"]
    return status


async def _input(stack: Stack, name: str) -> dict[str, Any]:
    rows = (await ask_agent(_view(stack), "/v1/status"))["inputs"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == name)
    return found


async def _has_passed(stack: Stack, passes: int) -> bool:
    return bool((await _status(stack))["passes"] >= passes)


async def _until(check: Any, limit_s: float = 15.0) -> None:  # noqa: ANN401 - a coroutine function
    async with asyncio.timeout(limit_s):
        while not await check():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.1)


def _view(stack: Stack) -> Path:
    return stack.home(CEDAR) / "run" / "view.sock"


def _store_id(stack: Stack) -> str:
    path = stack.home(CEDAR) / "data" / "core.sqlite"
    return str(books.rows(path, "SELECT store_id FROM store ORDER BY no DESC LIMIT 1")[0][0])


def _log(stack: Stack, name: str) -> list[str]:
    return (stack.root / "log" / f"{name}.log").read_text(errors="replace").splitlines()
