"""Phases that nodes go on to by themselves end as if each had been asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core.switching import (
    PATHS,
    Ask,
    Begun,
    Closed,
    Said,
    Stage,
    Status,
    Switch,
    SwitchDevice,
    hear,
    step,
)
from protocol.node import DeviceOutcome, Phase, PhaseEnd
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.test_switching import make

PATH = PATHS[DeviceKind.GPU]
WALK = PATH[1:7]
# Devices by node, and the phase in which each fails.
Fates = dict[str, tuple[str, Phase | None]]


def over(nodes: dict[str, str], *, all_or_none: bool) -> Switch:
    devices = tuple(SwitchDevice(name, node, Activity.MINE) for name, node in nodes.items())
    return replace(make(DeviceKind.GPU, 1, all_or_none=all_or_none), devices=devices)


def first_ask(switch: Switch) -> Ask:
    (ask,) = step(switch, Begun(), 0)[1]
    assert isinstance(ask, Ask)
    return ask


def end(phase: Phase, took_us: int | None = None, **status: str) -> PhaseEnd:
    outcomes = tuple(DeviceOutcome(device_id=name, status=one) for name, one in status.items())
    return PhaseEnd(phase=phase, outcomes=outcomes, took_us=took_us)


def test_one_node_is_asked_for_all_up_to_the_verification_and_then_for_the_commit() -> None:
    switch = over({"d0": "a", "d1": "a"}, all_or_none=True)
    ask = first_ask(switch)
    assert (ask.phase, *(one.phase for one in ask.then)) == PATH[:7]
    assert [one.deadline_s for one in ask.then] == [10.0, 10.0, 10.0, 15.0, 30.0, 15.0]
    ends = tuple(end(phase, 1_000, d0="done", d1="done") for phase in PATH[:7])
    switch, (following,) = hear(switch, ask, (Said(ends),), 500, 20_000_500)
    assert isinstance(following, Ask)
    assert (following.phase, following.then) == (Phase.COMMIT, ())
    assert switch.commit_asked
    # What the node does not tell of the time is the round trip, and the last phase's.
    assert [span.took_us for span in switch.spans] == [1_000] * 6 + [14_000]


def test_no_node_of_several_drains_before_all_have_agreed() -> None:
    switch = over({"d0": "a", "d1": "b"}, all_or_none=True)
    ask = first_ask(switch)
    assert ask.then == ()
    both = (Said((end(Phase.VALIDATE, d0="done"),)), Said((end(Phase.VALIDATE, d1="done"),)))
    _, (following,) = hear(switch, ask, both, 0, 1)
    assert isinstance(following, Ask)
    assert (following.phase, *(one.phase for one in following.then)) == WALK


def test_asics_and_undoing_are_asked_for_one_phase_at_a_time() -> None:
    assert first_ask(make(DeviceKind.ASIC, 2, all_or_none=False)).then == ()
    undone = replace(over({"d0": "a"}, all_or_none=True), stage=Stage.ROLLBACK)
    failed = tuple(replace(one, status=Status.FAILED) for one in undone.devices)
    assert first_ask(replace(undone, phase=Phase.ROLLBACK, devices=failed)).then == ()


def test_a_walk_that_may_have_been_heard_is_undone_and_one_that_was_not_touched_nothing() -> None:
    switch = over({"d0": "a"}, all_or_none=True)
    after, (effect,) = hear(switch, first_ask(switch), (Said(()),), 0, 1)
    assert isinstance(effect, Closed)
    assert after.devices[0].status is Status.ROLLED_BACK
    after, (effect,) = hear(switch, first_ask(switch), (Said((), lost=True),), 0, 1)
    assert isinstance(effect, Ask)
    assert effect.phase is Phase.ROLLBACK


def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_touched() -> None:
    switch = over({"d0": "a"}, all_or_none=True)
    refused = Said((end(Phase.VALIDATE, d0="refused"),), lost=True)
    after, _ = hear(switch, first_ask(switch), (refused,), 0, 1)
    assert after.phase is Phase.ROLLBACK


@given(
    fates=st.dictionaries(
        st.sampled_from([f"d{number}" for number in range(5)]),
        st.tuples(st.sampled_from("abc"), st.none() | st.sampled_from(PATH)),
        min_size=1,
    ),
    all_or_none=st.booleans(),
)
def test_a_switch_ends_as_if_each_phase_had_been_asked_for(
    fates: Fates, *, all_or_none: bool
) -> None:
    begun = over({name: node for name, (node, _) in fates.items()}, all_or_none=all_or_none)
    alone = carried(begun, fates, walks=False)
    walked = carried(begun, fates, walks=True)
    assert [one.status for one in walked.devices] == [one.status for one in alone.devices]
    assert [one.code for one in walked.devices] == [one.code for one in alone.devices]
    assert [span.phase for span in walked.spans] == [span.phase for span in alone.spans]


def carried(switch: Switch, fates: Fates, *, walks: bool) -> Switch:
    switch, effects = step(switch, Begun(), 0)
    for now_ns in range(100):
        ask = effects[0]
        if isinstance(ask, Closed):
            return switch
        if not walks:
            ask = replace(ask, then=())
        said = tuple(
            Said(tuple(walk_of_node(ask, fates, node))) for node in sorted(set(node_names(ask)))
        )
        switch, effects = hear(switch, ask, said, now_ns, now_ns + 1)
    raise AssertionError("it does not end")


def node_names(ask: Ask) -> list[str]:
    return [one.node_id or "" for one in ask.devices]


def walk_of_node(ask: Ask, fates: Fates, node: str) -> list[PhaseEnd]:
    """Do what a node does: every phase until one is not done by all."""
    ends = []
    mine = [one.device_id for one in ask.devices if one.node_id == node]
    for phase in (ask.phase, *(one.phase for one in ask.then)):
        outcomes = tuple(
            DeviceOutcome(device_id=name, status="failed", code=f"at_{phase.value}")
            if fates[name][1] is phase
            else DeviceOutcome(device_id=name, status="done")
            for name in mine
        )
        ends.append(PhaseEnd(phase=phase, outcomes=outcomes, took_us=0))
        if any(one.status != "done" for one in outcomes):
            break
    return ends
