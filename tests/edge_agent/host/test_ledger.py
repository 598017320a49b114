"""Ledger and log: pages, what a silent engine holds back, the log before the word, retention."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from edge_agent.host.errors import RefusedError
from edge_agent.host.gate_log import GateLine, GateLog
from edge_agent.host.ledger import ENDED_MAX, ENDED_NS_MAX, HostClock, Instance, Ledger
from edge_agent.host.meter import MINUTE_NS
from edge_agent.host.tokens import StreamCounter
from edge_agent.workloads.ports import InstanceSpec

S = 1_000_000_000


class _Time:
    def __init__(self) -> None:
        self.boot_ns = 100 * S
        self.wall_ns = 1_000 * MINUTE_NS


class _Log:
    def __init__(self) -> None:
        self.lines: list[GateLine] = []
        self.full = False

    def __call__(self, lines: Iterable[GateLine]) -> None:
        rows = list(lines)
        if self.full and rows:
            raise OSError("no space")
        self.lines += rows


def _ledger(time: _Time, log: _Log) -> Ledger:
    return Ledger("p1", HostClock(lambda: time.boot_ns, lambda: time.wall_ns, "b1"), log)


def _instance(name: str = "i1", gpu: str = "gpu0", run_s: int | None = None) -> Instance:
    spec = InstanceSpec(instance_id=name, lease_id=f"w-{name}", attempt=1, run_s=run_s)
    return Instance(gpu, "H100", spec)


def _pass(time: _Time, seconds: int, *alive: Instance) -> None:
    time.boot_ns += seconds * S
    time.wall_ns += seconds * S
    for one in alive:
        one.seen_ns = time.boot_ns


def test_the_log_says_no_less_than_anybody_was_told() -> None:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance()
    ledger.add(one)
    assert ledger.open_gate(one).open
    _pass(time, 70, one)
    page = ledger.page(None)
    assert page.meters[0].served_ns == log.lines[-1].served_ns == 70 * S
    assert [mark.epoch_minute for mark in page.meters[0].marks] == [1_001]
    assert ledger.page(1_001).meters[0].marks == ()
    _pass(time, 5, one)
    state = ledger.shut_gate(one)
    assert (state.open, state.served_ns, state.at_ns) == (False, 75 * S, time.boot_ns)
    assert ledger.shut_gate(one) == state
    assert [line.t for line in log.lines] == ["open", "mark", "mark", "close"]
    assert log.lines[-1].served_ns == 75 * S
    assert not log.lines[-1].energy_measured


def test_a_silent_engine_holds_the_page_back_until_it_is_heard_or_given_up() -> None:
    time, log = _Time(), _Log()
    ledger, silent, well = _ledger(time, log), _instance("i1"), _instance("i2", "gpu1")
    for one in (silent, well):
        ledger.add(one)
        ledger.open_gate(one)
    _pass(time, 59, silent, well)
    heard_ns = time.boot_ns
    _pass(time, 3, well)
    page = ledger.page(None)
    assert page.now_ns == heard_ns
    assert [row.served_ns for row in page.meters] == [59 * S, 62 * S]
    assert page.meters[0].marks == ()
    shut = ledger.shut_gate(silent)
    assert (shut.served_ns, shut.at_ns) == (59 * S, heard_ns)
    assert ledger.page(None).now_ns == time.boot_ns


def test_work_of_a_given_time_ends_exactly_then() -> None:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance(run_s=10)
    ledger.add(one)
    opened_ns = ledger.open_gate(one).at_ns
    _pass(time, 25, one)
    (row,) = ledger.page(None).meters
    assert (row.completed, row.open, row.served_ns) == (True, False, 10 * S)
    assert row.closed_ns == opened_ns + 10 * S
    assert [line.t for line in log.lines] == ["open", "close"]


def test_a_full_disk_opens_no_gate_and_what_was_shut_is_logged_later() -> None:
    time, log = _Time(), _Log()
    ledger, one, two = _ledger(time, log), _instance("i1"), _instance("i2", "gpu1")
    ledger.add(one)
    ledger.add(two)
    ledger.open_gate(one)
    log.full = True
    with pytest.raises(OSError, match="no space"):
        ledger.open_gate(two)
    assert not two.meter.open
    with pytest.raises(OSError, match="no space"):
        ledger.page(None)
    _pass(time, 3, one)
    with pytest.raises(OSError, match="no space"):
        ledger.shut_gate(one)
    assert not one.meter.open
    log.full = False
    _pass(time, 100)
    assert ledger.shut_gate(one).served_ns == 3 * S
    assert [(line.t, line.served_ns) for line in log.lines] == [("open", 0), ("close", 3 * S)]


def test_a_wall_clock_that_steps_moves_the_anchor_at_a_minute_alone() -> None:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance()
    ledger.add(one)
    ledger.open_gate(one)
    before_ns = ledger.anchor_ns
    time.wall_ns += 20 * S
    _pass(time, 30, one)
    assert ledger.page(None).wall_anchor_ns == before_ns
    _pass(time, 31, one)
    assert ledger.page(None).wall_anchor_ns == before_ns + 20 * S


def test_ended_instances_are_readable_for_a_day_and_bounded() -> None:
    time, log = _Time(), _Log()
    ledger = _ledger(time, log)
    first = _instance("first")
    ledger.add(first)
    first.ended_ns = time.boot_ns
    time.boot_ns += ENDED_NS_MAX
    ledger.add(_instance("i"))
    assert ledger.on_gpu("gpu0", "first") is first
    time.boot_ns += MINUTE_NS
    ledger.add(_instance("j"))
    with pytest.raises(RefusedError):
        ledger.on_gpu("gpu0", "first")
    for number in range(ENDED_MAX + 5):
        one = _instance(f"n{number}")
        one.ended_ns = time.boot_ns
        ledger.add(one)
    assert len(list(ledger.all())) == ENDED_MAX + 2
    assert ledger.of_lease("w-n7") is not None
    assert ledger.of_lease("w-n2") is None


def test_the_log_is_appended_to_and_set_aside_when_full(tmp_path: Path) -> None:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance()
    ledger.add(one)
    ledger.open_gate(one)
    (line,) = log.lines
    size = len(msgspec.json.encode(line)) + 1
    path = tmp_path / "gates.jsonl"
    for round_ in range(2):  # a second process goes on in the same file
        file = GateLog(path, segment_bytes_max=3 * size, segments_max=3)
        for _ in range(5):
            file.write(line)
        file.close()
        found = sorted(one.name for one in tmp_path.iterdir())
        assert found[0] == "gates.jsonl"
        assert len(found) == (2 if round_ == 0 else 3)
    rows = [row for one in tmp_path.iterdir() for row in one.read_bytes().splitlines()]
    assert all(msgspec.json.decode(row, type=GateLine) == line for row in rows)


def _line() -> GateLine:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance()
    ledger.add(one)
    ledger.open_gate(one)
    return log.lines[0]


def _rows(path: Path) -> list[GateLine]:
    return [msgspec.json.decode(row, type=GateLine) for row in path.read_bytes().splitlines()]


def test_a_disk_that_takes_half_a_line_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, line, write = tmp_path / "gates.jsonl", _line(), os.write
    file = GateLog(path)
    file.write(line)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    with pytest.raises(OSError, match="20 of"):
        file.write(line)
    monkeypatch.undo()
    file.write(line)
    file.close()
    assert _rows(path) == [line, line]


def test_a_line_that_a_power_cut_tore_spoils_no_other(tmp_path: Path) -> None:
    path, line = tmp_path / "gates.jsonl", _line()
    path.write_bytes(b'{"t":"mar')
    file = GateLog(path)
    file.write(line)
    file.close()
    assert path.read_bytes() == b'{"t":"mar\n' + msgspec.json.encode(line) + b"\n"


def test_a_log_that_cannot_be_set_aside_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, line = tmp_path / "gates.jsonl", _line()
    file = GateLog(path, segment_bytes_max=10)

    def no_files(*_: object) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(os, "open", no_files)
    for _ in range(2):
        with pytest.raises(OSError, match="too many"):
            file.write(line)
    monkeypatch.undo()
    file.write(line)
    file.close()
    assert _rows(path) == [line]


def test_a_line_tells_what_streams_under_way_gave() -> None:
    time, log = _Time(), _Log()
    ledger, one = _ledger(time, log), _instance()
    ledger.add(one)
    ledger.open_gate(one)
    stream = StreamCounter()
    one.tally.follow(stream)
    stream.feed(b"data: a\n\ndata: b\n\n")
    ledger.shut_gate(one)
    assert (log.lines[-1].t, log.lines[-1].tokens_out) == ("close", 2)
    one.tally.leave(stream)
    assert (one.tally.tokens_out, one.tally.so_far()) == (2, (0, 2))
