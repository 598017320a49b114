"""Attempts: what follows from their end, and which usage is theirs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hub.core.leases import (
    after_release,
    end_of,
    is_lapsed,
    rotated,
    usage_doubt,
    usage_fault,
    with_keys,
)
from hub.core.workload_states import FINAL, WorkloadState, is_allowed
from protocol.event import ReleaseOutcome
from protocol.lease import (
    KEYS_MAX,
    AccessKey,
    EndReason,
    Lease,
    LeaseState,
    OnPartition,
    WorkloadSpec,
)
from protocol.usage import UsageRecord

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = NOW.replace(second=0)

LEASE = Lease(
    hub_epoch=1,
    generation=1,
    lease_id="w-1.1",
    workload_id="w-1",
    attempt=1,
    site_id="lubbock",
    state=LeaseState.RUN,
    device_class="H100",
    count=1,
    priority=5,
    spec=WorkloadSpec(),
    issued_at=MINUTE - timedelta(minutes=5),
)
USAGE = UsageRecord(
    usage_id="u-1",
    site_id="lubbock",
    lease_id="w-1.1",
    workload_id="w-1",
    attempt=1,
    device_id="gpu-0",
    device_class="H100",
    instance_id="i-1",
    interval_no=0,
    start=MINUTE,
    end=NOW,
    active_ms=30_000,
    energy_j=9_000,
)


@given(
    st.sampled_from(WorkloadState),
    st.sampled_from(ReleaseOutcome),
    st.sampled_from((None, *EndReason)),
)
def test_steps_after_a_release_are_legal_and_leave_no_attempt_behind(
    state: WorkloadState, outcome: ReleaseOutcome, reason: EndReason | None
) -> None:
    steps = after_release(state, outcome, reason)
    for step in steps:
        assert is_allowed(state, step.to), (state, step)
        state = step.to
    if steps:
        assert state is WorkloadState.QUEUED or state in FINAL


def test_customer_cancel_ends_cancelled_unless_the_work_was_done() -> None:
    cancelling = WorkloadState.CANCELLING
    for outcome in ReleaseOutcome:
        (step,) = after_release(cancelling, outcome, EndReason.CANCELLED)
        done = outcome is ReleaseOutcome.COMPLETED
        assert step.to is (WorkloadState.COMPLETED if done else WorkloadState.CANCELLED)


def test_end_is_a_newer_generation() -> None:
    ended = end_of(LEASE, hub_epoch=2, reason=EndReason.MOVED)
    assert ended.version > LEASE.version
    assert (ended.state, ended.end_reason) == (LeaseState.END, EndReason.MOVED)
    assert replace(ended, hub_epoch=1, generation=1, state=LeaseState.RUN, end_reason=None) == LEASE


def test_only_move_lapses_and_only_after_the_margin() -> None:
    moving = replace(LEASE, on_partition=OnPartition.MOVE, lapse_after_s=300)
    assert not is_lapsed(moving, 360.0)
    assert is_lapsed(moving, 360.1)
    assert not is_lapsed(LEASE, 1e9)


@dataclass(frozen=True)
class Case:
    changes: dict[str, object]
    code: str | None
    next_issued_at: datetime | None = None


@pytest.mark.parametrize(
    "case",
    [
        Case({}, None),
        Case({"active_ms": 60_050}, None),
        Case({"active_ms": 60_051}, "active_exceeds_minute"),
        Case({"energy_j": 10**9}, None),
        Case({"energy_j": 10**9 + 1}, "energy_exceeds_minute"),
        Case({"site_id": "houston"}, "foreign_usage"),
        Case({"attempt": 2}, "wrong_attempt"),
        Case({"workload_id": "w-2"}, "wrong_attempt"),
        Case({"device_class": "A100"}, "wrong_class"),
        Case({"end": MINUTE + timedelta(minutes=1)}, "in_the_future"),
        Case({"end": NOW + timedelta(seconds=5)}, None),
        Case({"start": MINUTE - timedelta(seconds=1)}, "spans_minutes"),
        Case({}, None, MINUTE + timedelta(microseconds=1)),
        Case({}, "attempt_superseded", MINUTE),
        Case({}, "attempt_superseded", MINUTE - timedelta(minutes=1)),
    ],
)
def test_usage_is_checked(case: Case) -> None:
    fault = usage_fault(
        replace(USAGE, **case.changes),
        site_id="lubbock",
        lease=LEASE,
        next_issued_at=case.next_issued_at,
        received_at=NOW,
        now=NOW,
    )
    assert (None if fault is None else fault.code) == case.code


def test_more_served_than_the_stamps_allow_is_a_doubt_not_a_fault() -> None:
    assert usage_doubt(replace(USAGE, active_ms=30_050), MINUTE) is None
    doubt = usage_doubt(replace(USAGE, active_ms=30_051), MINUTE)
    assert doubt is not None
    assert doubt.code == "active_exceeds_interval"


def test_time_before_the_work_was_submitted_is_a_doubt_not_a_fault() -> None:
    assert usage_doubt(USAGE, USAGE.end + timedelta(seconds=5)) is None
    doubt = usage_doubt(USAGE, USAGE.end + timedelta(seconds=6))
    assert doubt is not None
    assert doubt.code == "before_its_workload"


def test_usage_of_an_unknown_lease_is_a_fault() -> None:
    fault = usage_fault(
        USAGE, site_id="lubbock", lease=None, next_issued_at=None, received_at=NOW, now=NOW
    )
    assert fault is not None
    assert fault.code == "unknown_lease"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 86_400)), max_size=6))
def test_of_any_keys_the_newest_stands_and_at_most_the_one_before_has_a_grace(
    made: list[tuple[str, int]],
) -> None:
    keys: tuple[AccessKey, ...] = ()
    for name, grace_s in made:
        before, keys = keys, rotated(keys, name * 64, NOW, grace_s)
        assert keys[0] == AccessKey(sha256=name * 64)
        assert len(keys) <= KEYS_MAX
        if before and grace_s > 0 and before[0].sha256 != name * 64:
            until = NOW + timedelta(seconds=grace_s)
            assert keys[1:] == (AccessKey(sha256=before[0].sha256, until=until),)
        else:
            assert keys[1:] == ()


def test_new_keys_are_the_next_generation_and_an_end_keeps_them() -> None:
    keys = (AccessKey(sha256="a" * 64),)
    renewed = with_keys(LEASE, hub_epoch=2, keys=keys)
    assert renewed == replace(LEASE, hub_epoch=2, generation=2, keys=keys)
    ended = end_of(renewed, hub_epoch=2, reason=EndReason.CANCELLED)
    assert (ended.state, ended.generation, ended.keys) == (LeaseState.END, 3, keys)
