"""State of the site as columns, and how facts change it.

``apply(site, state, fact) -> state`` is a function of journalled facts only; columns are copied when
written, so an older state stays whole. Inside columns NaN is unknown, and times are boottime
nanoseconds of the present boot.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.site import (
    ACTIVITIES,
    CODE_OF,
    CURTAILED,
    FAULT,
    IDLE,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    UNKNOWN,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IndexColumn,
    IntColumn,
    Site,
)
from protocol.event import ReleaseOutcome
from protocol.lease import EndReason, Lease, LeaseState, SitePolicy, workload_class
from protocol.market import GpuRate, MarketTick
from protocol.node import NodeDevice, NodeEventKind

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

    ``no`` is the row number that the device column carries. ``to_close``: instances whose meter must
    be closed before the release. ``restarts_ns``: when instances were started again.
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


class MarketState(Struct, frozen=True, array_like=True):
    """Last known value of each input; None was never seen."""

    price_usd_per_mwh: MarketValue | None = None
    btc_price_usd: MarketValue | None = None
    difficulty: MarketValue | None = None
    subsidy_btc: MarketValue | None = None
    fees_btc: MarketValue | None = None
    gpu_rates: tuple[GpuRate, ...] = ()
    gpu_rates_as_of_ns: int = 0


class SiteState(Struct, frozen=True, eq=False, kw_only=True):
    """The site at one instant.

    Columns: ``activity`` (code; SWITCHING while a switch is open), ``origin`` and ``target`` (the two
    sides of the open switch, else both the activity), ``since_ns`` (activity began), ``read_ns`` (last
    reading), ``mine_ths`` and ``mine_w`` (last confirmed while mining), ``regret_usd`` (of staying,
    since the last change), ``spent_ns`` (closed intervals by activity, (D, 8)).
    """

    rows: int
    instant: f.Instant
    suspect: bool
    owner: bool
    market: MarketState
    policy: SitePolicy | None
    leases: tuple[LeaseEntry, ...]
    switches: tuple[SwitchEntry, ...]
    next_no: int
    through_ms: int
    over_cap_ns: int
    ramp_left_w: float
    nodes_up: tuple[str, ...]
    activity: CodeColumn
    origin: CodeColumn
    target: CodeColumn
    since_ns: IntColumn
    reachable: FlagColumn
    read_ns: IntColumn
    power_w: FloatColumn
    hashrate_ths: FloatColumn
    temp_c: FloatColumn
    utilisation: FloatColumn
    mine_ths: FloatColumn
    mine_w: FloatColumn
    regret_usd: FloatColumn
    switch_no: IndexColumn
    lease_no: IndexColumn
    failures: CodeColumn
    failed_ns: IntColumn
    quarantine_ns: IntColumn
    hold: CodeColumn
    hold_until_ns: IntColumn
    spent_ns: IntColumn

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
        rows=0, instant=instant, suspect=False, owner=True, market=MarketState(), policy=None, leases=(),
        switches=(), next_no=1, through_ms=0, over_cap_ns=-1, ramp_left_w=0.0, nodes_up=(),
        activity=code, origin=code, target=code, since_ns=now, reachable=np.zeros(n, dtype=np.bool_),
        read_ns=zero, power_w=nan, hashrate_ths=nan, temp_c=nan, utilisation=nan, mine_ths=nan,
        mine_w=nan, regret_usd=np.zeros(n), switch_no=none, lease_no=none, failures=code,
        failed_ns=zero, quarantine_ns=zero, hold=code, hold_until_ns=zero,
        spent_ns=np.zeros((n, ACTIVITIES), dtype=np.int64),
    )  # fmt: skip


def apply(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    """Give the state after one fact."""
    match fact:
        case f.ReadingsSeen():
            return _readings(site, state, fact)
        case f.MarketSeen():
            return replace(state, market=_market(state, fact.tick))
        case f.SwitchOpened():
            return _switch_opened(site, state, fact)
        case f.SwitchClosed():
            return _switch_closed(site, state, fact)
        case f.NodeAdopted():
            return _node_adopted(site, state, fact)
        case f.NodeLost():
            return _node_lost(site, state, fact)
        case f.NodeSaid():
            return _node_said(site, state, fact)
        case f.OperatorHeld():
            return _held(site, state, fact)
        case f.PolicySeen():
            return _policy(state, fact.policy)
        case f.ClockSuspected():
            return replace(state, suspect=fact.suspect)
        case f.OwnerSeen():
            return replace(state, owner=fact.owner)
        case f.Booted():
            return state
    return _lease_fact(site, state, fact)


def _lease_fact(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    match fact:
        case f.LeaseSeen():
            return _lease_seen(state, fact.lease)
        case f.ManifestSeen():
            return _manifest(state, fact.lease_ids)
        case f.LeaseTaken():
            return _lease_taken(site, state, fact)
        case f.LeaseEnding():
            return _lease_ending(state, fact.lease_id, fact.outcome, fact.detail)
        case f.LeaseClosed():
            return _lease_closed(state, fact)
        case f.LeaseCleared():
            kept = tuple(
                row
                for row in state.leases
                if row.lease_id != fact.lease_id or row.status is not LeaseStatus.CLOSED
            )
            return replace(state, leases=kept)
        case f.LeaseReplaced():
            return _lease_replaced(site, state, fact)
        case f.MetersPassed():
            return _meters(state, fact)
    return state


def enter_instant(state: SiteState, instant: f.Instant) -> SiteState:
    """Move to the instant of a row; a new boot shifts every kept time and closes intervals.

    Between boots elapsed time is known from the wall only, and is one interval ``unknown``.
    """
    if instant.boot_id == state.instant.boot_id:
        return replace(state, instant=instant, rows=state.rows + 1)
    gap_s = max((instant.wall - state.instant.wall).total_seconds(), 0.0)
    gap_ns = int(gap_s * NS_PER_S)
    shift = instant.now_ns - state.now_ns - gap_ns
    spent = _spend(state, np.arange(len(state.activity)), state.now_ns)
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
        spent_ns=spent,
        since_ns=np.full(len(state.since_ns), instant.now_ns, dtype=np.int64),
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
    """Give the columns after devices ``at`` change their activity now; equal ones stay open."""
    changed = at[state.activity[at] != activity]
    out: dict[str, Any] = {
        "activity": _put(state.activity, at, activity),
        "origin": _put(state.origin, at, origin),
        "target": _put(state.target, at, target),
    }
    if len(changed):
        out["spent_ns"] = _spend(state, changed, state.now_ns)
        out["since_ns"] = _put(state.since_ns, changed, state.now_ns)
        out["regret_usd"] = _put(state.regret_usd, changed, 0.0)
    return out


def _spend(state: SiteState, at: IntColumn, now_ns: int) -> IntColumn:
    spent: IntColumn = state.spent_ns.copy()
    spent[at, state.activity[at]] += np.maximum(now_ns - state.since_ns[at], 0)
    return spent


def _put(column: Any, at: Any, value: Any) -> Any:  # noqa: ANN401 - numpy's own type of any column
    out = column.copy()
    out[at] = value
    return out


def _readings(site: Site, state: SiteState, fact: f.ReadingsSeen) -> SiteState:
    if fact.site_digest != site.digest:
        return state  # of another site file: the devices are read again within one tick
    row = f.unpack_readings(fact)
    at = row.index.astype(np.int64)
    settled = state.switch_no[at] < 0
    known = settled & (row.activity != UNKNOWN) & (row.activity != state.activity[at])
    changes: dict[str, Any] = {}
    for code in np.unique(row.activity[known]):
        moved = at[known & (row.activity == code)]
        state = replace(state, **set_activity(state, moved, int(code), int(code), int(code)))
    mining = settled & (state.activity[at] == MINE) & (row.hashrate_ths > 0.0)
    changes["mine_ths"] = _put(state.mine_ths, at[mining], row.hashrate_ths[mining])
    with_power = mining & (row.power_w > 0.0)
    changes["mine_w"] = _put(state.mine_w, at[with_power], row.power_w[with_power])
    changes["reachable"] = _put(state.reachable, at, row.reachable.astype(np.bool_))
    heard = at[row.reachable != 0]
    changes["read_ns"] = _put(state.read_ns, heard, state.now_ns)
    for name in ("power_w", "hashrate_ths", "temp_c", "utilisation"):
        changes[name] = _put(getattr(state, name), at, getattr(row, name))
    return replace(state, **changes)


def _market(state: SiteState, tick: MarketTick) -> MarketState:
    behind_s = max((state.instant.wall - tick.measured_at).total_seconds(), 0.0)
    as_of_ns = state.now_ns - int(behind_s * NS_PER_S)
    changes: dict[str, Any] = {}
    for name in ("price_usd_per_mwh", "btc_price_usd", "difficulty", "subsidy_btc", "fees_btc"):
        value: float | None = getattr(tick, name)
        held: MarketValue | None = getattr(state.market, name)
        if value is not None and (held is None or held.as_of_ns <= as_of_ns):
            changes[name] = MarketValue(value, as_of_ns, tick.feed)
    if tick.gpu_rates:
        told = {rate.device_class for rate in tick.gpu_rates}
        kept = tuple(row for row in state.market.gpu_rates if row.device_class not in told)
        changes["gpu_rates"] = kept + tick.gpu_rates
        changes["gpu_rates_as_of_ns"] = as_of_ns
    return replace(state.market, **changes)


def _shift_market(market: MarketState, shift: int) -> MarketState:
    changes: dict[str, Any] = {}
    for name in ("price_usd_per_mwh", "btc_price_usd", "difficulty", "subsidy_btc", "fees_btc"):
        held: MarketValue | None = getattr(market, name)
        if held is not None:
            changes[name] = replace(held, as_of_ns=held.as_of_ns + shift)
    return replace(market, gpu_rates_as_of_ns=market.gpu_rates_as_of_ns + shift, **changes)


def _shift_lease(row: LeaseEntry, shift: int) -> LeaseEntry:
    return replace(
        row,
        since_ns=row.since_ns + shift,
        restarts_ns=tuple(at + shift for at in row.restarts_ns),
    )


def _policy(state: SiteState, policy: SitePolicy) -> SiteState:
    held = state.policy
    newer = held is None or (policy.hub_epoch, policy.generation) > (
        held.hub_epoch,
        held.generation,
    )
    return replace(state, policy=policy) if newer else state


def _held(site: Site, state: SiteState, fact: f.OperatorHeld) -> SiteState:
    at = site.index_of(fact.device_id)
    if at is None:
        return state
    until = NEVER_NS if fact.until_ns is None else fact.until_ns
    return replace(
        state,
        hold=_put(state.hold, at, HOLD_CODES.index(fact.mode)),
        hold_until_ns=_put(state.hold_until_ns, at, until),
        # An operator who touches a device has looked at it: its quarantine ends.
        quarantine_ns=_put(state.quarantine_ns, at, 0),
        failures=_put(state.failures, at, 0),
    )


def _switch_opened(site: Site, state: SiteState, fact: f.SwitchOpened) -> SiteState:
    at = site.indices_of(fact.device_ids)
    to_code = CODE_OF[fact.to_activity]
    origin = np.where(state.switch_no[at] < 0, state.activity[at], state.origin[at])
    no = state.next_no
    columns = set_activity(state, at, UNKNOWN, to_code, SWITCHING)
    columns["origin"] = _put(state.origin, at, origin)
    columns["switch_no"] = _put(state.switch_no, at, no)
    entry = SwitchEntry(no, fact.switch_id, fact.lease_id, state.now_ns)
    if fact.to_activity == f.Activity.MINE:
        columns["ramp_left_w"] = state.ramp_left_w - _ramp_w(site, at, origin, to_code)
    state = replace(state, next_no=no + 1, switches=(*state.switches, entry), **columns)
    lease = None if fact.lease_id is None else lease_by_id(state, fact.lease_id)
    if lease is None or to_code != SERVE:
        return state
    started = dict(zip(fact.device_ids, fact.instances, strict=True))
    again = any(slot.instance_id for slot in lease.slots if slot.device_id in started)
    lease = replace(
        lease,
        status=LeaseStatus.STARTING if lease.status is not LeaseStatus.ENDING else lease.status,
        slots=tuple(
            Slot(slot.device_id, started[slot.device_id]) if slot.device_id in started else slot
            for slot in lease.slots
        ),
        restarts_ns=(*lease.restarts_ns, state.now_ns)[-16:] if again else lease.restarts_ns,
    )
    return replace(state, leases=put_lease(state, lease))


def _ramp_w(site: Site, at: IntColumn, origin: CodeColumn, to_code: int) -> float:
    """Give the site watts by which a wake-up raises the load; only from an activity that is off."""
    classes = site.class_of[at]
    rise = (site.nameplate_w[classes, to_code] - site.nameplate_w[classes, origin]) * site.pue[at]
    rise = np.where(np.isin(origin, OFF_CODES), np.maximum(rise, 0.0), 0.0)
    return float(np.add.accumulate(rise)[-1]) if len(rise) else 0.0


def _switch_closed(site: Site, state: SiteState, fact: f.SwitchClosed) -> SiteState:
    entry = next((row for row in state.switches if row.switch_id == fact.switch_id), None)
    if entry is None:
        return state
    at = site.indices_of(fact.device_ids)
    pairs = zip(fact.device_ids, fact.outcomes, strict=True)
    outcome = np.array([out for key, out in pairs if site.index_of(key) is not None], dtype="U12")
    mine = state.switch_no[at] == entry.no
    at, outcome = at[mine], outcome[mine]
    if not fact.device_ids:
        # The store lost the switch: what its devices do is unknown until they are read.
        lost = np.flatnonzero(state.switch_no == entry.no)
        state = replace(state, **set_activity(state, lost, UNKNOWN, UNKNOWN, UNKNOWN))
        state = replace(state, switch_no=_put(state.switch_no, lost, -1))
    good, back = outcome == "committed", outcome == "rolled_back"
    final = np.where(good, state.target[at], np.where(back, state.origin[at], FAULT))
    for code in np.unique(final):
        moved = at[final == code]
        state = replace(state, **set_activity(state, moved, int(code), int(code), int(code)))
    state = replace(
        state,
        switch_no=_put(state.switch_no, at, -1),
        switches=tuple(row for row in state.switches if row.no != entry.no),
        **_failure_columns(site, state, at, good, back),
    )
    return _lease_after_switch(site, state, entry, fact)


def _failure_columns(
    site: Site, state: SiteState, at: IntColumn, good: FlagColumn, back: FlagColumn
) -> dict[str, Any]:
    limits = site.limits
    recent = state.now_ns - state.failed_ns[at] <= int(limits.quarantine_window_s * NS_PER_S)
    before = np.where(recent, state.failures[at], 0)
    failures = np.where(good, 0, np.minimum(before + 1, 250)).astype(np.uint8)
    until = state.now_ns + int(limits.quarantine_s * NS_PER_S)
    out = (~good & ~back) | (failures >= limits.quarantine_after)
    return {
        "failures": _put(state.failures, at, failures),
        "failed_ns": _put(state.failed_ns, at[~good], state.now_ns),
        "quarantine_ns": _put(state.quarantine_ns, at[out], until),
        "regret_usd": _put(state.regret_usd, at, 0.0),
    }


def _lease_after_switch(
    site: Site, state: SiteState, entry: SwitchEntry, fact: f.SwitchClosed
) -> SiteState:
    lease = None if entry.lease_id is None else lease_by_id(state, entry.lease_id)
    if lease is None:
        return state
    outcome_of = dict(zip(fact.device_ids, fact.outcomes, strict=True))
    slots = []
    for slot in lease.slots:
        at = site.index_of(slot.device_id)
        if slot.device_id not in outcome_of or at is None:
            slots.append(slot)
            continue
        committed = outcome_of[slot.device_id] == "committed"
        serving = committed and int(state.activity[at]) == SERVE
        # A slot that has left serving holds nothing more; one that failed to start keeps its id,
        # so that the next start counts as a restart.
        gone = committed and not serving
        slots.append(replace(slot, serving=serving, instance_id="" if gone else slot.instance_id))
    ending = lease.status is LeaseStatus.ENDING
    running = all(slot.serving for slot in slots)
    status = LeaseStatus.RUNNING if running else LeaseStatus.STARTING
    to_close = tuple(dict.fromkeys(lease.to_close + fact.opened))
    lease = replace(
        lease,
        slots=tuple(slots),
        status=LeaseStatus.ENDING if ending else status,
        to_close=to_close,
    )
    return replace(state, leases=put_lease(state, lease))


def _node_adopted(site: Site, state: SiteState, fact: f.NodeAdopted) -> SiteState:
    node_up = tuple(dict.fromkeys((*state.nodes_up, fact.node_id)))
    state = replace(state, nodes_up=node_up)
    for device in fact.devices:
        at = site.index_of(device.device_id)
        if at is not None and site.devices[at].node_id == fact.node_id:
            state = _adopt_device(state, at, device)
    return state


def _adopt_device(state: SiteState, at: int, device: NodeDevice) -> SiteState:
    where = np.array([at])
    state = replace(state, reachable=_put(state.reachable, at, value=True))
    if state.switch_no[at] >= 0:
        return state  # the open switch asks again by itself, its answer decides
    serving = device.work is not None and device.activity == f.Activity.SERVE
    code = CODE_OF[device.activity]
    if device.quarantined:
        code = FAULT
    state = replace(state, **set_activity(state, where, code, code, code))
    if serving and device.work is not None:
        return _adopt_work(state, at, device)
    no = int(state.lease_no[at])
    lease = lease_by_no(state, no) if no >= 0 else None
    if lease is None:
        return state
    return _slot_changed(state, lease, device.device_id, serving=False)


def _adopt_work(state: SiteState, at: int, device: NodeDevice) -> SiteState:
    work = device.work
    if work is None:
        return state
    slot = Slot(device.device_id, work.instance_id, device.gate_open, completed=False)
    lease = lease_by_id(state, work.lease_id)
    if lease is None or lease.status is LeaseStatus.CLOSED:
        no = state.next_no if lease is None else lease.no
        foreign = LeaseEntry(
            no, work.lease_id, work.attempt, None, LeaseStatus.FOREIGN, state.now_ns, (slot,),
            (work.instance_id,),
        )  # fmt: skip
        leases = (*state.leases, foreign) if lease is None else put_lease(state, foreign)
        return replace(
            state,
            leases=leases,
            next_no=max(state.next_no, no + 1),
            lease_no=_put(state.lease_no, at, no),
        )
    others = tuple(row for row in lease.slots if row.device_id != device.device_id)
    slots = (*others, slot)
    status = lease.status
    if status in (LeaseStatus.RECEIVED, LeaseStatus.ACCEPTED, LeaseStatus.STARTING):
        whole = lease.lease is not None and len(slots) >= lease.lease.count
        serving = whole and all(row.serving for row in slots)
        status = LeaseStatus.RUNNING if serving else LeaseStatus.STARTING
    to_close = tuple(dict.fromkeys((*lease.to_close, work.instance_id)))
    lease = replace(lease, slots=slots, status=status, to_close=to_close)
    return replace(
        state,
        leases=put_lease(state, lease),
        lease_no=_put(state.lease_no, at, lease.no),
    )


def _slot_changed(
    state: SiteState, lease: LeaseEntry, device_id: str, *, serving: bool, completed: bool = False
) -> SiteState:
    slots = tuple(
        replace(slot, serving=serving, completed=slot.completed or completed)
        if slot.device_id == device_id
        else slot
        for slot in lease.slots
    )
    status = lease.status
    if status is LeaseStatus.RUNNING and not serving:
        status = LeaseStatus.STARTING
    return replace(state, leases=put_lease(state, replace(lease, slots=slots, status=status)))


def _node_lost(site: Site, state: SiteState, fact: f.NodeLost) -> SiteState:
    up = tuple(node_id for node_id in state.nodes_up if node_id != fact.node_id)
    state = replace(state, nodes_up=up)
    if fact.node_id not in site.nodes:
        return state
    gone = site.node_of == site.nodes.index(fact.node_id)
    return replace(state, reachable=_put(state.reachable, gone, value=False))


def _node_said(site: Site, state: SiteState, fact: f.NodeSaid) -> SiteState:
    event = fact.event
    at = site.index_of(event.device_id)
    if at is None:
        return state
    where = np.array([at])
    kind = event.kind
    if kind is NodeEventKind.DEVICE_LOST and state.switch_no[at] < 0:
        state = replace(state, **set_activity(state, where, FAULT, FAULT, FAULT))
    if kind is NodeEventKind.DEVICE_BACK and state.switch_no[at] < 0:
        state = replace(state, **set_activity(state, where, IDLE, IDLE, IDLE))
    lease = lease_by_id(state, event.lease_id) if event.lease_id else None
    slot = (
        None
        if lease is None
        else next((row for row in lease.slots if row.device_id == event.device_id), None)
    )
    if lease is None or slot is None or event.instance_id not in (None, slot.instance_id):
        return state
    if kind is NodeEventKind.LAPSED:
        return _lease_ending(state, lease.lease_id, ReleaseOutcome.LAPSED, "hub not heard")
    if kind not in (
        NodeEventKind.COMPLETED,
        NodeEventKind.INSTANCE_LOST,
        NodeEventKind.DEVICE_LOST,
    ):
        return state
    completed = kind is NodeEventKind.COMPLETED
    state = _slot_changed(state, lease, event.device_id, serving=False, completed=completed)
    lease = lease_by_id(state, lease.lease_id)
    if lease is not None and all(row.completed for row in lease.slots):
        return _lease_ending(state, lease.lease_id, ReleaseOutcome.COMPLETED, "")
    return state


def _lease_seen(state: SiteState, lease: Lease) -> SiteState:
    held = lease_by_id(state, lease.lease_id)
    if held is None:
        entry = LeaseEntry(
            state.next_no, lease.lease_id, lease.attempt, lease, LeaseStatus.RECEIVED, state.now_ns
        )
        state = replace(state, leases=(*state.leases, entry), next_no=state.next_no + 1)
        held = entry
    elif held.lease is not None and lease.version <= held.lease.version:
        return state
    else:
        status = LeaseStatus.RUNNING if held.status is LeaseStatus.FOREIGN else held.status
        held = replace(held, lease=lease, status=status)
        state = replace(state, leases=put_lease(state, held))
    if lease.state is LeaseState.END and held.status is not LeaseStatus.CLOSED:
        return _lease_ending(state, lease.lease_id, _outcome_of(held, lease), "asked by the hub")
    return state


def _outcome_of(held: LeaseEntry, lease: Lease) -> ReleaseOutcome:
    if not held.to_close and not any(slot.instance_id for slot in held.slots):
        return ReleaseOutcome.NEVER_STARTED
    if lease.end_reason is EndReason.COMPLETED:
        return ReleaseOutcome.COMPLETED
    return ReleaseOutcome.CANCELLED


def _manifest(state: SiteState, lease_ids: tuple[str, ...]) -> SiteState:
    known = set(lease_ids)
    for entry in state.leases:
        if entry.status is LeaseStatus.FOREIGN and entry.lease_id not in known:
            state = _lease_ending(
                state, entry.lease_id, ReleaseOutcome.CANCELLED, "not in the hub's manifest"
            )
    return state


def _lease_taken(site: Site, state: SiteState, fact: f.LeaseTaken) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    if entry is None:
        return state
    entry = replace(
        entry,
        status=LeaseStatus.ACCEPTED,
        slots=tuple(Slot(device_id) for device_id in fact.device_ids),
        since_ns=state.now_ns,
    )
    at = site.indices_of(fact.device_ids)
    return replace(
        state,
        leases=put_lease(state, entry),
        lease_no=_put(state.lease_no, at, entry.no),
    )


def _lease_ending(
    state: SiteState, lease_id: str, outcome: ReleaseOutcome, detail: str
) -> SiteState:
    entry = lease_by_id(state, lease_id)
    if entry is None or entry.status in (LeaseStatus.ENDING, LeaseStatus.CLOSED):
        return state  # the first reason stands
    entry = replace(
        entry, status=LeaseStatus.ENDING, outcome=outcome, detail=detail, since_ns=state.now_ns
    )
    return replace(state, leases=put_lease(state, entry))


def _lease_closed(state: SiteState, fact: f.LeaseClosed) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    if entry is None:
        return state
    freed = np.flatnonzero(state.lease_no == entry.no)
    entry = replace(
        entry,
        status=LeaseStatus.CLOSED,
        refused=fact.refused,
        final_usage_seq=fact.final_usage_seq,
        slots=(),
        since_ns=state.now_ns,
    )
    return replace(state, leases=put_lease(state, entry), lease_no=_put(state.lease_no, freed, -1))


def _lease_replaced(site: Site, state: SiteState, fact: f.LeaseReplaced) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    old, new = site.index_of(fact.old_device_id), site.index_of(fact.new_device_id)
    if entry is None or old is None or new is None:
        return state
    slots = tuple(
        Slot(fact.new_device_id) if slot.device_id == fact.old_device_id else slot
        for slot in entry.slots
    )
    lease_no = _put(state.lease_no, old, -1)
    lease_no[new] = entry.no
    entry = replace(entry, slots=slots, restarts_ns=(*entry.restarts_ns, state.now_ns)[-16:])
    return replace(state, leases=put_lease(state, entry), lease_no=lease_no)


def _meters(state: SiteState, fact: f.MetersPassed) -> SiteState:
    closed = set(fact.closed)
    leases = state.leases
    if closed:
        leases = tuple(
            replace(row, to_close=tuple(key for key in row.to_close if key not in closed))
            if any(key in closed for key in row.to_close)
            else row
            for row in leases
        )
    through_ms = state.through_ms if fact.through_ms is None else fact.through_ms
    return replace(state, leases=leases, through_ms=max(through_ms, state.through_ms))
