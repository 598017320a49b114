"""Figures: replay, and the regret of a day, on the journal of a full site.

Run: ``./dev bench replay``. An hour at a pass every 5 s is made by the agent's own functions: every
pass the coin price moves and a twentieth of the readings left their band, a spike sends the miners
to sleep and they wake, twenty miners fall silent for ten minutes, and an order curtails all for
three minutes. A day is 24 such hours: both commands go row by row, so their time grows with it.
Both run on one core, and CPU time is what is measured.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np

from bench.decision import ASICS, GPUS, START, build_site
from bench.figure import Figure, at_most
from edge_agent.core import facts as f
from edge_agent.core.decided import decided
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.site import CODE_OF, NS_PER_S, UNKNOWN, IntColumn, Site
from edge_agent.core.site_file import encode_site
from edge_agent.core.site_state import new_state
from edge_agent.history.day_walk import walk_day
from edge_agent.history.regret import regret, run_courses
from edge_agent.ports import CommitBatch
from edge_agent.services.intents import open_switch
from edge_agent.services.replay import replay
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.journal_reader import JournalReader
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.writer import InlineWriter
from edge_agent.version import VERSION
from protocol.ids import IdSource
from protocol.lease import SitePolicy
from protocol.market import GpuRate, MarketTick
from protocol.resource import Activity

HOURS = 1
TICK_S = 5
SLEEP_S, WAKE_S = 10, 300
READ_SHARE = 0.05
SILENT = 20
# CPU seconds that an hour of a full site may take: a day is then within 4 and 12 minutes.
REPLAY_TARGET_S, REGRET_TARGET_S = 10.0, 30.0
RATES = (
    GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.06),
    GpuRate(device_class="A100", serve_usd_per_h=1.7, mine_usd_per_h=0.04),
)


class _Clock:
    """The wall of the made journal, for the store's marks."""

    def __init__(self) -> None:
        self.at_s = 0

    def wall(self) -> "object":
        return START + timedelta(seconds=self.at_s)

    def boottime_ns(self) -> int:
        return self.at_s * NS_PER_S

    def boot_id(self) -> str:
        return "bench"


class _Plant:
    """What the site says: prices by the hour, readings, and switches that end in their time."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.rng = np.random.default_rng(3)
        self.activity = np.full(len(site), CODE_OF[Activity.MINE], dtype=np.uint8)
        self.open: dict[str, tuple[int, f.SwitchOpened]] = {}
        self.numbers = iter(range(1, 10**9))

    def facts(self, at_s: int) -> Iterator[f.Fact]:
        """Give the facts of a pass."""
        minute = at_s // 60 % 60
        price = 900.0 if 15 <= minute < 20 else 35.0
        wall = START + timedelta(seconds=at_s)
        yield f.MarketSeen(
            MarketTick(
                feed="bench", measured_at=wall, source_at=wall, price_usd_per_mwh=price,
                btc_price_usd=65_000.0 + float(self.rng.normal(0.0, 100.0)), difficulty=83.1e12,
                subsidy_btc=3.125, fees_btc=0.1, gpu_rates=RATES,
            )
        )  # fmt: skip
        if at_s % 3_600 in (2_700, 2_880):
            order = at_s % 3_600 == 2_700
            number = at_s // 60 + 1
            yield f.PolicySeen(
                SitePolicy(hub_epoch=1, generation=number, site_id="bench", curtail=order)
            )
        changed = self.rng.uniform(size=len(self.site)) < (READ_SHARE if at_s > TICK_S else 1.0)
        for switch_id in [key for key, (due_s, _) in self.open.items() if due_s <= at_s]:
            opened = self.open.pop(switch_id)[1]
            at = self.site.indices_of(opened.device_ids)
            self.activity[at] = CODE_OF[opened.to_activity]
            changed[at] = True
            took_us = (SLEEP_S if opened.to_activity is Activity.CURTAILED else WAKE_S) * 1_000_000
            outcomes = ("committed",) * len(at)
            yield f.SwitchClosed(switch_id, opened.device_ids, outcomes, took_us)
        yield self._readings(np.flatnonzero(changed), silent=300 <= at_s % 3_600 < 900)

    def take(self, at_s: int, opened: f.SwitchOpened) -> None:
        """Begin a switch."""
        sleeps = opened.to_activity is not Activity.MINE
        self.open[opened.switch_id] = (at_s + (SLEEP_S if sleeps else WAKE_S), opened)

    def _readings(self, at: IntColumn, *, silent: bool) -> f.ReadingsSeen:
        site, count = self.site, len(at)
        watts = site.nameplate_w[site.class_of[at], self.activity[at]]
        mines = (self.activity[at] == CODE_OF[Activity.MINE]) & site.is_asic[at]
        return f.pack_readings(
            site.digest,
            f.ReadingColumns(
                at.astype(np.int32),
                self.activity[at] if count == len(site) else np.full(count, UNKNOWN, dtype="u1"),
                np.where(silent & (at < SILENT), 0, 1).astype(np.uint8),
                watts * self.rng.normal(1.0, 0.02, count),
                np.where(mines, 200.0, 0.0) * self.rng.normal(1.0, 0.02, count),
                self.rng.normal(65.0, 3.0, count),
                self.rng.uniform(0.0, 1.0, count),
            ),
        )


async def write_journal(path: Path, site: Site, hours: int) -> tuple[int, int]:
    """Write the journal; give its rows, and how many devices were switched."""
    clock, plant = _Clock(), _Plant(site)
    writer = InlineWriter(path, MIGRATIONS, durable=False)
    store = SqliteCoreStore(writer, clock, IdSource(plant.rng.bytes))  # type: ignore[arg-type]  # the wall alone is asked
    await store.recover()
    # History begins with the first row.
    state = new_state(
        site, f.Instant("bench", TICK_S * NS_PER_S, START + timedelta(seconds=TICK_S))
    )
    rows = switched = 0
    for at_s in range(TICK_S, hours * 3_600 + 1, TICK_S):
        clock.at_s = at_s
        instant = f.Instant("bench", at_s * NS_PER_S, START + timedelta(seconds=at_s))
        facts = tuple(plant.facts(at_s))
        entered = enter(site, state, instant, facts)
        made = plan(site, entered)
        acts = tuple(
            open_switch(site, entered, intent, lambda kind: f"{kind}-{next(plant.numbers)}").fact
            for intent in made.intents
        )
        for opened in acts:
            plant.take(at_s, opened)
            switched += len(opened.device_ids)
        state = act(site, entered, acts)
        row = f.TickRow(1, instant, planned=True, facts=facts, acts=acts,
                        decided=decided(site, made))  # fmt: skip
        body = encode_site(site, VERSION) if not rows else None
        await store.commit(CommitBatch(facts=f.encode_row(row), site=body))
        rows += 1
    await store.close()
    return rows, switched


def run(hours: int = HOURS) -> list[Figure]:
    """Measure on a journal made for it."""
    site = build_site()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.sqlite"
        began = time.process_time()
        rows, switched = asyncio.run(write_journal(path, site, hours))
        made_s = time.process_time() - began
        began = time.process_time()
        report = replay(JournalReader(path))
        replay_s = time.process_time() - began
        assert report.equal, report.differences
        began = time.process_time()
        day = walk_day(JournalReader(path), START)
        told = regret(day, run_courses(day))
        regret_s = time.process_time() - began
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
    # The whole fleet slept through the spike and by order, and woke.
    assert switched > 2 * ASICS * hours
    assert told.parts.faults > 0
    assert told.parts.caps_and_orders > 0
    conditions = {
        "asics": ASICS,
        "gpus": GPUS,
        "hours": hours,
        "rows": rows,
        "switched": switched,
        "MiB": round(size / 2**20, 1),
        "made_s": round(made_s, 1),
        "regret_usd": str(told.regret_usd),
    }
    return [
        at_most("replay of an hour", replay_s / hours, "s", REPLAY_TARGET_S, conditions),
        at_most("regret of an hour", regret_s / hours, "s", REGRET_TARGET_S, conditions),
    ]
