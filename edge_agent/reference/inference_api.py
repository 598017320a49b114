"""The inference server's routes: OpenAI's, and those that take it off its device and back."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator

from msgspec import Struct

from edge_agent.reference.decoding import CANARY_PROMPT
from edge_agent.reference.errors import RefusedError
from edge_agent.reference.model import ModelSize
from edge_agent.reference.openai_api import DONE, Answers, Ask, read_ask, sse, usage_of
from edge_agent.reference.serving import Server, rss_bytes
from edge_agent.reference.tickets import PauseMode, ServerState, Ticket
from edge_agent.reference.web import Events, Request, Route, WebApp

BODY_BYTES_MAX = 256 * 1_024
CANARY_CHARACTERS_MAX = 200
ACT_S = 30.0
_ABORTED = RefusedError(503, "aborted", "the model was taken off its device", retry_after_s=1)


class InferenceStatus(Struct, frozen=True, kw_only=True):
    """What ``GET /status`` says."""

    v: int = 1
    state: ServerState
    detail: str
    pid: int
    up_s: float
    model: str
    backend: str
    in_flight: int
    waiting: int
    requests: int
    refused: int
    aborted: int
    finished: int
    tokens_in: int
    tokens_out: int
    device_bytes: int
    mirror_bytes: int
    rss_bytes: int
    canary_sha256: str


class InferenceApi:
    """Answers for one server.

    Args:
        model: name that requests carry. size: of the model; bounds a request. stop: set by
            ``POST /stop``.
    """

    def __init__(self, server: Server, model: str, size: ModelSize, stop: asyncio.Event) -> None:
        self._server = server
        self._model = model
        self._size = size
        self._stop = stop
        self._began_s = time.monotonic()

    def app(self, token: str) -> WebApp:
        """Make the application."""
        routes = {
            ("GET", "/health"): Route(act=self._health, open=True),
            ("GET", "/status"): Route(act=self._status),
            ("GET", "/canary"): Route(act=self._canary),
            ("GET", "/v1/models"): Route(act=self._models),
            ("POST", "/v1/completions"): Route(act=self._complete, ends_with_client=True),
            ("POST", "/v1/chat/completions"): Route(act=self._chat, ends_with_client=True),
            ("POST", "/pause"): Route(act=self._pause),
            ("POST", "/offload"): Route(act=self._offload),
            ("POST", "/resume"): Route(act=self._resume),
            ("POST", "/stop"): Route(act=self._end),
        }
        return WebApp(routes, body_bytes_max=BODY_BYTES_MAX, token=token)

    async def _health(self, request: Request) -> object:
        if not self._server.ready:
            state = self._server.state
            raise RefusedError(503, "not_ready", f"it is {state}", retry_after_s=1)
        return {"status": "ok"}

    async def _status(self, request: Request) -> object:
        server, counts = self._server, self._server.counts
        return InferenceStatus(
            state=server.state,
            detail=server.detail,
            pid=os.getpid(),
            up_s=round(time.monotonic() - self._began_s, 3),
            model=self._model,
            backend=server.backend,
            in_flight=server.in_flight,
            waiting=server.waiting,
            requests=counts.requests,
            refused=counts.refused,
            aborted=counts.aborted,
            finished=counts.finished,
            tokens_in=counts.tokens_in,
            tokens_out=counts.tokens_out,
            device_bytes=server.device_bytes,
            mirror_bytes=server.mirror_bytes,
            rss_bytes=rss_bytes(),
            canary_sha256=server.canary_sha256,
        )

    async def _canary(self, request: Request) -> object:
        prompt = request.query.get("prompt", CANARY_PROMPT)
        if not 0 < len(prompt) <= CANARY_CHARACTERS_MAX or len(prompt.encode()) + 8 > (
            self._size.context
        ):
            raise RefusedError(
                400, "bad_request", f"a canary has 1..{CANARY_CHARACTERS_MAX} characters"
            )
        return await self._server.canary(prompt, request.deadline_s(ACT_S))

    async def _models(self, request: Request) -> object:
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": "reference"}
        return {"object": "list", "data": [model]}

    async def _complete(self, request: Request) -> object:
        return await self._answer(request, chat=False)

    async def _chat(self, request: Request) -> object:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> object:
        ask, wish = read_ask(request.body, model=self._model, context=self._size.context, chat=chat)
        ticket = await self._server.ask(wish)
        answers = Answers(
            chat=chat,
            ident=secrets.token_hex(12),
            created_s=int(time.time()),
            model=self._model,
        )
        if ask.stream:
            parts = _stream(ask, ticket, answers, chat=chat)
            return Events(parts, lambda: self._server.cancel(ticket))
        text = ""
        try:
            while True:
                piece = await ticket.pieces.get()
                if piece.aborted:
                    raise _ABORTED
                text += piece.text
                if piece.finish:
                    usage = usage_of(*_tokens(ticket))
                    return answers.whole(text, piece.finish, usage, _extra(ask, ticket))
        finally:
            self._server.cancel(ticket)

    async def _pause(self, request: Request) -> object:
        try:
            mode = PauseMode(request.query.get("mode", PauseMode.KEEP))
        except ValueError as exc:
            raise RefusedError(400, "bad_request", "mode: keep, wait or abort") from exc
        return await self._server.pause(mode, request.deadline_s(ACT_S))

    async def _offload(self, request: Request) -> object:
        return await self._server.offload(request.deadline_s(ACT_S))

    async def _resume(self, request: Request) -> object:
        return await self._server.resume(request.deadline_s(ACT_S))

    async def _end(self, request: Request) -> object:
        self._stop.set()
        return {"state": "stopping"}


async def _stream(
    ask: Ask, ticket: Ticket, answers: Answers, *, chat: bool
) -> AsyncIterator[bytes]:
    if chat:
        yield answers.role_event()
    while True:
        piece = await ticket.pieces.get()
        if piece.aborted:
            yield sse({"error": {"message": _ABORTED.detail, "code": "aborted"}})
            return
        yield answers.event(piece.text, piece.finish, _extra(ask, ticket) if piece.finish else {})
        if piece.finish:
            break
    if ask.stream_options is not None and ask.stream_options.include_usage:
        yield answers.usage_event(usage_of(*_tokens(ticket)))
    yield DONE


def _tokens(ticket: Ticket) -> tuple[int, int]:
    decoding = ticket.decoding
    return (len(decoding.prompt_tokens), decoding.tokens_out) if decoding else (0, 0)


def _extra(ask: Ask, ticket: Ticket) -> dict[str, str]:
    if not ask.logits_sha256 or ticket.decoding is None:
        return {}
    return {"logits_sha256": ticket.decoding.logits_sha256}
