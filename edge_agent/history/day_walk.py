"""Walks through a day of the journal and fills its sums, row by row."""

from datetime import datetime, timedelta

import numpy as np
from msgspec import Struct, structs

from edge_agent.backtest.class_series import SECONDS_PER_H
from edge_agent.backtest.frame import STEP_S
from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.difficulty import step_ahead
from edge_agent.core.economics import W_PER_MW, age_s
from edge_agent.core.errors import JournalError
from edge_agent.core.outlook import AHEAD
from edge_agent.core.plan import PowerView
from edge_agent.core.profit import Flows, wear_usd
from edge_agent.core.prospect import known_prices
from edge_agent.core.site import (
    ACTIVITIES,
    MINE,
    NS_PER_S,
    UNKNOWN,
    CodeColumn,
    DeviceClass,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState
from edge_agent.history.day import STEPS, WORLDS, Day, DeviceSums, Gap, Sums, is_busy
from edge_agent.history.doings import Doings
from edge_agent.ports import JournalSource
from edge_agent.services.cleared_worlds import ClearedWorlds, Lived
from edge_agent.services.journal_walk import Step, Walk
from edge_agent.services.what_if import woken

# How long a history that begins within the day is waited for until its devices are known.
_SETTLE_S = 900.0


def walk_day(source: JournalSource, start: datetime, otherwise: Site | None = None) -> Day:
    """Walk through the day that begins at ``start`` (UTC).

    Raises:
        JournalError: the journal holds nothing of the day, or nothing to start from.
    """
    walk = Walk(source, otherwise)
    worlds: ClearedWorlds | None = None
    making: _Making | None = None
    notes: list[str] = []
    # With settled knowledge the last price of the day is heard in the interval after it.
    last = start + timedelta(seconds=STEP_S * STEPS)
    end = last + timedelta(seconds=STEP_S)
    for step in walk.steps(start, plans=False):
        worlds = ClearedWorlds(step) if worlds is None else worlds
        wall = step.row.instant.wall
        if wall <= start:
            worlds.pass_by(step)
            continue
        if making is not None and not _alike(making.site, step.site):
            if wall >= last:
                break
            told = f"the site file changed at {wall:%H:%M}: the day counts from there"
            notes.append(told)
            making = None
        making = _Making(step.site, start) if making is None else making
        if step.before.instant.wall >= end:
            break
        making.add(step, worlds.take(step))
    if making is None or making.begin is None:
        raise JournalError("no_rows", f"the journal has no row of {start:%Y-%m-%d}")
    notes += [
        f"row {row.seq}: {row.detail}"
        for row in walk.problems
        if row.at is None or start < row.at <= end
    ]
    return making.done(tuple(notes))


def _alike(one: Site, other: Site) -> bool:
    return one is other or (
        one.digest == other.digest
        and one.classes == other.classes
        and one.limits == other.limits
        and one.feeders == other.feeders
        and np.array_equal(one.feeder_of, other.feeder_of)
    )


def _adder(row: DeviceClass) -> float:
    return row.adder_usd_per_mwh


class _Total(Struct, frozen=True):
    """What one world earns and draws at once."""

    revenue_usd_per_h: float
    site_w: float
    fees_usd_per_h: float
    serve_usd_per_h: float


def _add(sums: Sums, total: _Total, place: int, dt_h: float) -> None:
    sums.revenue_usd[place] += total.revenue_usd_per_h * dt_h
    sums.wh[place] += total.site_w * dt_h
    sums.fees_usd[place] += total.fees_usd_per_h * dt_h
    sums.serve_usd[place] += total.serve_usd_per_h * dt_h


class _Making:
    """Fills a day's sums, row by row."""

    def __init__(self, site: Site, start: datetime) -> None:
        self.site = site
        self.begin: SiteState | None = None
        self._start = start
        count = len(site)
        self._worlds = tuple(Sums(*(np.zeros(STEPS) for _ in range(5))) for _ in range(WORLDS))
        columns = {row.name: np.zeros((STEPS, count)) for row in structs.fields(DeviceSums)}
        columns["hours"] = np.zeros((count, ACTIVITIES))
        self._devices = DeviceSums(**columns)
        self._doings = Doings.empty(STEPS)
        self._covered_h = np.zeros(STEPS)
        self._unknown_s = {
            name: np.zeros(STEPS) for name in ("rows are missing", "no coin price or GPU rate")
        }
        self._price = np.zeros((STEPS + 1, 2))
        self._ahead = np.full((STEPS, AHEAD), np.nan)
        self._step = np.tile((0.0, 1.0), (STEPS, 1))
        self._before: tuple[float, ...] = ()
        self._seq = -1
        self._unsettled_s = 0.0
        self._brought = np.zeros(count)
        self._doing: CodeColumn | None = None
        self._doing_h = 0.0

    def add(self, step: Step, lived: tuple[Lived, ...]) -> None:
        """Add the time since the row before, at the values that held, and what the row did."""
        wall = step.row.instant.wall
        dt_s = _elapsed_s(step)
        parts = _parts(self._start, wall - timedelta(seconds=dt_s), dt_s)
        self._begin(lived[-1].before, dt_s if parts else 0.0)
        missing = self._seq >= 0 and step.seq != self._seq + 1
        self._seq = step.seq
        self._hear(step, parts)
        power = pw.view(step.site, step.entered, read=False) if step.planned else None
        if self.begin is not None:
            inside = [part for part in parts if part[0] < STEPS]
            self._settle(step, lived, power, inside, missing)
        place = int((wall - self._start).total_seconds() // STEP_S)
        if 0 <= place < STEPS and self.begin is not None:
            self._wear(lived, place)
            self._doings.note(step, power, place)

    def done(self, notes: tuple[str, ...]) -> Day:
        """Give the day."""
        assert self.begin is not None, "asked for only once the day has begun"
        self._spend(None)
        self._devices.could_wh[:] *= self.site.pue
        with np.errstate(invalid="ignore"):
            heard = self._price[:, 0] / np.where(self._price[:, 1] > 0.0, self._price[:, 1], np.nan)
        known = self.site.limits.price_knowledge == "nowcast"
        price = heard[:STEPS] if known else heard[1:]
        told = np.concatenate((self._before, heard))
        return Day(
            site=self.site,
            start=self._start,
            price=price,
            told=told[: len(self._before) + STEPS] if known else told,
            ahead=self._ahead,
            step=self._step,
            covered_h=np.where(np.isnan(price), 0.0, self._covered_h),
            worlds=self._worlds,
            devices=self._devices,
            begin=self.begin,
            doings=self._doings,
            gaps=self._gaps(price),
            notes=notes,
        )

    def _begin(self, state: SiteState, dt_s: float) -> None:
        """Keep the state that the day begins in: at the latest soon after its first row."""
        if self.begin is not None:
            return
        self._unsettled_s += dt_s
        unknown = (state.activity == UNKNOWN) & (state.lease_no < 0)
        if unknown.any() and self._unsettled_s < _SETTLE_S:
            return
        self.begin = state
        market = state.market
        last = np.nan if market.price_usd_per_mwh is None else market.price_usd_per_mwh.value
        older = (*market.older_usd_per_mwh, np.nan, np.nan)[:2]
        self._before = (older[1], older[0], last)

    def _hear(self, step: Step, parts: list[tuple[int, float]]) -> None:
        market, limits = step.before.market, step.site.limits
        age = age_s(market.price_usd_per_mwh, step.before.now_ns)
        if market.price_usd_per_mwh is not None and age is not None and age <= limits.price_stale_s:
            for place, dt_s in parts:
                self._price[place] += (dt_s * market.price_usd_per_mwh.value, dt_s)
        ahead = known_prices(step.state.market).ahead
        place = int((step.row.instant.wall - self._start).total_seconds() // STEP_S)
        if ahead and 0 <= place < STEPS and np.isnan(self._ahead[place, 0]):
            self._ahead[place] = ahead
        coming = step_ahead(step.state.market)
        if coming is not None and 0 <= place < STEPS and not self._step[place, 0]:
            self._step[place] = (coming.weight, coming.revenue_ratio)

    def _settle(
        self,
        step: Step,
        lived: tuple[Lived, ...],
        power: PowerView | None,
        parts: list[tuple[int, float]],
        missing: bool,  # noqa: FBT001 - one call, beside it what it means
    ) -> None:
        if not parts:
            return
        totals = self._totals(lived)
        unpriced = bool(np.isnan(totals[0].revenue_usd_per_h))
        for place, dt_s in parts:
            if missing or unpriced:
                why = "rows are missing" if missing else "no coin price or GPU rate"
                self._unknown_s[why][place] += dt_s
                continue
            dt_h = dt_s / SECONDS_PER_H
            self._covered_h[place] += dt_h
            for sums, total in zip(self._worlds, totals, strict=True):
                _add(sums, total, place, dt_h)
            self._real(lived[0], place, dt_h)
            self._last(lived[-1], place, dt_h)
            self._doings.load(step, power, place, dt_h, totals[0].site_w)

    def _totals(self, lived: tuple[Lived, ...]) -> list[_Total]:
        """Give what each world earns and draws; one that is its parent is not summed anew."""
        out: list[_Total] = []
        for number, one in enumerate(lived):
            same = number > 0 and one is lived[number - 1]
            out.append(out[-1] if same else self._total(one.flows))
        return out

    def _total(self, flow: Flows) -> _Total:
        fees = 0.0
        if any(row.adder_usd_per_mwh for row in self.site.classes):
            fees = float((flow.site_w * self.site.column(_adder)).sum()) / W_PER_MW
        revenue, site_w = float(flow.revenue_usd_per_h.sum()), float(flow.site_w.sum())
        return _Total(revenue, site_w, fees, flow.serve_usd_per_h)

    def _grow(self, column: FloatColumn, by_h: FloatColumn, dt_h: float) -> None:
        """Add what a time brings, without a new column for it."""
        column += np.multiply(by_h, dt_h, out=self._brought)

    def _spend(self, doing: CodeColumn | None) -> None:
        """Add the time of what devices did until now; most rows change nobody's activity."""
        if self._doing is not None:
            self._devices.hours[np.arange(len(self.site)), self._doing] += self._doing_h
        self._doing, self._doing_h = doing, 0.0

    def _real(self, one: Lived, place: int, dt_h: float) -> None:
        own, flow = self._devices, one.flows
        self._grow(own.revenue_usd[place], flow.revenue_usd_per_h, dt_h)
        self._grow(own.wh[place], flow.site_w, dt_h)
        if one.before.activity is not self._doing:
            self._spend(one.before.activity)
        self._doing_h += dt_h

    def _last(self, one: Lived, place: int, dt_h: float) -> None:
        """Note what each device could earn by mining, and what is no choice of the rule."""
        own, state, flow = self._devices, one.before, one.flows
        self._grow(own.could_usd[place], flow.could_usd_per_h, dt_h)
        mine_w, unread = state.mine_w, np.isnan(state.mine_w)
        if unread.any():
            mine_w = np.where(unread, self.site.nameplate_w[self.site.class_of, MINE], mine_w)
        self._grow(own.could_wh[place], mine_w, dt_h)
        busy = np.flatnonzero(is_busy(state))
        own.busy_h[place, busy] += dt_h
        own.busy_wh[place, busy] += flow.site_w[busy] * dt_h

    def _wear(self, lived: tuple[Lived, ...], place: int) -> None:
        for number, (sums, one) in enumerate(zip(self._worlds, lived, strict=True)):
            for at in woken(one.site, one.state, one.acts):
                sums.wear_usd[place] += wear_usd(one.site, at)
                if number == 0:
                    each = [wear_usd(one.site, at[:1])] * len(at)
                    self._devices.wear_usd[place, at] += each

    def _gaps(self, price: FloatColumn) -> tuple[Gap, ...]:
        """Name the time that is in no figure, neighbouring intervals of one reason together."""
        reasons = dict(self._unknown_s)
        unpriced = np.isnan(price)
        covered_s = self._covered_h * SECONDS_PER_H
        reasons["no price"] = np.where(unpriced, covered_s, 0.0)
        rest = STEP_S - covered_s - sum(self._unknown_s.values())
        reasons["no rows"] = np.where(rest > 1.0, rest, 0.0)
        out: list[Gap] = []
        for why, seconds in reasons.items():
            for first, end in _runs(seconds > 0.0):
                out.append(
                    Gap(
                        from_at=self._start + timedelta(seconds=STEP_S * first),
                        to_at=self._start + timedelta(seconds=STEP_S * end),
                        why=why,
                        seconds=round(float(seconds[first:end].sum()), 3),
                    )
                )
        return tuple(sorted(out, key=lambda row: row.from_at))


def _elapsed_s(step: Step) -> float:
    """Give the time since the row before; none over a boot or while the agent was down."""
    before, now = step.before.instant, step.row.instant
    down = any(isinstance(fact, f.Booted) for fact in step.row.facts)
    if before.boot_id != now.boot_id or down or not step.checked or not step.before.rows:
        return 0.0
    return max(now.now_ns - before.now_ns, 0) / NS_PER_S


def _parts(start: datetime, from_at: datetime, dt_s: float) -> list[tuple[int, float]]:
    """Split a time by the day's intervals (and the one after it); what lies outside falls away."""
    at_s = (from_at - start).total_seconds()
    end_s = at_s + dt_s
    out: list[tuple[int, float]] = []
    at_s = max(at_s, 0.0)
    while at_s < min(end_s, STEP_S * (STEPS + 1)):
        place = int(at_s // STEP_S)
        until_s = min(end_s, STEP_S * (place + 1))
        out.append((place, until_s - at_s))
        at_s = until_s
    return out


def _runs(flags: FlagColumn) -> list[tuple[int, int]]:
    edges: IntColumn = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]
