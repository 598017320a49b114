"""TCP in memory: the streams, the fleet and the faults of connecting, in virtual time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import models_by_name
from simulators.asic_server import serve
from simulators.memory_net import BUFFER_BYTES_MAX, is_loopback
from simulators.virtual_loop import VirtualTimeLoop, run


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


@given(chunks=st.lists(st.binary(min_size=1, max_size=3000), max_size=20))
@settings(max_examples=40)
def test_an_echo_gives_back_every_byte_in_order(chunks: list[bytes]) -> None:
    async def main() -> bytes:
        async with await asyncio.start_server(echo, "127.0.0.1", 7):
            reader, writer = await asyncio.open_connection("127.0.0.1", 7)
            for chunk in chunks:
                writer.write(chunk)
            writer.write_eof()
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            return data

    assert run(main()) == b"".join(chunks)


def test_a_slow_reader_pauses_the_writer() -> None:
    async def main() -> tuple[float, int]:
        loop = asyncio.get_running_loop()

        async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            total = 0
            while data := await reader.read(100_000):
                total += len(data)
                await asyncio.sleep(1)
            writer.write(str(total).encode())
            writer.close()

        async with await asyncio.start_server(sip, "127.0.0.1", 7, limit=50_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", 7)
            for _ in range(20):
                writer.write(bytes(BUFFER_BYTES_MAX // 4))
                await writer.drain()
            sent_s = loop.time()
            writer.write_eof()
            total = int(await reader.read())
            writer.close()
            return sent_s, total

    sent_s, total = run(main())
    assert total == 20 * (BUFFER_BYTES_MAX // 4)
    assert sent_s > 5


@pytest.mark.parametrize(("port", "error"), [(8, ConnectionRefusedError), (7, TimeoutError)])
def test_a_connect_may_be_refused_or_never_answered(port: int, error: type[OSError]) -> None:
    async def main() -> None:
        virtual_loop().network.unanswered.add("127.0.0.2")
        host = "127.0.0.2" if port == 7 else "127.0.0.1"
        async with await asyncio.start_server(echo, "0.0.0.0", 7):
            with pytest.raises(error):
                await asyncio.open_connection(host, port)

    run(main())


def test_a_port_is_taken_once_and_free_again_after() -> None:
    async def main() -> None:
        async with await asyncio.start_server(echo, "127.0.0.1", 7):
            with pytest.raises(OSError, match="in use"):
                await asyncio.start_server(echo, "127.0.0.1", 7)
        async with await asyncio.start_server(echo, "127.0.0.1", 7) as server:
            assert server.is_serving()

    run(main())


@pytest.mark.parametrize("by_peer", [True, False])
def test_an_aborted_connection_is_reset(by_peer: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if by_peer:
                writer.transport.abort()
            else:
                with pytest.raises(ConnectionResetError):
                    await reader.read()

        async with await asyncio.start_server(drop, "127.0.0.1", 7):
            reader, writer = await asyncio.open_connection("127.0.0.1", 7)
            if by_peer:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                writer.transport.abort()
            await asyncio.sleep(1)

    run(main())


async def poll_fleet(seed: int) -> tuple[list[bytes], float]:
    """Poll ten miners for a quarter of an hour."""
    loop = virtual_loop()
    spec = FleetSpec(count=10, models=models_by_name("mix"), seed=seed)
    fleet = Fleet(spec, now_ns=loop.time_ns, wall_s=loop.time)
    answers: list[bytes] = []
    async with serve(fleet) as ports, asyncio.TaskGroup() as group:

        async def poll(address: str) -> None:
            for _ in range(180):
                await asyncio.sleep(5)
                reader, writer = await asyncio.open_connection(address, ports.port)
                writer.write(b'{"command":"summary"}')
                answers.append(await reader.read())
                writer.close()

        for address in fleet.addresses():
            group.create_task(poll(address), name=address)
    return answers, loop.time()


def test_the_fleet_answers_on_its_addresses_and_repeats() -> None:
    first, ended_s = run(poll_fleet(1))
    assert len(first) == 1800
    assert all(json.loads(data.rstrip(b"\0"))["SUMMARY"] for data in first)
    assert ended_s == pytest.approx(900, abs=1)
    assert run(poll_fleet(1))[0] == first
    assert run(poll_fleet(2))[0] != first


def test_an_address_without_a_miner_is_reset() -> None:
    async def main() -> None:
        loop = virtual_loop()
        spec = FleetSpec(count=1, models=models_by_name("s21"))
        async with serve(Fleet(spec, now_ns=loop.time_ns, wall_s=loop.time)):
            reader, writer = await asyncio.open_connection("127.64.0.2", 4028)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


def test_addresses_outside_loopback_are_left_to_the_kernel() -> None:
    hosts: list[object] = [
        "10.0.0.1",
        "example.com",
        None,
        "::1",
        "127.0.0.1",
        "0.0.0.0",
        "localhost",
    ]
    assert [is_loopback(host) for host in hosts] == [False] * 4 + [True] * 3


SCRIPT = """
import hashlib, runpy, sys
from simulators.faults import Targets, plan
from simulators.market import MarketSimulator
from datetime import UTC, datetime
case = runpy.run_path(sys.argv[1])
junk = [object() for _ in range(int(sys.argv[2]))]
start = datetime(2026, 1, 1, tzinfo=UTC)
targets = Targets(clients=("a", "b"), processes=("p", "q"), hosts=("h",), stores=("s",))
digest = hashlib.sha256(b"".join(case["run"](case["poll_fleet"](5))[0]))
digest.update(repr(plan(5, targets, count=30, from_s=0, until_s=900)).encode())
market = MarketSimulator(5, started_at=start, market_start=start)
digest.update(repr([market.tick_of(number) for number in range(50)]).encode())
print(digest.hexdigest())
"""


def test_fleet_plan_and_market_repeat_whatever_the_hash_seed() -> None:
    root = Path(__file__).resolve().parents[2]

    def digest(hash_seed: str, junk: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, __file__, junk],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
        ).stdout

    assert digest("1", "0") == digest("77", "54321")
