"""What the hub takes: once, in order, whole; what it cannot accept stays, raw."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from hub.core.sync import SeqSet
from hub.ingest.births import TelemetryHead
from hub.store import sites, sync_tables
from protocol.codec import encode
from protocol.event import (
    ClassReport,
    GapRecord,
    HeldLease,
    LeaseAccepted,
    LeaseInterrupted,
    LeaseRefused,
    LeaseReleased,
    LeaseRunning,
    NeedLeases,
    ReleaseOutcome,
    SiteReport,
    SwitchReport,
)
from protocol.order import OrderReport
from protocol.sync import NackCode, Rebase, Stream, Welcome, digest_of
from protocol.units import from_ms, to_ms
from protocol.usage import Through
from tests.hub.ingest.conftest import START

Hub = Any  # the fixture's class lives in conftest.py
Body = Callable[..., bytes]


def accepted(hub: Hub, attempt: int = 1) -> bytes:
    return encode(
        LeaseAccepted(
            lease_id=f"w-1.{attempt}", attempt=attempt, generation=1, at=hub.now, devices=()
        )
    )


def running(hub: Hub, attempt: int = 1) -> bytes:
    return encode(
        LeaseRunning(lease_id=f"w-1.{attempt}", attempt=attempt, at=hub.now, instances=())
    )


def released(
    hub: Hub, final: int, outcome: ReleaseOutcome = ReleaseOutcome.COMPLETED, attempt: int = 1
) -> bytes:
    return encode(
        LeaseReleased(
            lease_id=f"w-1.{attempt}",
            attempt=attempt,
            at=hub.now,
            outcome=outcome,
            final_usage_seq=final,
        )
    )


def report(hub: Hub, *held: HeldLease) -> bytes:
    return encode(
        SiteReport(
            at=hub.now,
            power_w=1e6,
            power_cap_w=2e6,
            classes=(
                ClassReport(device_class="H100", kind="gpu", total=8, free=8, by_activity={}),
            ),
            leases=held,
        )
    )


@pytest.fixture
def site(hub: Hub) -> Hub:
    hub.birth("s1", 1)
    hub.issue()
    return hub


def test_life_of_a_workload_follows_the_events_and_waits_for_its_usage(
    site: Hub, usage_body: Body
) -> None:
    assert site.state() == "placing"
    site.send(Stream.EVENT, 1, accepted(site))
    assert site.state() == "starting"
    taken = site.send(Stream.EVENT, 2, running(site))
    assert site.state() == "running"
    assert [message.customer_id for message in taken.effects.live] == ["c-1"]
    interrupted = LeaseInterrupted(lease_id="w-1.1", attempt=1, at=site.now, reason="lost")
    site.send(Stream.EVENT, 3, encode(interrupted), running(site))
    assert site.state() == "running"
    site.send(Stream.EVENT, 5, released(site, 2))
    assert site.state() == "running"
    site.send(Stream.USAGE, 1, usage_body(1))
    assert site.state() == "running"
    taken = site.send(Stream.USAGE, 2, usage_body(2))
    assert site.state() == "completed"
    told = site.rows("SELECT detail FROM transitions WHERE reason = 'interrupted'")
    assert told == [('{"why":"lost"}',)]
    assert taken.effects.lease_ids == ["w-1.1"]
    assert site.rows("SELECT count(*) FROM usage") == [(2,)]


URL = "https://g1.test/l/w-1.1/v1"


def test_where_the_work_listens_is_kept_and_told_to_its_owner_alone(site: Hub) -> None:
    first = LeaseRunning(lease_id="w-1.1", attempt=1, at=site.now, instances=(), endpoint_url=URL)
    taken = site.send(Stream.EVENT, 1, accepted(site), encode(first))
    (message,) = [row for row in taken.effects.live if b"gates_open" in row.body]
    assert b"g1.test" not in message.body
    assert msgspec.json.decode(message.owner_body)["endpoint_url"] == URL
    assert site.rows("SELECT endpoint_url FROM leases") == [(URL,)]
    interrupted = LeaseInterrupted(lease_id="w-1.1", attempt=1, at=site.now, reason="lost")
    taken = site.send(Stream.EVENT, 3, encode(interrupted))
    (message,) = taken.effects.live
    assert msgspec.json.decode(message.owner_body)["endpoint_url"] == URL
    held = HeldLease(
        lease_id="w-1.1", attempt=1, generation=1, state="running", devices=(),
        endpoint_url="https://g2.test/l/w-1.1/v1",
    )  # fmt: skip
    site.send(Stream.EVENT, 4, report(site, held))
    assert site.rows("SELECT endpoint_url FROM leases") == [("https://g2.test/l/w-1.1/v1",)]


def test_a_site_speaks_of_its_own_leases_only(site: Hub) -> None:
    site.birth("s2", 1, site_id="houston")
    held = HeldLease(
        lease_id="w-1.1", attempt=1, generation=1, state="running", devices=(), endpoint_url=URL
    )
    site.send(Stream.EVENT, 1, report(site, held), store_id="s2", site_id="houston")
    assert site.rows("SELECT endpoint_url FROM leases") == [(None,)]


def test_records_are_taken_in_order_and_doubles_are_acked_again(
    site: Hub, usage_body: Body
) -> None:
    taken = site.send(Stream.USAGE, 2, usage_body(2))
    assert (taken.ack.wm, taken.ack.nack) == (0, ((2, NackCode.OUT_OF_ORDER),))
    assert site.send(Stream.USAGE, 1, usage_body(1), usage_body(2)).ack.wm == 2
    assert site.send(Stream.USAGE, 1, usage_body(1), usage_body(2), usage_body(3)).ack.wm == 3
    assert site.rows("SELECT count(*) FROM usage") == [(3,)]


def test_another_record_under_a_known_seq_is_an_alarm_and_changes_nothing(
    site: Hub, usage_body: Body
) -> None:
    site.send(Stream.USAGE, 1, usage_body(1))
    taken = site.send(Stream.USAGE, 1, usage_body(9))
    assert taken.ack.wm == 1
    assert site.rows("SELECT code FROM alarms") == [("digest_conflict",)]
    assert site.rows("SELECT usage_id FROM usage") == [("u-1",)]


def test_same_usage_id_is_a_double_or_a_contradiction(site: Hub, usage_body: Body) -> None:
    site.send(Stream.USAGE, 1, usage_body(1), usage_body(1), usage_body(1, active_ms=1))
    assert site.rows("SELECT usage_id, active_ms FROM usage") == [("u-1", 29_999)]
    assert site.rows("SELECT seq, code FROM quarantine") == [(3, "usage_conflict")]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"lease_id": "w-9.1", "workload_id": "w-9"}, "unknown_lease"),
        ({"site_id": "houston"}, "foreign_usage"),
        ({"active_ms": 99_000}, "active_exceeds_minute"),
    ],
)
def test_usage_that_cannot_be_accepted_is_kept_raw_and_acked(
    site: Hub, usage_body: Body, changes: dict[str, object], code: str
) -> None:
    body = usage_body(1, **changes)
    assert site.send(Stream.USAGE, 1, body, usage_body(2)).ack.wm == 2
    assert site.rows("SELECT code, body FROM quarantine") == [(code, body)]
    assert site.rows("SELECT usage_id FROM usage") == [("u-2",)]


def test_usage_of_the_hubs_future_and_of_a_superseded_attempt_is_quarantined(
    site: Hub, usage_body: Body
) -> None:
    late = site.now + timedelta(minutes=1)
    site.send(Stream.EVENT, 1, accepted(site), released(site, 0, ReleaseOutcome.PREEMPTED))
    site.issue(attempt=2)
    superseded = usage_body(2, start=site.now, end=site.now + timedelta(seconds=1), active_ms=1)
    site.send(Stream.USAGE, 1, usage_body(1, start=late), superseded, usage_body(3))
    assert site.rows("SELECT seq, code FROM quarantine ORDER BY seq") == [
        (1, "in_the_future"),
        (2, "attempt_superseded"),
    ]
    assert site.rows("SELECT usage_id FROM usage") == [("u-3",)]


def test_usage_of_the_hubs_future_is_accepted_once_it_is_the_past(
    site: Hub, usage_body: Body
) -> None:
    # The hub's clock was set back by 50 s: what it takes for the future is true.
    early = site.now + timedelta(seconds=10)
    body = usage_body(1, start=early)
    site.send(Stream.USAGE, 1, body, usage_body(2, start=early, active_ms=1))
    site.now += timedelta(seconds=34.9)
    site.send(Stream.USAGE, 3, encode(Through(at=site.now)))
    assert site.rows("SELECT usage_id FROM usage") == []
    site.now += timedelta(seconds=0.2)
    site.send(Stream.EVENT, 1, accepted(site))
    assert site.rows("SELECT usage_id, active_ms FROM usage ORDER BY usage_id") == [
        ("u-1", 29_999),
        ("u-2", 1),
    ]
    assert site.rows("SELECT code FROM quarantine") == []
    assert site.send(Stream.USAGE, 1, body).ack.wm == 3


def test_usage_that_came_before_the_next_attempt_is_of_the_one_before_whatever_its_clock(
    site: Hub, usage_body: Body
) -> None:
    ahead = site.now + timedelta(seconds=20)
    site.send(Stream.USAGE, 1, usage_body(1, start=ahead))
    site.send(Stream.EVENT, 1, accepted(site), released(site, 1, ReleaseOutcome.PREEMPTED))
    site.now += timedelta(seconds=1)
    site.issue(attempt=2)
    site.now += timedelta(minutes=2)
    site.send(Stream.USAGE, 2, encode(Through(at=site.now)))
    assert site.rows("SELECT usage_id FROM usage") == [("u-1",)]
    assert site.rows("SELECT code FROM quarantine") == []


def test_usage_of_the_future_that_is_known_otherwise_by_then_stays_in_quarantine(
    site: Hub, usage_body: Body
) -> None:
    ahead = site.now + timedelta(minutes=1)
    site.send(Stream.USAGE, 1, usage_body(1, start=ahead), usage_body(1))
    site.now += timedelta(minutes=2)
    site.send(Stream.USAGE, 3, encode(Through(at=site.now)))
    assert site.rows("SELECT seq, code FROM quarantine") == [(1, "usage_conflict")]
    assert site.rows("SELECT usage_id FROM usage") == [("u-1",)]


@pytest.mark.parametrize("stream", [Stream.USAGE, Stream.EVENT, Stream.SCHEMA])
def test_malformed_body_is_kept_raw_acked_and_blocks_nothing(site: Hub, stream: Stream) -> None:
    assert site.send(stream, 1, b"\xc1junk").ack.wm == 1
    assert site.rows("SELECT stream, code, body FROM quarantine") == [
        (stream.value, "malformed", b"\xc1junk")
    ]


def test_wrong_hash_and_unknown_store_are_not_taken(site: Hub, usage_body: Body) -> None:
    assert site.send(Stream.USAGE, 1, usage_body(1), store_id="nobody").ack is None
    assert site.rows("SELECT count(*) FROM usage") == [(0,)]


def test_through_advances_only_by_the_owner_and_never_back(site: Hub) -> None:
    site.send(Stream.USAGE, 1, encode(Through(at=site.now)))
    site.send(Stream.USAGE, 2, encode(Through(at=site.now - timedelta(minutes=1))))
    row = sites.get(site.connection, "lubbock")
    assert row is not None
    assert row.through == site.now
    site.birth("s2", 1)
    site.send(Stream.USAGE, 1, encode(Through(at=site.now + timedelta(hours=1))), store_id="s2")
    row = sites.get(site.connection, "lubbock")
    assert row is not None
    assert row.through == site.now - timedelta(milliseconds=10)


def test_refused_attempt_goes_back_to_the_queue_with_its_reason(site: Hub) -> None:
    refused = LeaseRefused(lease_id="w-1.1", attempt=1, generation=1, at=site.now, reason="cap")
    taken = site.send(Stream.EVENT, 1, encode(refused))
    assert site.state() == "queued"
    assert taken.effects.wake
    assert taken.effects.lease_ids == ["w-1.1"]
    assert site.rows("SELECT outcome FROM leases") == [("refused",)]


def test_events_of_an_older_attempt_change_no_workload(site: Hub) -> None:
    site.send(Stream.EVENT, 1, accepted(site), released(site, 0, ReleaseOutcome.PREEMPTED))
    site.issue(attempt=2)
    assert site.state() == "placing"
    site.send(Stream.EVENT, 3, running(site, 1), released(site, 0, ReleaseOutcome.FAILED, 1))
    assert site.state() == "placing"


def test_store_that_does_not_own_the_site_changes_no_workload(site: Hub) -> None:
    answered = site.birth("s2", 1)
    assert isinstance(answered.reply, Welcome)
    assert not answered.reply.owner
    site.send(Stream.EVENT, 1, accepted(site), store_id="s2")
    assert site.state() == "placing"
    assert ("second_store",) in site.rows("SELECT code FROM alarms")


def test_rebase_hands_the_site_on_and_true_doubles_vanish(site: Hub, usage_body: Body) -> None:
    bodies = [usage_body(number) for number in range(1, 6)]
    site.send(Stream.USAGE, 1, *bodies)
    site.send(Stream.EVENT, 1, accepted(site), running(site))
    answered = site.birth("s1", 1, {Stream.USAGE: (3, digest_of(bodies[2]))})
    assert isinstance(answered.reply, Rebase)
    # The copy had seen nothing acked: it renumbers 1..3 and its release, which names old seqs.
    heir = site.birth("s2", 2, {Stream.USAGE: (3, b""), Stream.EVENT: (1, b"")})
    assert isinstance(heir.reply, Welcome)
    assert heir.reply.owner
    site.send(Stream.EVENT, 1, released(site, 5), store_id="s2")
    assert site.state() == "running"
    site.send(Stream.USAGE, 1, *bodies[:3], store_id="s2")
    assert site.state() == "completed"
    assert site.rows("SELECT count(*) FROM usage") == [(5,)]
    assert site.rows("SELECT count(*) FROM quarantine") == [(0,)]


def test_death_of_an_older_connection_is_ignored(site: Hub) -> None:
    site.birth("s1", 2)
    assert not sites.set_offline(site.connection, "lubbock", "s1", 1)
    assert sites.set_offline(site.connection, "lubbock", "s1", 2)


def test_switches_gaps_and_needs_are_stored_or_passed_on(site: Hub) -> None:
    switch = SwitchReport(
        switch_id="sw-1", device_class="H100", from_activity="mine", to_activity="serve",
        devices=1, committed=1, rolled_back=0, quarantined=0, at=site.now, took_us=900,
        reason="lease",
    )  # fmt: skip
    gap = GapRecord(
        stream="tele", seq_first=4, seq_last=6, t_min=site.now, t_max=site.now, points=9,
        cause="disk",
    )  # fmt: skip
    need = NeedLeases(lease_ids=("w-1.1",))
    taken = site.send(Stream.EVENT, 1, encode(switch), encode(switch), encode(gap), encode(need))
    assert site.rows("SELECT count(*) FROM switches") == [(1,)]
    assert [message.topic for message in taken.effects.live] == ["switch"]
    assert [(row.seq_first, row.seq_last) for row in taken.effects.gaps] == [(4, 6)]
    assert taken.effects.lease_ids == ["w-1.1"]


def test_a_word_on_an_order_is_kept_of_the_owner_alone(site: Hub) -> None:
    def report(status: str, **more: object) -> bytes:
        return encode(OrderReport(order_id="own", at=site.now, status=status, **more))  # type: ignore[arg-type] # fields by name

    site.send(Stream.EVENT, 1, report("waiting"), report("holding", load_mw=1.5))
    assert site.rows("SELECT order_id, state, over FROM orders") == [("own", None, 0)]
    taken = site.send(Stream.EVENT, 3, report("met", ended_at=site.now))
    assert site.rows("SELECT over FROM orders") == [(1,)]
    assert not taken.effects.orders  # nothing goes out: it was the site's own
    site.birth("s2", 1)  # a second store does not own the site
    site.send(Stream.EVENT, 1, report("missed"), store_id="s2")
    ((body,),) = site.rows("SELECT report FROM orders")
    assert msgspec.msgpack.decode(body)["status"] == "met"


def test_manifest_names_what_is_not_released(site: Hub) -> None:
    answered = site.birth("s1", 2)
    assert isinstance(answered.reply, Welcome)
    assert [(head.lease_id, head.generation) for head in answered.reply.leases] == [("w-1.1", 1)]
    site.send(Stream.EVENT, 1, released(site, 0))
    answered = site.birth("s1", 3)
    assert isinstance(answered.reply, Welcome)
    assert answered.reply.leases == ()


def test_telemetry_lost_at_the_hub_is_declared_so_that_the_watermark_passes(site: Hub) -> None:
    head = TelemetryHead(SeqSet(0, ((5, 6),)), None)
    answered = site.birth("s1", 2, tele=head)
    assert isinstance(answered.reply, Welcome)
    assert dict(answered.reply.wms)[Stream.TELE] == 0


def test_restored_hub_adopts_what_the_site_really_runs(site: Hub, usage_body: Body) -> None:
    """The backup knows attempt 1 as queued again; since then attempt 2 was issued and ran."""
    site.send(Stream.EVENT, 1, accepted(site), released(site, 0, ReleaseOutcome.PREEMPTED))
    assert site.state() == "queued"
    old = site.now - timedelta(seconds=1)
    sync_tables.raise_epoch(site.connection, site.now)
    held = HeldLease(lease_id="w-1.2", attempt=2, generation=1, state="running", devices=("g",))
    stale = encode(SiteReport(at=old, power_w=None, power_cap_w=1.0, classes=(), leases=()))
    site.send(Stream.EVENT, 3, stale)
    assert site.rows("SELECT report_epoch FROM sites WHERE site_id = 'lubbock'") == [(1,)]
    site.send(Stream.USAGE, 1, usage_body(1, lease_id="w-1.2", attempt=2))
    site.send(Stream.EVENT, 4, running(site, 2), report(site, held))
    assert site.rows("SELECT report_epoch FROM sites WHERE site_id = 'lubbock'") == [(2,)]
    assert site.state() == "running"
    assert site.rows("SELECT attempt FROM workloads") == [(2,)]
    assert site.rows("SELECT usage_id FROM usage") == [("u-1",)]


def test_released_lease_that_a_restored_copy_holds_is_ended_again(site: Hub) -> None:
    site.send(Stream.EVENT, 1, accepted(site), released(site, 0, ReleaseOutcome.PREEMPTED))
    assert site.state() == "queued"
    held = HeldLease(lease_id="w-1.1", attempt=1, generation=1, state="foreign", devices=("g",))
    taken = site.send(Stream.EVENT, 3, report(site, held))
    assert taken.effects.lease_ids == ["w-1.1"]
    assert site.rows("SELECT state, generation, released_at_ms FROM leases") == [("end", 2, None)]
    site.send(Stream.EVENT, 4, released(site, 0, ReleaseOutcome.CANCELLED))
    assert site.state() == "queued"
    assert site.rows("SELECT outcome FROM leases") == [("cancelled",)]


def test_lease_that_nobody_ordered_is_asked_to_end(site: Hub) -> None:
    held = HeldLease(lease_id="ghost.1", attempt=1, generation=3, state="running", devices=("g",))
    taken = site.send(Stream.EVENT, 1, report(site, held))
    assert "ghost.1" in taken.effects.lease_ids
    assert site.rows("SELECT state, generation FROM leases WHERE lease_id = 'ghost.1'") == [
        ("end", 4)
    ]


def test_a_welcome_names_the_record_at_each_watermark(site: Hub, usage_body: Body) -> None:
    bodies = [usage_body(number) for number in range(1, 4)]
    site.send(Stream.USAGE, 1, *bodies)
    reply = site.birth("s1", 2, {Stream.USAGE: (5, b"")}).reply
    assert isinstance(reply, Welcome)
    assert dict(reply.wms)[Stream.USAGE] == 3
    assert reply.wm_digests == ((Stream.USAGE, digest_of(bodies[2])),)


def test_what_a_clock_ahead_calls_complete_is_so_up_to_now_and_no_further(site: Hub) -> None:
    def through() -> object:
        return site.rows("SELECT through_ms FROM sites WHERE site_id = 'lubbock'")[0][0]

    taken = site.send(Stream.USAGE, 1, encode(Through(at=site.now + timedelta(seconds=5))))
    assert taken.effects.alarms == []
    site.now += timedelta(minutes=1)
    taken = site.send(Stream.USAGE, 2, encode(Through(at=site.now + timedelta(days=30))))
    assert (taken.ack.wm, taken.ack.nack) == (2, ())
    assert [alarm.code for alarm in taken.effects.alarms] == ["through_ahead"]
    assert through() == to_ms(site.now)
    # The clock is right again: what it says counts at once.
    site.now += timedelta(minutes=1)
    site.send(Stream.USAGE, 3, encode(Through(at=site.now)))
    assert through() == to_ms(site.now)


def test_energy_that_no_device_takes_would_spoil_every_sum(site: Hub, usage_body: Body) -> None:
    taken = site.send(Stream.USAGE, 1, usage_body(1, energy_j=2**62), usage_body(2))
    assert taken.ack.wm == 2
    assert site.rows("SELECT seq, code FROM quarantine") == [(1, "energy_exceeds_minute")]
    assert site.rows("SELECT sum(energy_j) FROM usage") == [(1_000,)]


def test_usage_from_before_its_workload_is_taken_and_shown_to_staff(
    site: Hub, usage_body: Body
) -> None:
    start = START - timedelta(days=400)
    taken = site.send(Stream.USAGE, 1, usage_body(1, start=start), usage_body(2))
    assert [alarm.code for alarm in taken.effects.alarms] == ["before_its_workload"]
    assert site.rows("SELECT count(*) FROM usage") == [(2,)]


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"])
def test_an_instant_outside_the_calendar_can_be_read_back(site: Hub, at: str) -> None:
    told = {"type": "alarm", "at": at, "code": "hot", "detail": ""}
    taken = site.send(Stream.EVENT, 1, msgspec.msgpack.encode(told))
    assert taken.ack.wm == 1
    ((at_ms,),) = site.rows("SELECT at_ms FROM alarms WHERE code = 'hot'")
    assert from_ms(at_ms).year in {1, 9999}
