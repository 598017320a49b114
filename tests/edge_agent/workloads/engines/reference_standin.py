"""Our two workloads' control API as agreed, in a few lines: the programs themselves come apart."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from urllib.parse import parse_qs

from simulators.engine_lies import Lie, Lies
from simulators.engine_server import Reply, json_reply
from simulators.http_wire import HttpRequest

RATE_HS = 1_000_000.0
WEIGHTS_BYTES = 14_000 << 20


class MinerStandIn:
    def __init__(self) -> None:
        self.lies = Lies()
        self.state = "active"
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
        return (self.state == "active" and not self._idles) or self._works_on

    _works_on = False
    _idles = False

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
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
                    self.state = "active"
                    self._since_s = self._now_s() - 1e-3  # the first verified batch is done
                return json_reply({"state": self.state})
        return json_reply({"error": "no such path"}, 404)


class ServerStandIn:
    def __init__(self) -> None:
        self.lies = Lies()
        self.state = "active"
        self.resident_bytes = WEIGHTS_BYTES
        self.in_flight = 0
        self.rubbish = False

    def die(self) -> None:
        self.state, self.resident_bytes = "failed", 0

    def used_mib(self) -> int:
        return self.resident_bytes >> 20

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        if lie is Lie.RUBBISH:
            self.rubbish = True
        if lie is Lie.OUT_OF_MEMORY:
            return json_reply({"error": "out of memory"}, 500)
        match (request.method, request.path):
            case ("GET", "/status"):
                return json_reply(
                    {
                        "state": self.state,
                        "in_flight": self.in_flight,
                        "requests": 5,
                        "tokens_in": 50,
                        "tokens_out": 70,
                        "resident_bytes": self.resident_bytes,
                    }
                )
            case ("GET", "/canary"):
                logits = "rubbish" if self.rubbish else "good"
                return json_reply({"logits_sha256": sha256(logits.encode()).hexdigest()})
            case ("POST", _) if lie is Lie.FALSE:
                return json_reply({"state": self.state})
            case ("POST", "/pause"):
                assert parse_qs(request.query)["mode"][0] in {"keep", "wait", "abort"}
                self.state = "paused" if self.state == "active" else self.state
                return json_reply({"state": self.state})
            case ("POST", "/offload"):
                self.state = "offloaded"
                if lie is not Lie.KEEPS_MEMORY:
                    self.resident_bytes = 0
                return json_reply({"state": self.state})
            case ("POST", "/resume"):
                self.state, self.resident_bytes = "active", WEIGHTS_BYTES
                return json_reply({"state": self.state})
        return json_reply({"error": "no such path"}, 404)
