"""Figures: how fast the two reference workloads stop, leave their device and go on, on a CPU.

Both run as they do in production: processes of their own, at low weight, over loopback HTTP. Times
are a client's, request sent to answer read, and an answer comes after the effect; "inside" is from
the order read to the effect. Rates are by CPU time: at low weight a busy machine gives little. Run:
``./dev bench reference-workloads``.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.figure import Figure, at_least, at_most, quantile

ROUNDS = 300
RATE_S = 3.0  # a kept connection is ended after five seconds of silence
STREAM_TOKENS = 1_500


def run() -> list[Figure]:
    """Measure the miner against the pool stand-in, then the inference server with open streams."""
    with _started("simulators", "pool", "--difficulty", "1e-4") as pool:
        address = f"127.0.0.1:{pool['port']}"
        with _started("edge_agent", "reference", "miner", "--pool", address) as ready:
            mined = _miner(_Client(ready["listen"]))
    with _started("edge_agent", "reference", "inference", "--context", "2048") as ready:
        return [*mined, *_inference(_Client(ready["listen"]))]


class _Client:
    """One kept connection."""

    def __init__(self, listen: str) -> None:
        self.address = listen.removeprefix("http://")
        self._link = http.client.HTTPConnection(self.address, timeout=30)

    def ask(self, method: str, path: str) -> dict[str, Any]:
        self._link.request(method, path)
        answer = self._link.getresponse()
        value: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 200, value
        return value

    def act(self, path: str) -> tuple[float, dict[str, Any]]:
        """Give the milliseconds that it took, and the answer."""
        began = time.perf_counter()
        value = self.ask("POST", path)
        return (time.perf_counter() - began) * 1e3, value

    def wait(self, state: str) -> dict[str, Any]:
        while (status := self.ask("GET", "/status"))["state"] != state:
            time.sleep(0.01)
        return status


def _miner(client: _Client) -> list[Figure]:
    client.wait("mining")
    before = client.ask("GET", "/status")
    worker, began_s = before["workers"][0]["pid"], time.perf_counter()
    used_s = _cpu_s(worker)
    time.sleep(RATE_S)
    after = client.ask("GET", "/status")
    used_s, took_s = _cpu_s(worker) - used_s, time.perf_counter() - began_s
    hashes = after["hashes"] - before["hashes"]
    pauses, resumes = _Times(), _Times()
    for _ in range(ROUNDS):
        pauses.add(*client.act("/pause"))
        resumes.add(*client.act("/resume"))
        time.sleep(0.005)  # so that it is at work, and not just about to be
    shares = client.ask("GET", "/status")
    assert shares["bad_nonces"] == 0
    conditions = {"backend": after["backend"], "threads": 1, "weight": "batch", "rounds": ROUNDS}
    conditions["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
    counted = {
        "accepted": shares["accepted"],
        "rejected": shares["rejected"],
        "cpu_share": round(used_s / took_s, 3),
    }
    return [
        at_least("miner", hashes / 1e3 / used_s, "kH/CPU s", 400.0, conditions | counted),
        pauses.figure("miner pause p99", 5.0, conditions),
        pauses.effect("miner order to standstill p99", 2.0, conditions),
        resumes.figure("miner resume p99", 10.0, conditions),
    ]


def _inference(client: _Client) -> list[Figure]:
    client.wait("active")
    rate, share = _tokens_per_cpu_s(client)
    conditions: dict[str, Any] = {
        "model": "4 x 256, float32", "weight": "batch", "rounds": ROUNDS, "open_streams": 1,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }  # fmt: skip
    times = {path: _Times() for path in ("pause", "resume", "offload", "onload")}
    shas = set()
    with _stream(client):
        for _ in range(ROUNDS):
            times["pause"].add(*client.act("/pause"))
            took, value = client.act("/resume")
            times["resume"].add(took, value)
            shas.add(value["logits_sha256"])
            time.sleep(0.005)
        for _ in range(ROUNDS // 3):
            client.act("/pause")
            times["offload"].add(*client.act("/offload"))
            took, value = client.act("/resume")
            times["onload"].add(took, value)
            shas.add(value["logits_sha256"])
        moved = {"mib": round(value["device_bytes"] / 2**20, 1), "rounds": ROUNDS // 3}
    assert len(shas) == 1, "the canary's logits changed"
    return [
        at_least(
            "inference",
            rate,
            "tokens/CPU s",
            300.0,
            conditions | {"streams": 4, "cpu_share": share},
        ),
        times["pause"].figure("inference pause p99", 10.0, conditions),
        times["resume"].figure("inference resume p99", 30.0, conditions),
        times["offload"].figure("inference offload p99", 50.0, conditions | moved),
        times["onload"].figure("inference onload and resume p99", 150.0, conditions | moved),
    ]


class _Times:
    """What a client waited, and what lay between order and effect inside the workload."""

    def __init__(self) -> None:
        self._waited_ms: list[float] = []
        self._effect_ms: list[float] = []

    def add(self, waited_ms: float, answer: dict[str, Any]) -> None:
        self._waited_ms.append(waited_ms)
        self._effect_ms.append((answer["effect_ns"] - answer["commanded_ns"]) / 1e6)

    def figure(self, name: str, limit: float, conditions: dict[str, Any]) -> Figure:
        inside = {
            "inside_p50_ms": round(quantile(self._effect_ms, 0.5), 3),
            "inside_p99_ms": round(quantile(self._effect_ms, 0.99), 3),
        }
        return _figure(name, self._waited_ms, limit, conditions | inside)

    def effect(self, name: str, limit: float, conditions: dict[str, Any]) -> Figure:
        return _figure(name, self._effect_ms, limit, conditions)


def _figure(name: str, times_ms: list[float], limit: float, conditions: dict[str, Any]) -> Figure:
    seen = {"p50_ms": round(quantile(times_ms, 0.5), 3), "max_ms": round(max(times_ms), 3)}
    return at_most(name, quantile(times_ms, 0.99), "ms", limit, conditions | seen)


def _tokens_per_cpu_s(client: _Client) -> tuple[float, float]:
    """Give tokens per second of the server's CPU time, and how much of a core it had."""
    status, began_s = client.ask("GET", "/status"), time.perf_counter()
    used_s = _cpu_s(status["pid"])
    with _stream(client), _stream(client), _stream(client), _stream(client):
        time.sleep(RATE_S)
        made = client.ask("GET", "/status")["tokens_out"] - status["tokens_out"]
        used_s, took_s = _cpu_s(status["pid"]) - used_s, time.perf_counter() - began_s
        return made / used_s, round(used_s / took_s, 3)


def _cpu_s(pid: int) -> float:
    """Give the CPU seconds of all threads of a process: what it had, on however busy a machine."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text(encoding="ascii").split()[0]) for one in threads) / 1e9


@contextmanager
def _stream(client: _Client) -> Iterator[None]:
    """Keep one stream open, and begin it again when it has ended."""
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            link = http.client.HTTPConnection(client.address, timeout=30)
            body = {"prompt": "bench", "max_tokens": STREAM_TOKENS, "stream": True}
            link.request("POST", "/v1/completions", json.dumps(body))
            answer = link.getresponse()
            while not stop.is_set() and answer.readline():
                pass
            link.close()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _started(*words: str) -> Iterator[dict[str, Any]]:
    """Run a program; give the line that it says when it is ready."""
    with subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            ready: dict[str, Any] = json.loads(process.stdout.readline())
            yield ready
        finally:
            process.terminate()
