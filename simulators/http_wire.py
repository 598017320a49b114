"""The little of HTTP/1.1 that the simulators serve, on bytes alone."""

from __future__ import annotations

import msgspec

HEAD_BYTES_MAX = 8192
BODY_BYTES_MAX = 65_536


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, with what matters of its head; `path` is without its `query`."""

    method: str
    path: str
    authorization: str
    keep_alive: bool
    body: bytes
    query: str = ""
    content_type: str = ""


class HttpRefused(msgspec.Struct, frozen=True):
    """A request that is answered with a status and a closed connection."""

    status: int


def take_request(buffer: bytearray) -> HttpRequest | HttpRefused | None:
    """Take one whole request off the front of a buffer; None when it is not whole yet."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return HttpRefused(431) if len(buffer) > HEAD_BYTES_MAX else None
    lines = buffer[:end].decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return HttpRefused(400)
    headers = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in lines[1:])
        if colon
    }
    length_text = headers.get("content-length", "0")
    if not (length_text.isascii() and length_text.isdigit()):
        return HttpRefused(400)
    length = int(length_text)
    if length > BODY_BYTES_MAX:
        return HttpRefused(413)
    if len(buffer) < end + 4 + length:
        return None
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    connection = headers.get("connection", "").lower()
    path, _, query = parts[1].partition("?")
    return HttpRequest(
        method=parts[0],
        path=path,
        authorization=headers.get("authorization", ""),
        keep_alive=connection != "close" and parts[2] == "HTTP/1.1",
        body=body,
        query=query,
        content_type=headers.get("content-type", ""),
    )


def response(status: int, body: bytes, *, keep_alive: bool, header: str | None = None) -> bytes:
    """Return the bytes of a response; `header` is one more line of its head."""
    reason = {
        200: "OK",
        204: "No Content",
        401: "Unauthorized",
        404: "Not Found",
        413: "Payload Too Large",
    }
    head = [f"HTTP/1.1 {status} {reason.get(status, 'Bad Request')}"]
    if header is not None:
        head.append(header)
    head.append("Content-Type: application/json")
    head.append(f"Content-Length: {len(body)}")
    head.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
