"""Answers of the proxy itself: errors as OpenAI clients read them and as RFC 9457 has them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec

from edge_agent.host.door import TurnedAwayError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# How long, and how much of, a request is read on that was answered before it was whole.
DISCARD_S = 5.0
DISCARD_BYTES_MAX = 64 * 1_024 * 1_024


def error_body(code: str, detail: str, status: int | None = None) -> bytes:
    """Write an error as OpenAI clients read it and, of a whole answer, as RFC 9457 has it too."""
    kind = "invalid_request_error" if status in {401, 403} else "server_error"
    error = {"message": detail, "type": kind, "param": None, "code": code}
    problem: dict[str, object] = {"error": error}
    if status is not None:
        title = HTTPStatus(status).phrase
        problem |= {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return msgspec.json.encode(problem)


def date_now() -> bytes:
    """Give the time as the ``Date`` field has it (RFC 9110 section 6.6.1)."""
    return formatdate(time.time(), usegmt=True).encode()


async def answer_problem(
    problem: TurnedAwayError, receive: Receive, send: Send, *, unread: bool
) -> None:
    """Answer a request with an error.

    Args:
        unread: whether some of its body is still to come. The connection then ends, but not before
            the client had time to take the answer: an end with bytes unread would reset it, and
            the answer would be lost with it (RFC 9112 section 9.6).
    """
    body = error_body(problem.reason, problem.detail, problem.status)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"date", date_now()),
    ]
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if problem.allow:
        headers.append((b"allow", problem.allow.encode()))
    if problem.retry_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_s))
    if unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if unread:
        await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    """Read the rest of a request, within bounds, until its client has had enough."""
    left = DISCARD_BYTES_MAX
    try:
        async with asyncio.timeout(DISCARD_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
