from decimal import Decimal
from pathlib import Path

import msgspec

from simulators.gpu_host import TruthLine
from simulators.truth import Price, bill, read_truth, stays

MINUTE = 60_000_000_000
BASE = 1_767_225_600_000_000_000  # 2026-01-01T00:00Z
BASE_MS = BASE // 1_000_000


def line(what: str, at_ns: int, served_ns: int, lease: str = "w-1.1") -> TruthLine:
    return TruthLine(
        t=what,
        gpu="gpu0",
        model="H100",
        instance_id="i-1",
        lease_id=lease,
        attempt=1,
        at_ns=at_ns,
        wall_ns=BASE + at_ns,
        served_ns=served_ns,
        energy_mj=0,
    )


def price(usd_per_h: str, from_ms: int = 0) -> Price:
    return Price(device_class="H100", from_ms=from_ms, usd_per_h=Decimal(usd_per_h))


def test_half_an_hour_costs_half_the_hourly_price() -> None:
    told = [line("open", 10, 0), line("mark", 5, 3), line("close", 10 + 30 * MINUTE, 30 * MINUTE)]
    found = bill(stays(told), [price("3.01")], BASE_MS, BASE_MS + 60 * 60_000)
    # 1.505 rounds half up.
    assert found.lines == (("w-1", "H100", Decimal("3.01"), 1_800_000, Decimal("1.51")),)
    assert found.total_usd == Decimal("1.51")


def test_a_period_takes_only_what_was_served_in_it() -> None:
    told = [line("open", 0, 0), line("close", 10 * MINUTE, 10 * MINUTE)]
    found = bill(stays(told), [price("60")], BASE_MS + 4 * 60_000, BASE_MS + 6 * 60_000)
    assert [row[3] for row in found.lines] == [120_000]
    assert found.total_usd == Decimal("2.00")


def test_a_new_price_makes_a_new_line() -> None:
    told = [line("open", 0, 0), line("close", 120 * MINUTE, 120 * MINUTE)]
    prices = [price("1"), price("2", BASE_MS + 3_600_000)]
    found = bill(stays(told), prices, BASE_MS, BASE_MS + 2 * 3_600_000)
    assert [row[4] for row in found.lines] == [Decimal("1.00"), Decimal("2.00")]


def test_a_gate_that_opened_twice_counts_both_stays() -> None:
    told = [
        line("open", 0, 0),
        line("close", MINUTE, MINUTE),
        line("open", 5 * MINUTE, MINUTE),
        line("close", 6 * MINUTE, 2 * MINUTE),
    ]
    found = bill(stays(told), [price("60")], BASE_MS, BASE_MS + 3_600_000)
    assert [row[3] for row in found.lines] == [120_000]


def test_a_truth_that_ends_open_counts_to_its_last_line(tmp_path: Path) -> None:
    told = [line("open", 0, 0), line("mark", MINUTE, MINUTE)]
    text = b"".join(msgspec.json.encode(row) + b"\n" for row in told) + b'{"t":"mark","gpu'
    path = tmp_path / "truth.jsonl"
    path.write_bytes(text)
    found = stays(read_truth([path]))
    assert [(stay.served_after_ns, stay.closed) for stay in found] == [(MINUTE, False)]


def test_minutes_that_start_after_the_cancel_are_free() -> None:
    told = [line("open", 0, 0), line("close", 10 * MINUTE, 10 * MINUTE)]
    period = (BASE_MS, BASE_MS + 60 * 60_000)
    # Accepted within the third minute: that one is paid to its end.
    found = bill(stays(told), [price("60")], *period, {"w-1": BASE_MS + 130_000})
    assert [row[3] for row in found.lines] == [180_000]
    other = bill(stays(told), [price("60")], *period, {"w-2": BASE_MS + 130_000})
    assert [row[3] for row in other.lines] == [600_000]
