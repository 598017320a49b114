"""The live channel: ``GET /api/v1/live`` as a WebSocket.

A client proves who it is by the subprotocols ``hcp.live.v1, bearer.<token>`` or by its first
message ``{"token": "...", "topics": [...]}`` (never in the address: addresses end up in logs). The
answer is ``{"topic": "hello", ...}``. Later messages may change ``topics``. The connection ends
with its token.
"""

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketException
from msgspec import Meta, Struct

from hub.api.deps import Caller, Deps, HubDeps
from hub.api.front import address_of, caller_from, note_use
from hub.core.live import SITE, SWITCH, TOPICS
from hub.live import LiveClient
from hub.security.errors import TokenError

SUBPROTOCOL = "hcp.live.v1"
_BEARER = "bearer."
FIRST_MESSAGE_S = 5.0
CLOSE_UNAUTHORISED = 4401
CLOSE_TOO_MANY = 4429
CLOSE_BAD_MESSAGE = 4400
_MESSAGE_MAX = 8_192

Topics = Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=16)]


class ClientMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may say."""

    token: Annotated[str, Meta(max_length=4_096)] | None = None
    topics: Topics | None = None


class _Hello(Struct, frozen=True, kw_only=True):
    topic: str = "hello"
    role: str
    customer_id: str | None
    topics: tuple[str, ...]
    at: datetime


class _RefusedError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


_DECODER = msgspec.json.Decoder(ClientMessage)


@websocket("/live")
async def live(socket: WebSocket[Any, Any, Any], deps: HubDeps) -> None:
    """Serve one live connection."""
    offered = socket.headers.get("sec-websocket-protocol", "")
    protocols = [name.strip() for name in offered.split(",") if name.strip()]
    await socket.accept(subprotocols=SUBPROTOCOL if SUBPROTOCOL in protocols else None)
    try:
        caller, topics = await _authenticate(socket, deps, protocols)
        await _serve(socket, deps, caller, topics)
    except _RefusedError as refused:
        with suppress(WebSocketException, RuntimeError, OSError):  # it may be gone already
            await socket.close(code=refused.code, reason=refused.reason)


async def _authenticate(
    socket: WebSocket[Any, Any, Any], deps: Deps, protocols: list[str]
) -> tuple[Caller, frozenset[str]]:
    allowance = deps.addresses.take(address_of(socket.scope), deps.clock.boottime_ns())
    if not allowance.allowed:
        raise _RefusedError(CLOSE_TOO_MANY, "too many connections")
    bearer = next((name for name in protocols if name.startswith(_BEARER)), None)
    token = None if bearer is None else bearer.removeprefix(_BEARER)
    topics: tuple[str, ...] | None = None
    if token is None:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await _receive(socket)
        except TimeoutError:
            raise _RefusedError(CLOSE_UNAUTHORISED, "no token in time") from None
        token, topics = first.token, first.topics
    try:
        caller = caller_from(deps, token or "")
    except TokenError as exc:
        raise _RefusedError(CLOSE_UNAUTHORISED, exc.code) from None
    await note_use(deps, caller)
    return caller, _allowed(caller, topics)


async def _serve(
    socket: WebSocket[Any, Any, Any], deps: Deps, caller: Caller, topics: frozenset[str]
) -> None:
    async def send(text: str) -> None:
        await socket.send({"type": "websocket.send", "text": text, "bytes": None})

    client = LiveClient(send, customer_id=caller.customer_id, staff=caller.is_staff, topics=topics)
    number = deps.live.join(client)
    if number is None:
        raise _RefusedError(CLOSE_TOO_MANY, "too many connections")
    assert caller.expires_at is not None
    left_s = (caller.expires_at - deps.clock.wall()).total_seconds()
    try:
        client.offer(_hello(deps, caller, topics))
        async with asyncio.timeout(left_s):
            await _until_gone(socket, deps, caller, client)
    except TimeoutError:
        raise _RefusedError(CLOSE_UNAUTHORISED, "token_expired") from None
    finally:
        deps.live.leave(number)


async def _until_gone(
    socket: WebSocket[Any, Any, Any], deps: Deps, caller: Caller, client: LiveClient
) -> None:
    refused: list[_RefusedError] = []
    async with asyncio.TaskGroup() as group:
        drain = group.create_task(client.drain(), name="live-drain")

        async def listen() -> None:
            try:
                while True:
                    message = await _receive(socket)
                    if message.topics is not None:
                        client.topics = _allowed(caller, message.topics)
                        client.offer(_hello(deps, caller, client.topics))
            except _RefusedError as exc:
                refused.append(exc)
            finally:
                drain.cancel()

        group.create_task(listen(), name="live-listen")
    if refused:
        raise refused[0]


async def _receive(socket: WebSocket[Any, Any, Any]) -> ClientMessage:
    event: Any = await socket.receive()
    if event["type"] != "websocket.receive":
        raise _RefusedError(1000, "gone")
    data = event.get("text") or event.get("bytes") or ""
    if len(data) > _MESSAGE_MAX:
        raise _RefusedError(CLOSE_BAD_MESSAGE, "message too large")
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _RefusedError(CLOSE_BAD_MESSAGE, str(exc)[:100]) from None


def _allowed(caller: Caller, topics: tuple[str, ...] | None) -> frozenset[str]:
    wanted = TOPICS if topics is None else topics
    unknown = sorted(set(wanted) - set(TOPICS))
    if unknown:
        raise _RefusedError(CLOSE_BAD_MESSAGE, f"no topic {unknown[0]}")
    if caller.is_staff:
        return frozenset(wanted)
    return frozenset(topic for topic in wanted if topic not in (SITE, SWITCH))


def _hello(deps: Deps, caller: Caller, topics: frozenset[str]) -> str:
    hello = _Hello(
        role=caller.role,
        customer_id=caller.customer_id,
        topics=tuple(sorted(topics)),
        at=deps.clock.wall(),
    )
    return msgspec.json.encode(hello).decode()
