"""The pool's client against pools that keep to no protocol, each a few scripted lines."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from edge_agent.reference import stratum_client
from edge_agent.reference.header import DIFFICULTY_1_TARGET
from edge_agent.reference.stratum import Job, Session, Share
from edge_agent.reference.stratum_client import PoolAddress, PoolClient
from edge_agent.tasks import first_error

JOB = ["j1", "00" * 32, "01", "02", [], "20000000", "1d00ffff", "495fab29", True]
SUBSCRIBED = [[["mining.notify", "s1"]], "08000002", 4]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Told:
    def __init__(self) -> None:
        self.jobs: list[tuple[Job, Session, int]] = []
        self.seen = asyncio.Event()

    def __call__(self, job: Job, session: Session, target: int) -> None:
        self.jobs.append((job, session, target))
        self.seen.set()


@asynccontextmanager
async def meeting(script: Script, told: Told) -> AsyncIterator[PoolClient]:
    """Run a client against a pool that follows a script."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = PoolClient(PoolAddress("127.0.0.1", port), "u", "x", told, rng=random.Random(1))
    task = asyncio.create_task(client.run())
    try:
        async with asyncio.timeout(10):
            yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        await server.wait_closed()


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def notice(method: str, *params: object) -> bytes:
    return line(id=None, method=method, params=params)


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: object, *before: bytes
) -> dict[str, object]:
    """Take a request and answer it, notices first."""
    request: dict[str, object] = json.loads(await reader.readline())
    writer.write(b"".join(before) + line(id=request["id"], result=result, error=None))
    return request


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the client counts, and tells nobody
        await asyncio.sleep(0.005)


async def test_a_job_before_the_session_is_kept_for_it() -> None:
    told = Told()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        early = notice("mining.set_difficulty", 2), notice("mining.notify", *JOB)
        await answer(reader, writer, SUBSCRIBED, *early)
        await answer(reader, writer, result=True)

    async with meeting(script, told):
        await told.seen.wait()
    job, session, target = told.jobs[0]
    assert (job.job_id, session.session_id) == ("j1", "s1")
    assert target == DIFFICULTY_1_TARGET // 2


async def test_a_new_extranonce_belongs_to_the_jobs_after_it() -> None:
    told = Told()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, SUBSCRIBED)
        await answer(reader, writer, result=True)
        writer.write(notice("mining.notify", *JOB))
        writer.write(notice("mining.set_extranonce", "ffff", 8) + notice("no.such.notice", 1))
        writer.write(notice("mining.notify", "j2", *JOB[1:]))

    async with meeting(script, told):
        await until(lambda: len(told.jobs) == 2)
    assert [one[1].extranonce1.hex() for one in told.jobs] == ["08000002", "ffff"]
    assert told.jobs[1][1].extranonce2_bytes == 8


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe nonsense\n",
        b"[1, 2, 3]\n",
        b"<html>502 Bad Gateway</html>\n",
        b"[" * 100_000 + b"\n",
        b"x" * 600_000,
        line(id=99, result=True, error=None),
        line(id=1, result=None, error=[25, "not subscribed", None]),
        line(id=1, result=[[], "zz", 4], error=None),
        line(id=1, result=[[], "00", 0], error=None),
        notice("mining.notify", "j"),
        notice("mining.set_difficulty", 0),
        notice("client.reconnect", "elsewhere.example", 3333, 0),
    ],
)
async def test_what_is_no_stratum_ends_the_connection_and_is_counted(raw: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(raw)

    async with meeting(script, Told()) as client:
        await until(lambda: client.counts.faults >= 1)
        # It comes back, to the same pool and no other.
        await until(lambda: client.counts.connections >= 2)
        assert client.counts.last_fault.startswith("StratumError")
        assert not client.online


async def test_a_pool_that_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stratum_client, "ANSWER_S", 0.05)

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readline()

    async with meeting(script, Told()) as client:
        await until(lambda: client.counts.connections >= 2)
        assert client.counts.last_fault == "TimeoutError: mining.subscribe was not answered"


async def test_a_worker_that_is_not_authorized_stays_offline() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, SUBSCRIBED)
        await answer(reader, writer, result=False)

    async with meeting(script, Told()) as client:
        await until(lambda: client.counts.faults >= 1)
        assert "not authorized" in client.counts.last_fault


async def test_a_session_is_asked_for_again_and_its_shares_are_handed_in() -> None:
    told = Told()
    subscriptions: list[object] = []
    submitted: list[object] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await answer(reader, writer, SUBSCRIBED, notice("mining.notify", *JOB))
        subscriptions.append(request["params"])
        await answer(reader, writer, result=True)
        request = json.loads(await reader.readline())
        if len(subscriptions) == 1:
            writer.transport.abort()  # a share was sent, and what became of it nobody knows
        submitted.append(request["params"])
        writer.write(line(id=request["id"], result=True, error=None))

    async with meeting(script, told) as client:
        await told.seen.wait()
        job, session, _ = told.jobs[0]
        share = Share(job=job, session=session, extranonce2=b"\0\0\0\1", nonce=0x01020304)
        client.submit(share)
        await until(lambda: client.counts.dropped == 1)
        client.submit(share)
        await until(lambda: client.counts.accepted == 1)
        other = Session(extranonce1=b"\1", extranonce2_bytes=4)
        client.submit(Share(job=job, session=other, extranonce2=b"\0\0\0\1", nonce=1))
        await until(lambda: client.counts.dropped == 2)
    assert subscriptions == [["hcp-reference/1"], ["hcp-reference/1", "s1"]]
    assert submitted[1] == ["u", "j1", "00000001", "495fab29", "01020304"]


async def test_more_shares_than_can_wait_are_dropped_and_counted() -> None:
    client = PoolClient(PoolAddress("127.0.0.1", 9), "u", "x", Told())
    job = Job(
        job_id="j", previous=bytes(32), coinbase1=b"", coinbase2=b"", branch=(),
        version=1, nbits=1, ntime=1, clean=True,
    )  # fmt: skip
    session = Session(extranonce1=b"\1", extranonce2_bytes=4)
    for nonce in range(stratum_client.SHARES_WAITING_MAX + 3):
        client.submit(Share(job=job, session=session, extranonce2=bytes(4), nonce=nonce))
    assert client.counts.dropped == 3


async def test_it_ends_though_its_connection_fails_in_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = PoolClient(PoolAddress("127.0.0.1", 9), "u", "x", Told())
    begun = asyncio.Event()

    async def fail_when_told_to_end() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            raise ConnectionResetError from exc

    async def connection() -> Exception:
        return await first_error({"one": fail_when_told_to_end()}, OSError)

    monkeypatch.setattr(client, "_connection", connection)
    task = asyncio.create_task(client.run())
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
