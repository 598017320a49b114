"""The cgminer codec: requests, both answer forms, joins, limits and STATUS errors."""

import json
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.cgminer.codec import (
    REQUEST_BYTES_MAX,
    Severity,
    decode_answers,
    encode_request,
    raise_for_status,
)
from firmware_bridges.document import ANSWER_BYTES_MAX
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)

AT = "127.0.0.1:4028"
# API-README of cgminer 4.11.1: the form of a JSON answer and of a text answer.
SUMMARY = (
    b'{"STATUS":[{"STATUS":"S","When":1,"Code":11,"Msg":"Summary","Description":"cgminer"}],'
    b'"SUMMARY":[{"Elapsed":60,"GHS 5s":203007.01}],"id":1}\x00'
)
TEXT = (
    b"STATUS=S,When=1,Code=7,Msg=2 Pool(s),Description=cgminer 4.11.1|"
    b"POOL=0,URL=stratum+tcp://a:1,User=x\\,y|POOL=1,URL=stratum+tcp://b:1,User=p\\=q\\|r|\x00"
)
WORDS = st.text("abcxyz 0159_-.", min_size=1, max_size=8)


def test_requests_have_the_documented_form() -> None:
    assert json.loads(encode_request(["summary"])) == {"command": "summary"}
    assert json.loads(encode_request(["addpool"], "a,b,c")) == {
        "command": "addpool",
        "parameter": "a,b,c",
    }
    assert json.loads(encode_request(["summary", "pools"])) == {"command": "summary+pools"}
    assert json.loads(encode_request(["stats"], new_api=True)) == {
        "command": "stats",
        "new_api": True,
    }


@pytest.mark.parametrize("commands", [[], ["a b"], ["a+b"], [""], ['a"b'], ["a\n"]])
def test_names_that_are_no_command_are_refused(commands: list[str]) -> None:
    with pytest.raises(ValueError, match="command"):
        encode_request(commands)


def test_a_request_that_the_miner_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=str(REQUEST_BYTES_MAX)):
        encode_request(["addpool"], "x" * REQUEST_BYTES_MAX)
    with pytest.raises(ValueError, match="parameter"):
        encode_request(["summary", "pools"], "x")


def test_a_plain_answer_is_read_without_repairs() -> None:
    (answer,) = decode_answers(SUMMARY, ["summary"], AT)
    assert answer.repairs == ()
    assert not answer.truncated
    assert answer.status[0].severity is Severity.SUCCESS
    assert answer.status[0].code == 11
    assert answer.section("SUMMARY") == ({"Elapsed": 60, "GHS 5s": 203007.01},)
    assert answer.section("POOLS") is None


def test_a_joined_answer_gives_each_part_its_own_status() -> None:
    body = {
        "summary": [json.loads(SUMMARY.rstrip(b"\0"))],
        "devs": [{"STATUS": [{"STATUS": "E", "Code": 10, "Msg": "No ASCs"}], "id": 1}],
        "id": 1,
    }
    summary, devs, pools = decode_answers(
        json.dumps(body).encode() + b"\0", ["summary", "devs", "pools"], AT
    )
    assert summary.section("SUMMARY") is not None
    with pytest.raises(BridgeRefusedError, match="code 10"):
        raise_for_status(devs, AT)
    assert pools.truncated, "a part that did not come says nothing"
    assert pools.sections == ()


def test_a_refused_join_is_the_refusal_of_each_part() -> None:
    body = b'{"STATUS":[{"STATUS":"E","When":1,"Code":14,"Msg":"Invalid command"}],"id":1}\0'
    for answer in decode_answers(body, ["summary", "pools"], AT):
        with pytest.raises(BridgeUnsupportedError):
            raise_for_status(answer, AT)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ({"STATUS": "E", "Code": 14, "Msg": "Invalid command"}, BridgeUnsupportedError),
        ({"STATUS": "E", "Code": 0, "Msg": "Invalid command"}, BridgeUnsupportedError),
        ({"STATUS": "E", "Code": 45, "Msg": "Access denied"}, BridgeAuthError),
        ({"STATUS": "E", "Code": 23, "Msg": "Invalid JSON"}, BridgeGarbledError),
        ({"STATUS": "E", "Code": 24, "Msg": "Missing JSON 'command'"}, BridgeGarbledError),
        ({"STATUS": "F", "Code": "x", "Msg": "fatal"}, BridgeRefusedError),
    ],
)
def test_status_codes_become_errors(status: Mapping[str, object], error: type[BridgeError]) -> None:
    (answer,) = decode_answers(json.dumps({"STATUS": [status]}).encode(), ["x"], AT)
    with pytest.raises(error) as caught:
        raise_for_status(answer, AT)
    assert caught.value.sent


@pytest.mark.parametrize("letter", ["S", "I", "W", None, "Q", 7])
def test_other_status_letters_are_no_error(letter: object) -> None:
    (answer,) = decode_answers(json.dumps({"STATUS": [{"STATUS": letter}]}).encode(), ["x"], AT)
    raise_for_status(answer, AT)


def test_whatsminer_puts_its_status_at_the_top() -> None:
    body = b'{"STATUS":"S","When":1,"Code":131,"Msg":"whatsminer v1.1","Description":""}'
    (answer,) = decode_answers(body, ["get_version"], AT)
    assert answer.status[0].code == 131
    assert answer.status[0].message == "whatsminer v1.1"


def test_a_text_answer_is_read_with_its_escapes() -> None:
    (answer,) = decode_answers(TEXT, ["pools"], AT)
    assert answer.status[0].code == 7
    assert answer.section("POOLS") == (
        {"POOL": "0", "URL": "stratum+tcp://a:1", "User": "x,y"},
        {"POOL": "1", "URL": "stratum+tcp://b:1", "User": "p=q|r"},
    )
    assert not answer.truncated


def test_a_cut_text_answer_loses_its_last_item() -> None:
    (answer,) = decode_answers(b"STATUS=S,Code=11|SUMMARY,Elapsed=60,MHS av=12", ["summary"], AT)
    assert answer.truncated
    assert answer.section("SUMMARY") == ({"Elapsed": "60"},)


def escaped(text: str) -> str:
    """Escape as cgminer does: a backslash before each mark."""
    return "".join("\\" + char if char in "\\|,=" else char for char in text)


@given(st.lists(st.dictionaries(WORDS, st.text("ab,=|\\ 5", min_size=1), min_size=1), max_size=4))
def test_text_answers_round_trip(rows: list[dict[str, str]]) -> None:
    body = "STATUS=S,Code=7|"
    for number, row in enumerate(rows):
        items = [f"{escaped(key)}={escaped(value)}" for key, value in row.items()]
        body += ",".join([f"POOL={number}", *items]) + "|"
    (answer,) = decode_answers(body.encode() + b"\0", ["pools"], AT)
    expected = tuple({"POOL": str(number), **row} for number, row in enumerate(rows))
    assert answer.section("POOLS") == (expected or None)


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: SUMMARY[:-40] + tail))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        answers = decode_answers(data, ["summary", "pools"], AT)
    except BridgeGarbledError as error:
        assert error.code == "bridge.garbled"
    else:
        assert len(answers) == 2


@given(st.integers(1, len(SUMMARY) - 2))
def test_every_cut_of_an_answer_is_marked(cut: int) -> None:
    try:
        (answer,) = decode_answers(SUMMARY[:cut], ["summary"], AT)
    except BridgeGarbledError:
        return
    assert answer.truncated


def test_bytes_that_are_no_utf8_are_read_as_latin_1() -> None:
    (answer,) = decode_answers(b'{"POOLS":[{"User":"caf\xe9"}]}', ["pools"], AT)
    assert answer.section("POOLS") == ({"User": "café"},)
    assert answer.repairs == ("latin_1",)


@pytest.mark.parametrize("body", [b"", b"\0\0", b"[1]", b'"x"', b"hello", b"{" * 65])
def test_nothing_to_understand_is_garbled(body: bytes) -> None:
    with pytest.raises(BridgeGarbledError):
        decode_answers(body, ["summary"], AT)


def test_limits_of_size_and_depth_hold() -> None:
    with pytest.raises(BridgeGarbledError, match="limit"):
        decode_answers(b"{" + b" " * ANSWER_BYTES_MAX + b"}", ["summary"], AT)
    with pytest.raises(BridgeGarbledError, match="deeper"):
        decode_answers(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", ["summary"], AT)
    wide = b'{"STATS":[' + b",".join([b"{}"] * 200) + b"]}"
    (answer,) = decode_answers(wide, ["stats"], AT)
    assert len(answer.section("STATS") or ()) == 200


@pytest.mark.parametrize(
    "hostile",
    [b'{"a":"' + b'\\"' * 400_000, b"{" * 70 + b'\\"' * 400_000, b'{"":' * 60 + b'"' * 900_000,
     b"|" * 1_000_000, b"a" + b"\\" * 1_000_000, b'{"a":' + b"9" * 1_000_000],
)  # fmt: skip
def test_a_hostile_megabyte_costs_bounded_time(hostile: bytes) -> None:
    begin = time.process_time()
    try:
        decode_answers(hostile, ["summary"], AT)
    except BridgeGarbledError:
        assert hostile
    assert time.process_time() - begin < 3.0


def test_a_comma_that_was_not_escaped_stays_within_its_value() -> None:
    text = (
        b"STATUS=S,Code=70,Msg=stats|STATS=0,MM ID0=SYSTEMSTATU[Work: In Work, Hash Board: 3],ID=A|"
    )
    (answer,) = decode_answers(text, ["estats"], "10.0.0.1:4028")
    assert answer.section("STATS") == (
        {"STATS": "0", "MM ID0": "SYSTEMSTATU[Work: In Work, Hash Board: 3]", "ID": "A"},
    )
    assert not answer.truncated
