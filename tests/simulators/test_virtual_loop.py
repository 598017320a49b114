"""The virtual loop: jumping clock, dead ends found, same run for the same seed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from simulators.errors import (
    SettingError,
    ThreadRefusedError,
    VirtualDeadlockError,
    VirtualLivelockError,
    VirtualTimeError,
)
from simulators.virtual_loop import SimClock, VirtualTimeLoop, _JumpingSelector, run

ROOT = Path(__file__).resolve().parents[2]
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_day_of_sleep_takes_no_real_time() -> None:
    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run(day()) == pytest.approx(86_400)
    assert time.monotonic() - started < 1.0


def test_timers_fire_in_time_order_then_in_setting_order() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def note(name: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            seen.append(name)

        async with asyncio.TaskGroup() as group:
            for name, delay_s in (("c", 3), ("a", 1), ("b1", 2), ("b2", 2)):
                group.create_task(note(name, delay_s), name=name)
        return seen

    assert run(main()) == ["a", "b1", "b2", "c"]


def test_timeout_is_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(3600)


def test_deadlock_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlockError):
        run(main())


def test_deadlock_beside_an_idle_listener_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_unix_server(lambda _r, w: w.close(), tmp_path / "s")
        async with server:
            await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlockError):
        run(main())


def test_livelock_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.virtual_loop.TURNS_PER_INSTANT_MAX", 100)

    async def main() -> None:
        while True:  # noqa: ASYNC110 - the spinning is the case
            await asyncio.sleep(0)

    with pytest.raises(VirtualLivelockError):
        run(main())


def test_threads_are_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(time.monotonic)

    with pytest.raises(ThreadRefusedError):
        run(main())


def test_the_clock_stops_before_it_loses_its_nanoseconds() -> None:
    with pytest.raises(VirtualTimeError):
        run(asyncio.sleep(1e9))


def test_a_timer_nearer_than_the_clock_resolves_still_fires() -> None:
    async def main() -> None:
        for _ in range(10):
            await asyncio.sleep(1e-9)

    run(main(), start_s=4e6)


async def _echo_day(directory: Path, seed: int) -> str:
    """Twenty clients and a server on a real Unix socket, all in this loop, with random pauses."""
    rng = random.Random(seed)
    digest = hashlib.sha256()
    loop = asyncio.get_running_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readuntil(b"\n")
        await asyncio.sleep(rng.random())
        writer.write(data.upper())
        writer.close()

    async def client(name: str) -> None:
        for turn in range(10):
            await asyncio.sleep(rng.random() * 5)
            reader, writer = await asyncio.open_unix_connection(directory / "s")
            writer.write(f"{name} {turn}\n".encode())
            digest.update(await reader.read())
            digest.update(f"{loop.time():.9f}".encode())
            writer.close()

    async with (
        await asyncio.start_unix_server(answer, directory / "s"),
        asyncio.TaskGroup() as group,
    ):
        for number in range(20):
            group.create_task(client(f"client-{number}"), name=f"client-{number}")
    return digest.hexdigest()


def test_real_unix_sockets_are_repeatable(tmp_path: Path) -> None:
    digests = [run(_echo_day(tmp_path, seed)) for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]


async def _cancel_order(children: int, junk_seed: int = 0) -> list[str]:
    """The order in which a TaskGroup cancels its children: it keeps them in a set."""
    order: list[str] = []
    rng = random.Random(junk_seed)
    junk: list[object] = []

    async def child(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(name)

    async def fail() -> None:
        await asyncio.sleep(1)
        raise RuntimeError

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for number in range(children):
                # Objects of the tasks' size in between, so that their addresses differ by run.
                junk += [asyncio.Event() for _ in range(rng.randrange(9))]
                group.create_task(child(str(number)), name=str(number))
            group.create_task(fail(), name="fail")
    assert len(order) == children
    return order


SCRIPT = """
import pathlib, runpy, sys, tempfile
case = runpy.run_path(sys.argv[2])
junk = [object() for _ in range(int(sys.argv[1]))]
with tempfile.TemporaryDirectory() as name:
    print(case["run"](case["_echo_day"](pathlib.Path(name), 7)))
    print(case["run"](case["_cancel_order"](50)))
"""


def test_same_digest_whatever_the_hash_seed_and_the_addresses() -> None:
    def digest(hash_seed: str, junk: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, junk, __file__],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        ).stdout

    assert digest("1", "0") == digest("4242", "12345")


def test_the_order_of_cancelling_does_not_depend_on_addresses() -> None:
    orders = {tuple(run(_cancel_order(50, junk_seed))) for junk_seed in range(8)}
    assert len(orders) == 1


def test_ready_descriptors_are_served_in_the_order_of_their_registration() -> None:
    first, second = socket.socketpair(), socket.socketpair()
    selector = _JumpingSelector(lambda _: None)
    with contextlib.closing(selector):
        for end in (first[0], second[0]):
            selector.register(end.fileno(), selectors.EVENT_READ, end.fileno())
        second[1].send(b"x")
        first[1].send(b"x")
        ready = [key.data for key, _ in selector.select(0)]
        assert ready == [first[0].fileno(), second[0].fileno()]
    for end in (*first, *second):
        end.close()


def test_clocks_of_two_hosts_share_a_loop_and_fail_apart() -> None:
    async def main() -> None:
        now_s = asyncio.get_running_loop().time
        good = SimClock(now_s, EPOCH, host="good")
        bad = SimClock(now_s, EPOCH, host="bad")
        await asyncio.sleep(10)
        bad.step_wall(-3600)
        bad.set_drift(100)
        await asyncio.sleep(1000)
        assert good.wall() == EPOCH + timedelta(seconds=1010)
        assert bad.wall() == EPOCH + timedelta(seconds=1010 - 3600, milliseconds=100)
        assert good.boottime_ns() == bad.boottime_ns() == 1010 * 10**9
        first = bad.boot_id()
        bad.reboot()
        await asyncio.sleep(5)
        assert bad.boottime_ns() == 5 * 10**9
        assert bad.boot_id() != first
        assert bad.wall() == EPOCH + timedelta(seconds=1015 - 3600, microseconds=100_500)

    run(main())


@pytest.mark.parametrize(
    "wall", [EPOCH.replace(tzinfo=None), EPOCH.astimezone(timezone(timedelta(hours=1)))]
)
def test_clock_refuses_a_wall_time_that_is_not_utc(wall: datetime) -> None:
    with pytest.raises(SettingError, match="wall_at_start"):
        SimClock(lambda: 0.0, wall)


def test_loop_time_in_ns_is_exact_at_whole_seconds() -> None:
    loop = VirtualTimeLoop(start_s=3.0)
    try:
        assert loop.time_ns() == 3 * 10**9
    finally:
        loop.close()
