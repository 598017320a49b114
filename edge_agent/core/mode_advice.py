"""Which power modes the miners of a plan would best run in: advice, told with the plan.

Units differ: each stands with the efficiency that was last measured while it mined, against the
point of its class's curve that is nearest in power, in steps of 2 %; equal ones are one group.
"""

import numpy as np

from edge_agent.core.allocation import Group, allocate
from edge_agent.core.economics import Values, hashprice, mine_usd_per_ths_h
from edge_agent.core.plan import ModeAdvice, ModeShare
from edge_agent.core.site import FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState

_GRAIN = 0.02
_LEAST, _MOST = 0.7, 1.3


def advise(
    site: Site, state: SiteState, values: Values, at: IntColumn, room_w: float
) -> ModeAdvice | None:
    """Give the best modes of miners; None without modes, without a miner or without a price.

    Args:
        at: miners that are to run. room_w: for what they draw above being off, at the meter.
    """
    per_ths = hashprice(state.market)
    told = [bool(row.modes) and not row.set_modes for row in site.classes]
    with_modes = np.array(told)[site.class_of[at]]
    if per_ths is None or not with_modes.any():
        return None
    groups, owners = _groups(site, state, values, at, per_ths)
    made = allocate(groups, room_w)
    shares: dict[tuple[str, str], int] = {}
    for counts, place in zip(made.counts, owners, strict=True):
        row = site.classes[place]
        modes = ("off", *(step.mode for step in row.steps))
        for mode, devices in zip(modes, counts, strict=True):
            key = (row.class_name, mode)
            shares[key] = shares.get(key, 0) + devices
    return ModeAdvice(
        tuple(ModeShare(name, mode, count) for (name, mode), count in shares.items() if count),
        made.worth,
        made.gap,
    )


def _groups(
    site: Site, state: SiteState, values: Values, at: IntColumn, per_ths: float
) -> tuple[tuple[Group, ...], list[int]]:
    """Give the miners by class and measured efficiency, and the class of each group."""
    groups: list[Group] = []
    owners: list[int] = []
    for place in np.unique(site.class_of[at]):
        row, own = site.classes[int(place)], at[site.class_of[at] == place]
        usd_per_ths = mine_usd_per_ths_h(row, per_ths)
        energy = float(values.energy_usd_per_wh[own[0]])
        watts, rates = [0.0], [0.0]
        for step in row.steps:
            watts.append(watts[-1] + step.power_w)
            rates.append(rates[-1] + step.rate_ths)
        factors, counts = np.unique(_quality(site, state, own), return_counts=True)
        for factor, count in zip(factors.tolist(), counts.tolist(), strict=True):
            worth = [
                factor * rate * usd_per_ths - each_w * energy
                for rate, each_w in zip(rates, watts, strict=True)
            ]
            groups.append(
                Group(
                    count=count,
                    watts=tuple(each_w * row.pue for each_w in watts),
                    worth=tuple(worth),
                )
            )
            owners.append(int(place))
    return tuple(groups), owners


def _quality(site: Site, state: SiteState, at: IntColumn) -> FloatColumn:
    """Give terahashes per joule over those of the curve's nearest point, in steps."""
    row = site.classes[int(site.class_of[at[0]])]
    power = np.add.accumulate([row.model.curtailed_w, *(step.power_w for step in row.steps)])[1:]
    rate = np.add.accumulate([step.rate_ths for step in row.steps])
    measured_w, measured_ths = state.mine_w[at], state.mine_ths[at]
    known = (measured_w > 0.0) & (measured_ths > 0.0)
    safe_w = np.where(known, measured_w, power[0])
    nearest = np.argmin(np.abs(safe_w[:, None] - power[None, :]), axis=1)
    ratio = np.where(known, measured_ths / safe_w, 0.0) / (rate[nearest] / power[nearest])
    bounded = np.minimum(np.maximum(ratio, _LEAST), _MOST)
    out: FloatColumn = np.where(known, np.round(bounded / _GRAIN) * _GRAIN, 1.0)
    return out
