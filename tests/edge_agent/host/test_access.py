"""Who is let in: the key of a lease, by its hash; the old one for its grace, no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.host.access import KEY_BYTES_MAX, Verdict, bearer_of, judge
from edge_agent.workloads.host_driver import HostDriver
from protocol.lease import AccessKey
from protocol.node import LeaseKeys
from tests.edge_agent.host.world import HostWorld, client, get

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHAT = "/v1/chat/completions"
RIGHT, NEXT, OTHER = "hcp_right", "hcp_next", "hcp_other"


def _key(text: str, until: datetime | None = None) -> AccessKey:
    return AccessKey(sha256=sha256(text.encode()).hexdigest(), until=until)


def _table(lease_id: str, *keys: AccessKey) -> LeaseKeys:
    return LeaseKeys(lease_id=lease_id, keys=keys)


# --- pure ----------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64))
def test_a_key_opens_what_has_its_hash_and_nothing_else(key: bytes, sent: bytes) -> None:
    keys = (AccessKey(sha256=sha256(key).hexdigest()),)
    assert judge(keys, sent, NOW) is (Verdict.GOOD if sent == key else Verdict.WRONG)


@pytest.mark.parametrize(("seconds", "verdict"), [(1, Verdict.GOOD), (0, Verdict.WRONG)])
def test_the_key_before_is_good_until_its_grace_ends(seconds: int, verdict: Verdict) -> None:
    keys = (_key(NEXT), _key(RIGHT, NOW + timedelta(seconds=seconds)))
    assert judge(keys, RIGHT.encode(), NOW) is verdict
    assert judge(keys, NEXT.encode(), NOW) is Verdict.GOOD


def test_no_key_and_none_to_compare_it_with_are_told_apart() -> None:
    assert judge((_key(RIGHT),), None, NOW) is Verdict.MISSING
    assert judge((), RIGHT.encode(), NOW) is Verdict.NONE_SET


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ([b"Bearer abc"], b"abc"),
        ([b"bearer  abc "], b"abc"),
        ([b"Basic abc"], None),
        ([b"Bearer"], None),
        ([b"Bearer "], None),
        ([b"Bearerabc"], None),
        ([b"Bearer a", b"Bearer b"], None),
        ([], None),
        ([b"Bearer " + b"x" * KEY_BYTES_MAX], b"x" * KEY_BYTES_MAX),
        ([b"Bearer " + b"x" * (KEY_BYTES_MAX + 1)], None),
    ],
)
def test_one_bearer_key_is_read(sent: list[bytes], key: bytes | None) -> None:
    headers = [(b"host", b"x"), *((b"authorization", one) for one in sent)]
    assert bearer_of(headers) == key


# --- through the proxy ---------------------------------------------------------------------------


@asynccontextmanager
async def _serving(tmp_path: Path) -> AsyncIterator[tuple[HostWorld, HostDriver]]:
    world = HostWorld(tmp_path, require_key=True)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.keys((_table("w1.1", _key(RIGHT)), _table("w2.1", _key(OTHER))))
        await world.serve(driver)
        yield world, driver


async def _ask(
    world: HostWorld, key: str | None, path: str = "/l/w1.1" + CHAT
) -> tuple[int, dict[str, str], str]:
    headers = [] if key is None else [f"Authorization: Bearer {key}"]
    async with client(world.port) as one:
        await one.post(path, {"n": 3}, *headers)
        status, told, body = await one.answer()
    answer = json.loads(body)
    return status, told, str(answer["error"]["code"]) if status >= 400 else ""


@pytest.mark.parametrize("path", ["/l/w1.1" + CHAT, "/i/i1" + CHAT])
async def test_only_a_key_of_its_lease_lets_a_request_in(tmp_path: Path, path: str) -> None:
    async with _serving(tmp_path) as (world, _):
        asked = len(world.server.seen)
        status, headers, code = await _ask(world, None, path)
        assert (status, code) == (401, "missing_api_key")
        assert headers["www-authenticate"] == "Bearer"
        assert headers["content-type"] == "application/problem+json"
        for wrong in (OTHER, RIGHT + "x", "x" * 300):
            status, _, code = await _ask(world, wrong, path)
            assert (status, code in {"invalid_api_key", "missing_api_key"}) == (401, True)
        assert len(world.server.seen) == asked  # nothing reached the engine
        instance = world.service.ledger.find("i1")
        assert instance is not None
        assert (instance.tally.requests, instance.tally.tokens_out) == (0, 0)
        assert (await _ask(world, RIGHT, path))[0] == 200
        assert instance.tally.requests == 1
        _, _, sent = world.server.seen[-1]
        assert sent["authorization"] == "Bearer secret"  # the engine's own, not the customer's


async def test_a_refusal_has_the_form_of_openai_and_of_a_problem(tmp_path: Path) -> None:
    async with _serving(tmp_path) as (world, _), client(world.port) as one:
        await one.post("/l/w1.1" + CHAT, {"n": 1}, f"Authorization: Bearer {OTHER}")
        status, _, body = await one.answer()
        answer = json.loads(body)
        assert answer["error"] == {
            "message": answer["detail"], "type": "invalid_request_error", "param": None,
            "code": "invalid_api_key",
        }  # fmt: skip
        assert (answer["status"], answer["title"]) == (status, "Unauthorized")
        assert OTHER not in body.decode()


async def test_a_rotated_key_opens_at_once_and_the_old_one_until_its_time(tmp_path: Path) -> None:
    async with _serving(tmp_path) as (world, driver):
        now = datetime.now(UTC)
        await driver.keys((_table("w1.1", _key(NEXT), _key(RIGHT, now + timedelta(hours=1))),))
        assert [(await _ask(world, key))[0] for key in (NEXT, RIGHT, OTHER)] == [200, 200, 401]
        await driver.keys((_table("w1.1", _key(NEXT), _key(RIGHT, now)),))
        assert [(await _ask(world, key))[0] for key in (NEXT, RIGHT)] == [200, 401]
        await driver.keys((_table("w1.1"),))
        status, _, code = await _ask(world, NEXT)
        assert (status, code) == (403, "no_api_key_set")


async def test_what_is_over_is_gone_and_what_is_early_comes_again(tmp_path: Path) -> None:
    world = HostWorld(tmp_path, require_key=True)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        status, headers, code = await _ask(world, RIGHT)
        assert (status, headers["retry-after"], code) == (503, "1", "keys_unknown")
        await driver.keys((_table("w1.1", _key(RIGHT)),))
        assert (await _ask(world, RIGHT))[0] == 200
        await driver.stop("gpu0", "i1")
        status, headers, code = await _ask(world, RIGHT)  # its lease may open another gate here
        assert (status, headers["retry-after"], code) == (503, "1", "gate_shut")
        await driver.keys(())
        assert [(await _ask(world, key))[0] for key in (RIGHT, None)] == [410, 410]
        assert (await _ask(world, RIGHT, "/l/w9.1" + CHAT))[0] == 404


async def test_the_keys_outlive_the_node(tmp_path: Path) -> None:
    async with _serving(tmp_path) as (world, driver):
        del driver
        async with world.driver():
            assert (await _ask(world, RIGHT))[0] == 200


async def test_refusals_are_counted_by_reason(tmp_path: Path) -> None:
    async with _serving(tmp_path) as (world, _):
        await asyncio.gather(*(_ask(world, key) for key in (None, OTHER, OTHER, RIGHT)))
        _, status = await get(world.admin_port, "/status")
        assert json.loads(status)["unauthorised"] == 3
        _, metrics = await get(world.admin_port, "/metrics")
        for reason, count in (("invalid_api_key", 2), ("missing_api_key", 1)):
            line = f'hcp_host_requests_unauthorised_total{{reason="{reason}"}} {count}\n'
            assert line.encode() in metrics
        assert OTHER.encode() not in metrics
