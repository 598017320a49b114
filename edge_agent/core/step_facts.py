"""How changes of power mode and readings change what is known of each miner's step.

A step is confirmed by a change that closed, or told by readings: by the mode that the firmware
tells, else by the power. Readings by power only find a step that is unknown, or one that draws more
than was believed: a lower reading alone proves nothing.
"""

from typing import Any, Final

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.columns import kept, some, step_place
from edge_agent.core.held import not_held, turned
from edge_agent.core.site import NS_PER_S, CodeColumn, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import Rows, SiteState, SwitchEntry, put
from edge_agent.core.step_table import StepTable

# Why a miner refused a step, by place in the column ``no_code``; never reorder, only append.
REFUSALS: Final = ("", "other", "mode.refused", "mode.unsupported")
# Share of a step's rate from which a miner counts as hashing in it: below, it still starts.
RATE_SHARE_KNOWN = 0.8
# Below this share of its step's rate a reading is of a restart, and no measure of the miner.
RATE_SHARE_MINING = 0.5


def step_opened(site: Site, state: SiteState, fact: f.SwitchOpened) -> SiteState:
    """Give the state after running miners began to take another mode; they go on mining."""
    at, step = _named(site, fact.device_ids, fact.mode)
    no = state.next_no
    changes: dict[str, Any] = {
        "next_no": no + 1,
        "switches": (*state.switches, SwitchEntry(no, fact.switch_id, None, state.now_ns)),
        "switch_no": put(state.switch_no, at, no),
    }
    if site.steps is not None and len(at):
        rise_w = (
            site.steps.power_w[site.class_of[at], step]
            - site.steps.power_w[site.class_of[at], state.step[at]]
        ) * site.pue[at]
        changes |= {
            "step_to": put(state.step_to, at, step),
            "step_since_ns": put(state.step_since_ns, at, state.now_ns),
            "step_regret_usd": put(state.step_regret_usd, at, 0.0),
            "ramp_left_w": state.ramp_left_w - pw.total(np.maximum(rise_w, 0.0)),
        }
    return replace(state, **changes)


def step_closed(
    site: Site, state: SiteState, fact: f.SwitchClosed, entry: SwitchEntry
) -> SiteState:
    """Give the state after a change of mode ended, by the outcome of each miner.

    A device that a newer switch has taken over is not this one's any more.
    """
    rows = [
        (index, outcome, code)
        for index, outcome, code in zip(
            (site.index_of(key) for key in fact.device_ids),
            fact.outcomes,
            fact.codes or ("",) * len(fact.outcomes),
            strict=True,
        )
        if index is not None and state.switch_no[index] == entry.no
    ]
    at = np.array([row[0] for row in rows], dtype=np.int64)
    outcome = np.array([row[1] for row in rows], dtype="U12")
    codes = np.array([_refusal(row[2]) for row in rows], dtype=np.uint8)
    good, refused, lost = outcome == "committed", outcome == "refused", outcome == "quarantined"
    was, now = state.step[at], state.step_to[at]
    after = np.where(lost, 0, np.where(good, now, was)).astype(np.uint8)
    bits = np.left_shift(1, np.maximum(now.astype(np.int64), 1) - 1).astype(np.uint8)
    out = lost | ((outcome == "rolled_back") & (_failures(site, state, at) >= _most(site)))
    until_ns = state.now_ns + int(site.limits.quarantine_s * NS_PER_S)
    bad = ~good & ~refused
    if turned(state.held, entry.no):
        bad &= outcome != "rolled_back"
        out &= lost
    return replace(
        state,
        switches=tuple(row for row in state.switches if row.no != entry.no),
        held=not_held(state.held, entry.no),
        switch_no=put(state.switch_no, at, -1),
        step=put(state.step, at, after),
        step_to=put(state.step_to, at, after),
        step_since_ns=put(state.step_since_ns, at, state.now_ns),
        step_regret_usd=put(state.step_regret_usd, at, 0.0),
        no_steps=put(state.no_steps, at[refused], (state.no_steps[at] | bits)[refused]),
        no_code=put(state.no_code, at[refused], codes[refused]),
        quarantine_ns=put(state.quarantine_ns, at[out], until_ns),
        failures=put(state.failures, at[bad], np.minimum(_failures(site, state, at)[bad], 250)),
        failed_ns=put(state.failed_ns, at[bad], state.now_ns),
        **_scaled(site, state, at[good & (was > 0)], now[good & (was > 0)]),
    )


def forget_change(state: SiteState, at: IntColumn) -> dict[str, Any]:
    """Give the columns after another switch took these devices over in the middle of a change."""
    cut = at[state.step_to[at] != state.step[at]]
    return {"step": put(state.step, cut, 0), "step_to": put(state.step_to, cut, 0)}


def step_readings(
    site: Site, state: SiteState, row: f.ReadingColumns, rows: Rows, mining: FlagColumn
) -> dict[str, Any]:
    """Give the columns after readings.

    Args:
        rows: devices read. mining: those that mine, hash, and have no open switch.
    """
    assert site.steps is not None, "asked only where the agent sets modes"
    steps, at, known = site.steps, rows.at, rows.of(state.step)
    # Soon after a change a reading may be of before it; the count takes it as it is all the same.
    late_ns = int(site.limits.reading_stale_s * NS_PER_S)
    settled = rows.of(state.step_since_ns) < state.now_ns - late_ns
    above = row.power_w > rows.of(_higher_w(site, state.step))
    mining = mining & rows.of(site.has_steps)
    where = np.flatnonzero(mining & ((known == 0) | (above & settled)))
    if row.step is None and not len(where):
        return {}
    told = np.zeros(len(at), dtype=np.uint8) if row.step is None else row.step
    found = np.where(told > 0, told, known).astype(np.uint8)
    near = _by_power(steps, site, at[where], row.power_w[where], row.hashrate_ths[where])
    better = (told[where] == 0) & (near > known[where])
    found[where[better]] = near[better]
    changed = mining & (found != known)
    if not some(changed):
        return {}
    moved = at[changed]
    return {
        "step": put(state.step, moved, found[changed]),
        "step_to": put(state.step_to, moved, found[changed]),
    }


@kept
def _higher_w(site: Site, step: CodeColumn) -> FloatColumn:
    """Give the reading above which each device may be in a higher step than was believed."""
    assert site.steps is not None, "asked only where the agent sets modes"
    watts = site.steps.power_w
    # What lies below the middle between two steps is nearer to the lower one, whatever is rounded.
    nearer_w = np.full_like(watts, np.inf)
    nearer_w[:, 1:-1] = watts[:, 1:-1] + 0.49 * np.diff(watts[:, 1:], axis=1)
    table = np.maximum(watts * pw.READ_SLACK, nearer_w)
    out: FloatColumn = table.ravel().take(step_place(site, step), mode="clip")
    return out


def _by_power(
    steps: StepTable, site: Site, at: IntColumn, power_w: FloatColumn, rate_ths: FloatColumn
) -> CodeColumn:
    """Give the step that power and rate agree on; 0 where they do not."""
    near = steps.nearest(site.class_of[at], power_w)
    full = rate_ths >= RATE_SHARE_KNOWN * steps.rate_ths[site.class_of[at], near]
    out: CodeColumn = np.where(full & (power_w > 0.0), near, 0).astype(np.uint8)
    return out


def hashes(site: Site, state: SiteState, rows: Rows, rate_ths: FloatColumn) -> FlagColumn:
    """Tell which readings are of a miner that hashes, not of one that restarts into a mode."""
    assert site.steps is not None, "asked only where the agent sets modes"
    least = rows.of(_least_ths(site, state.step))
    out: FlagColumn = ~rows.of(site.has_steps) | (rate_ths >= least)
    return out


@kept
def _least_ths(site: Site, step: CodeColumn) -> FloatColumn:
    assert site.steps is not None, "asked only where the agent sets modes"
    table = RATE_SHARE_MINING * site.steps.rate_ths.ravel()
    out: FloatColumn = table.take(step_place(site, step), mode="clip")
    return out


def refusal_of(code: int) -> str:
    """Give the reason that stands at a place of ``no_code``."""
    return REFUSALS[code] if code < len(REFUSALS) else REFUSALS[1]


def _named(site: Site, device_ids: tuple[str, ...], mode: str) -> tuple[IntColumn, CodeColumn]:
    """Give the devices that have the mode, and its step on each."""
    at = site.indices_of(device_ids)
    if site.steps is None:
        return at[:0], np.zeros(0, dtype=np.uint8)
    by_class = np.array([site.steps.step_of(n, mode) for n in range(len(site.classes))])
    step = by_class[site.class_of[at]].astype(np.uint8)
    return at[step > 0], step[step > 0]


def _refusal(code: str) -> int:
    return REFUSALS.index(code) if code in REFUSALS else 1


def _most(site: Site) -> int:
    return site.limits.quarantine_after


def _failures(site: Site, state: SiteState, at: IntColumn) -> IntColumn:
    recent_ns = int(site.limits.quarantine_window_s * NS_PER_S)
    recent = state.now_ns - state.failed_ns[at] <= recent_ns
    out: IntColumn = np.where(recent, state.failures[at].astype(np.int64), 0) + 1
    return out


def _scaled(site: Site, state: SiteState, at: IntColumn, step: CodeColumn) -> dict[str, Any]:
    """Carry what was measured in one step over to another, by the curve, until it is read."""
    if site.steps is None:
        return {}
    classes, was = site.class_of[at], state.step[at]
    power, rate = site.steps.power_w, site.steps.rate_ths
    return {
        "mine_w": put(
            state.mine_w, at, state.mine_w[at] * (power[classes, step] / power[classes, was])
        ),
        "mine_ths": put(
            state.mine_ths, at, state.mine_ths[at] * (rate[classes, step] / rate[classes, was])
        ),
    }
