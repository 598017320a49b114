"""Stand-in of vLLM in development mode: sleep levels, tags, pause modes, and a GPU's memory.

Source: vLLM docs/features/sleep_mode.md and its routers of /sleep, /wake_up, /pause, /resume,
/is_paused and /collective_rpc. Acts of sleep answer an empty 200. Level 2 loses the weights: until
`reload_weights` the model talks rubbish, which is no lie but how it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from simulators.engine_lies import Lie
from simulators.engine_openai import OpenAiStandIn
from simulators.engine_server import EngineDiedError, Reply, json_reply

if TYPE_CHECKING:
    from simulators.http_wire import HttpRequest

TAGS = frozenset({"weights", "kv_cache"})
ALL_TAGS = TAGS | {"scheduling"}
MODES = frozenset({"abort", "wait", "keep"})
CONTEXT_MIB = 1_229
# A sleep that is answered early is done so much later.
EARLY_S = 0.03
_OOM = {"error": "CUDA out of memory. Tried to allocate 2.00 GiB"}


class RpcRequest(Struct):
    """Body of /collective_rpc."""

    method: str


class VllmVersion(Struct, frozen=True, kw_only=True):
    """How one version differs from another.

    Args:
        paused_sleeps: A paused engine calls itself asleep, as the newest do.
        has_pause: It knows /pause, /resume and /is_paused, and level 0. Before that any level of
            sleep but 1 dropped all weights (vllm#33195).
        crashes: A request to it while it sleeps ends it (vllm#14311); without, it waits.
        dev: It was started in development mode.
    """

    paused_sleeps: bool = False
    has_pause: bool = True
    crashes: bool = True
    dev: bool = True


class VllmStandIn(OpenAiStandIn):
    """One vLLM server.

    Args:
        vram_mib: What it uses while awake. version: how it behaves.
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        token: str = "",
        token_s: float = 0.0,
        loads: int = 0,
        vram_mib: int = 14_000,
        version: VllmVersion | None = None,
    ) -> None:
        super().__init__(model, token=token, token_s=token_s, loads=loads)
        self._vram_mib = vram_mib
        self._version = version or VllmVersion()
        self._asleep: set[str] = set()
        self._unfreed_mib = 0
        self._alive = True
        self._timers: list[asyncio.TimerHandle] = []
        self.level = 0
        self.slept = 0

    def die(self) -> None:
        """End: the GPU's memory comes free."""
        super().die()
        self._alive = False
        for timer in self._timers:
            timer.cancel()

    def used_mib(self) -> int:
        """Return the truth about the GPU's memory."""
        if not self._alive:
            return 0
        rest = self._vram_mib - CONTEXT_MIB
        share = {"weights": rest * 6 // 10, "kv_cache": rest - rest * 6 // 10}
        return CONTEXT_MIB + self._unfreed_mib + sum(share[tag] for tag in TAGS - self._asleep)

    @property
    def sleeping(self) -> bool:
        """Return what /is_sleeping says."""
        return bool(self._asleep) or (self._version.paused_sleeps and not self.go.is_set())

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        """Answer a request."""
        if request.method == "GET" and request.path == "/metrics":
            return self._metrics()
        reply = None
        if self._version.dev:
            query = parse_qs(request.query)
            reply = self._told(request)
            reply = reply or await self._paced(request, query, lie)
            reply = reply or await self._slept(request, query, lie)
        return reply or await super().answer(request, lie)

    def _told(self, request: HttpRequest) -> Reply | None:
        match (request.method, request.path):
            case ("GET", "/is_sleeping"):
                return json_reply({"is_sleeping": self.sleeping})
            case ("GET", "/is_paused") if self._version.has_pause:
                return json_reply({"is_paused": not self.go.is_set()})
        return None

    async def _paced(
        self, request: HttpRequest, query: dict[str, list[str]], lie: Lie | None
    ) -> Reply | None:
        match (request.method, request.path):
            case ("POST", "/pause") if self._version.has_pause:
                return await self._pause(query.get("mode", ["abort"])[0], lie)
            case ("POST", "/resume") if self._version.has_pause:
                if lie is not Lie.FALSE:
                    self.go.set()
                return json_reply({"status": "resumed"})
        return None

    async def _slept(
        self, request: HttpRequest, query: dict[str, list[str]], lie: Lie | None
    ) -> Reply | None:
        match (request.method, request.path):
            case ("POST", "/sleep"):
                level, mode = query.get("level", ["1"])[0], query.get("mode", ["abort"])[0]
                return await self._sleep(int(level), mode, lie)
            case ("POST", "/wake_up"):
                return self._wake(frozenset(query.get("tags", ALL_TAGS)), lie)
            case ("POST", "/collective_rpc"):
                return self._rpc(request.body, lie)
            case ("POST", "/reset_prefix_cache"):
                return Reply()
        return None

    async def _pause(self, mode: str, lie: Lie | None) -> Reply:
        if mode not in MODES:
            return json_reply({"error": f"mode {mode!r}"}, 400)
        if lie is Lie.EARLY:
            self._later(lambda: self._stop("keep"))
        elif lie is not Lie.FALSE:
            if mode == "wait":
                await self.drained.wait()
            self._stop(mode)
        return json_reply({"status": "paused"})

    def _stop(self, mode: str) -> None:
        self.go.clear()
        if mode == "abort":
            self.aborts += 1

    async def _sleep(self, level: int, mode: str, lie: Lie | None) -> Reply:
        if lie is Lie.OUT_OF_MEMORY and level == 1:  # host memory for the weights
            return json_reply(_OOM, 500)
        if lie is Lie.FALSE:
            return Reply()
        if level == 0 and self._version.has_pause:
            return Reply() if (await self._pause(mode, lie)).status == 200 else Reply(400)
        if self.running and mode != "abort":
            await self.drained.wait()
        self._stop(mode)
        if lie is Lie.EARLY:
            # it calls itself asleep, and its memory comes free later
            self._unfreed_mib = self.used_mib() - CONTEXT_MIB
            self._later(self._free)
        elif lie is Lie.KEEPS_MEMORY:
            self._unfreed_mib = (self.used_mib() - CONTEXT_MIB) // 2
        self._asleep = set(TAGS)
        self.level = max(self.level, level)
        self.slept += 1
        if level != 1:
            self.rubbish = True
        return Reply()

    def _wake(self, tags: frozenset[str], lie: Lie | None) -> Reply:
        if lie is Lie.OUT_OF_MEMORY:
            return json_reply(_OOM, 500)
        if lie is Lie.EARLY:
            self._later(lambda: self._awake(tags))
        elif lie is not Lie.FALSE:
            self._awake(tags)
        if lie is Lie.RUBBISH:
            self.rubbish = True
        return Reply()

    def _awake(self, tags: frozenset[str]) -> None:
        if tags == ALL_TAGS:
            self.go.set()
        if not self._asleep:
            return
        self._unfreed_mib = 0
        self._asleep -= tags
        if not self._asleep:
            self.level = 0
            # waking ends what sleeping paused; versions differ only in what they call it
            self.go.set()

    def _rpc(self, body: bytes, lie: Lie | None) -> Reply:
        try:
            asked = msgspec.json.decode(body, type=RpcRequest)
        except msgspec.MsgspecError as exc:
            return json_reply({"detail": f"JSON decode error: {exc}"}, 400)
        if asked.method != "reload_weights":
            return json_reply({"detail": f"no method {asked.method}"}, 500)
        if "weights" in self._asleep:  # there is nowhere to put them
            raise EngineDiedError
        if lie is not Lie.FALSE:
            self.rubbish = False
        return json_reply({"results": [None]})

    def _step(self) -> None:
        if self._asleep and self._version.crashes:
            raise EngineDiedError

    def _free(self) -> None:
        self._unfreed_mib = 0

    def _later(self, then: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(EARLY_S, then))

    def _metrics(self) -> Reply:
        label = f'{{model_name="{self._model}"}}'
        done = f'{{model_name="{self._model}",finished_reason="length"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {float(self.running)}",
            f"vllm:prompt_tokens_total{label} {float(self.tokens_in)}",
            f"vllm:generation_tokens_total{label} {float(self.tokens_out)}",
            f"vllm:request_success_total{done} {float(self.finished)}",
        ]
        body = ("\n".join(lines) + "\n").encode()
        return Reply(200, body, "text/plain; version=0.0.4; charset=utf-8")
