"""The pool stand-in: its own check of shares, on the wire and against a block of the real chain."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from simulators.errors import SettingError
from simulators.pool import PoolBook, PoolJob, Verdict
from simulators.pool_server import PoolFault, PoolServer, parse_fault

# Block 100,000: its four transactions leave a branch of two; the coinbase is not needed whole,
# since a job's hash takes what is given as the two halves.
GENESIS_COINBASE = bytes.fromhex(
    "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff4d04ffff00"
    "1d0104455468652054696d65732030332f4a616e2f32303039204368616e63656c6c6f72206f6e206272696e6b20"
    "6f66207365636f6e64206261696c6f757420666f722062616e6b73ffffffff0100f2052a01000000434104678afd"
    "b0fe5548271967f1a67130b7105cd6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4f35504e51ec112de5c"
    "384df7ba0b8d578a4c702b6bf11d5fac00000000"
)
EASY = 1e-9


def test_the_genesis_block_has_its_hash() -> None:
    job = PoolJob(
        job_id="g",
        version=1,
        previous=0,
        coinbase1=GENESIS_COINBASE[:60],
        coinbase2=GENESIS_COINBASE[68:],
        siblings=(),
        nbits=0x1D00FFFF,
        ntime=1231006505,
        clean=True,
    )
    number = job.hash_of(GENESIS_COINBASE[60:68], 1231006505, 2083236893)
    assert f"{number:064x}" == "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"


def mined(book: PoolBook, job: PoolJob, *, good: bool) -> list[object]:
    """Find a share from what is told on the wire alone, and hash it byte by byte."""
    _, previous, one, two, branch, version, nbits, ntime, _ = job.notify()
    assert isinstance(branch, list)
    coinbase = bytes.fromhex(f"{one}00000001" + "00000000" + f"{two}")
    root = hashlib.sha256(hashlib.sha256(coinbase).digest()).digest()
    for sibling in branch:
        root = hashlib.sha256(hashlib.sha256(root + bytes.fromhex(sibling)).digest()).digest()
    words = bytes.fromhex(f"{version}") + bytes.fromhex(f"{previous}")
    head = b"".join(words[at : at + 4][::-1] for at in range(0, 36, 4)) + root
    head += bytes.fromhex(f"{ntime}")[::-1] + bytes.fromhex(f"{nbits}")[::-1]
    limit = 0xFFFF * 2**208 / book.difficulty
    for nonce in range(1 << 16):
        header = head + nonce.to_bytes(4, "little")
        digest = hashlib.sha256(hashlib.sha256(header).digest()).digest()
        if (int.from_bytes(digest[::-1], "big") < limit) is good:
            return ["w", job.job_id, "00000000", str(ntime), f"{nonce:08x}"]
    raise AssertionError("no such nonce")


def test_shares_are_judged_and_counted() -> None:
    book = PoolBook(Random(1), 1e-8, 4)
    job = book.new_job(1_700_000_000, clean=True)
    good, low = mined(book, job, good=True), mined(book, job, good=False)
    origin = bytes.fromhex("00000001")
    early = [*good[:3], f"{job.ntime - 1:08x}", good[4]]
    verdicts = [book.judge(origin, share) for share in (good, good, low, early, [*good[:2]])]
    assert verdicts == [
        Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.LOW, Verdict.MALFORMED, Verdict.MALFORMED,
    ]  # fmt: skip
    book.new_job(1_700_000_030, clean=True)
    assert book.judge(origin, good) is Verdict.STALE
    counts = book.counts
    assert (counts.accepted, counts.rejected, counts.stale, counts.work) == (1, 5, 1, 1e-8)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("value", ["", "zz", "g" * 8, 5, None])
def test_a_damaged_share_is_refused(at: int, value: object) -> None:
    book = PoolBook(Random(1), EASY, 4)
    share = mined(book, book.new_job(1_700_000_000, clean=True), good=True)
    share[at] = value
    assert book.judge(b"\0\0\0\1", share) in {Verdict.MALFORMED, Verdict.STALE}


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, raw: bytes) -> None:
        self._writer.write(raw)

    async def hear(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(await self._reader.readline())
        return value

    async def ask(self, method: str, *params: object) -> dict[str, Any]:
        self.say(json.dumps({"id": 7, "method": method, "params": params}).encode() + b"\n")
        while (value := await self.hear()).get("id") != 7:
            pass
        return value

    async def ended(self) -> bool:
        try:
            while await self._reader.read(65_536):
                pass
        except ConnectionError:
            pass
        return True


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[PoolServer, Client]]:
    pool = PoolServer(PoolBook(Random(1), EASY, 4))
    server = await pool.listen(0)
    task = asyncio.create_task(pool.run(server))
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1 << 24)
    try:
        async with asyncio.timeout(10):
            yield pool, Client(reader, writer)
    finally:
        writer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def introduced(pool: PoolServer, client: Client) -> list[object]:
    """Subscribe and authorize; give a good share."""
    subscribed = await client.ask("mining.subscribe", "test")
    assert subscribed["result"][1:] == ["00000001", 4]
    assert (await client.ask("mining.authorize", "w", "x"))["result"] is True
    assert (await client.hear())["params"] == [EASY]
    job = pool.book.newest
    assert job is not None
    assert (await client.hear())["params"] == job.notify()
    return mined(pool.book, job, good=True)


async def test_a_share_is_accepted_once_and_only_after_an_introduction() -> None:
    async with serving() as (pool, client):
        assert (await client.ask("mining.submit", "w"))["error"][0] == 24
        assert (await client.ask("mining.authorize", "w", "x"))["error"][0] == 20
        share = await introduced(pool, client)
        assert (await client.ask("mining.submit", *share))["result"] is True
        assert (await client.ask("mining.submit", *share))["error"][:2] == [22, "Duplicate share"]
        counts = (await client.ask("pool.counts"))["result"]
        assert (counts["accepted"], counts["rejected"], counts["stale"]) == (1, 1, 0)


async def test_garbage_is_refused_and_the_connection_lives() -> None:
    async with serving() as (pool, client):
        for raw in (b"\xff\xfe\n", b"{}\n", b"[" * 9_000 + b"\n", b'{"method": 5}\n'):
            client.say(raw)
            assert (await client.hear())["error"][0] == 20
        await introduced(pool, client)
        client.say(b"x" * 100_000)
        assert await client.ended()


@pytest.mark.parametrize("fault", [PoolFault.DROP, PoolFault.STALE, PoolFault.GARBAGE])
async def test_a_fault_strikes_as_often_as_asked(fault: PoolFault) -> None:
    async with serving() as (pool, client):
        share = await introduced(pool, client)
        await client.ask("pool.fault", fault, 1)
        if fault is PoolFault.STALE:
            assert (await client.ask("mining.submit", *share))["error"][0] == 21
            job = pool.book.newest
            assert job is not None
            share = mined(pool.book, job, good=True)
            assert (await client.ask("mining.submit", *share))["result"] is True
        elif fault is PoolFault.DROP:
            client.say(json.dumps({"id": 7, "method": "mining.submit", "params": share}).encode())
            client.say(b"\n")
            assert await client.ended()
            assert pool.book.counts.accepted == 0
        else:
            with pytest.raises(ValueError, match="decode"):
                await client.ask("mining.submit", *share)
            assert (await client.ask("mining.submit", *share))["result"] is True


def test_faults_are_read_and_refused_by_name() -> None:
    assert parse_fault("drop") == (PoolFault.DROP, None)
    assert parse_fault("huge:3") == (PoolFault.HUGE, 3)
    for text in ("dance", "drop:0", "drop:x", ""):
        with pytest.raises(SettingError, match="fault"):
            parse_fault(text)
