"""Faults of the simulated link: what each one does, that plans and seeds repeat."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.broker import QUEUED_MAX, matches
from simulators.errors import SettingError
from simulators.faults import SiteFaultKind, Targets, apply_to_link, plan
from simulators.link import Direction, LinkLostError, PublishRefusedError, SimLink, Weather
from simulators.virtual_loop import run
from tests.simulators.mqtt_port import Connection, join, take

# --- faults -------------------------------------------------------------------------------------


def test_a_refused_publish_carries_its_reason() -> None:
    async def main() -> None:
        link = SimLink(seed=1, allowed=lambda client, topic: topic.startswith(f"{client}/"))
        async with join(link, "a") as a:
            await a.publish("a/x", b"")
            with pytest.raises(PublishRefusedError, match="b/x") as refused:
                await a.publish("b/x", b"")
            assert isinstance(refused.value, PermissionError)
            assert refused.value.reason_code == 0x87

    run(main())


def test_a_packet_that_is_too_large_costs_the_connection() -> None:
    async def main() -> None:
        link = SimLink(seed=1)
        async with join(link, "a") as a:
            with pytest.raises(LinkLostError):
                await a.publish("x", bytes(1 << 20))

    run(main())


def test_a_cut_fails_what_waits_and_what_comes_after() -> None:
    async def main() -> None:
        link = SimLink(seed=1, weather=Weather(delay_s=1))
        async with join(link, "a") as a, asyncio.TaskGroup() as group:

            async def fails() -> None:
                with pytest.raises(LinkLostError):
                    await a.publish("x", b"")

            for number in range(30):  # more than the client has slots for
                group.create_task(fails(), name=f"publish-{number}")
            await asyncio.sleep(0.5)
            link.cut("a")
            with pytest.raises(ConnectionError):
                await a.subscribe([("x", 1)])
            with pytest.raises(ConnectionError):
                async for _ in a.messages():
                    pass

    run(main())


def test_a_short_partition_only_delays_and_a_long_one_ends_the_connection() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        link = SimLink(seed=1, keepalive_s=30, connect_timeout_s=10)
        ends: list[float] = []
        async with join(link, "a") as a:
            link.partition("a", Direction.DOWN, 10)
            begun_s = loop.time()
            await a.publish("x", b"1", retain=True)
            ends.append(loop.time() - begun_s)
            assert "x" in link.broker.retained
            link.partition("a", Direction.UP, 100)
            begun_s = loop.time()
            with pytest.raises(LinkLostError):
                await a.publish("y", b"1", retain=True)
            ends.append(loop.time() - begun_s)
        begun_s = loop.time()
        with pytest.raises(TimeoutError):
            async with join(link, "a"):
                pass
        ends.append(loop.time() - begun_s)
        await asyncio.sleep(100)
        async with join(link, "a") as a:
            await a.publish("y", b"")
        return ends

    assert run(main()) == pytest.approx([10.01, 30, 10], abs=0.05)


def test_partitions_that_overlap_end_with_the_later() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        link = SimLink(seed=1, keepalive_s=30)
        async with join(link, "a") as a:
            begun_s = loop.time()
            link.partition("a", Direction.DOWN, 20)
            link.partition("a", Direction.UP, 5)
            await a.publish("x", b"")
            return loop.time() - begun_s

    assert run(main()) == pytest.approx(20, abs=0.05)


def test_the_end_of_one_weather_spares_the_next() -> None:
    link = SimLink(seed=1)
    first, second = Weather(delay_s=1), Weather(delay_s=2)
    link.set_weather(first, "a")
    link.set_weather(second, "a")
    link.clear_weather(first, "a")
    assert link.delay_s("a") == 2
    link.clear_weather(second, "a")
    assert link.delay_s("a") == 0.01


@pytest.mark.parametrize("keep_state", [True, False])
def test_a_crashed_broker_comes_back_with_or_without_its_state(keep_state: bool) -> None:  # noqa: FBT001
    async def main() -> list[tuple[str, bytes]]:
        link = SimLink(seed=1)
        with contextlib.suppress(LinkLostError):
            async with join(link, "sub") as sub, join(link, "pub") as pub:
                await sub.subscribe([("r", 1)])
                await pub.publish("r", b"kept", retain=True)
                link.crash(down_s=5, keep_state=keep_state)
                with pytest.raises(LinkLostError):
                    await pub.publish("r", b"late")
        with pytest.raises(LinkLostError, match="down"):
            async with join(link, "sub"):
                pass
        await asyncio.sleep(5)
        async with join(link, "sub") as sub:
            return await take(sub, 2)

    assert run(main()) == ([("r", b"kept")] if keep_state else [])


def test_loss_is_silent_and_a_full_queue_as_well() -> None:
    async def main() -> None:
        link = SimLink(seed=1)
        async with join(link, "sub") as sub, join(link, "pub") as pub:
            await sub.subscribe([("q", 1)])
            link.set_weather(Weather(loss=1.0), "sub")
            await pub.publish("q", b"lost")
            link.set_weather(None, "sub")
            await pub.publish("q", b"here")
            assert await take(sub, 2) == [("q", b"here")]
        async with join(link, "pub") as pub:
            for _ in range(QUEUED_MAX + 3):
                await pub.publish("q", b"x")
        assert link.broker.dropped_full == 3
        assert link.counts.lost == 1

    run(main())


@given(seed=st.integers(0, 2**32), reorder_s=st.floats(0.1, 20), duplication=st.floats(0, 1))
@settings(max_examples=30)
def test_order_holds_within_a_topic_and_nothing_is_lost(
    seed: int, reorder_s: float, duplication: float
) -> None:
    async def main() -> list[tuple[str, bytes]]:
        link = SimLink(
            seed=seed,
            weather=Weather(jitter_s=0.05, reorder_s=reorder_s, duplication=duplication),
        )
        got: list[tuple[str, bytes]] = []

        async def listen(sub: Connection) -> None:
            async with asyncio.timeout(200):
                async for message in sub.messages():
                    got.append((message.topic, message.payload))
                    await message.ack()

        async with join(link, "sub") as sub, join(link, "pub") as pub:
            await sub.subscribe([("#", 1)])
            for number in range(20):
                await pub.publish(f"t/{number % 3}", b"%03d" % number)
            with contextlib.suppress(TimeoutError):
                await listen(sub)
        return got

    got = run(main())
    assert {payload for _, payload in got} == {b"%03d" % number for number in range(20)}
    for topic in ("t/0", "t/1", "t/2"):
        payloads = [payload for name, payload in got if name == topic]
        first_seen = list(dict.fromkeys(payloads))
        assert first_seen == sorted(first_seen)
    if duplication == 0:
        assert len(got) == 20


def test_reorder_lets_topics_overtake() -> None:
    async def main() -> list[bytes]:
        link = SimLink(seed=5, weather=Weather(reorder_s=5))
        async with join(link, "sub") as sub, join(link, "pub") as pub:
            await sub.subscribe([("#", 1)])
            for number in range(10):
                await pub.publish(f"t/{number}", b"%d" % number)
            await asyncio.sleep(10)
            return [payload for _, payload in await take(sub, 10)]

    got = run(main())
    assert sorted(got) == [b"%d" % number for number in range(10)]
    assert got != sorted(got)


# --- plans --------------------------------------------------------------------------------------

TARGETS = Targets(
    clients=("edge-lubbock", "hub"),
    processes=("agent", "node", "hub"),
    hosts=("site", "hub-host"),
    stores=("core",),
)


@given(seed=st.integers(0, 2**63), count=st.integers(1, 30))
def test_a_plan_is_in_order_within_its_time_and_repeats(seed: int, count: int) -> None:
    faults = plan(seed, TARGETS, count=count, from_s=60, until_s=1700)
    assert faults == plan(seed, TARGETS, count=count, from_s=60, until_s=1700)
    assert len(faults) == count
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(fault.at_s >= 60 and fault.at_s + fault.duration_s <= 1700.01 for fault in faults)
    assert len({fault.kind for fault in faults}) == min(count, len(SiteFaultKind))


def test_five_faults_a_seed_put_every_kind_in_many_seeds() -> None:
    seen = dict.fromkeys(SiteFaultKind, 0)
    for seed in range(200):
        for kind in {f.kind for f in plan(seed, TARGETS, count=5, from_s=60, until_s=1700)}:
            seen[kind] += 1
    assert min(seen.values()) >= 20


def test_a_plan_without_targets_is_refused() -> None:
    nothing = Targets(clients=(), processes=(), hosts=(), stores=())
    with pytest.raises(SettingError, match="kinds"):
        plan(1, nothing, count=1, from_s=0, until_s=9, kinds=[SiteFaultKind.CRASH])


async def stormy_hour(seed: int) -> str:
    """A publisher that repeats until the receiver has its messages, under faults."""
    loop = asyncio.get_running_loop()
    link = SimLink(seed=seed, weather=Weather(jitter_s=0.02))
    digest = hashlib.sha256()
    seen: set[bytes] = set()
    todo = [b"%04d" % number for number in range(200)]

    async def strike() -> None:
        for fault in plan(seed, TARGETS, count=20, from_s=10, until_s=1500):
            await asyncio.sleep(fault.at_s - loop.time())
            apply_to_link(link, fault)

    async def edge() -> None:
        while len(seen) < len(todo):
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with join(link, "edge-lubbock") as connection:
                    while len(seen) < len(todo):
                        for payload in [item for item in todo if item not in seen][:5]:
                            await connection.publish(f"up/{payload[-1:].decode()}", payload)
                        await asyncio.sleep(5)
            await asyncio.sleep(1)

    async def hub() -> None:
        while len(seen) < len(todo):
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with join(link, "hub") as connection:
                    await connection.subscribe([("up/#", 1)])
                    async with asyncio.timeout(60):
                        async for message in connection.messages():
                            seen.add(message.payload)
                            digest.update(message.payload + f"{loop.time():.6f}".encode())
                            await message.ack()
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(strike(), name="strike")
        group.create_task(edge(), name="edge")
        group.create_task(hub(), name="hub")
    assert seen == set(todo)
    return digest.hexdigest()


def test_all_arrives_under_faults_and_a_seed_repeats() -> None:
    digests = [run(stormy_hour(seed)) for seed in (3, 3, 4, 5, 6)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_the_storm_repeats_whatever_the_hash_seed() -> None:
    root = Path(__file__).resolve().parents[2]
    script = (
        "import runpy, sys\ncase = runpy.run_path(sys.argv[1])\n"
        "print(case['run'](case['stormy_hour'](3)))"
    )

    def digest(hash_seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, __file__],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
        ).stdout.strip()

    assert digest("1") == digest("999") == run(stormy_hour(3))


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        # Examples of the standard, MQTT 5.0 sections 4.7.1.2 and 4.7.1.3.
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "a/b", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("+", "/finance", False),
    ],
)
def test_filters_match_as_the_standard_says(pattern: str, topic: str, fits: bool) -> None:  # noqa: FBT001
    assert matches(pattern, topic) is fits
