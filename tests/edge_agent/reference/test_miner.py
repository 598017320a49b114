"""The miner as a process of its own, against the pool stand-in as another, over real sockets."""

import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edge_agent.reference.command import main
from edge_agent.reference.errors import OptionError
from edge_agent.reference.miner_words import read_snapshot
from edge_agent.reference.stratum_client import PoolAddress, parse_pool
from edge_agent.reference.web import open_listener
from tests.edge_agent.reference.programs import (
    Programs,
    Workload,
    ask_pool,
    is_running,
    kill,
    may_raise_weight,
    wait_for,
)

EASY = ("--difficulty", "1e-6")


@pytest.fixture(scope="module")
def easy_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give a pool for miners that need no other."""
    programs = Programs(tmp_path_factory.mktemp("pool"))
    yield programs.pool(*EASY)
    programs.end()


def mining(status: dict[str, object]) -> bool:
    return status["state"] == "mining" and status["accepted"] != 0


def test_the_pool_accepts_every_share(programs: Programs) -> None:
    port = programs.pool(*EASY, "--job-s", "0.2")
    miner = programs.miner(port, "--threads", "2")
    status = miner.wait(lambda status: status["accepted"] >= 50)
    assert (status["backend"], status["bad_nonces"], status["state"]) == ("cpu", 0, "mining")
    assert status["accepted"] <= status["verified_shares"]
    miner.post("/pause")
    counted = wait_for(
        lambda: (ask_pool(port, "pool.counts"), miner.status()),
        lambda both: both[0]["accepted"] == both[1]["accepted"],
    )[0]
    # A share that was on its way when a clean job came is stale, and no miner can help that.
    assert counted["rejected"] == counted["stale"]
    assert counted["stale"] <= counted["jobs"]


def test_a_paused_miner_stands_still_and_goes_on_with_verified_work(
    programs: Programs, easy_pool: int
) -> None:
    miner = programs.miner(easy_pool, "--threads", "2")
    miner.wait(mining)
    for _ in range(10):
        paused = miner.post("/pause")
        # Nothing to wait for: had a worker gone on, its count would have moved by one of these.
        counts = {miner.status()["hashes"] for _ in range(5)} | {paused["hashes"]}
        assert (paused["state"], len(counts)) == ("paused", 1)
        assert miner.client.get("/canary").status_code == 503
        resumed = miner.post("/resume")
        assert resumed["state"] == "mining"
        proof = resumed["evidence"]
        header = base64.b64decode(proof["prefix"]) + struct.pack("<I", proof["nonce"])
        digest = hashlib.sha256(hashlib.sha256(header).digest()).digest()
        assert digest[::-1].hex() == proof["hash"]
        assert resumed["commanded_ns"] <= resumed["effect_ns"]
        assert miner.get("/canary") == proof
    before = paused["hashes"]
    assert miner.wait(lambda status: status["hashes"] > before)["bad_nonces"] == 0


def test_pause_and_resume_may_be_said_twice(programs: Programs, easy_pool: int) -> None:
    miner = programs.miner(easy_pool, "--paused")
    first, second = miner.post("/pause"), miner.post("/pause")
    assert first["hashes"] == second["hashes"] == 0
    assert miner.post("/resume")["state"] == miner.post("/resume")["state"] == "mining"


def test_a_miner_without_a_pool_says_why_it_does_not_resume(programs: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        miner = programs.miner(nobody.getsockname()[1], "--paused")
        miner.wait(lambda status: status["state"] == "paused")
        answer = miner.client.post("/resume?timeout_s=0.05")
    assert answer.status_code == 504
    assert answer.json()["error"] == {
        "message": "the pool gave no job", "type": "timeout", "code": "timeout",
    }  # fmt: skip
    assert miner.status()["state"] == "waiting"


def test_a_restarted_miner_goes_on_where_it_was(programs: Programs) -> None:
    port = programs.pool(*EASY, "--job-s", "3600")
    miner = programs.miner(port)
    miner.wait(lambda status: status["hashes"] > 50_000 and mining(status))
    miner.post("/pause")
    kept = miner.get("/snapshot")
    assert kept["ranges"][0]["next_nonce"] == miner.status()["hashes"]
    kill(miner.process.pid)
    path = programs.folder / "snapshot.json"
    path.write_text(json.dumps(kept))
    again = programs.miner(port, "--snapshot", str(path))
    again.wait(mining)
    again.post("/pause")
    went_on, hashes = again.get("/snapshot"), again.status()["hashes"]
    wait_for(again.status, lambda status: status["accepted"] == status["verified_shares"])
    counted = ask_pool(port, "pool.counts")
    assert went_on["job_id"] == kept["job_id"]
    assert went_on["extranonce1"] == kept["extranonce1"]
    assert went_on["ranges"][0]["extranonce2"] == kept["ranges"][0]["extranonce2"]
    assert went_on["ranges"][0]["next_nonce"] == kept["ranges"][0]["next_nonce"] + hashes
    assert counted["rejected"] == 0  # a nonce that is tried again would be a duplicate


@pytest.mark.parametrize("paused", [False, True], ids=["at work", "paused"])
def test_a_killed_miner_leaves_no_worker(
    programs: Programs, easy_pool: int, *, paused: bool
) -> None:
    miner = programs.miner(easy_pool, "--threads", "2", *["--paused"] * paused)
    state = "paused" if paused else "mining"
    status = miner.wait(
        lambda status: status["state"] == state and all(one["backend"] for one in status["workers"])
    )
    workers = [worker["pid"] for worker in status["workers"]]
    kill(miner.process.pid)
    wait_for(lambda: [pid for pid in workers if is_running(pid)], lambda left: not left)


def test_a_killed_worker_is_replaced_and_keeps_the_state(
    programs: Programs, easy_pool: int
) -> None:
    miner = programs.miner(easy_pool)
    first = miner.wait(mining)["workers"][0]["pid"]
    kill(first)
    status = miner.wait(lambda status: status["workers"][0]["pid"] not in {None, first})
    assert miner.wait(lambda now: now["hashes"] > status["hashes"])["state"] == "mining"
    miner.post("/pause")
    paused = miner.status()
    kill(paused["workers"][0]["pid"])
    # A pause that meets a dead worker is done: what does not run does not hash.
    assert miner.post("/pause")["hashes"] == paused["hashes"]
    miner.wait(
        lambda now: now["workers"][0] != paused["workers"][0] and now["workers"][0]["backend"]
    )
    again = miner.wait(lambda now: now["state"] == "paused")
    assert again["hashes"] == paused["hashes"]


@pytest.fixture(scope="module")
def at_fault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Workload]]:
    """Give a pool that may be told to do wrong, and its miner."""
    programs = Programs(tmp_path_factory.mktemp("faults"))
    port = programs.pool("--difficulty", "1e-5")
    yield port, programs.miner(port)
    programs.end()


@pytest.mark.parametrize("fault", ["drop", "stale", "garbage", "huge"])
def test_a_pool_at_fault_is_survived(at_fault: tuple[int, Workload], fault: str) -> None:
    port, miner = at_fault
    before = miner.wait(mining)
    ask_pool(port, "pool.fault", fault, 2)
    kind = "rejected" if fault == "stale" else "dropped"
    # Two shares meet the fault; what follows is accepted again.
    struck = miner.wait(lambda status: status[kind] >= before[kind] + 2)
    after = miner.wait(lambda status: status["accepted"] >= struck["accepted"] + 2)
    ended = after["pool"]["connections"] - before["pool"]["connections"]
    faults = after["pool"]["faults"] - before["pool"]["faults"]
    expected = {"drop": (2, 0), "stale": (0, 0), "garbage": (2, 2), "huge": (2, 2)}
    assert (ended, faults) == expected[fault]
    assert after["bad_nonces"] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pool", "p"], 2, "want stratum"),
        (["--pool", "p:1", "--threads", "0"], 2, "threads"),
        (["--pool", "p:1", "--listen", "0.0.0.0:1"], 2, "127.0.0.1:PORT"),
        (["--pool", "p:1", "--listen", "unix:/no/such/folder/m.sock"], 1, "No such file"),
        (["--pool", "p:1", "--snapshot", "/no/such/file"], 1, "No such file"),
    ],
)
def test_what_cannot_start_says_why(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    assert main(["miner", *words], prog="hcp-agent reference") == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("signalled", [False, True], ids=["stop", "SIGTERM"])
def test_it_ends_with_its_workers(programs: Programs, easy_pool: int, *, signalled: bool) -> None:
    miner = programs.miner(easy_pool)
    pid = miner.wait(lambda status: status["workers"][0]["backend"])["workers"][0]["pid"]
    if signalled:
        miner.process.terminate()
    else:
        assert miner.post("/stop") == {"state": "stopping"}
    assert miner.process.wait(10) == 0
    assert not is_running(pid)


def test_a_token_and_a_unix_socket_keep_others_out(programs: Programs, easy_pool: int) -> None:
    path = programs.folder / "m.sock"
    words = ("miner", "--pool", f"127.0.0.1:{easy_pool}", "--listen", f"unix:{path}")
    programs.start("edge_agent", "reference", *words, HCP_REFERENCE_TOKEN="secret")
    assert path.stat().st_mode & 0o777 == 0o660
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://miner") as client:
        assert client.get("/health").status_code == 200
        assert client.post("/pause").status_code == 401
        assert client.post("/pause", headers={"authorization": "Bearer wrong"}).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.post("/pause", headers=right).status_code == 200


def test_options_that_make_no_sense_are_refused() -> None:
    assert parse_pool("stratum+tcp://p:3333") == PoolAddress("p", 3333)
    assert parse_pool("[::1]:1") == PoolAddress("::1", 1)
    for text in ("p", "p:0", ":1", "p:x", "p:70000"):
        with pytest.raises(OptionError):
            parse_pool(text)
    for text in ("0.0.0.0:1", "10.0.0.1:80", "127.0.0.1", "127.0.0.1:99999"):
        with pytest.raises(OptionError):
            open_listener(text)
    for data in (b"", b"[]", b'{"v": 2}', b'{"ranges": [{"extranonce2": "", "next_nonce": -1}]}'):
        with pytest.raises(OptionError):
            read_snapshot(data)


def test_workers_run_at_low_weight(programs: Programs, easy_pool: int) -> None:
    miner = programs.workload("miner", "--pool", f"127.0.0.1:{easy_pool}")
    pid = miner.wait(mining)["workers"][0]["pid"]
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, pid), lambda nice: nice == 19)
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    session = Path(f"/proc/{pid}/autogroup")
    if session.exists():  # the kernel weighs sessions before processes
        assert session.read_text(encoding="ascii").endswith("nice 19\n")
    miner.post("/pause")
    allowed = may_raise_weight()
    assert (os.getpriority(os.PRIO_PROCESS, pid) < 19) is allowed
    # Before everything else only until it stands.
    assert os.sched_getscheduler(pid) == (os.SCHED_OTHER if allowed else os.SCHED_BATCH)
    miner.post("/resume")
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, pid), lambda nice: nice == 19)
    assert os.sched_getscheduler(miner.process.pid) == os.SCHED_OTHER
    assert Path(f"/proc/{pid}/cmdline").read_bytes().count(b"edge_agent.reference.worker") == 1
