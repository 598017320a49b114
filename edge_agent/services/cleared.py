"""Worlds cleared of one kind of trouble: devices that fail, operators' holds, limits and orders.

Each kind says what of a state it would clear, and what becomes of a fact that brings it. A world
in which nothing was cleared is the real one, so it has to be led apart only from its first trouble.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import plan as p
from edge_agent.core.leases import held_code
from edge_agent.core.profit import UNHEARD_S
from edge_agent.core.site import (
    FAULT,
    MAINTENANCE,
    MINE,
    NS_PER_S,
    UNKNOWN,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState, mode_of, put
from protocol.node import NodeEventKind
from protocol.resource import Activity

_BOUNDLESS_W = 9e9
_BOUNDLESS_W_PER_MIN = 1e12
_FAILING = (NodeEventKind.DEVICE_LOST, NodeEventKind.INSTANCE_LOST, NodeEventKind.LAPSED)
_BOUND = (p.Reason.CAP, p.Reason.RAMP, p.Reason.SHED, p.Reason.CURTAIL_ORDER)
_BOUND_CODES = np.array([int(reason) for reason in _BOUND], dtype=np.uint8)


class Trouble(StrEnum):
    """What a world may be cleared of; in the order in which worlds are cleared."""

    FAULTS = "faults"
    HOLDS = "holds"
    LIMITS = "limits"


class Cleared:
    """Clears a world of some kinds of trouble; implements ``Sift``."""

    def __init__(self, kinds: tuple[Trouble, ...]) -> None:
        self.kinds = kinds

    def __call__(self, site: Site, state: SiteState, fact: f.Fact) -> tuple[f.Fact, ...]:
        """Give what becomes of a fact in this world."""
        facts: tuple[f.Fact, ...] = (fact,)
        for kind in self.kinds:
            facts = tuple(told for one in facts for told in _cleared(kind, site, state, one))
        return facts

    def site(self, site: Site) -> Site:
        """Give the site with the limits of this world."""
        if Trouble.LIMITS not in self.kinds:
            return site
        limits = replace(site.limits, power_cap_w=_BOUNDLESS_W, ramp_w_per_min=_BOUNDLESS_W_PER_MIN)
        feeders = tuple(replace(row, power_cap_w=_BOUNDLESS_W) for row in site.feeders)
        return Site(site.site_id, site.classes, site.devices, limits, feeders, site.prewarm)

    def ails(self, site: Site, state: SiteState) -> bool:
        """Say whether the state of this world needs clearing again: silence shows only in time."""
        return Trouble.FAULTS in self.kinds and bool(sick(site, state).any())

    def state(self, site: Site, state: SiteState) -> SiteState:
        """Give a state as it would be without what is there of the trouble already."""
        for kind in self.kinds:
            if kind is Trouble.FAULTS:
                state = _healthy_state(site, state)
            else:
                state = _free_state(state) if kind is Trouble.HOLDS else _unbound_state(state)
        return state


def troubled(kind: Trouble, site: Site, state: SiteState, facts: tuple[f.Fact, ...]) -> bool:
    """Say whether a row brings a kind of trouble, or finds it there."""
    for fact in facts:
        told = _cleared(kind, site, state, fact)
        if len(told) != 1 or told[0] is not fact:
            return True
    if kind is Trouble.FAULTS:
        return bool(sick(site, state).any())
    if kind is Trouble.HOLDS:
        return bool(held_code(state).any())
    policy = state.policy
    return policy is not None and (policy.curtail or policy.power_cap_w is not None)


def bound(made: p.Plan) -> bool:
    """Say whether a cap, a ramp or an order kept a plan from doing what pays."""
    if np.isin(made.records.reason, _BOUND_CODES).any():
        return True
    return any(
        (isinstance(act, p.EndLease) and act.detail.startswith(p.POWER_CAP))
        or (isinstance(act, p.RefuseLease) and act.reason == "power_cap")
        for act in made.leases
    )


def sick(site: Site, state: SiteState) -> FlagColumn:
    """Say which devices are silent, faulty, quarantined, or mine without a hash.

    A device not yet heard after a start is not silent before its time.
    """
    out: FlagColumn = (state.activity == FAULT) | (state.quarantine_ns > state.now_ns)
    away = np.flatnonzero(~state.reachable)
    if len(away):
        unheard = state.now_ns - state.heard_ns[away] > int(UNHEARD_S * NS_PER_S)
        out[away] |= (state.read_ns[away] > 0) | unheard
    hashless = (state.activity == MINE) & (state.hashrate_ths == 0.0) & site.is_asic
    if hashless.any():
        none = np.flatnonzero(hashless & _settled(state))
        out[none] |= _should_hash(site, state, none)
    return out


def _should_hash(site: Site, state: SiteState, at: IntColumn) -> FlagColumn:
    """Say which of some devices are miners that have had the time to hash."""
    late = state.now_ns - state.mode_since_ns[at] > site.once(_warm_ns)[at]
    out: FlagColumn = (state.activity[at] == MINE) & site.is_asic[at] & late
    return out


def _warm_ns(site: Site) -> FloatColumn:
    seconds = [max(row.warmup_s, UNHEARD_S) for row in site.classes]
    out: FloatColumn = site.spread(seconds) * NS_PER_S
    return out


def _settled(state: SiteState) -> FlagColumn:
    out: FlagColumn = state.switch_no < 0
    return out


def _cleared(kind: Trouble, site: Site, state: SiteState, fact: f.Fact) -> tuple[f.Fact, ...]:
    """Give what becomes of a fact; nothing: it does not happen."""
    if kind is Trouble.FAULTS:
        return _healthy_fact(site, state, fact)
    if kind is Trouble.HOLDS:
        return () if isinstance(fact, f.OperatorHeld) else (fact,)
    return (_unbound_fact(fact),)


# --- faults ----------------------------------------------------------------------------------


def _healthy_fact(site: Site, state: SiteState, fact: f.Fact) -> tuple[f.Fact, ...]:
    match fact:
        case f.NodeLost():
            return ()
        case f.NodeSaid() if fact.event.kind in _FAILING:
            return ()
        case f.NodeAdopted():
            return (_healthy_node(fact),)
        case f.SwitchClosed():
            return _healthy_switch(site, state, fact)
        case f.ReadingsSeen():
            return (_healthy_readings(site, state, fact),)
    return (fact,)


def _healthy_node(fact: f.NodeAdopted) -> f.NodeAdopted:
    told = tuple(
        row for row in fact.devices if not row.quarantined and row.activity is not Activity.FAULT
    )
    return fact if len(told) == len(fact.devices) else replace(fact, devices=told)


def _healthy_switch(site: Site, state: SiteState, fact: f.SwitchClosed) -> tuple[f.Fact, ...]:
    """Let every device of a switch do as it was told, and read so."""
    good = ("committed",) * len(fact.outcomes)
    if fact.outcomes == good or fact.mode:
        return (fact,)
    failed = tuple(
        device_id
        for device_id, outcome in zip(fact.device_ids, fact.outcomes, strict=True)
        if outcome != "committed"
    )
    at = site.indices_of(failed)
    power_w, rate = _mode_readings(site, state, state.target)
    told = f.ReadingColumns(
        at.astype(np.int32),
        np.full(len(at), UNKNOWN, dtype=np.uint8),
        np.ones(len(at), dtype=np.uint8),
        power_w[at],
        rate[at],
        state.temp_c[at],
        state.utilisation[at],
    )
    return (replace(fact, outcomes=good), f.pack_readings(site.digest, told))


def _healthy_readings(site: Site, state: SiteState, fact: f.ReadingsSeen) -> f.ReadingsSeen:
    """Let silent devices be heard, and each do what its mode says, at its last confirmed rate."""
    if fact.site_digest != site.digest:
        return fact
    row = f.unpack_readings(fact)
    at = row.index.astype(np.int64)
    every = mode_of(state)
    mode = every[at]
    lost = (mode == UNKNOWN) | (mode == FAULT)
    settled = (state.switch_no[at] < 0) & ~lost
    silent = row.reachable == 0
    strays = settled & (row.activity != UNKNOWN) & (row.activity != mode)
    dead = settled & _should_hash(site, state, at) & ~(row.hashrate_ths > 0.0)
    wrong = silent | strays | dead
    if not wrong.any():
        return fact
    # What nobody knows of mines, as its rule would have it most hours.
    supposed = np.where((every == UNKNOWN) | (every == FAULT), np.uint8(MINE), every)
    power_w, rate = _mode_readings(site, state, supposed)
    told = f.ReadingColumns(
        row.index,
        np.where(wrong, np.where(lost, np.uint8(MINE), np.uint8(UNKNOWN)), row.activity),
        np.ones(len(at), dtype=np.uint8),
        np.where(wrong, power_w[at], row.power_w),
        np.where(wrong, rate[at], row.hashrate_ths),
        row.temp_c,
        row.utilisation,
    )
    return f.pack_readings(site.digest, told)


def _mode_readings(
    site: Site, state: SiteState, mode: CodeColumn
) -> tuple[FloatColumn, FloatColumn]:
    """Give what each device reads when it does what a mode says: power, and hash rate."""
    plate = site.activity_w(mode)
    mines = mode == MINE
    known = mines & ~np.isnan(state.mine_w)
    plate_ths = site.spread([row.model.hashrate_ths for row in site.classes])
    rate = np.where(np.isnan(state.mine_ths), plate_ths, state.mine_ths)
    return (
        np.where(known, state.mine_w, plate),
        np.where(mines & site.is_asic, rate, np.where(site.is_asic, 0.0, state.hashrate_ths)),
    )


def _healthy_state(site: Site, state: SiteState) -> SiteState:
    ill = sick(site, state) & _settled(state)
    if not ill.any():
        return state
    lost = ill & ((state.activity == FAULT) | (state.activity == UNKNOWN))
    changes: dict[str, Any] = {
        name: put(getattr(state, name), lost, MINE) for name in ("activity", "origin", "target")
    }
    changes["mode_since_ns"] = put(state.mode_since_ns, lost, state.now_ns)
    changes["reachable"] = put(state.reachable, ill, value=True)
    changes["heard_ns"] = put(state.heard_ns, ill, state.now_ns)
    changes["read_ns"] = put(state.read_ns, ill, state.now_ns)
    changes["quarantine_ns"] = put(state.quarantine_ns, ill, 0)
    changes["failures"] = put(state.failures, ill, 0)
    state = replace(state, **changes)
    power_w, rate = _mode_readings(site, state, mode_of(state))
    return replace(
        state,
        power_w=put(state.power_w, ill, power_w[ill]),
        hashrate_ths=put(state.hashrate_ths, ill, rate[ill]),
    )


# --- operators ---------------------------------------------------------------------------------


def _free_state(state: SiteState) -> SiteState:
    inside = state.activity == MAINTENANCE
    return replace(
        state,
        hold=np.zeros_like(state.hold),
        hold_until_ns=np.zeros_like(state.hold_until_ns),
        activity=np.where(inside, state.target, state.activity),
    )


# --- limits and orders --------------------------------------------------------------------------


def _unbound_fact(fact: f.Fact) -> f.Fact:
    if not isinstance(fact, f.PolicySeen):
        return fact
    policy = fact.policy
    if not policy.curtail and policy.power_cap_w is None:
        return fact
    return f.PolicySeen(replace(policy, curtail=False, power_cap_w=None))


def _unbound_state(state: SiteState) -> SiteState:
    policy = state.policy
    if policy is not None:
        policy = replace(policy, curtail=False, power_cap_w=None)
    return replace(state, policy=policy, over_cap_ns=-1, ramp_left_w=_BOUNDLESS_W)
