"""Header fields between a client, this proxy and an engine (RFC 9110)."""

from collections.abc import Iterable
from http import HTTPStatus

from edge_agent.host.upstream import Head, Header

# RFC 9110 section 7.6.1, and what is between one client and this proxy alone.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"accept-encoding",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"http2-settings",
}
_NOT_RETURNED = _HOP_BY_HOP | {b"server", b"set-cookie"}
_LENGTH = b"content-length"


def has_body(headers: Iterable[Header]) -> bool:
    """Tell whether a request announces a body."""
    return any(name in {_LENGTH, b"transfer-encoding"} for name, _ in headers)


def request_headers(
    given: list[Header], *, authority: bytes, token: str, version: str, method: str
) -> tuple[int | None, list[Header]]:
    """Give the length of the body (None: unknown, sent in chunks) and what the engine is sent.

    Args:
        given: of the client. authority: of the engine. token: of its API; empty: none.
        version: of the client's HTTP.
    """
    headers = [
        (b"host", authority),
        *_end_to_end(given, _NOT_FORWARDED),
        (b"accept-encoding", b"identity"),  # a compressed answer could not be metered
        (b"via", version.encode() + b" hcp"),
    ]
    if token:
        headers.append((b"authorization", b"Bearer " + token.encode()))
    if any(name == b"transfer-encoding" for name, _ in given):
        headers.append((b"transfer-encoding", b"chunked"))
        return None, headers
    length = next((value for name, value in given if name == _LENGTH), None)
    if length is not None:
        headers.append((_LENGTH, length))
        return int(length), headers  # the parser has taken it for a number
    if method == "POST":
        headers.append((_LENGTH, b"0"))
    return 0, headers


def answer_headers(head: Head, length: int | None, date: bytes) -> list[Header]:
    """Give what a client is sent of an engine's head.

    Args:
        length: of the body; None: sent in chunks, or there is none. date: where it names none.
    """
    headers = _end_to_end(head.headers, _NOT_RETURNED | {_LENGTH})
    if length is not None and head.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        headers.append((_LENGTH, b"%d" % length))
    if head.first(b"date") is None:
        headers.append((b"date", date))
    return headers


def length_of(head: Head) -> int | None:
    """Give the length that an answer names; None: it names none."""
    value = head.first(_LENGTH)
    return int(value) if value is not None and value.isdigit() else None


def _end_to_end(headers: Iterable[Header], without: frozenset[bytes]) -> list[Header]:
    """Leave out what is meant for one hop, and what ``connection`` names as such."""
    headers = list(headers)
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [pair for pair in headers if pair[0] not in without and pair[0] not in named]
