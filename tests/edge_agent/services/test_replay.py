"""Replay of the journal: exact over a week, and a change of one bit found and named."""

import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.__main__ import main
from edge_agent.core import facts as f
from edge_agent.core.decided import decided, mismatch
from edge_agent.core.errors import ActError, JournalError
from edge_agent.core.plan import DecisionRecords, Plan, Reason
from edge_agent.core.site import CURTAILED, MINE, Device, Site
from edge_agent.core.snapshot import COLUMNS, Snapshot
from edge_agent.ports import StoredRow
from edge_agent.services.journal_walk import Walk
from edge_agent.services.replay import replay, why_at
from edge_agent.storage.errors import StoreIoError
from edge_agent.storage.journal_reader import JournalReader
from protocol.resource import Activity
from protocol.sync import digest_of
from tests.edge_agent.core.plant import Plant, make_site, tick
from tests.edge_agent.services.brain_world import START, build_site
from tests.edge_agent.services.replay_world import (
    DAY_S,
    HOUR_S,
    JournalWorld,
    live,
    replay_file,
    spiky,
)

ROOT = Path(__file__).parents[3]
TURN_S = 300.0


@pytest.fixture
def copy(week: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(week, tmp_path / "core.sqlite"))


def rows_of(path: Path) -> list[tuple[int, f.TickRow]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT seq, body FROM journal ORDER BY seq").fetchall()
    return [(seq, f.decode_row(body)) for seq, body in found]


def rewrite(path: Path, seq: int, body: bytes, *, chained: bool = False) -> None:
    """Put another body into a row; with ``chained`` as one who knows the chain would."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE journal SET body = ? WHERE seq = ?", (body, seq))
        if chained:
            rows = connection.execute(
                "SELECT seq, body, digest FROM journal WHERE seq >= ? ORDER BY seq", (seq - 1,)
            ).fetchall()
            before = rows[0][2]
            for number, text, _ in rows[1:]:
                before = digest_of(before + text)
                connection.execute("UPDATE journal SET digest = ? WHERE seq = ?", (before, number))
    connection.close()


def test_a_week_is_replayed_exactly(week: Path) -> None:
    report = replay_file(week)
    assert report.equal, report.differences
    # A pass at least every five minutes, and a snapshot every hour.
    assert report.decisions >= 7 * DAY_S / TURN_S
    assert report.states >= 7 * 24
    assert report.unkept == 0
    assert (report.from_at, report.sites) == (START + timedelta(milliseconds=3), 1)
    acts = [fact for _, row in rows_of(week) for fact in row.acts]
    opened = [fact for fact in acts if isinstance(fact, f.SwitchOpened)]
    assert {fact.to_activity for fact in opened} >= {
        Activity.MINE, Activity.CURTAILED, Activity.SERVE, Activity.IDLE,
    }  # fmt: skip
    assert any(isinstance(fact, f.LeaseTaken) for fact in acts)
    facts = [fact for _, row in rows_of(week) for fact in row.facts]
    assert sum(isinstance(fact, f.OrderSeen) for fact in facts) == 7
    assert any(fact.reason == "grid_order" for fact in opened)


def test_a_span_begins_at_the_snapshot_before_it(week: Path) -> None:
    from_at, to_at = START + timedelta(days=3, hours=5), START + timedelta(days=3, hours=8)
    report = replay_file(week, from_at=from_at, to_at=to_at)
    assert report.equal, report.differences
    assert report.from_at is not None
    assert report.to_at is not None
    assert from_at <= report.from_at <= report.to_at <= to_at
    assert 36 <= report.decisions < 200
    assert report.states in (3, 4)


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_hash_seed_does_not_matter(week: Path, hash_seed: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "edge_agent", "replay", "--data-dir", str(week.parent),
            "--to", "2026-03-02T12:00Z",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal" in done.stdout


def test_one_bit_of_a_reading_is_found_and_named(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The highest bit of the mantissa of one miner's rate: 200 TH/s become another number."""
    seq, row, at = next(
        (seq, row, number)
        for seq, row in rows_of(copy)
        for number, fact in enumerate(row.facts)
        if seq > 400 and row.planned and isinstance(fact, f.ReadingsSeen)
        # An agent's first reading of all that it finds may tell nothing new, and decide nothing.
        and not any(isinstance(one, f.Booted) for one in row.facts)
        and (f.unpack_readings(fact).hashrate_ths > 0.0).any()
    )  # fmt: skip
    fact = row.facts[at]
    assert isinstance(fact, f.ReadingsSeen)
    columns = f.unpack_readings(fact)
    place = int(np.flatnonzero(columns.hashrate_ths > 0.0)[0])
    raw = bytearray(fact.hashrate_ths)
    raw[4 * place + 2] ^= 0x40
    changed = replace(fact, hashrate_ths=bytes(raw))
    facts = (*row.facts[:at], changed, *row.facts[at + 1 :])
    rewrite(copy, seq, f.encode_row(replace(row, facts=facts)))
    report = replay_file(copy)
    assert not report.equal
    first, second = report.differences[:2]
    assert (first.kind, first.seq, first.at) == ("row", seq, row.instant.wall)
    device = build_site(asics=6, gpus=4).devices[int(columns.index[place])].device_id
    assert (second.kind, second.seq, second.device_id) == ("decision", seq, device)
    assert second.column == "gain_usd"
    assert isinstance(second.journalled, float)
    assert isinstance(second.replayed, float)
    assert second.journalled != second.replayed
    assert main(["replay", "--data-dir", str(copy.parent)]) == 1
    told = capsys.readouterr().out
    assert f"row {seq}  decision  {device}  gain_usd" in told
    assert f"journal  {second.journalled!r}" in told
    assert f"replay   {second.replayed!r}" in told


def test_a_change_with_a_mended_chain_is_found_by_the_decision(copy: Path) -> None:
    seq, row, at = next(
        (seq, row, number)
        for seq, row in rows_of(copy)
        for number, fact in enumerate(row.facts)
        if seq > 700 and row.planned and isinstance(fact, f.MarketSeen)
    )
    fact = row.facts[at]
    assert isinstance(fact, f.MarketSeen)
    assert fact.tick.price_usd_per_mwh is not None
    dearer = replace(fact.tick, price_usd_per_mwh=fact.tick.price_usd_per_mwh + 0.01)
    facts = (*row.facts[:at], f.MarketSeen(dearer), *row.facts[at + 1 :])
    rewrite(copy, seq, f.encode_row(replace(row, facts=facts)), chained=True)
    (found,) = replay_file(copy).differences
    assert (found.kind, found.seq, found.column) == ("decision", seq, "gain_usd")
    assert found.device_id in {"g0", "a0"}  # the first of its class: a price moves them all
    assert found.detail == "other devices differ too"


def test_an_act_that_was_not_decided_is_found_and_named(copy: Path) -> None:
    seq, row = next(
        (seq, row)
        for seq, row in rows_of(copy)
        if any(
            isinstance(fact, f.SwitchOpened) and fact.to_activity is Activity.CURTAILED
            for fact in row.acts
        )
    )
    acts = tuple(
        replace(fact, to_activity=Activity.IDLE) if isinstance(fact, f.SwitchOpened) else fact
        for fact in row.acts
    )
    rewrite(copy, seq, f.encode_row(replace(row, acts=acts)), chained=True)
    (found,) = replay_file(copy).differences
    assert (found.kind, found.seq, found.column) == ("act", seq, "target")
    assert (found.journalled, found.replayed) == ("idle", "curtailed")
    assert found.device_id is not None


def test_one_bit_of_a_snapshot_is_found_and_named(copy: Path) -> None:
    with sqlite3.connect(copy) as connection:
        seq, body = connection.execute(
            "SELECT fact_seq, body FROM snapshot ORDER BY fact_seq DESC LIMIT 1"
        ).fetchone()
        text = bytearray(body)
        column = msgspec.msgpack.decode(body, type=Snapshot).columns[-1]
        text[body.rindex(column) + len(column) - 3] ^= 1  # in the last column, its last device
        connection.execute("UPDATE snapshot SET body = ? WHERE fact_seq = ?", (text, seq))
    connection.close()
    at = next(row.instant.wall for number, row in rows_of(copy) if number == seq)
    report = replay_file(copy, from_at=at + timedelta(seconds=1))
    assert [row.kind for row in report.differences][:1] == ["snapshot"]
    (found,) = replay_file(copy).differences
    assert (found.kind, found.seq, found.column) == ("snapshot", seq, COLUMNS[-1][0])
    assert found.device_id == "a5"
    assert found.journalled != found.replayed


def test_missing_and_unreadable_rows_are_told(copy: Path) -> None:
    with sqlite3.connect(copy) as connection:
        connection.execute("DELETE FROM journal WHERE seq = 900")
        connection.execute("UPDATE journal SET body = x'00' WHERE seq = 950")
    connection.close()
    told = [(row.kind, row.seq) for row in replay_file(copy).differences]
    assert ("gap", 901) in told
    assert replay_file(copy, from_at=START + timedelta(days=5)).equal


def test_why_at_a_time_explains_what_was_decided_then(week: Path) -> None:
    spike_seq, spike = next(
        (seq, row)
        for seq, row in rows_of(week)
        if any(
            isinstance(fact, f.SwitchOpened)
            and fact.reason == "gain"
            and fact.to_activity is Activity.CURTAILED
            for fact in row.acts
        )
    )
    del spike_seq
    opened = next(fact for fact in spike.acts if isinstance(fact, f.SwitchOpened))
    reader = JournalReader(week)
    at, told = why_at(reader, opened.device_ids[0], spike.instant.wall)
    assert at == spike.instant.wall
    assert told.activity is Activity.MINE
    assert told.reason == "gain"
    assert told.verdict.startswith("goes to curtailed")
    assert told.price_usd_per_mwh in (900.0, 4_500.0)
    # Between two passes the decision in force is that of the earlier one.
    later, _ = why_at(reader, opened.device_ids[0], spike.instant.wall + timedelta(milliseconds=1))
    assert later == at
    with pytest.raises(ActError):
        why_at(reader, "nope", spike.instant.wall)
    with pytest.raises(JournalError):
        why_at(reader, "a0", START - timedelta(days=1))


def test_a_changed_site_is_taken_over_where_it_came_into_force(tmp_path: Path) -> None:
    path = tmp_path / "core.sqlite"
    site = build_site(asics=4, gpus=4)
    classes = (replace(site.classes[0], wear_usd=0.002, pool_fee=0.03), site.classes[1])
    devices = (*site.devices, Device(device_id="a9", device_class="S21", address="127.0.0.1"))
    changed = Site("s1", classes, devices, site.limits)
    world = JournalWorld(path, site=site, turn_s=TURN_S, price_at=spiky(2))
    live(world, days=2, changed=changed)
    report = replay_file(path)
    assert report.equal, report.differences
    assert report.sites == 2


def test_a_journal_is_read_beside_a_running_agent(week: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(week, tmp_path / "core.sqlite"))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE meta SET value = value + 1")
    try:
        assert replay_file(path, to_at=START + timedelta(hours=6)).equal
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreIoError):
        JournalReader(tmp_path / "core.sqlite")


def one_plan() -> tuple[Site, Plan]:
    plant = Plant(make_site())
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    made = plant.step(100.0, tick(4_000.0, plant.at_s + 100.0))
    return plant.site, made


def with_records(made: Plan, **columns: np.ndarray) -> Plan:
    records: DecisionRecords = replace(made.records, **columns)
    return replace(made, records=records)


@pytest.mark.parametrize("bit", range(64))
@pytest.mark.parametrize("at", [0, 5, 9])
def test_each_bit_of_a_gain_is_seen_with_both_values(at: int, bit: int) -> None:
    site, made = one_plan()
    gain = made.records.gain_usd.copy()
    raw = gain.view("<u8")
    raw[at] ^= np.uint64(1 << bit)
    other = with_records(made, gain_usd=gain)
    if np.isnan(gain[at]):
        return  # one NaN is as good as another
    found = mismatch(site, decided(site, other), made)
    assert found is not None
    assert (found.device_id, found.column) == (site.devices[at].device_id, "gain_usd")
    assert found.decided == gain[at]
    assert found.replayed == made.records.gain_usd[at]


def test_codes_are_named_and_symmetric_changes_are_not_misplaced() -> None:
    site, made = one_plan()
    target, reason = made.records.target.copy(), made.records.reason.copy()
    assert target[3] == CURTAILED
    target[3], reason[3] = MINE, Reason.HYSTERESIS
    found = mismatch(site, decided(site, with_records(made, target=target, reason=reason)), made)
    assert found is not None
    assert (found.device_id, found.column) == (site.devices[3].device_id, "target")
    assert (found.decided, found.replayed) == ("mine", "curtailed")
    # The same step on devices 2 and 4 looks like twice the step on 3: only the digest knows.
    gates = made.records.gates.copy()
    gates[[2, 4]] ^= 64
    found = mismatch(site, decided(site, with_records(made, gates=gates)), made)
    assert found is not None
    assert (found.device_id, found.column) == (None, "gates")
    same = with_records(made, target=made.records.target.copy())
    assert mismatch(site, decided(site, made), same) is None


def test_what_is_kept_of_a_decision_over_16_000_devices_is_small() -> None:
    """300 MiB a day is what the journal may take; a pass every 5 s is 17,280 of them."""
    site = make_site(asics=15_100, gpus=896, cap_w=60e6)
    plant = Plant(site)
    made = plant.step(5.0, tick(4_000.0, 5.0), plant.readings())
    kept = msgspec.msgpack.encode(decided(site, made))
    assert len(kept) * 17_280 < 0.02 * 300 * 2**20


class FewRows:
    """A fake source of rows alone."""

    def __init__(self, rows: list[StoredRow], site: bytes | None = None) -> None:
        self._rows = rows
        self._site = site

    def snapshots(self) -> tuple[()]:
        return ()

    def snapshot(self, fact_seq: int) -> None:
        return None

    def state_digest(self, fact_seq: int) -> None:
        return None

    def sites(self) -> tuple[tuple[int, bytes], ...]:
        return () if self._site is None else ((1, self._site),)

    def rows(self, after_seq: int):  # type: ignore[no-untyped-def] # noqa: ANN201 - a generator
        return iter([row for row in self._rows if row.seq > after_seq])


def test_rows_of_an_agent_that_kept_no_decision_are_counted() -> None:
    site = make_site()
    row = f.TickRow(
        f.ROW_VERSION,
        f.Instant("b", 10**12, datetime(2026, 1, 1, tzinfo=UTC)),
        planned=True,
        facts=(tick(10.0, 0.0),),
    )
    source = FewRows([StoredRow(seq=1, body=f.encode_row(row), digest=None)])
    report = replay(source, otherwise=site)
    assert (report.equal, report.decisions, report.unkept) == (True, 0, 1)
    with pytest.raises(JournalError):
        replay(source)  # nobody says by which site
    with pytest.raises(JournalError):
        list(Walk(FewRows([])).steps())


@pytest.mark.slow
@pytest.mark.timeout(300)  # a minute of computing where nothing else runs
def test_a_week_at_a_pass_a_minute_is_replayed_exactly(tmp_path: Path) -> None:
    path = tmp_path / "core.sqlite"
    site = build_site(asics=12, gpus=6, cap_w=45_000.0)
    live(JournalWorld(path, site=site, turn_s=60.0, price_at=spiky(3)), days=7)
    report = replay_file(path)
    assert report.equal, report.differences
    assert report.decisions >= 7 * DAY_S / 60.0
    assert report.to_at is not None
    assert report.to_at - START > timedelta(seconds=7 * DAY_S - HOUR_S)
