"""GPUs kept idle for the next leases instead of mining: a fixed number, or one that demand sets.

Demand sets it as a newsvendor does: one more GPU is kept while the chance that so many are asked
for within the time a GPU that mines needs to serve is worth what it would earn by mining. A lease
asks for all its GPUs at once. Nothing is stored for it but when leases came, what they paid and for
how many GPUs; those that are idle already are the memory: keeping one asks for half the chance that
taking one from mining does.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from msgspec import Struct

from edge_agent.core.columns import some
from edge_agent.core.draft import Draft
from edge_agent.core.economics import (
    COST_SAMPLES_MIN,
    FRESH,
    SECONDS_PER_H,
    START_S_MAX,
    START_S_MIN,
    Values,
    value,
)
from edge_agent.core.money import dwelt
from edge_agent.core.plan import Reason
from edge_agent.core.ready import Arrivals, Paid
from edge_agent.core.site import IDLE, MINE, NS_PER_S, DeviceClass, FlagColumn, Site
from edge_agent.core.site_state import SiteState
from protocol.resource import Activity

# One that is idle stays so down to this share of the chance that one is taken from mining at.
KEEP_SHARE = 0.5
# Tail chances below this are rounding.
_CHANCE_MIN = 1e-12


class Demand(Struct, frozen=True, kw_only=True):
    """What demand says of the reserve of one class.

    Args:
        take: GPUs that are taken from mining for it. keep: those that stay idle if they are so.
        leases, passed_s: so many came in that time after the first one that is remembered; of
            ``gpus`` each in the mean, the first one's among them.
        chance: of one more within ``lead_s``, the time from mining to serving. saved_s: what of it
            one that is idle spares.
        idle_usd_per_h: what one would earn by mining. margin_usd_per_h: what leases paid of late,
            less their energy above idle.
    """

    take: int
    keep: int
    leases: int
    gpus: float
    passed_s: float
    chance: float
    lead_s: float
    saved_s: float
    idle_usd_per_h: float
    margin_usd_per_h: float


def exceed(
    leases: int, passed_s: float, within_s: float, sizes: tuple[int, ...] = (1,)
) -> Iterator[float]:
    """Give the chance that more than 0, 1, 2, ... GPUs are asked for within a time; without end.

    Args:
        leases: that came in ``passed_s``, after the first one, which only begins the count. sizes:
            GPUs of each that is remembered; each of them is as likely the next one's.

    Source: with n arrivals of a Poisson process seen in a time T, and a rate of which nothing is
        known before, the arrivals in w more are negative binomial: k of them with chance
        C(n + k - 1, k) (T / (T + w)) ^ n (w / (T + w)) ^ k. What they ask for in all follows by
        Panjer's recursion (ASTIN Bulletin 12, 1981), with a = w / (T + w) and b = (n - 1) a.
    """
    passed_s = max(passed_s, 1e-9)
    none = passed_s / (passed_s + within_s)
    part = {size: sizes.count(size) / len(sizes) for size in sorted(set(sizes))}
    first = 1.0
    for _ in range(leases):
        first *= none
    asked = [first]  # the chance of so many GPUs in all
    below = first
    while True:
        yield max(1.0 - below, 0.0)
        number = len(asked)
        more = 0.0
        for size, share in part.items():
            if size <= number:
                more += (1.0 + (leases - 1) * size / number) * share * asked[number - size]
        asked.append((1.0 - none) * more)
        below += asked[-1]


def warm_reserve(exceed: Iterable[float], idle_usd_per_h: float, margin_usd_per_h: float) -> int:
    """Give how many GPUs to keep warm: the newsvendor's number.

    Args:
        exceed: probability that demand exceeds n, for n = 0, 1, ...; not increasing, and bounded.
        idle_usd_per_h: cost of keeping one. margin_usd_per_h: what one earns when asked for.
    """
    if margin_usd_per_h <= 0.0:
        return 0
    count = 0
    for share in exceed:
        if share < _CHANCE_MIN or share * margin_usd_per_h < idle_usd_per_h:
            break
        count += 1
    return count


def demand(site: Site, state: SiteState, values: Values, place: int) -> Demand | None:
    """Judge the reserve of a class by what came; None: it is not asked for, or nothing is known.

    Args:
        place: index of the class. values: of the same instant; while they are stale nothing is.
    """
    row = site.classes[place]
    came, paid = _came(state, row.class_name), _paid(state, row.class_name)
    own = np.flatnonzero(site.class_of == place)
    if row.warm_reserve_max <= 0 or came is None or paid is None or not len(own):
        return None
    if some(values.quality[own] != FRESH):
        return None
    energy = (row.model.serve_w - row.model.idle_w) * float(values.energy_usd_per_wh[own[0]])
    idle = max(float(values.gain_on_usd_per_h[own].max()), 0.0)
    restart = float(values.restart_usd[own].max())
    lead_s, saved_s = _lead_s(state, row)
    passed_s = (state.now_ns - came.at_ns[0]) / NS_PER_S
    leases = len(came.at_ns) - 1
    most = min(row.warm_reserve_max, len(own))
    sizes = paid.sizes
    earned = sum(usd * size for usd, size in zip(paid.usd_per_h, sizes, strict=True))
    margin = earned / sum(sizes) - energy
    # Only what is spared of the way to serve is won by a GPU that is idle.
    won = margin * saved_s / lead_s
    # One that is taken stays idle for its least time: that must bring its restart as well.
    stay_h = max(row.least_down_s, lead_s) / SECONDS_PER_H

    def count(cost_usd_per_h: float) -> int:
        chances = exceed(leases, passed_s, lead_s, sizes)
        number = warm_reserve(islice(chances, most), cost_usd_per_h, won)
        # A lease begins when all its GPUs are there: a part of the least of them spares nothing.
        return number if number >= min(sizes) else 0

    return Demand(
        take=count(idle + restart / stay_h),
        keep=count(idle * KEEP_SHARE),
        leases=leases,
        gpus=sum(sizes) / len(sizes),
        passed_s=passed_s,
        chance=next(exceed(leases, passed_s, lead_s)),
        lead_s=lead_s,
        saved_s=saved_s,
        idle_usd_per_h=idle,
        margin_usd_per_h=margin,
    )


def keep_reserve(site: Site, state: SiteState, draft: Draft) -> None:
    """Keep some GPUs of a class idle for bursts, first those that are: mining starts slowly."""
    for place, row in enumerate(site.classes):
        if max(row.warm_reserve, row.warm_reserve_max) <= 0 or row.model.serve_w <= 0.0:
            continue
        free = np.flatnonzero(draft.free & (site.class_of == place))
        idle = state.activity[free] == IDLE
        # One that is idle already costs no switch.
        order = free[np.argsort(~idle, kind="stable")]
        rested = int(idle.sum())
        coming = int(_coming(state, site.class_of == place).sum())
        count = max(row.warm_reserve - coming, 0)
        said = demand(site, state, value(site, state), place) if row.warm_reserve_max else None
        if said is not None:
            # What demand takes from mining is a change for money: it has dwelt.
            may = dwelt(site, state, state.activity == MINE, order)
            may[: max(rested, count)] = True
            order = order[may]
            wanted = min(max(rested + coming, said.take), said.keep)
            count = max(count, wanted - coming)
        kept = order[:count]
        if said is not None:
            if draft.lacks is None:
                draft.lacks = np.zeros(len(site.classes), dtype=np.int64)
            draft.lacks[place] = said.keep - coming - len(kept)
        draft.target[kept] = IDLE
        draft.reason[kept] = Reason.RESERVE


def reserve_text(site: Site, state: SiteState, index: int) -> str:
    """Say by which numbers demand sets the reserve of a device's class; empty where it does not."""
    place = int(site.class_of[index])
    said = demand(site, state, value(site, state), place)
    if said is None:
        return ""
    row = site.classes[place]
    return (
        f" ({said.take} to {said.keep} of at most {row.warm_reserve_max}: {said.leases} leases in "
        f"{said.passed_s:.0f} s, of {said.gpus:.3g} GPUs each, one more within "
        f"{said.lead_s:.1f} s with chance {said.chance:.3f}, of which idle spares "
        f"{said.saved_s:.1f} s; mining earns {said.idle_usd_per_h:.4f} USD/h, a lease "
        f"{said.margin_usd_per_h:.4f} USD/h)"
    )


def _coming(state: SiteState, own: FlagColumn) -> FlagColumn:
    """Tell which of a class go idle by a switch that is open: they are in the reserve soon."""
    out: FlagColumn = own & (state.switch_no >= 0) & (state.target == IDLE)
    return out


def _came(state: SiteState, class_name: str) -> Arrivals | None:
    found = next((row for row in state.arrivals if row.device_class == class_name), None)
    return found if found is not None and len(found.at_ns) > 1 else None


def _paid(state: SiteState, class_name: str) -> Paid | None:
    return next((row for row in state.paid if row.device_class == class_name), None)


def _lead_s(state: SiteState, row: DeviceClass) -> tuple[float, float]:
    """Give the seconds from mining to serving, and what of them one that is idle spares.

    Until the way from idle is learnt as well, it counts as none: only then is it tried.
    """
    ways = {
        cost.from_activity: min(max(cost.seconds, START_S_MIN), START_S_MAX)
        for cost in state.switch_costs
        if cost.device_class == row.class_name
        and cost.to_activity is Activity.SERVE
        and cost.samples >= COST_SAMPLES_MIN
        and not cost.ready
    }
    lead_s = ways.get(Activity.MINE, min(max(row.serve_start_s, START_S_MIN), START_S_MAX))
    return lead_s, max(lead_s - ways.get(Activity.IDLE, 0.0), 0.0)
