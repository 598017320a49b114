"""State of the site as columns.

Columns are copied when written, so an older state stays whole. Inside columns NaN is unknown, and
times are boottime nanoseconds of the present boot. How facts change it: ``state_facts.apply``.
"""

from enum import StrEnum
from typing import Any, cast

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.columns import every, pick, some
from edge_agent.core.held import HeldSwitch, shift_held
from edge_agent.core.ready import Arrivals, Paid, PrepareEntry, shift_arrivals, shift_prepares
from edge_agent.core.restart import ClassBelief
from edge_agent.core.site import (
    ACTIVITIES,
    CURTAILED,
    IDLE,
    MAINTENANCE,
    NS_PER_S,
    UNKNOWN,
    CodeColumn,
    Column,
    FlagColumn,
    FloatColumn,
    IndexColumn,
    IntColumn,
    Site,
)
from protocol.event import ReleaseOutcome
from protocol.lease import Lease, SitePolicy, workload_class
from protocol.market import GpuRate

OFF_CODES = (IDLE, CURTAILED)
NEVER_NS = np.iinfo(np.int64).max
HOLD_CODES = (f.HoldMode.NONE, f.HoldMode.DRAIN, f.HoldMode.MINE, f.HoldMode.SERVE)
HOLD_NONE, HOLD_DRAIN, HOLD_MINE, HOLD_SERVE = range(4)


class LeaseStatus(StrEnum):
    """Where a lease stands on the edge."""

    RECEIVED = "received"
    ACCEPTED = "accepted"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    CLOSED = "closed"
    FOREIGN = "foreign"


class Slot(Struct, frozen=True, array_like=True):
    """One device of a lease, and the instance on it ("" while none has been started)."""

    device_id: str
    instance_id: str = ""
    serving: bool = False
    completed: bool = False


class LeaseEntry(Struct, frozen=True, array_like=True):
    """What the edge knows of a lease; ``lease`` is None when only a node knows it (foreign).

    ``no`` is the row number that the device column carries. ``to_close``: instances whose meter
    must be closed before the release. ``restarts_ns``: when instances were started again.
    ``unsure``: known from the store alone since the agent's last start; see ``lease_facts``.
    ``detail``: why it ends; before that, why an instance was last lost or did not start.
    """

    no: int
    lease_id: str
    attempt: int
    lease: Lease | None
    status: LeaseStatus
    since_ns: int
    slots: tuple[Slot, ...] = ()
    to_close: tuple[str, ...] = ()
    restarts_ns: tuple[int, ...] = ()
    outcome: ReleaseOutcome | None = None
    detail: str = ""
    refused: bool = False
    final_usage_seq: int = 0
    unsure: bool = False

    @property
    def rank(self) -> str:
        """Give the class P1..P4 of the lease; a foreign one counts as P1, it is not ours to end."""
        return "P1" if self.lease is None else workload_class(self.lease.priority)


class SwitchEntry(Struct, frozen=True, array_like=True):
    """An open switch; ``no`` is the number that the device column carries."""

    no: int
    switch_id: str
    lease_id: str | None
    opened_ns: int


class MarketValue(Struct, frozen=True, array_like=True):
    """One number with its age: ``as_of_ns`` is boottime when it was measured."""

    value: float
    as_of_ns: int
    feed: str


class Told(Struct, frozen=True, array_like=True):
    """What one feed last told of one input, and what became of it (``hygiene``).

    Args:
        source_ms: instant that it speaks of. same: new values in a row that were equal.
        run: new values in a row that stood for the same thing.
    """

    name: str
    feed: str
    value: float
    as_of_ns: int
    source_ms: int
    same: int = 0
    run: int = 1
    verdict: str = ""
    reason: str = ""


class Usual(Struct, frozen=True, array_like=True):
    """Level and spread of the prices taken lately, over so many intervals."""

    level_usd_per_mwh: float
    spread_usd_per_mwh: float
    seen: int


class Blocks(Struct, frozen=True, array_like=True):
    """First and last block height seen in the running difficulty epoch, and when."""

    first_height: int
    first_ms: int
    height: int
    at_ms: int


class PeakState(Struct, frozen=True, array_like=True):
    """The grid's load this month, a given probability, and what was off for peaks (``peaks``).

    Args:
        most_mw: largest load of ``month`` so far. curtailed_s: in ``spent_month``. forgone_usd:
            on ``spent_day``.
    """

    month: int = -1
    most_mw: float = 0.0
    load_mw: MarketValue | None = None
    given: MarketValue | None = None
    spent_month: int = -1
    curtailed_s: float = 0.0
    spent_day: int = -1
    forgone_usd: float = 0.0


class MarketState(Struct, frozen=True, array_like=True):
    """Last known value of each input; None was never seen.

    Args:
        interval_no: settlement interval (source time) that the price speaks of.
        older_usd_per_mwh: prices of the two intervals before it, latest first.
        day_ahead_usd_per_mwh: of the price's hour and those after it;
            day_ahead_before_usd_per_mwh: of the hour before, as it was told then.
        told: by input and feed. at_risk_usd_per_h: what the price may cost if it is wrong.
        ambient_c: outside air. blocks: of the running difficulty epoch. peak: of the grid.
    """

    price_usd_per_mwh: MarketValue | None = None
    btc_price_usd: MarketValue | None = None
    difficulty: MarketValue | None = None
    subsidy_btc: MarketValue | None = None
    fees_btc: MarketValue | None = None
    gpu_rates: tuple[GpuRate, ...] = ()
    gpu_rates_as_of_ns: int = 0
    interval_no: int = -1
    older_usd_per_mwh: tuple[float, ...] = ()
    day_ahead_usd_per_mwh: tuple[float, ...] = ()
    told: tuple[Told, ...] = ()
    usual: Usual | None = None
    at_risk_usd_per_h: float = 0.0
    ambient_c: MarketValue | None = None
    blocks: Blocks | None = None
    peak: PeakState = PeakState()
    day_ahead_before_usd_per_mwh: float | None = None


class OrderStatus(StrEnum):
    """Where a grid order stands."""

    WAITING = "waiting"
    SHEDDING = "shedding"
    HOLDING = "holding"
    MET = "met"
    MISSED = "missed"
    CANCELLED = "cancelled"


class OrderSample(Struct, frozen=True, array_like=True):
    """What the site was confirmed to draw at an instant, in site watts."""

    at_ms: int
    load_w: float


class OrderEntry(Struct, frozen=True, array_like=True):
    """A grid order and what became of it; -1 is not yet.

    Args:
        promised_w: load that can be reached by the deadline with 99 %, as known when it came.
        shed_ms: the limit began to bind. reached_ms: the load was first under it from then on.
        missed_ms: first seen above it between deadline and end. worst_w: most above it, then.
        over_s: time above it, then. last_ms: row that counted last. end_ms: over or cancelled.
    """

    order: f.GridOrder
    issued_ms: int
    status: OrderStatus = OrderStatus.WAITING
    shed_ms: int = -1
    reached_ms: int = -1
    missed_ms: int = -1
    worst_w: float = 0.0
    over_s: float = 0.0
    last_ms: int = -1
    end_ms: int = -1
    why: str = ""
    samples: tuple[OrderSample, ...] = ()
    promised_w: float = -1.0

    @property
    def open(self) -> bool:
        """Tell whether it may still bind."""
        return self.end_ms < 0


class Response(Struct, frozen=True, array_like=True):
    """How fast devices of a class and firmware went down (``response``); last bucket: never."""

    device_class: str
    firmware: str
    counts: tuple[float, ...]
    samples: int


class SiteState(Struct, frozen=True, eq=False, kw_only=True):
    """The site at one instant.

    Columns: ``activity`` (code; SWITCHING while a switch is open), ``origin`` and ``target`` (the
    two sides of the open switch, else both the mode), ``since_ns`` (activity began),
    ``mode_since_ns`` (mode began: the least dwell counts from there), ``heard_ns`` (last row at
    which it was reachable), ``read_ns`` (last reading), ``mine_ths`` and ``mine_w`` (last confirmed
    while mining), ``regret_usd`` (of staying, since the last change), ``debt`` (restarts that
    being off has not earned yet), ``quarantine_ns`` (ends, or ended, then; 0 is none), ``spent_ns``
    (closed intervals by activity, (D, 8)). ``switch_costs``: the newest of each class and move.
    ``restarts``: what wake-ups taught, by class. ``unheard``: nodes that have said nothing since
    the agent's last start. ``prepares``: what is held ready, by device. ``arrivals``: of leases, by
    class; ``paid``: what these pay, of classes whose reserve demand sets. ``held``: open switches
    of a former life that wait until the site was read, or were turned back.

    Of the power mode, where the agent sets it: ``step`` (confirmed; 0 is unknown; kept while the
    miner is off, as miners do), ``step_to`` (the other side of an open change, else the same),
    ``step_since_ns`` (the last change began or ended), ``step_regret_usd`` (of staying in it),
    ``no_steps`` (a bit for each step that the miner refused, the lowest first) and ``no_code``
    (the last reason for that, a place in ``step_facts.REFUSALS``).
    """

    rows: int
    instant: f.Instant
    suspect: bool
    owner: bool
    market: MarketState
    switch_costs: tuple[f.SwitchCost, ...]
    policy: SitePolicy | None
    leases: tuple[LeaseEntry, ...]
    switches: tuple[SwitchEntry, ...]
    next_no: int
    through_ms: int
    over_cap_ns: int
    ramp_left_w: float
    nodes_up: tuple[str, ...]
    orders: tuple[OrderEntry, ...]
    responses: tuple[Response, ...]
    restarts: tuple[ClassBelief, ...] = ()
    unheard: tuple[str, ...] = ()
    prepares: tuple[PrepareEntry, ...] = ()
    arrivals: tuple[Arrivals, ...] = ()
    paid: tuple[Paid, ...] = ()
    held: tuple[HeldSwitch, ...] = ()
    activity: CodeColumn
    origin: CodeColumn
    target: CodeColumn
    since_ns: IntColumn
    mode_since_ns: IntColumn
    reachable: FlagColumn
    heard_ns: IntColumn
    read_ns: IntColumn
    power_w: FloatColumn
    hashrate_ths: FloatColumn
    temp_c: FloatColumn
    utilisation: FloatColumn
    mine_ths: FloatColumn
    mine_w: FloatColumn
    regret_usd: FloatColumn
    debt: FloatColumn
    switch_no: IndexColumn
    lease_no: IndexColumn
    failures: CodeColumn
    failed_ns: IntColumn
    quarantine_ns: IntColumn
    hold: CodeColumn
    hold_until_ns: IntColumn
    spent_ns: IntColumn
    step: CodeColumn
    step_to: CodeColumn
    step_since_ns: IntColumn
    step_regret_usd: FloatColumn
    no_steps: CodeColumn
    no_code: CodeColumn

    @property
    def now_ns(self) -> int:
        """Give the boottime of the last row."""
        return self.instant.now_ns


def new_state(site: Site, instant: f.Instant) -> SiteState:
    """Make the state before any fact: everything unknown since ``instant``."""
    n = len(site)
    nan = np.full(n, np.nan)
    zero = np.zeros(n, dtype=np.int64)
    now = np.full(n, instant.now_ns, dtype=np.int64)
    code = np.zeros(n, dtype=np.uint8)
    none = np.full(n, -1, dtype=np.int32)
    return SiteState(
        rows=0,
        instant=instant,
        suspect=False,
        owner=True,
        market=MarketState(),
        switch_costs=(),
        policy=None,
        leases=(),
        switches=(),
        next_no=1,
        through_ms=0,
        over_cap_ns=-1,
        ramp_left_w=0.0,
        nodes_up=(),
        orders=(),
        responses=(),
        activity=code,
        origin=code,
        target=code,
        since_ns=now,
        mode_since_ns=now,
        reachable=np.zeros(n, dtype=np.bool_),
        heard_ns=now,
        read_ns=zero,
        power_w=nan,
        hashrate_ths=nan,
        temp_c=nan,
        utilisation=nan,
        mine_ths=nan,
        mine_w=nan,
        regret_usd=np.zeros(n),
        debt=np.zeros(n),
        switch_no=none,
        lease_no=none,
        failures=code,
        failed_ns=zero,
        quarantine_ns=zero,
        hold=code,
        hold_until_ns=zero,
        spent_ns=np.zeros((n, ACTIVITIES), dtype=np.int64),
        step=code,
        step_to=code,
        step_since_ns=now,
        step_regret_usd=np.zeros(n),
        no_steps=code,
        no_code=code,
    )


def enter_instant(state: SiteState, instant: f.Instant) -> SiteState:
    """Move to the instant of a row; a new boot shifts every kept time and closes intervals.

    Between boots elapsed time is known from the wall only, and is one interval ``unknown``.
    """
    if instant.boot_id == state.instant.boot_id:
        return replace(state, instant=instant, rows=state.rows + 1)
    gap_s = max((instant.wall - state.instant.wall).total_seconds(), 0.0)
    gap_ns = int(gap_s * NS_PER_S)
    shift = instant.now_ns - state.now_ns - gap_ns
    now = np.full(len(state.activity), instant.now_ns, dtype=np.int64)
    spent = spend(state, np.arange(len(state.activity)), state.now_ns)
    spent[:, UNKNOWN] += gap_ns
    changes: dict[str, Any] = {
        name: np.where(
            (getattr(state, name) == 0) | (getattr(state, name) == NEVER_NS),
            getattr(state, name),
            getattr(state, name) + shift,
        )
        for name in ("failed_ns", "quarantine_ns", "hold_until_ns")
    }
    return replace(
        state,
        rows=state.rows + 1,
        instant=instant,
        market=_shift_market(state.market, shift),
        leases=tuple(_shift_lease(row, shift) for row in state.leases),
        switches=tuple(replace(row, opened_ns=row.opened_ns + shift) for row in state.switches),
        over_cap_ns=-1,
        nodes_up=(),
        prepares=shift_prepares(state.prepares, shift),
        arrivals=shift_arrivals(state.arrivals, shift),
        held=shift_held(state.held, shift),
        spent_ns=spent,
        since_ns=now,
        mode_since_ns=now,
        step_since_ns=now,
        heard_ns=state.heard_ns + shift,
        read_ns=np.zeros(len(state.read_ns), dtype=np.int64),
        reachable=np.zeros(len(state.reachable), dtype=np.bool_),
        **changes,
    )


def lease_by_id(state: SiteState, lease_id: str) -> LeaseEntry | None:
    """Find a lease."""
    return next((row for row in state.leases if row.lease_id == lease_id), None)


def lease_by_no(state: SiteState, no: int) -> LeaseEntry | None:
    """Find a lease by the number that the device column carries."""
    return next((row for row in state.leases if row.no == no), None)


def put_lease(state: SiteState, entry: LeaseEntry) -> tuple[LeaseEntry, ...]:
    """Give the leases with one replaced."""
    return tuple(entry if row.no == entry.no else row for row in state.leases)


def set_activity(
    state: SiteState, at: IntColumn, origin: int, target: int, activity: int
) -> dict[str, Any]:
    """Give the columns after devices ``at`` change their activity now; equal ones stay open.

    One in maintenance that is off stays in it: only an operator ends it.
    """
    shown = np.full(len(at), activity, dtype=np.uint8)
    if activity in OFF_CODES:
        shown[state.activity[at] == MAINTENANCE] = MAINTENANCE
    changed, moved = at[state.activity[at] != shown], at[mode_of(state)[at] != activity]
    out: dict[str, Any] = {
        "activity": put(state.activity, at, shown),
        "origin": put(state.origin, at, origin),
        "target": put(state.target, at, target),
    }
    if len(changed):
        out["spent_ns"] = spend(state, changed, state.now_ns)
        out["since_ns"] = put(state.since_ns, changed, state.now_ns)
    if len(moved):
        out["mode_since_ns"] = put(state.mode_since_ns, moved, state.now_ns)
        out["regret_usd"] = put(state.regret_usd, moved, 0.0)
    return out


def is_off(codes: CodeColumn) -> FlagColumn:
    """Tell which activities are off; of few devices in a ninth of the time of ``np.isin``."""
    out: FlagColumn = (codes == IDLE) | (codes == CURTAILED)
    return out


def mode_of(state: SiteState) -> CodeColumn:
    """Give what each device physically does: its activity, and in maintenance the way it is off."""
    inside = state.activity == MAINTENANCE
    if not some(inside):
        return state.activity
    out: CodeColumn = np.where(inside, state.target, state.activity)
    return out


def spend(state: SiteState, at: IntColumn, until_ns: IntColumn | int) -> IntColumn:
    """Give ``spent_ns`` with the open intervals of devices ``at`` closed at ``until_ns``."""
    spent: IntColumn = state.spent_ns.copy()
    spent[at, state.activity[at]] += np.maximum(until_ns - state.since_ns[at], 0)
    return spent


def put(column: Column, at: IntColumn | FlagColumn | int, value: object) -> Column:
    """Give a copy of a column with the rows ``at`` set."""
    out = column.copy()
    out[at] = value
    return out


class Rows(Struct, frozen=True, eq=False):
    """Devices that a fact speaks of, in its order; ``whole``: every device of the site, in theirs.

    Then a column of the fact is one of the site, and nothing is gathered or scattered.
    """

    at: IntColumn
    whole: bool

    def of(self, column: Column) -> Column:
        """Give the part of a column that belongs to these devices."""
        return column if self.whole else cast("Column", column[self.at])

    def put(self, column: Column, values: Column) -> Column:
        """Give a column with these devices' values set; the given ones themselves where whole."""
        if self.whole:
            return cast("Column", values.astype(column.dtype, copy=False))
        return put(column, self.at, values)

    def put_where(self, column: Column, holds: FlagColumn, values: Column) -> Column:
        """Give a copy of a column with the values set of those for which a flag of theirs holds."""
        if self.whole:
            return pick(holds, values, column)
        return put(column, self.at[holds], values[holds])


def rows_of(site: Site, index: IndexColumn) -> Rows:
    """Give the devices of a column of indices."""
    if len(index) == len(site) and every(index == site.once(_every_index)):
        return Rows(site.once(_every_row), whole=True)
    return Rows(index.astype(np.int64), whole=False)


def _every_index(site: Site) -> IndexColumn:
    return np.arange(len(site), dtype=np.int32)


def _every_row(site: Site) -> IntColumn:
    return np.arange(len(site), dtype=np.int64)


def _shift_market(market: MarketState, shift: int) -> MarketState:
    changes: dict[str, Any] = {}
    values = ("price_usd_per_mwh", "btc_price_usd", "difficulty", "subsidy_btc", "fees_btc")
    for name in (*values, "ambient_c"):
        held: MarketValue | None = getattr(market, name)
        if held is not None:
            changes[name] = replace(held, as_of_ns=held.as_of_ns + shift)
    load, given = (
        None if held is None else replace(held, as_of_ns=held.as_of_ns + shift)
        for held in (market.peak.load_mw, market.peak.given)
    )
    changes["peak"] = replace(market.peak, load_mw=load, given=given)
    changes["told"] = tuple(replace(row, as_of_ns=row.as_of_ns + shift) for row in market.told)
    return replace(market, gpu_rates_as_of_ns=market.gpu_rates_as_of_ns + shift, **changes)


def _shift_lease(row: LeaseEntry, shift: int) -> LeaseEntry:
    return replace(
        row,
        since_ns=row.since_ns + shift,
        restarts_ns=tuple(at + shift for at in row.restarts_ns),
    )
