"""The length in front of WhatsMiner v3 messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.errors import BridgeGarbledError
from firmware_bridges.framing import PAYLOAD_BYTES_MAX, frame, is_complete, unframe


def test_the_length_is_u32_little_endian() -> None:
    assert frame(b'{"cmd":"x"}') == b'\x0b\x00\x00\x00{"cmd":"x"}'
    assert unframe(b"\x02\x00\x00\x00{}", "m") == b"{}"


@given(st.binary(min_size=1, max_size=300))
def test_a_message_is_whole_at_its_last_byte_and_not_before(payload: bytes) -> None:
    sent = bytearray(frame(payload))
    assert [is_complete(sent[:end], 0) for end in range(len(sent))] == [False] * len(sent)
    assert is_complete(sent, 0)
    assert unframe(bytes(sent), "m") == payload


def test_what_follows_the_message_is_not_part_of_it() -> None:
    assert unframe(frame(b"{}") + b"more", "m") == b"{}"


def test_a_message_cut_short_is_given_as_far_as_it_came() -> None:
    assert unframe(frame(b'{"code":0}')[:-3], "m") == b'{"code"'


def test_an_announced_length_over_the_limit_is_not_waited_for() -> None:
    header = bytearray((PAYLOAD_BYTES_MAX + 1).to_bytes(4, "little"))
    assert is_complete(header, 0)
    with pytest.raises(BridgeGarbledError, match="announces"):
        unframe(bytes(header), "m")


@pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\x00\x00\x00\x00", b"<html><body>"])
def test_what_is_no_message_is_garbled(data: bytes) -> None:
    with pytest.raises(BridgeGarbledError):
        unframe(data, "m")


@pytest.mark.parametrize("length", [0, PAYLOAD_BYTES_MAX + 1])
def test_an_empty_or_overlong_request_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="payload"):
        frame(bytes(length))
