"""The HTTP codec: framing by length, by chunks and by close; arbitrary bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.http.wire import (
    HttpFormatError,
    decode_response,
    encode_request,
    is_complete,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def by_length(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def by_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@given(st.binary(max_size=60))
def test_a_body_by_length_is_complete_at_its_last_byte(body: bytes) -> None:
    data = by_length(body)
    for cut in range(len(data)):
        assert not is_complete(bytearray(data[:cut]), 0)
    assert is_complete(bytearray(data), 0)
    assert decode_response(data).body == body
    with pytest.raises(HttpFormatError):
        decode_response(data[:-1] if body else data[:-3])


@given(st.binary(min_size=1, max_size=60), st.integers(1, 20))
def test_a_body_by_chunks_is_joined(body: bytes, size: int) -> None:
    data = by_chunks(body, size)
    assert is_complete(bytearray(data), 0)
    assert decode_response(data).body == body
    with pytest.raises(HttpFormatError):
        decode_response(data[:-7])


def test_a_body_by_close_is_all_that_came() -> None:
    data = HEAD + b"\r\n{}"
    assert not is_complete(bytearray(data), 0)
    assert decode_response(data).body == b"{}"


def test_headers_are_found_whatever_their_case() -> None:
    response = decode_response(b"HTTP/1.0 401 no\r\nwWw-AuthenticATE:  Digest x\r\n\r\n")
    assert (response.status, response.header("www-authenticate")) == (401, "Digest x")
    assert response.header("server") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 2 x\r\n",
        b"HTTP/1.1 abc x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(HttpFormatError):
        decode_response(data)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: HEAD + tail))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    is_complete(bytearray(data), 0)
    try:
        decode_response(data)
    except HttpFormatError as error:
        assert str(error)


def test_an_endless_head_ends_the_wait() -> None:
    assert is_complete(bytearray(b"HTTP/1.1 200 OK\r\n" + b"x" * (17 << 10)), 0)


def test_a_request_carries_its_body_and_asks_to_close() -> None:
    data = encode_request(
        "POST",
        "/cgi-bin/blink.cgi",
        "127.0.0.1:80",
        proof=("Authorization", "Digest x"),
        body=b"{}",
    )
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /cgi-bin/blink.cgi HTTP/1.1"
    assert {b"Connection: close", b"Authorization: Digest x", b"Content-Length: 2"} <= set(lines)
    assert body == b"{}"
