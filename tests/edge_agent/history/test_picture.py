"""The picture of a day: the shares of power modes, read back from the SVG."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from edge_agent.backtest.plot import draw
from edge_agent.core import facts as f
from edge_agent.core.curve import ModePoint
from edge_agent.core.site import MINE, NS_PER_S, Device, DeviceClass, Limits, Site
from edge_agent.core.site_file import encode_site
from edge_agent.history.day_walk import walk_day
from edge_agent.history.picture import day_picture
from edge_agent.history.regret import run_courses
from edge_agent.ports import SnapshotMark, StoredRow
from protocol.market import MarketTick
from protocol.resource import MODELS
from tests.edge_agent.backtest.test_plot import heights_of, texts_of

START = datetime(2026, 3, 1, tzinfo=UTC)
MODES = tuple(
    ModePoint(mode=name, rate_ths=rate, power_w=power)
    for name, rate, power in (
        ("low", 130.0, 1_950.0), ("normal", 200.0, 3_500.0), ("high", 230.0, 4_485.0),
    )
)  # fmt: skip
TURN_S = 900
# Of five miners, one of them of a class whose modes nobody sets: steps until noon, and after it.
MORNING, EVENING = (1, 1, 2, 3, 0), (3, 1, 2, 3, 0)


class Rows:
    """A day of rows every quarter of an hour, none with a plan; implements ``JournalSource``."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def snapshots(self) -> tuple[SnapshotMark, ...]:
        return ()

    def snapshot(self, _fact_seq: int) -> bytes | None:
        return None

    def state_digest(self, _fact_seq: int) -> bytes | None:
        return None

    def sites(self) -> tuple[tuple[int, bytes], ...]:
        return ((1, encode_site(self.site, "test")),)

    def rows(self, after_seq: int) -> Iterator[StoredRow]:
        for number in range(after_seq, 98):
            at_s = number * TURN_S
            wall = START + timedelta(seconds=at_s)
            instant = f.Instant("boot", (1_000 + at_s) * NS_PER_S, wall)
            facts = (f.MarketSeen(self._tick(wall)), self._readings(morning=number < 48))
            row = f.TickRow(1, instant, planned=False, facts=facts, acts=(), decided=None)
            yield StoredRow(seq=number + 1, body=f.encode_row(row), digest=None)

    def _tick(self, wall: datetime) -> MarketTick:
        return MarketTick(
            feed="test", measured_at=wall, source_at=wall, price_usd_per_mwh=30.0,
            btc_price_usd=65_000.0, difficulty=83.1e12, subsidy_btc=3.125, fees_btc=0.1,
        )  # fmt: skip

    def _readings(self, *, morning: bool) -> f.ReadingsSeen:
        steps = MORNING if morning else EVENING
        points = [MODES[max(step, 2) - 1] if step else MODES[1] for step in steps]
        count = len(steps)
        return f.pack_readings(
            self.site.digest,
            f.ReadingColumns(
                np.arange(count, dtype=np.int32),
                np.full(count, MINE, dtype=np.uint8),
                np.ones(count, dtype=np.uint8),
                np.array([point.power_w for point in points]),
                np.array([point.rate_ths for point in points]),
                np.full(count, 65.0),
                np.full(count, 1.0),
                np.array(steps, dtype=np.uint8),
            ),
        )


def site_of() -> Site:
    classes = (
        DeviceClass(model=MODELS["S21"], modes=MODES, set_modes=True),
        DeviceClass(model=MODELS["S19XP"]),
    )
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(4)]
    devices.append(Device(device_id="b0", device_class="S19XP"))
    return Site("s1", classes, tuple(devices), Limits(power_cap_w=1e6))


def test_the_shares_of_modes_of_a_day_are_drawn_up_to_what_is_on(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    day = walk_day(Rows(site_of()), START)
    made = day_picture(day, run_courses(day))
    told = {"low": (0.4, 0.2), "normal": (0.2, 0.2), "high": (0.2, 0.4), "fixed": (0.2, 0.2)}
    assert list(made.modes) == list(told)
    for name, (morning, evening) in told.items():
        assert made.modes[name][[10, 80]] == pytest.approx([morning, evening]), name
    path = tmp_path / "day.svg"
    draw(made, path)
    assert {f"mode {name}" for name in told} <= texts_of(path)
    (on,) = {round(y, 2) for y in heights_of(path, "miners-on")}
    low, high = heights_of(path, "mode-low"), heights_of(path, "mode-high")
    # Downwards is larger. The lowest mode stands on nothing, and is half as high in the evening.
    tops = sorted({round(y, 2) for y in low})
    assert len(tops) == 3
    assert tops[2] - tops[0] == pytest.approx(2.0 * (tops[2] - tops[1]), abs=0.05)
    assert tops[2] - on == pytest.approx((tops[2] - tops[0]) / 0.4, abs=0.1)
    assert min(heights_of(path, "mode-fixed")) == pytest.approx(on, abs=0.05)
    assert min(high) == pytest.approx(max(heights_of(path, "mode-fixed")), abs=0.05)
