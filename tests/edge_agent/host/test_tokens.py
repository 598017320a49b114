"""Token counts from answers; field names are those of the OpenAI API reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.host.tokens import StreamCounter, Usage, usage_of


@pytest.mark.parametrize(
    ("document", "usage"),
    [
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}', Usage(9, 12)),
        (b'{"usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(8, None)),
        (b'{"usage":{"input_tokens":36,"output_tokens":87}}', Usage(36, 87)),
        (b'{"type":"response.completed","response":{"usage":{"output_tokens":5}}}', Usage(None, 5)),
        (b'{"usage":{"prompt_tokens":-9,"completion_tokens":1e30}}', Usage()),
        (b'{"usage":{"prompt_tokens":"many"}}', Usage()),
        (b'{"usage":null}', Usage()),
        (b"<html>", Usage()),
        (b"\xff", Usage()),
        (b"", Usage()),
    ],
)
def test_usage_of_an_answer(document: bytes, usage: Usage) -> None:
    assert usage_of(document) == usage


STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n'
    b": comment\n\n"
    b'event: x\ndata:{"choices":[{"delta":{"content":"b"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=20))
def test_a_stream_counts_alike_however_it_is_cut(cuts: list[int]) -> None:
    counter, rest = StreamCounter(), STREAM
    for size in cuts:
        counter.feed(rest[:size])
        rest = rest[size:]
    counter.feed(rest)
    assert counter.usage() == Usage(3, 2)
    assert (counter.named, counter.events) == (True, 2)


def test_a_stream_without_usage_counts_its_events_and_no_line_grows_without_end() -> None:
    counter = StreamCounter()
    counter.feed(b"data: a\n\ndata: b\n\n")
    for _ in range(100):
        counter.feed(b"x" * 4_096)
        assert len(counter._line) <= 64 * 1_024
    counter.feed(b"\ndata: c\n\ndata: [DONE]\n\n")
    assert (counter.usage(), counter.named) == (Usage(None, 3), False)
