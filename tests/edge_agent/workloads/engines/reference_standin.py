"""Our two workloads' control API as agreed, in a few lines: the programs themselves come apart.

The proof of the miner is the first block of Bitcoin, whose hash everybody knows.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from urllib.parse import parse_qs

from simulators.engine_lies import Lie, Lies
from simulators.engine_server import Reply, json_reply
from simulators.http_wire import HttpRequest

RATE_HS = 1_000_000.0
GENESIS_HASH = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"
GENESIS_NONCE = 2_083_236_893
GENESIS_PREFIX = bytes.fromhex(
    "01000000"
    + "00" * 32
    + "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"
    + "29ab5f49"
    + "ffff001d"
)
WEIGHTS_BYTES = 14_000 << 20


class MinerStandIn:
    def __init__(self) -> None:
        self.lies = Lies()
        self.state = "mining"
        self._now_s = asyncio.get_running_loop().time
        self._before = 0
        self._since_s = self._now_s()

    def die(self) -> None:
        self._before = 0
        self.state = "failed"

    def done(self) -> int:
        extra = (self._now_s() - self._since_s) * RATE_HS if self.works else 0
        return self._before + int(extra)

    @property
    def works(self) -> bool:
        return (self.state == "mining" and not self._idles) or self._works_on

    _works_on = False
    _idles = False

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        if request.method == "POST":  # every act is told how long it may take
            assert 0 < float(parse_qs(request.query)["timeout_s"][0]) <= 600
        match (request.method, request.path):
            case ("GET", "/status"):
                return json_reply(
                    {
                        "state": self.state,
                        "hashes": self.done(),
                        "hashrate_hs": RATE_HS if self.works else 0.0,
                        "accepted": 3,
                        "rejected": 1,
                        "verified_shares": 4,
                    }
                )
            case ("GET", "/snapshot"):
                return Reply(200, b'{"job":"1","nonce":7}')
            case ("POST", "/pause"):
                self._before, works = self.done(), self.works
                self._since_s = self._now_s()
                self._works_on = works and lie is Lie.WORKS_ON
                self.state = self.state if lie is Lie.FALSE else "paused"
                return json_reply({"state": self.state})
            case ("POST", "/resume"):
                self._idles = lie is Lie.WORKS_ON  # it says so, and its counter stands
                if lie is not Lie.FALSE and not self.works:
                    self.state = "mining"
                    self._since_s = self._now_s() - 1e-3  # the first verified batch is done
                proof = {
                    "prefix": GENESIS_PREFIX,
                    "nonce": GENESIS_NONCE + (lie is Lie.RUBBISH),
                    "hash": GENESIS_HASH,
                    "checked": 64,
                    "at_ns": 0,
                }
                return json_reply({"state": self.state, "evidence": proof})
        return json_reply({"error": "no such path"}, 404)


class ServerStandIn:
    def __init__(self) -> None:
        self.lies = Lies()
        self.state = "active"
        self.device_bytes = WEIGHTS_BYTES
        self.in_flight = 0
        self.rubbish = False

    def die(self) -> None:
        self.state, self.device_bytes = "failed", 0

    def used_mib(self) -> int:
        return self.device_bytes >> 20

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        if lie is Lie.RUBBISH:
            self.rubbish = True
        match (request.method, request.path):
            case ("GET", "/status"):
                return json_reply(
                    {
                        "state": self.state,
                        "in_flight": self.in_flight,
                        "requests": 5,
                        "tokens_in": 50,
                        "tokens_out": 70,
                        "device_bytes": self.device_bytes,
                    }
                )
            case ("GET", "/canary"):
                if self.state != "active":
                    return json_reply({"error": "paused"}, 503)
                return json_reply({"logits_sha256": self._logits()})
            case ("POST", _) if lie is Lie.OUT_OF_MEMORY:
                return json_reply({"error": "out of memory"}, 500)
            case ("POST", path):
                return self._act(path, request, lie)
        return json_reply({"error": "no such path"}, 404)

    def _logits(self) -> str:
        return sha256(b"rubbish" if self.rubbish else b"good").hexdigest()

    def _act(self, path: str, request: HttpRequest, lie: Lie | None) -> Reply:
        match path:
            case _ if lie is Lie.FALSE:
                pass
            case "/pause":
                assert parse_qs(request.query)["mode"][0] in {"keep", "wait", "abort"}
                self.state = "paused" if self.state == "active" else self.state
            case "/offload":
                self.state = "offloaded"
                if lie is not Lie.KEEPS_MEMORY:
                    self.device_bytes = 0
            case "/resume":
                self.state, self.device_bytes = "active", WEIGHTS_BYTES
                return json_reply({"state": self.state, "logits_sha256": self._logits()})
            case _:
                return json_reply({"error": "no such path"}, 404)
        return json_reply({"state": self.state})
