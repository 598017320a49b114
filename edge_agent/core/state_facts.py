"""How facts change the state: ``apply(site, state, fact) -> state``, of journalled facts only."""

from typing import Any

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.columns import some
from edge_agent.core.device_facts import (
    node_adopted,
    node_lost,
    node_said,
    switch_closed,
    switch_opened,
)
from edge_agent.core.lease_facts import lease_fact
from edge_agent.core.market_facts import market_seen
from edge_agent.core.order_facts import order_cancelled, order_seen
from edge_agent.core.ready_facts import (
    lease_arrived,
    node_away,
    prepare_asked,
    prepare_ended,
    prepare_said,
)
from edge_agent.core.response import learn_readings
from edge_agent.core.resuming import held_fact
from edge_agent.core.site import (
    MINE,
    UNKNOWN,
    Site,
)
from edge_agent.core.site_state import (
    HOLD_CODES,
    NEVER_NS,
    SiteState,
    mode_of,
    put,
    rows_of,
    set_activity,
)
from edge_agent.core.step_facts import hashes, step_readings
from protocol.lease import SitePolicy

# More than the classes and moves of any site.
SWITCH_COSTS_MAX = 256


def apply(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    """Give the state after one fact."""
    match fact:
        case f.ReadingsSeen():
            return _readings(site, state, fact)
        case f.SwitchOpened():
            return switch_opened(site, state, fact)
        case f.SwitchClosed():
            return switch_closed(site, state, fact)
        case f.NodeAdopted():
            return node_adopted(site, state, fact)
        case f.NodeLost():
            return node_away(site, node_lost(site, state, fact), fact.node_id)
        case f.NodeSaid():
            return node_said(site, state, fact)
    return _site_fact(site, state, fact)


def _site_fact(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    match fact:
        case f.MarketSeen():
            return replace(state, market=market_seen(site, state, fact.tick))
        case f.OrderSeen() | f.OrderCancelled():
            return _order(state, fact)
        case f.OperatorHeld():
            return _held(site, state, fact)
        case f.PolicySeen():
            return _policy(state, fact.policy)
        case f.ClockSuspected():
            return replace(state, suspect=fact.suspect)
        case f.OwnerSeen():
            return replace(state, owner=fact.owner)
        case f.SwitchCost():
            return replace(state, switch_costs=_costs(state, fact))
    return _other_fact(site, state, fact)


def _other_fact(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    match fact:
        case f.SwitchHeld() | f.SwitchResumed():
            return held_fact(state, fact)
        case f.PrepareAsked():
            return prepare_asked(site, state, fact)
        case f.PrepareEnded():
            return prepare_ended(site, state, fact)
        case f.PrepareSaid():
            return prepare_said(site, state, fact)
        case f.LeaseSeen():
            return lease_arrived(site, state, lease_fact(site, state, fact), fact)
    return lease_fact(site, state, fact)


def _order(state: SiteState, fact: f.OrderSeen | f.OrderCancelled) -> SiteState:
    if isinstance(fact, f.OrderSeen):
        return order_seen(state, fact.order)
    return order_cancelled(state, fact)


def _readings(site: Site, state: SiteState, fact: f.ReadingsSeen) -> SiteState:
    if fact.site_digest != site.digest:
        return state  # of another site file: the devices are read again within one tick
    row = f.unpack_readings(fact)
    rows = rows_of(site, row.index)
    settled = rows.of(state.switch_no) < 0
    known = settled & (row.activity != UNKNOWN) & (row.activity != rows.of(mode_of(state)))
    for code in np.unique(row.activity[known]) if some(known) else ():
        moved = rows.at[known & (row.activity == code)]
        state = replace(state, **set_activity(state, moved, int(code), int(code), int(code)))
    mining = settled & (rows.of(state.activity) == MINE) & (row.hashrate_ths > 0.0)
    if site.steps is not None:
        state = replace(state, **step_readings(site, state, row, rows, mining))
        mining &= hashes(site, state, rows, row.hashrate_ths)
    now_ns = np.full(len(rows.at), state.now_ns, dtype=np.int64)
    changes: dict[str, Any] = {
        "mine_ths": rows.put_where(state.mine_ths, mining, row.hashrate_ths),
        "mine_w": rows.put_where(state.mine_w, mining & (row.power_w > 0.0), row.power_w),
        "responses": learn_readings(site, state, rows.at, row.power_w),
        "reachable": rows.put(state.reachable, row.reachable),
        "read_ns": rows.put_where(state.read_ns, row.reachable != 0, now_ns),
    }
    for name in ("power_w", "hashrate_ths", "temp_c", "utilisation"):
        changes[name] = rows.put(getattr(state, name), getattr(row, name))
    return replace(state, **changes)


def _policy(state: SiteState, policy: SitePolicy) -> SiteState:
    held = state.policy
    newer = held is None or (policy.hub_epoch, policy.generation) > (
        held.hub_epoch,
        held.generation,
    )
    return replace(state, policy=policy) if newer else state


def _costs(state: SiteState, fact: f.SwitchCost) -> tuple[f.SwitchCost, ...]:
    """Give the costs with the newest of its class and move; a number that is none changes nothing.

    The order is that of the names, so that equal costs make equal states.
    """
    if not (0.0 <= fact.seconds < np.inf and 0.0 <= fact.samples < np.inf):
        return state.switch_costs
    held = {_move(row): row for row in state.switch_costs} | {_move(fact): fact}
    return tuple(held[key] for key in sorted(held)[:SWITCH_COSTS_MAX])


def _move(cost: f.SwitchCost) -> tuple[str, str, str, bool]:
    return cost.device_class, cost.from_activity.value, cost.to_activity.value, cost.ready


def _held(site: Site, state: SiteState, fact: f.OperatorHeld) -> SiteState:
    at = site.index_of(fact.device_id)
    if at is None:
        return state
    until = NEVER_NS if fact.until_ns is None else fact.until_ns
    return replace(
        state,
        hold=put(state.hold, at, HOLD_CODES.index(fact.mode)),
        hold_until_ns=put(state.hold_until_ns, at, until),
        # An operator who touches a device has looked at it: its quarantine ends.
        quarantine_ns=put(state.quarantine_ns, at, min(int(state.quarantine_ns[at]), state.now_ns)),
        failures=put(state.failures, at, 0),
        # Nor does what it refused in another's time stand against it.
        no_steps=put(state.no_steps, at, 0),
        no_code=put(state.no_code, at, 0),
    )
