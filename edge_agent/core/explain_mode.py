"""Why a miner is in its power mode, what each mode would earn, and what would change it."""

import numpy as np
from msgspec import Struct

from edge_agent.core.economics import energy_price
from edge_agent.core.plan import Plan, Reason
from edge_agent.core.site import NS_PER_S, DeviceClass, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_facts import refusal_of
from edge_agent.core.step_rule import StepGroups, step_groups
from edge_agent.core.step_table import StepTable


class ModeOption(Struct, frozen=True, kw_only=True):
    """One mode, and what it adds to the one below it (the first one: to being off).

    Args:
        power_w, rate_ths: in the mode, by the site file's curve. adds_usd_per_h: None is unknown.
        note: why it cannot be had, else empty.
    """

    mode: str
    power_w: float
    rate_ths: float
    adds_usd_per_h: float | None
    note: str = ""


class ModeExplanation(Struct, frozen=True, kw_only=True):
    """The part of ``why`` that speaks of the power mode.

    Args:
        mode: confirmed; None is unknown. to_mode: of an open change. counts_w: against the cap.
    """

    mode: str | None
    to_mode: str | None
    counts_w: float
    options: tuple[ModeOption, ...]
    reason: str
    detail: str
    would_change: tuple[str, ...]


_SENTENCE: dict[Reason, str] = {
    Reason.STEP_KEEP: "no other mode earns more now",
    Reason.STEP_GAIN: "the change earns more than it costs over the expected stay",
    Reason.STEP_OVERDUE: "staying has cost as much as the change would",
    Reason.STEP_WAITS: "another mode earns more, but not yet enough for the change",
    Reason.STEP_DWELL: "it has not yet stayed its least time in this mode",
    Reason.STEP_CAP: "a higher mode waits for room under the power cap",
    Reason.STEP_RAMP: "a higher mode waits for the ramp",
    Reason.STEP_LIMIT: "no mode goes up while the grid limits the load",
    Reason.STEP_TRADE: "its power earns more in another miner under this cap",
    Reason.STEP_REFUSED: "the miner refused the mode that earns more",
    Reason.STEP_UNKNOWN: "its mode is not known yet: it counts as the highest",
    Reason.SHED: "load must go to keep the power cap",
    Reason.GRID_ORDER: "a grid order limits the site's load soon",
}


def why_mode(site: Site, state: SiteState, plan: Plan, index: int) -> ModeExplanation | None:
    """Explain the mode of one miner; None where the agent does not set it."""
    steps, told = site.steps, plan.records.step_reason
    if steps is None or told is None or not site.has_steps[index]:
        return None
    place, step = int(site.class_of[index]), int(state.step[index])
    to = int(state.step_to[index])
    reason = Reason(int(told[index]))
    names = steps.names[place]
    detail = _SENTENCE[reason]
    if state.no_steps[index]:
        detail = f"{detail} ({refusal_of(int(state.no_code[index]))})"
    return ModeExplanation(
        mode=names[step - 1] if step else None,
        to_mode=names[to - 1] if to and to != step else None,
        counts_w=float(max(steps.power_w[place, step], steps.power_w[place, to])),
        options=_options(steps, place, state, step_groups(site, state), index),
        reason=reason.name.lower(),
        detail=detail,
        would_change=_would_change(site, state, plan, reason, index),
    )


def _options(
    steps: StepTable, place: int, state: SiteState, groups: StepGroups | None, index: int
) -> tuple[ModeOption, ...]:
    usd = _row(groups, index)
    refused = int(state.no_steps[index])
    code = refusal_of(int(state.no_code[index]))
    return tuple(
        ModeOption(
            mode=mode,
            power_w=float(steps.power_w[place, number + 1]),
            rate_ths=float(steps.rate_ths[place, number + 1]),
            adds_usd_per_h=None if usd is None else float(usd[number]),
            note=f"refused: {code}" if refused >> number & 1 else "",
        )
        for number, mode in enumerate(steps.names[place])
    )


def _would_change(
    site: Site, state: SiteState, plan: Plan, reason: Reason, index: int
) -> tuple[str, ...]:
    row = site.classes[int(site.class_of[index])]
    groups = step_groups(site, state)
    out = _prices(site, state, groups, index)
    if reason is Reason.STEP_WAITS and groups is not None:
        near = float(groups.near_cost_usd[int(groups.row[index])])
        regret = float(state.step_regret_usd[index])
        out.append(
            f"regret of {row.ski_rental * near:.4f} USD at the latest; it is {regret:.4f} USD"
        )
    if reason is Reason.STEP_DWELL:
        out.append(f"{_dwell_left_s(state, row, index):.0f} s more in this mode (least dwell)")
    if reason is Reason.STEP_CAP:
        out.append(f"room under the cap; {plan.power.headroom_w / 1e3:.1f} kW are free")
    if reason is Reason.STEP_RAMP:
        out.append(f"the ramp of {site.limits.ramp_w_per_s * 60 / 1e3:.1f} kW per minute")
    if reason is Reason.STEP_REFUSED or state.no_steps[index]:
        out.append("`undrain` by an operator: refused modes are tried again")
    if reason is Reason.STEP_UNKNOWN:
        out.append("a reading in which it mines at the rate of a mode")
    return tuple(out)


def _prices(site: Site, state: SiteState, groups: StepGroups | None, index: int) -> list[str]:
    """Give the energy prices at which the neighbouring steps earn nothing."""
    price = energy_price(site, state.market)
    of = None if groups is None else groups.group_of(index)
    if groups is None or price is None or of is None:
        return []
    step, out = int(groups.step[of]), []
    names = site.steps.names[int(site.class_of[index])] if site.steps is not None else ()
    for number, mode, side in ((step, step, "below"), (step - 1, step - 2, "above")):
        if not (0 < number < len(names) or (side == "below" and number < len(names))):
            continue
        watts = float(groups.watts[of, number])
        even = price + float(groups.usd_per_h[of, number]) / watts * 1e6
        out.append(f"a price {side} {even:.2f} USD/MWh makes {names[mode]} earn more")
    return out


def _row(groups: StepGroups | None, index: int) -> np.ndarray | None:
    of = None if groups is None else groups.group_of(index)
    return None if groups is None or of is None else groups.usd_per_h[of]


def _dwell_left_s(state: SiteState, row: DeviceClass, index: int) -> float:
    since_ns = max(int(state.step_since_ns[index]), int(state.mode_since_ns[index]))
    return max(row.dwell_s - (state.now_ns - since_ns) / NS_PER_S, 0.0)
