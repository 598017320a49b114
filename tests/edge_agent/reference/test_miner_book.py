"""What the miner makes of jobs and of what workers say, without any process."""

import asyncio

import pytest

from edge_agent.reference.header import header_hash, meets
from edge_agent.reference.miner import ASSIGNMENTS_MAX, Miner
from edge_agent.reference.miner_words import MinerState, NonceRange, Snapshot
from edge_agent.reference.stratum import Job, Session
from edge_agent.reference.stratum_client import PoolAddress
from edge_agent.reference.worker_wire import Exhausted, Found, Ready
from edge_agent.reference.workers import WorkerOptions

EASY = (1 << 252) - 1
SESSION = Session(extranonce1=b"\1\2\3\4", extranonce2_bytes=1, session_id="s")


def job(name: str) -> Job:
    return Job(
        job_id=name,
        previous=bytes(32),
        coinbase1=name.encode(),
        coinbase2=b"",
        branch=(),
        version=1,
        nbits=1,
        ntime=1,
        clean=True,
    )


def make_miner(threads: int = 2, snapshot: Snapshot | None = None) -> Miner:
    miner = Miner(
        WorkerOptions(threads=threads), PoolAddress("127.0.0.1", 9), "u", "x", snapshot=snapshot
    )
    for worker in miner.workers.all:
        worker.ready = Ready(backend="cpu", checked=1)
    return miner


def searched(miner: Miner) -> list[bytes]:
    return [one.extranonce2 for one in miner.snapshot().ranges]


async def test_each_worker_has_a_part_of_its_own_and_the_same_job_again_changes_nothing() -> None:
    miner = make_miner()
    miner._on_job(job("a"), SESSION, EASY)
    first = searched(miner)
    miner._on_job(job("a"), SESSION, EASY)
    again = searched(miner)
    miner._on_job(job("b"), SESSION, EASY)
    assert first == again == searched(miner) == [b"\0", b"\1"]
    assert miner.snapshot().job_id == "b"


async def test_a_search_space_that_is_used_up_leaves_the_miner_waiting() -> None:
    miner = make_miner(threads=1)
    miner._on_job(job("a"), SESSION, EASY)
    for part in range(256):
        assert (searched(miner), miner.state) == ([bytes([part])], MinerState.MINING)
        miner._hear(0, Exhausted(generation=miner._generation))
    assert (searched(miner), miner.state) == ([], MinerState.WAITING)
    miner._on_job(job("b"), SESSION, EASY)
    assert (searched(miner), miner.state) == ([b"\0"], MinerState.MINING)


async def test_a_range_that_takes_long_is_not_forgotten_while_it_is_searched() -> None:
    miner = make_miner()
    miner._on_job(job("a"), Session(extranonce1=b"\1", extranonce2_bytes=4), EASY)
    for _ in range(3 * ASSIGNMENTS_MAX):
        miner._hear(1, Exhausted(generation=miner._generation))
    assert searched(miner)[0] == bytes(4)
    assert len(miner._assignments) <= ASSIGNMENTS_MAX + 2


async def test_a_snapshot_counts_for_its_job_and_session_alone() -> None:
    old = Snapshot(
        job_id="a",
        previous=bytes(32),
        extranonce1=SESSION.extranonce1,
        next_extranonce2=9,
        ranges=(NonceRange(extranonce2=b"\7", next_nonce=500),),
    )
    miner = make_miner(snapshot=old)
    assert miner.snapshot() == old  # what is known before the pool has said anything
    miner._on_job(job("a"), SESSION, EASY)
    # One worker goes on where it was; the other begins behind all that was given out.
    assert searched(miner) == [b"\7", b"\t"]
    assert miner.snapshot().ranges[0].next_nonce == 500
    other = make_miner(snapshot=old)
    other._on_job(job("b"), SESSION, EASY)
    assert searched(other) == [b"\0", b"\1"]


async def test_a_share_is_handed_in_only_when_hashlib_says_so_too() -> None:
    miner = make_miner()
    miner._on_job(job("a"), SESSION, EASY)
    prefix = miner._assignments[1].prefix
    good = next(nonce for nonce in range(1_000) if meets(header_hash(prefix, nonce), EASY))
    bad = next(nonce for nonce in range(1_000) if not meets(header_hash(prefix, nonce), EASY))
    miner._hear(0, Found(generation=1, nonce=good))
    miner._hear(0, Found(generation=99, nonce=bad))  # of a range long gone
    assert (miner.verified_shares, miner.bad_nonces, miner.pool._shares.qsize()) == (1, 0, 1)
    before = miner.state
    miner._hear(0, Found(generation=1, nonce=bad))
    assert (miner.verified_shares, miner.bad_nonces, miner.pool._shares.qsize()) == (1, 1, 1)
    assert (before, miner.state) == (MinerState.MINING, MinerState.FAILED)
    with pytest.raises(Exception, match="does not meet the target"):
        await miner.resume(1.0)


async def test_a_pool_that_stays_away_gets_no_more_work() -> None:
    miner = make_miner()
    miner._on_job(job("a"), SESSION, EASY)
    miner.pool.offline_since_s -= 61.0
    watch = asyncio.create_task(miner._watch())
    await asyncio.sleep(0)  # its first look
    watch.cancel()
    assert miner.state is MinerState.WAITING
