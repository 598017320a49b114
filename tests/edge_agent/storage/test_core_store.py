"""The core store: recovery, streams, marks, rebase, retention."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from edge_agent.ports import CommitBatch, MeterHead, SwitchRow
from edge_agent.storage.core_store import SqliteCoreStore, StoreLimits
from edge_agent.storage.errors import StoreIoError
from edge_agent.storage.journal_reader import JournalReader
from edge_agent.storage.outbox import SegmentRow, found_store
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.writer import open_database
from protocol import codec
from protocol.event import Alarm, GapRecord, LeaseReleased, ReleaseOutcome
from protocol.lease import Lease, LeaseState, SitePolicy, WorkloadSpec
from protocol.node import MeterReading, ReadingKind
from protocol.sync import Stream, digest_of
from protocol.units import from_ms
from protocol.usage import UsageRecord

MakeStore = Callable[..., SqliteCoreStore]
Usage = Callable[[int], UsageRecord]


def _lease(clock: object, generation: int, epoch: int = 1) -> Lease:
    return Lease(
        hub_epoch=epoch,
        generation=generation,
        lease_id="w-1.1",
        workload_id="w-1",
        attempt=1,
        site_id="fargo",
        state=LeaseState.RUN,
        device_class="h100",
        count=1,
        priority=3,
        spec=WorkloadSpec(),
        issued_at=clock.now,  # type: ignore[attr-defined]
        price_usd_per_h=Decimal("1.25"),
    )


def _head(clock: object, served_ns: int, *, closed: bool = False) -> MeterHead:
    reading = MeterReading(
        seq=5,
        kind=ReadingKind.MINUTE,
        lease_id="w-1.1",
        workload_id="w-1",
        attempt=1,
        device_id="gpu-1",
        device_class="h100",
        instance_id="i-1",
        boot_id="b",
        boottime_ns=7,
        at=clock.now,  # type: ignore[attr-defined]
        served_ns=served_ns,
        energy_mj=9,
    )
    return MeterHead(reading=reading, next_interval_no=2, closed=closed)


def _seqs(store: SqliteCoreStore, stream: Stream, after: int = 0) -> list[int]:
    return [record.seq for record in store.pending(stream, after, 1_000, 1 << 20)]


async def test_everything_committed_is_recovered(
    make_store: MakeStore, clock: object, usage: Usage
) -> None:
    store = make_store()
    first = await store.recover()
    assert (first.agent_epoch, first.facts, first.leases) == (1, (), ())
    policy = SitePolicy(hub_epoch=1, generation=4, site_id="fargo", power_cap_w=1e6)
    committed = await store.commit(
        CommitBatch(
            facts=b"fact-1",
            switches=(
                SwitchRow(switch_id="s1", body=b"open", closed=False),
                SwitchRow(switch_id="s2", body=b"open", closed=False),
            ),
            usage=(usage(1), usage(2)),
            leases=(_lease(clock, 2),),
            policy=policy,
            meter_heads=(_head(clock, 10),),
            node_marks=(("node-1", 5),),
        )
    )
    assert (committed.fact_seq, committed.usage_seq, committed.event_seq) == (1, 2, 0)
    await store.commit(
        CommitBatch(
            facts=b"fact-2",
            switches=(SwitchRow(switch_id="s1", body=b"done", closed=True),),
            meter_heads=(_head(clock, 20),),
            node_marks=(("node-1", 6),),
            sync=False,
        )
    )
    await store.close()

    again = make_store()
    found = await again.recover()
    assert found.store_id == first.store_id
    assert found.agent_epoch == 2
    assert found.facts == ((1, b"fact-1"), (2, b"fact-2"))
    assert [row.switch_id for row in found.open_switches] == ["s2"]
    assert found.leases == (_lease(clock, 2),)
    assert found.policy == policy
    assert [head.reading.served_ns for head in found.meter_heads] == [20]
    assert found.node_marks == (("node-1", 6),)
    assert [row.body for row in again.recent_switches(5)] == [b"open", b"done"]
    records = again.pending(Stream.USAGE, 0, 10, 1 << 20)
    assert [codec.USAGE_ITEM.decode(record.body) for record in records] == [usage(1), usage(2)]
    assert [record.digest for record in records] == [digest_of(r.body) for r in records]
    head = {row.stream: row for row in again.heads()}[Stream.USAGE]
    assert (head.next_seq, head.last_digest) == (3, records[-1].digest)
    await again.close()


async def test_snapshot_bounds_what_is_replayed(make_store: MakeStore) -> None:
    store = make_store(StoreLimits(journal_bytes_max=60))
    await store.recover()
    for number in range(1, 11):
        await store.commit(CommitBatch(facts=b"%010d" % number))
    await store.save_snapshot(8, b"state-8")
    await store.close()
    again = make_store()
    found = await again.recover()
    assert found.snapshot == b"state-8"
    assert [seq for seq, _ in found.facts] == [9, 10]
    # 100 bytes were kept, 60 are allowed: four facts behind the snapshot went, none after it.
    assert again._writer.read("SELECT min(seq), count(*) FROM journal") == [(5, 6)]
    assert (await again.commit(CommitBatch(facts=b"x"))).fact_seq == 11
    await again.close()


async def test_the_journal_is_a_chain_that_begins_where_an_older_schema_ended(
    tmp_path: Path, make_store: MakeStore
) -> None:
    before = next(
        at for at, step in enumerate(MIGRATIONS) if any("site_file" in text for text in step)
    )
    old = open_database(tmp_path / "core.sqlite", MIGRATIONS[:before])
    found_store(old, "st-1", 0)
    old.execute("INSERT INTO journal VALUES (1, 0, x'01')")
    old.execute("UPDATE log SET next_seq = 2 WHERE name = 'journal'")
    old.close()
    with pytest.raises(StoreIoError, match="kept no decisions"):
        JournalReader(tmp_path / "core.sqlite")
    store = make_store()
    await store.recover()
    await store.commit(CommitBatch(facts=b"two", site=b"here"))
    await store.commit(CommitBatch(facts=b"three", site=b"here"))
    await store.commit(CommitBatch(facts=b"four", site=b"there"))
    await store.close()
    reader = JournalReader(tmp_path / "core.sqlite")
    second = digest_of(b"two")
    third = digest_of(second + b"three")
    assert [(row.seq, row.digest) for row in reader.rows(0)] == [
        (1, None), (2, second), (3, third), (4, digest_of(third + b"four")),
    ]  # fmt: skip
    assert reader.sites() == ((2, b"here"), (4, b"there"))
    reader.close()


async def test_what_replay_needs_outlives_the_snapshots(
    make_store: MakeStore, clock: object, tmp_path: Path
) -> None:
    """Of 30 snapshots in 10 days stay the first of each day, those of a new site, and the last."""
    store = make_store(StoreLimits(retention=timedelta(days=35)))
    await store.recover()
    for number in range(1, 31):
        site = b"a" if number < 12 else b"b"
        await store.commit(CommitBatch(facts=b"%d" % number, site=site))
        await store.save_snapshot(number, b"state %d" % number)
        clock.advance(timedelta(hours=8))  # type: ignore[attr-defined]
    reader = JournalReader(tmp_path / "core.sqlite")
    kept = [row.fact_seq for row in reader.snapshots()]
    assert kept == sorted({*range(1, 31, 3), 12, 28, 29, 30})
    assert reader.state_digest(2) == digest_of(b"state 2")
    assert (reader.snapshot(2), reader.snapshot(12)) == (None, b"state 12")
    # Two months later the journal of then is gone, and the site in force is still known.
    clock.advance(timedelta(days=60))  # type: ignore[attr-defined]
    await store.commit(CommitBatch(facts=b"31", site=b"b"))
    await store.save_snapshot(31, b"state 31")
    assert [row.seq for row in reader.rows(0)] == [31]
    assert [seq for seq, _ in reader.sites()] == [12]
    assert reader.state_digest(30) is None
    reader.close()
    await store.close()


async def test_older_lease_never_replaces_newer(store: SqliteCoreStore, clock: object) -> None:
    for generation, epoch in ((3, 1), (2, 1), (1, 2), (9, 1)):
        await store.commit(CommitBatch(leases=(_lease(clock, generation, epoch),)))
    (head,) = store.known_leases()
    assert (head.hub_epoch, head.generation) == (2, 1)
    await store.commit(CommitBatch(dropped_leases=("w-1.1",)))
    assert store.known_leases() == ()


async def test_marks_stay_within_the_stream(store: SqliteCoreStore, usage: Usage) -> None:
    seen: list[Stream] = []
    store.on_appended = seen.append
    await store.commit(CommitBatch(usage=tuple(usage(n) for n in range(5))))
    assert seen == [Stream.USAGE]

    def acked() -> int:
        return {row.stream: row for row in store.heads()}[Stream.USAGE].acked_wm

    for wm, expected in ((3, 3), (2, 3), (6, 3), (99, 3), (5, 5)):
        await store.mark_acked(Stream.USAGE, wm)
        assert acked() == expected
    await store.lower_mark(Stream.USAGE, 1)
    assert acked() == 1
    assert _seqs(store, Stream.USAGE) == [1, 2, 3, 4, 5]
    assert [row.unacked for row in store.backlog()] == [4, 0, 0, 0]


async def test_pending_is_bounded_by_bytes(store: SqliteCoreStore, usage: Usage) -> None:
    await store.commit(CommitBatch(usage=tuple(usage(n) for n in range(9))))
    size = len(store.pending(Stream.USAGE, 0, 1, 1)[0].body)
    assert _seqs(store, Stream.USAGE, after=7) == [8, 9]
    got = store.pending(Stream.USAGE, 2, 100, 3 * size)
    assert [record.seq for record in got] == [3, 4, 5]


async def test_rebase_renumbers_what_is_unacked(
    make_store: MakeStore, clock: object, usage: Usage
) -> None:
    store = make_store()
    before = await store.recover()
    gap = GapRecord(
        stream="tele",
        seq_first=2,
        seq_last=3,
        t_min=from_ms(0),
        t_max=from_ms(1),
        points=4,
        cause="cap",
    )
    released = LeaseReleased(
        lease_id="w-1.1",
        attempt=1,
        at=clock.now,  # type: ignore[attr-defined]
        outcome=ReleaseOutcome.COMPLETED,
        final_usage_seq=4,
    )
    alarm = Alarm(at=from_ms(5), code="x", detail="y")
    await store.commit(
        CommitBatch(usage=tuple(usage(n) for n in range(1, 6)), events=(alarm, released, gap))
    )
    schema = await store.ensure_schema(b"schema")
    assert await store.ensure_schema(b"schema") == schema
    rows = [_segment(seq) for seq in (1, 2, 3)]
    await store.add_segments(rows)
    await store.drop_segments([2], wm=0)
    for stream, wm in ((Stream.USAGE, 3), (Stream.EVENT, 1), (Stream.SCHEMA, 1)):
        await store.mark_acked(stream, wm)
    new_id = await store.rebase()

    assert new_id != before.store_id
    heads = {row.stream: row for row in store.heads()}
    assert [(h.next_seq, h.acked_wm) for h in heads.values()] == [(3, 0), (3, 0), (2, 0), (3, 0)]
    records = store.pending(Stream.USAGE, 0, 10, 1 << 20)
    assert [record.seq for record in records] == [1, 2]
    assert [codec.USAGE_ITEM.decode(r.body) for r in records] == [usage(4), usage(5)]
    assert heads[Stream.USAGE].last_digest == records[-1].digest
    events = store.pending(Stream.EVENT, 0, 10, 1 << 20)
    first, second = (codec.EVENT_ITEM.decode(record.body) for record in events)
    assert isinstance(first, LeaseReleased)
    assert first.final_usage_seq == 1  # usage 4 is usage 1 now
    assert isinstance(second, GapRecord)
    assert (second.seq_first, second.seq_last, second.points) == (0, 0, 4)
    assert all(record.digest == digest_of(record.body) for record in events)
    assert heads[Stream.EVENT].last_digest == events[-1].digest
    assert [(row.seq, row.file) for row in store.segments()] == [(1, "f1"), (2, "f3")]
    # Seqs made before the rebase are clamped to the stream as it is.
    await store.commit(CommitBatch(usage=(usage(6),), events=(released,)))
    last = codec.EVENT_ITEM.decode(store.pending(Stream.EVENT, 2, 1, 1)[0].body)
    assert isinstance(last, LeaseReleased)
    assert last.final_usage_seq == 3
    await store.close()
    again = make_store()
    assert (await again.recover()).store_id == new_id
    assert _seqs(again, Stream.USAGE) == [1, 2, 3]
    await again.close()


async def test_retention_spares_what_is_unacked(
    make_store: MakeStore, clock: object, usage: Usage
) -> None:
    store = make_store()
    await store.recover()
    await store.commit(CommitBatch(usage=tuple(usage(n) for n in range(4))))
    await store.mark_acked(Stream.USAGE, 3)
    clock.advance(timedelta(days=34))  # type: ignore[attr-defined]
    await store.save_snapshot(0, b"s")
    assert _seqs(store, Stream.USAGE) == [1, 2, 3, 4]
    clock.advance(timedelta(days=2))  # type: ignore[attr-defined]
    await store.save_snapshot(0, b"s")
    assert _seqs(store, Stream.USAGE) == [4]
    assert store.first_kept(Stream.USAGE) == 4
    await store.close()


async def test_cap_trims_acked_only_and_events_that_inform_are_skipped(
    make_store: MakeStore, usage: Usage
) -> None:
    store = make_store(StoreLimits(usage_bytes_max=1, event_bytes_max=1))
    await store.recover()
    alarm = Alarm(at=from_ms(5), code="x", detail="y")
    await store.commit(CommitBatch(usage=(usage(1), usage(2)), events=(alarm,)))
    await store.mark_acked(Stream.USAGE, 1)
    await store.save_snapshot(0, b"s")
    assert _seqs(store, Stream.USAGE) == [2]
    await store.commit(CommitBatch(events=(alarm, alarm)))
    assert store.events_skipped == 2
    assert _seqs(store, Stream.EVENT) == [1]
    await store.close()


async def test_connection_numbers_outrun_a_restored_copy(
    store: SqliteCoreStore, clock: object, make_store: MakeStore
) -> None:
    first = await store.next_conn_no()
    assert await store.next_conn_no() == first + 1
    clock.advance(timedelta(hours=1))  # type: ignore[attr-defined]
    copy = make_store(name="other.sqlite")
    await copy.recover()
    assert await copy.next_conn_no() > first + 1
    assert await store.raise_epoch(41) == 42
    assert await store.raise_epoch(3) == 43
    await copy.close()


@pytest.mark.parametrize("wm", [None, 2])
async def test_segments_and_their_gap_go_together(store: SqliteCoreStore, wm: int | None) -> None:
    await store.add_segments([_segment(1), _segment(2)])
    await store.drop_segments([1], wm=wm, events=[Alarm(at=from_ms(1), code="gap", detail="d")])
    assert [row.seq for row in store.segments()] == [2]
    tele = store.backlog()[3]
    assert (tele.next_seq, tele.acked_wm, tele.kept_bytes) == (3, wm or 0, 10)
    assert _seqs(store, Stream.EVENT) == [1]


def _segment(seq: int) -> SegmentRow:
    return SegmentRow(
        seq=seq,
        file=f"f{seq}",
        digest=bytes([seq]) * 16,
        bytes=10,
        t_min_ms=seq,
        t_max_ms=seq + 1,
        points=3,
    )
