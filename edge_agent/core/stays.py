"""Activities that no fact names: ``maintenance`` by an operator's drain, ``unknown`` by silence.

Both follow from the state and the time alone, so every row settles them after its facts.

A drained device that has stopped is in maintenance until the drain ends. Nothing moves meanwhile:
its mode, its least dwell and its regret go on as if the operator had not come.

What cannot be reached keeps its interval open until it is heard again: it most likely goes on with
what it did. After a day nobody can say so any more, and the time since it was last heard becomes
``unknown``. A node that is heard speaks for its devices.
"""

import numpy as np
from msgspec.structs import replace

from edge_agent.core.columns import every, some
from edge_agent.core.leases import held_code
from edge_agent.core.site import MAINTENANCE, NS_PER_S, UNKNOWN, FlagColumn, Site
from edge_agent.core.site_state import HOLD_DRAIN, SiteState, is_off, put, spend

SILENT_MAX_NS = 86_400 * NS_PER_S


def settle(site: Site, state: SiteState) -> SiteState:
    """Give the state with maintenance begun and ended, and long silence made ``unknown``."""
    return _silence(site, _maintenance(state))


def _maintenance(state: SiteState) -> SiteState:
    drained = held_code(state) == HOLD_DRAIN
    inside = state.activity == MAINTENANCE
    if not some(drained) and not some(inside):
        return state
    # What cannot be reached may be running for all we know.
    stopped = is_off(state.activity) & (state.switch_no < 0) & state.reachable
    begin, end = drained & stopped, inside & ~drained
    at = np.flatnonzero(begin | end)
    if not len(at):
        return state
    shown = np.where(begin, MAINTENANCE, state.target)
    return replace(
        state,
        activity=put(state.activity, at, shown[at]),
        spent_ns=spend(state, at, state.now_ns),
        since_ns=put(state.since_ns, at, state.now_ns),
    )


def _silence(site: Site, state: SiteState) -> SiteState:
    if every(state.reachable):
        return state
    silent = ~state.reachable & (state.now_ns - state.heard_ns >= SILENT_MAX_NS)
    # An open switch has deadlines of its own, and ends by them.
    silent &= (state.activity != UNKNOWN) & (state.switch_no < 0)
    at = np.flatnonzero(silent)
    if len(at):
        at = at[~_node_is_up(site, state)[at]]
    if not len(at):
        return state
    since_ns = np.maximum(state.since_ns[at], state.heard_ns[at])
    return replace(
        state,
        activity=put(state.activity, at, UNKNOWN),
        origin=put(state.origin, at, UNKNOWN),
        target=put(state.target, at, UNKNOWN),
        spent_ns=spend(state, at, since_ns),
        since_ns=put(state.since_ns, at, since_ns),
        mode_since_ns=put(state.mode_since_ns, at, since_ns),
        regret_usd=put(state.regret_usd, at, 0.0),
    )


def _node_is_up(site: Site, state: SiteState) -> FlagColumn:
    # The last row stands for devices without a node (index -1).
    up = np.array([node_id in state.nodes_up for node_id in site.nodes] + [False])
    out: FlagColumn = up[site.node_of]
    return out
