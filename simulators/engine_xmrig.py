"""Stand-in of XMRig's API: a pause is answered at once, and the worker ends its hash first.

Measured on XMRig 6.26.0: idle 1 to 124 ms after the answer, with hashes of 85 ms. `done` is the
truth, as a processor's clock would show it; the API has only averages and what a pool credited.
Source: xmrig src/core/Miner.cpp, src/base/api/Httpd.cpp (401, 403, 415), error -32601 as measured.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from simulators.engine_lies import Lie, Lies
from simulators.engine_server import Reply, json_reply

if TYPE_CHECKING:
    from simulators.http_wire import HttpRequest

HASH_S = 0.085
SHARE_EVERY = 20
SHARE_DIFF = 1_000
WINDOW_S = 10.0
_OK = {"status": "OK"}


class RpcCall(Struct):
    """Body of /json_rpc."""

    method: str
    id: int | str | None = None


class XmrigStandIn:
    """One miner with one worker.

    Args:
        token: That its API asks for; empty = none. restricted: it may be read only.
        hash_s: Seconds that a hash takes; the worker stops between two.
        now_s: Gives the time; None = that of the running loop.
    """

    def __init__(
        self,
        *,
        token: str = "",
        restricted: bool = False,
        hash_s: float = HASH_S,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        self.lies = Lies()
        self._token = token
        self._restricted = restricted
        self._hash_s = hash_s
        self._now_s = now_s or asyncio.get_running_loop().time
        self._paused = False
        self._before = 0
        # hashing since then, and up to then: a time to come is the end of a hash under way
        self._since_s: float = self._now_s()
        self._until_s = math.inf

    def die(self) -> None:
        """End, with everything that was in memory."""
        self._before = 0
        self._since_s = self._until_s = self._now_s()

    def done(self) -> int:
        """Return the truth: hashes done."""
        return self._before + self._part(self._now_s())

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        """Answer a request."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        match (request.method, request.path):
            case ("GET", "/1/summary" | "/2/summary" | "/api.json"):
                return json_reply(self._summary())
            case ("POST", "/json_rpc"):
                return self._rpc(request.body, lie)
            case _:
                return json_reply({"status": 404, "error": "NOT_FOUND"}, 404)

    def _refusal(self, request: HttpRequest) -> Reply | None:
        if self._token and not request.authorization:
            return json_reply({"error": "UNAUTHORIZED"}, 401)
        if self._token and request.authorization != f"Bearer {self._token}":
            return json_reply({"error": "FORBIDDEN"}, 403)
        if request.method != "GET" and self._restricted:
            return json_reply({"error": "FORBIDDEN"}, 403)
        if request.method != "GET" and request.content_type != "application/json":
            return json_reply({"error": "UNSUPPORTED_MEDIA_TYPE"}, 415)
        return None

    def _rpc(self, body: bytes, lie: Lie | None) -> Reply:
        try:
            call = msgspec.json.decode(body, type=RpcCall)
        except msgspec.MsgspecError as exc:
            return json_reply({"error": str(exc)}, 400)
        head = {"jsonrpc": "2.0", "id": call.id}
        match call.method:
            case "pause":
                self._pause(lie)
            case "resume":
                self._resume(lie)
            case "stop":
                self._pause(lie)
            case _:
                error = {"code": -32601, "message": "Method not found"}
                return json_reply(head | {"error": error})
        return json_reply(head | {"result": _OK})

    def _pause(self, lie: Lie | None) -> None:
        if lie is Lie.FALSE or self._paused:
            return
        self._paused = True
        if lie is not Lie.WORKS_ON:
            hashing_s = self._now_s() - self._since_s
            whole = math.floor(hashing_s / self._hash_s) + 1
            self._until_s = self._since_s + whole * self._hash_s

    def _resume(self, lie: Lie | None) -> None:
        if lie is Lie.FALSE or not self._paused:
            return
        self._paused = False
        if lie is Lie.WORKS_ON:  # the other way round: it says that it works, and does not
            return
        self._before = self.done()
        self._since_s, self._until_s = self._now_s(), math.inf

    def _part(self, now_s: float) -> int:
        end_s = min(now_s, self._until_s)
        # the end of a hash under way is a whole number of them, and no float is just below it
        return max(0, math.floor((end_s - self._since_s) / self._hash_s + 1e-6))

    def _summary(self) -> dict[str, object]:
        good = self.done() // SHARE_EVERY
        works = self._now_s() < self._until_s + WINDOW_S and self.done() > 0
        rate = round(1 / self._hash_s, 2) if works else None
        return {
            "id": "0123456789abcdef",
            "worker_id": "stand-in",
            "version": "6.26.0",
            "kind": "miner",
            "restricted": self._restricted,
            "paused": self._paused,
            "algo": "rx/wow",
            "algorithms": ["rx/wow"],
            "hashrate": {"total": [rate, rate, None], "highest": rate},
            "results": {
                "diff_current": SHARE_DIFF,
                "shares_good": good,
                "shares_total": good,
                "hashes_total": good * SHARE_DIFF,
            },
            "connection": {"pool": "pool.example:3333", "failures": 0, "ping": 20},
        }
