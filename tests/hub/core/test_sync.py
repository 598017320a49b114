"""Decisions of the sync conversation."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.core.sync import (
    BirthKind,
    BirthRow,
    SeqSet,
    SiteView,
    StoreView,
    Verdict,
    credit_after,
    decide_birth,
    judge_ordered,
    release_ready_at,
)
from protocol.sync import Birth, Record, Stream, StreamHead, digest_of
from protocol.units import to_ms

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OWNED = SiteView(owner_store_id="s1")


def birth(
    store_id: str = "s1",
    conn_no: int = 1,
    *,
    at: datetime = NOW,
    next_seq: int = 1,
    last_digest: bytes = b"",
) -> Birth:
    return Birth(
        site_id="lubbock",
        store_id=store_id,
        boot_id="boot-1",
        conn_no=conn_no,
        at=at,
        agent_version="0.1.0",
        heads=(StreamHead(stream=Stream.USAGE, next_seq=next_seq, last_digest=last_digest),),
    )


def known(wm: int, digest: bytes | None = None, *, births: tuple[BirthRow, ...] = ()) -> StoreView:
    return StoreView(heads=((Stream.USAGE, wm, digest),), births=births)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda p: (p[0], p[0] + p[1])),
        max_size=30,
    )
)
def test_seq_set_equals_a_plain_set(spans: list[tuple[int, int]]) -> None:
    plain: set[int] = set()
    seqs = SeqSet()
    for first, last in spans:
        plain |= set(range(first, last + 1))
        seqs = seqs.add(first, last)
    expected_wm = next(n for n in range(1, 100) if n not in plain) - 1
    assert seqs.wm == expected_wm
    assert {n for n in range(1, 100) if seqs.holds(n)} == plain
    assert seqs.highest == max(plain, default=0)
    covered = [n for first, last in seqs.ranges for n in range(first, last + 1)]
    assert covered == sorted(n for n in plain if n > expected_wm)
    assert all(b[0] > a[1] + 1 for a, b in zip(seqs.ranges, seqs.ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("seq", "body_digest", "known_digest", "verdict"),
    [
        (4, None, None, Verdict.TAKE),
        (5, None, None, Verdict.OUT_OF_ORDER),
        (3, None, digest_of(b"body"), Verdict.DUPLICATE),
        (3, None, digest_of(b"other"), Verdict.CONFLICT),
        (3, None, None, Verdict.DUPLICATE),
        (4, b"x" * 16, None, Verdict.BAD_HASH),
        (3, b"x" * 16, digest_of(b"body"), Verdict.BAD_HASH),
    ],
)
def test_ordered_record(
    seq: int, body_digest: bytes | None, known_digest: bytes | None, verdict: Verdict
) -> None:
    record = Record(seq, body_digest or digest_of(b"body"), b"body")
    assert judge_ordered(record, 3, known_digest) is verdict


def test_credit_starts_at_one_and_is_bounded() -> None:
    credits_given = [credit_after(acks) for acks in range(200)]
    assert credits_given[0] == 1
    assert credits_given == sorted(credits_given)
    assert credits_given[-1] == 16


def test_first_store_owns_and_a_second_only_reads() -> None:
    first = decide_birth(birth(), SiteView(), None)
    assert (first.kind, first.owner, first.became_owner) == (BirthKind.WELCOME, True, True)
    second = decide_birth(birth("s2"), OWNED, None)
    assert (second.kind, second.owner, second.alarm) == (
        BirthKind.WELCOME,
        False,
        "second_store",
    )


def test_store_behind_the_hub_must_rebase_and_its_successor_owns() -> None:
    decision = decide_birth(birth(conn_no=2, next_seq=5), OWNED, known(7))
    assert (decision.kind, decision.owner) == (BirthKind.REBASE, True)
    heir = decide_birth(birth("s2"), SiteView(owner_store_id="s1", rebase_of="s1"), None)
    assert (heir.owner, heir.became_owner) == (True, True)


def test_store_that_starts_over_by_itself_keeps_the_site() -> None:
    site = SiteView(owner_store_id="s1", boot_id="boot-1", conn_no=7)
    assert decide_birth(birth("s2", 8), site, None).became_owner
    assert not decide_birth(birth("s2", 1), site, None).owner
    elsewhere = SiteView(owner_store_id="s1", boot_id="boot-9", conn_no=7)
    assert not decide_birth(birth("s2", 8), elsewhere, None).owner


def test_another_record_at_the_head_must_rebase() -> None:
    told = birth(conn_no=2, next_seq=8, last_digest=b"a" * 16)
    assert decide_birth(told, OWNED, known(7, b"b" * 16)).kind is BirthKind.REBASE
    assert decide_birth(told, OWNED, known(7, b"a" * 16)).kind is BirthKind.WELCOME
    assert decide_birth(told, OWNED, known(6, b"b" * 16)).kind is BirthKind.WELCOME


def test_late_birth_is_told_from_a_restored_copy() -> None:
    rows = (BirthRow(1, to_ms(NOW)), BirthRow(2, to_ms(NOW + timedelta(minutes=1))))
    late = decide_birth(birth(conn_no=1), OWNED, known(0, births=rows))
    assert late.kind is BirthKind.STALE
    repeated = decide_birth(
        birth(conn_no=2, at=NOW + timedelta(minutes=1)), OWNED, known(9, births=rows)
    )
    assert repeated.kind is BirthKind.WELCOME
    copy = decide_birth(birth(conn_no=2, at=NOW + timedelta(hours=1)), OWNED, known(0, births=rows))
    assert copy.kind is BirthKind.REBASE


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_release_of_a_rebased_store_waits_for_all_it_can_mean(
    event_seq: int, unacked: int, acked: int, later: int
) -> None:
    """Old numbering: usage 1..acked+unacked; the new store holds the unacked as 1..unacked."""
    old_final = acked + unacked
    base_event = event_seq + later
    ready = release_ready_at(
        event_seq=event_seq,
        final_usage_seq=old_final,
        base_event_seq=base_event,
        base_usage_seq=unacked,
    )
    assert ready == unacked
    assert (
        release_ready_at(
            event_seq=base_event + 1, final_usage_seq=7, base_event_seq=base_event, base_usage_seq=0
        )
        == 7
    )
