"""One pass as a function, live and in replay: instant, facts, plan, acts."""

import numpy as np
from msgspec.structs import replace

from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.economics import best_value, grow, value
from edge_agent.core.facts import Fact, Instant, TickRow
from edge_agent.core.optimizer import plan
from edge_agent.core.orders import follow
from edge_agent.core.peaks import spend
from edge_agent.core.plan import Plan
from edge_agent.core.site import NS_PER_S, Site
from edge_agent.core.site_state import SiteState, enter_instant
from edge_agent.core.state_facts import apply
from edge_agent.core.stays import settle
from edge_agent.core.step_rule import grow_step_regret


def enter(site: Site, state: SiteState, instant: Instant, facts: tuple[Fact, ...]) -> SiteState:
    """Move the state to an instant and apply the facts that came with it.

    What grows with time (regret, ramp) grows at the values that held until now; a wall or boot
    clock that went back counts as no time.
    """
    same_boot = instant.boot_id == state.instant.boot_id
    dt_s = max(instant.now_ns - state.now_ns, 0) / NS_PER_S if same_boot else 0.0
    regret, debt, market = state.regret_usd, state.debt, state.market
    step_regret = grow_step_regret(site, state, dt_s) if dt_s else state.step_regret_usd
    if dt_s:
        values = value(site, state)
        regret, debt = grow(site, state, best_value(site, state), dt_s)
        peak = spend(site, state, values, dt_s)
        market = market if peak is market.peak else replace(market, peak=peak)
    ramp = pw.refill_ramp(site, state, dt_s)
    heard = np.full(len(site), state.now_ns)
    np.copyto(heard, state.heard_ns, where=~state.reachable)
    state = enter_instant(replace(state, heard_ns=heard, market=market), instant)
    state = replace(
        state,
        regret_usd=regret,
        step_regret_usd=step_regret,
        debt=debt,
        ramp_left_w=ramp,
    )
    for fact in facts:
        state = apply(site, state, fact)
    state = follow(site, settle(site, state))
    since_ns = fd.over_since(site, state)
    return state if since_ns == state.over_cap_ns else replace(state, over_cap_ns=since_ns)


def act(site: Site, state: SiteState, acts: tuple[Fact, ...]) -> SiteState:
    """Apply what was decided."""
    for fact in acts:
        state = apply(site, state, fact)
    return state


def replay_row(site: Site, state: SiteState, row: TickRow) -> tuple[SiteState, Plan | None]:
    """Apply one journal row; gives the plan that was made in it."""
    state = enter(site, state, row.instant, row.facts)
    made = plan(site, state) if row.planned else None
    return act(site, state, row.acts), made
