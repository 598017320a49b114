"""What is to be held ready, on the node link: as it was sent, bounded, older ends unharmed."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.errors import DecodeError
from protocol.node import (
    PREPARE_MAX,
    AgentBeat,
    NodeFacts,
    Prepare,
    Prepared,
    PrepareStage,
)
from protocol.resource import Activity

AT = datetime(2026, 1, 2, tzinfo=UTC)
IDENT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
AMOUNT = st.floats(0, 1e9)
TEXT = st.text(max_size=60)
PREPARES = st.builds(
    Prepare,
    device_id=IDENT,
    enters=st.sampled_from([Activity.MINE, Activity.SERVE]),
    probability=st.floats(0, 1),
    within_s=AMOUNT,
    earns_usd_per_h=st.floats(-1e9, 1e9),
    energy_usd_per_mwh=st.floats(-1e9, 1e9),
    draw_w=AMOUNT,
    why=TEXT,
)
ROWS = st.builds(
    Prepared,
    device_id=IDENT,
    enters=st.sampled_from([Activity.MINE, Activity.SERVE]),
    stage=st.sampled_from(list(PrepareStage)),
    code=TEXT,
    detail=TEXT,
)


class OldBeat(msgspec.Struct, frozen=True, kw_only=True, tag="agent_beat"):
    """A beat as a node knows it that was installed before."""

    agent_epoch: int
    hub_heard_age_ms: int | None = None


class OldFacts(msgspec.Struct, frozen=True, kw_only=True, tag="node_facts"):
    """Facts as an agent knows them that was installed before."""

    at: datetime
    samples: tuple[object, ...]
    devices: tuple[object, ...]
    proxy_url: str | None = None


@given(prepare=st.lists(PREPARES, max_size=4).map(tuple), epoch=st.integers(0, 1_000))
def test_a_beat_comes_back_as_it_was_sent(prepare: tuple[Prepare, ...], epoch: int) -> None:
    beat = AgentBeat(agent_epoch=epoch, prepare=prepare)
    assert codec.AGENT_TO_NODE.decode(codec.encode(beat, codec.FRAME_BYTES_MAX)) == beat


@given(rows=st.lists(ROWS, max_size=4).map(tuple))
def test_facts_come_back_as_they_were_sent(rows: tuple[Prepared, ...]) -> None:
    facts = NodeFacts(at=AT, samples=(), devices=(), prepared=rows)
    assert codec.NODE_TO_AGENT.decode(codec.encode(facts, codec.FRAME_BYTES_MAX)) == facts


@given(prepare=st.lists(PREPARES, max_size=4).map(tuple))
def test_an_older_node_reads_the_rest_of_a_beat(prepare: tuple[Prepare, ...]) -> None:
    sent = codec.encode(AgentBeat(agent_epoch=3, hub_heard_age_ms=7, prepare=prepare))
    assert msgspec.msgpack.decode(sent, type=OldBeat) == OldBeat(agent_epoch=3, hub_heard_age_ms=7)


@given(rows=st.lists(ROWS, max_size=4).map(tuple))
def test_an_older_agent_reads_the_rest_of_the_facts(rows: tuple[Prepared, ...]) -> None:
    sent = codec.encode(NodeFacts(at=AT, samples=(), devices=(), prepared=rows))
    assert msgspec.msgpack.decode(sent, type=OldFacts) == OldFacts(at=AT, samples=(), devices=())


def test_what_an_older_end_says_wants_and_holds_nothing() -> None:
    beat = codec.AGENT_TO_NODE.decode(msgspec.msgpack.encode(OldBeat(agent_epoch=1)))
    assert isinstance(beat, AgentBeat)
    assert beat.prepare == ()
    old = OldFacts(at=AT, samples=(), devices=())
    facts = codec.NODE_TO_AGENT.decode(msgspec.msgpack.encode(old))
    assert isinstance(facts, NodeFacts)
    assert facts.prepared == ()


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (PREPARE_MAX + 1, {}),
        (1, {"probability": 1.1}),
        (1, {"within_s": -1.0}),
        (1, {"draw_w": float("nan")}),
    ],
)
def test_what_is_out_of_bounds_is_no_message(count: int, fields: dict[str, float]) -> None:
    one: dict[str, object] = {"device_id": "d", "enters": "serve", "probability": 0.5}
    rows = [{**one, "within_s": 1.0, **fields}] * count
    body = msgspec.msgpack.encode({"type": "agent_beat", "agent_epoch": 1, "prepare": rows})
    with pytest.raises(DecodeError):
        codec.AGENT_TO_NODE.decode(body)
