"""The little of HTTP/1.1 that a miner's web server speaks; no I/O."""

from typing import Final

import msgspec

HEAD_BYTES_MAX: Final = 16 << 10
# RFC 9112 section 6.3: these end with their head, and need no length.
_BODYLESS: Final = frozenset({204, 304})
_HEAD_END: Final = b"\r\n\r\n"


class HttpFormatError(ValueError):
    """The bytes are no whole HTTP response."""


class HttpResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response; header names are lower case, in the order of arrival."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Give the first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


def encode_request(
    method: str,
    path: str,
    host: str,
    *,
    proof: tuple[str, str] | None,
    body: bytes | None,
    keep: bool = False,
) -> bytes:
    """Encode one request that asks for the connection to be closed after the answer.

    Args:
        method: Of the request. path: with its query string. host: `host:port`.
        proof: Header (name, value) that says who asks.
        body: JSON, if any.
        keep: Ask for the connection to be kept instead.
    """
    connection = "keep-alive" if keep else "close"
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        f"Connection: {connection}",
        "Accept: */*",
    ]
    if proof is not None:
        lines.append(f"{proof[0]}: {proof[1]}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


def is_complete(buffer: bytearray, _start: int) -> bool:
    """Tell whether the response is whole without waiting for the peer to close."""
    head_end = buffer.find(_HEAD_END, 0, HEAD_BYTES_MAX)
    if head_end < 0:
        return len(buffer) > HEAD_BYTES_MAX
    try:
        status, headers = _head(bytes(buffer[:head_end]))
        length = _length(headers)
    except HttpFormatError:
        return True
    if status in _BODYLESS:
        return True
    body_start = head_end + len(_HEAD_END)
    if _is_chunked(headers):
        return buffer.endswith(b"0\r\n\r\n") and _chunks(bytes(buffer[body_start:])) is not None
    return length is not None and len(buffer) - body_start >= length


def decode_response(data: bytes) -> HttpResponse:
    """Decode one whole response.

    Raises:
        HttpFormatError: No HTTP, or the body is shorter than its head says.
    """
    head_end = data.find(_HEAD_END, 0, HEAD_BYTES_MAX)
    if head_end < 0:
        raise HttpFormatError("no end of the response head")
    status, headers = _head(data[:head_end])
    body = data[head_end + len(_HEAD_END) :]
    if _is_chunked(headers):
        joined = _chunks(body)
        if joined is None:
            raise HttpFormatError("body: chunks are cut or malformed")
        return HttpResponse(status=status, headers=headers, body=joined)
    length = _length(headers)
    if length is not None and len(body) < length:
        raise HttpFormatError(f"body: {len(body)} bytes of {length}")
    return HttpResponse(status=status, headers=headers, body=body[:length])


def is_kept(data: bytes) -> bool:
    """Tell whether a whole response leaves its connection clean and open for the next request."""
    head_end = data.find(_HEAD_END, 0, HEAD_BYTES_MAX)
    try:
        _, headers = _head(data[: max(head_end, 0)])
        length = _length(headers)
    except HttpFormatError:
        return False
    ends = any(name == "connection" and "close" in value.lower() for name, value in headers)
    # Chunks would have to be counted to their end; these servers name a length.
    whole = length is not None and len(data) == head_end + len(_HEAD_END) + length
    return data.startswith(b"HTTP/1.1 ") and whole and not ends and not _is_chunked(headers)


def _head(head: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not _is_digits(words[1], 3):
        raise HttpFormatError(f"status line: {first[:64]!r}")
    headers = []
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise HttpFormatError(f"header: {line[:64]!r}")
        headers.append((name.strip().lower(), value.strip()))
    return int(words[1]), tuple(headers)


def _length(headers: tuple[tuple[str, str], ...]) -> int | None:
    for name, value in headers:
        if name == "content-length":
            if not _is_digits(value, 9):
                raise HttpFormatError(f"content-length: {value[:64]!r}")
            return int(value)
    return None


def _is_chunked(headers: tuple[tuple[str, str], ...]) -> bool:
    return any(
        name == "transfer-encoding" and "chunked" in value.lower() for name, value in headers
    )


def _chunks(body: bytes) -> bytes | None:
    joined = bytearray()
    at = 0
    while True:
        line_end = body.find(b"\r\n", at)
        if line_end < 0:
            return None
        size_text = body[at:line_end].split(b";")[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError:
            return None
        if size == 0:
            return bytes(joined)
        at = line_end + 2
        if size < 0 or len(body) < at + size + 2:
            return None
        joined += body[at : at + size]
        at += size + 2


def _is_digits(text: str, digits_max: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= digits_max
