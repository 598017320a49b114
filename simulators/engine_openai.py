"""Stand-in of a server of OpenAI's API: /health, /v1/models, /v1/completions.

Its model is a digest: the same prompt gives the same words, and other weights give others.
Source: OpenAI's API reference, and vLLM's answers (empty 200 of /health, static /v1/models).
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

import msgspec
from msgspec import Struct

from simulators.engine_lies import Lie, Lies
from simulators.engine_server import Reply, json_reply
from simulators.http_wire import HttpRequest

TOKENS_MAX = 4_096
WORDS = ("amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heron")


class CompletionRequest(Struct, kw_only=True):
    """What is read of a request for a completion."""

    model: str
    prompt: str = ""
    max_tokens: int = 16
    stream: bool = False


class OpenAiStandIn:
    """One server with one model.

    Args:
        model: Its name. token: bearer token that /v1 asks for; empty = none.
        token_s: Seconds that a token takes. loads: requests of /health that are answered by 503
            before it is ready, as while a model loads.
    """

    def __init__(
        self, model: str = "tiny", *, token: str = "", token_s: float = 0.0, loads: int = 0
    ) -> None:
        self.lies = Lies()
        self._model = model
        self._token = token
        self._token_s = token_s
        self._loads = loads
        self.rubbish = False
        self.running = 0
        self.finished = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.aborts = 0
        self.go = asyncio.Event()
        self.go.set()
        self.drained = asyncio.Event()
        self.drained.set()

    def die(self) -> None:
        """End, with everything that was in memory."""
        self.running = self.finished = self.tokens_in = self.tokens_out = 0

    async def answer(self, request: HttpRequest, lie: Lie | None) -> Reply:
        """Answer a request."""
        if request.path.startswith("/v1") and not self._may(request):
            return json_reply({"error": "Unauthorized"}, 401)
        match (request.method, request.path):
            case ("GET", "/health"):
                return self._health()
            case ("GET", "/v1/models"):
                rows = [{"id": self._model, "object": "model", "owned_by": "stand-in"}]
                return json_reply({"object": "list", "data": rows})
            case ("POST", "/v1/completions"):
                if lie is Lie.RUBBISH:
                    self.rubbish = True
                return await self._completion(request)
            case _:
                return json_reply({"detail": "Not Found"}, 404)

    def _may(self, request: HttpRequest) -> bool:
        return not self._token or request.authorization == f"Bearer {self._token}"

    def _health(self) -> Reply:
        if self._loads > 0:
            self._loads -= 1
            return json_reply({"detail": "loading"}, 503)
        return Reply()

    async def _completion(self, request: HttpRequest) -> Reply:
        try:
            asked = msgspec.json.decode(request.body, type=CompletionRequest)
        except msgspec.MsgspecError as exc:
            return json_reply({"error": {"message": str(exc)}}, 400)
        if asked.model != self._model:
            message = f"The model `{asked.model}` does not exist."
            return json_reply({"error": {"message": message, "code": 404}}, 404)
        count = max(1, min(asked.max_tokens, TOKENS_MAX))
        self.running += 1
        self.drained.clear()
        try:
            words = await self._words(asked.prompt, count)
        finally:
            self.running -= 1
            if not self.running:
                self.drained.set()
        self.finished += 1
        self.tokens_in += len(asked.prompt.split())
        self.tokens_out += len(words)
        usage = {
            "prompt_tokens": len(asked.prompt.split()),
            "completion_tokens": len(words),
            "total_tokens": len(asked.prompt.split()) + len(words),
        }
        reason = "length" if len(words) == count else "abort"
        choice = {"index": 0, "text": " ".join(words), "finish_reason": reason}
        document = {"object": "text_completion", "model": self._model, "choices": [choice]}
        return json_reply(document | {"id": "cmpl-0", "usage": usage})

    async def _words(self, prompt: str, count: int) -> list[str]:
        """Make tokens one by one; a pause holds them, and an abort ends them."""
        aborts = self.aborts
        words: list[str] = []
        for at in range(count):
            await self.go.wait()
            if self.aborts != aborts:
                break
            self._step()
            words.append(self.word(prompt, at))
            await asyncio.sleep(self._token_s)
        return words

    def word(self, prompt: str, at: int) -> str:
        """Return the word that comes at a place."""
        weights = "rubbish" if self.rubbish else self._model
        return WORDS[sha256(f"{weights}:{prompt}:{at}".encode()).digest()[0] % len(WORDS)]

    def _step(self) -> None:
        """Do one decode step; a kind of engine that can not, dies here."""


def right_answer(model: str, prompt: str, tokens: int) -> str:
    """Return what a good model says."""
    engine = OpenAiStandIn(model)
    return " ".join(engine.word(prompt, at) for at in range(tokens))
