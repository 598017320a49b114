"""Token counts from answers; field names are those of the OpenAI API reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.host.tokens import EVENT_BYTES_MAX, StreamCounter, Usage, usage_of


@pytest.mark.parametrize(
    ("document", "usage"),
    [
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}', Usage(9, 12)),
        (b'{"usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(8, None)),
        (b'{"usage":{"input_tokens":36,"output_tokens":87}}', Usage(36, 87)),
        (b'{"type":"response.completed","response":{"usage":{"output_tokens":5}}}', Usage(None, 5)),
        (b'{"usage":{"prompt_tokens":-9,"completion_tokens":1e30}}', Usage()),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":-1}}', Usage()),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":2.5}}', Usage()),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":1e400}}', Usage()),
        (
            b'{"usage":{"prompt_tokens":9,"completion_tokens":2.0}}',
            Usage(9, 2),
        ),  # RFC 8259: one number
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


# HTML standard, section 9.2.6: an event's data may stand in several lines, which may end by CR, LF
# or both.
LINES = (
    b"data\n\n: comment\n\nevent: x\nid: 1\n\n"
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":3,\ndata: "completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"\n", b"\r", b"\r\n"]), st.lists(st.integers(1, 9), max_size=40))
def test_events_are_told_apart_by_any_end_of_line(end: bytes, cuts: list[int]) -> None:
    counter, rest = StreamCounter(), LINES.replace(b"\n", end)
    for size in cuts:
        counter.feed(rest[:size])
        rest = rest[size:]
    counter.feed(rest)
    counter.end()
    assert counter.usage() == Usage(3, 2)
    assert (counter.named, counter.events) == (True, 1)


def test_usage_without_the_last_empty_line_counts_and_half_an_event_does_not() -> None:
    last = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}'
    for cut, usage in ((0, Usage(3, 9)), (1, Usage(None, 1))):
        counter = StreamCounter()
        counter.feed(b"data: a\n\n" + last[: len(last) - cut])
        counter.end()
        assert counter.usage() == usage


def test_the_last_event_of_the_responses_api_may_hold_the_whole_answer() -> None:
    text = b"y" * 300_000
    counter = StreamCounter()
    counter.feed(
        b'event: response.completed\ndata: {"type":"response.completed","response":{"output":"'
    )
    counter.feed(text + b'","usage":{"input_tokens":5,"output_tokens":7}}}\n\n')
    assert counter.usage() == Usage(5, 7)


def test_events_that_give_nothing_are_no_tokens() -> None:
    # OpenAI API reference: the first chunk of a chat names the role, the last why it ended.
    chat = (
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
        b'data: {"choices":[{"delta":{"reasoning_content":"a"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    )
    text = (
        b'data: {"choices":[{"text":"a"}]}\n\n'
        b'data: {"choices":[{"text":"","delta":null,"finish_reason":"stop"}]}\n\n'
    )
    responses = (
        b'data: {"type":"response.created","response":{}}\n\n'
        b'data: {"type":"response.output_text.delta","delta":"a"}\n\n'
        b'data: {"type":"response.output_text.done","text":"a"}\n\n'
    )
    for stream, tokens in ((chat, 3), (text, 1), (responses, 1)):
        counter = StreamCounter()
        counter.feed(stream)
        assert counter.usage() == Usage(None, tokens)


def test_usage_beside_what_is_not_known_is_taken() -> None:
    counter = StreamCounter()
    counter.feed(b'data: {"choices":"odd","usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n')
    assert (counter.usage(), counter.named) == (Usage(3, 2), True)


def test_what_was_taken_is_not_taken_again() -> None:
    counter = StreamCounter()
    counter.feed(b"data: a\n\ndata: b\n\n")
    assert (counter.take(), counter.take()) == ((0, 2), (0, 0))
    counter.feed(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n')
    assert (counter.gained(), counter.take(), counter.gained()) == ((3, 7), (3, 7), (0, 0))


def test_a_stream_without_usage_counts_its_events_and_no_event_grows_without_end() -> None:
    counter = StreamCounter()
    counter.feed(b"data: a\n\ndata: b\n\n")
    for start in (b"", b"data: "):
        counter.feed(start)
        for _ in range(EVENT_BYTES_MAX // 4_096 + 10):
            counter.feed(b"x" * 4_096)
            assert len(counter._line) <= EVENT_BYTES_MAX
        counter.feed(b"\n" if not start else b"\n\n")
    for _ in range(EVENT_BYTES_MAX // 4_096 + 10):
        counter.feed(b"data: " + b"x" * 4_096 + b"\n")
        assert sum(len(one) for one in counter._data) <= EVENT_BYTES_MAX
    counter.feed(b"\ndata: c\n\ndata: [DONE]\n\n")
    assert (counter.usage(), counter.named) == (Usage(None, 5), False)
