"""How many megawatts the site can let go within a time, with 99 %: from confirmed response times.

Only mining that may be told now counts: ending a lease is another promise. See ``sure``.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import power as pw
from edge_agent.core.leases import held_code
from edge_agent.core.order_facts import limit_w
from edge_agent.core.orders import load_w
from edge_agent.core.response import groups, quantile_s, response_of, share_low
from edge_agent.core.site import CURTAILED, IDLE, MINE, SERVE, FlagColumn, FloatColumn, Site
from edge_agent.core.site_state import HOLD_MINE, SiteState
from edge_agent.core.sure import ERROR, least_w

FAST_S = 5.0
SLOW_S = 600.0


class GroupPower(Struct, frozen=True, kw_only=True):
    """What one group of like devices gives.

    Args:
        devices: that mine and may be told to stop. draw_mw: more than they draw when off.
        samples: confirmed response times behind the figures; few of them lean on a slow prior.
        p50_s, p99_s: of those that do go down. share_5s, share_10min: lower 99 % bounds.
    """

    device_class: str
    firmware: str
    devices: int
    draw_mw: float
    samples: int
    p50_s: float
    p99_s: float
    share_5s: float
    share_10min: float
    curtailable_mw_5s: float
    curtailable_mw_10min: float


class SitePower(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent power``, in megawatts at the meter.

    Args:
        drawn_mw: sum of readings. confirmed_mw: at most drawn, as far as confirmed.
        counted_mw: against the cap. promised_mw: to grid orders that bind now; None is none.
        leases_mw: drawn by leases above idle; not in the curtailable.
    """

    cap_mw: float
    drawn_mw: float | None
    confirmed_mw: float
    counted_mw: float
    promised_mw: float | None
    headroom_mw: float
    leases_mw: float
    curtailable_mw_5s: float
    curtailable_mw_10min: float
    basis: tuple[GroupPower, ...]


def site_power(site: Site, state: SiteState) -> SitePower:
    """Give the site's power and what of it can go."""
    power = pw.view(site, state)
    promised = limit_w(site, state)
    rows = curtailable(site, state)
    load = load_w(site, state)
    idle_w = site.nameplate_w[site.class_of, IDLE] * site.pue
    serving = np.where(state.activity == SERVE, np.maximum(load - idle_w, 0.0), 0.0)
    return SitePower(
        cap_mw=power.cap_w / 1e6,
        drawn_mw=None if power.measured_w is None else power.measured_w / 1e6,
        confirmed_mw=pw.total(load) / 1e6,
        counted_mw=power.counted_w / 1e6,
        promised_mw=None if promised is None else promised / 1e6,
        headroom_mw=power.headroom_w / 1e6,
        leases_mw=pw.total(serving) / 1e6,
        curtailable_mw_5s=sum((row.curtailable_mw_5s for row in rows), 0.0),
        curtailable_mw_10min=sum((row.curtailable_mw_10min for row in rows), 0.0),
        basis=rows,
    )


def curtailable(site: Site, state: SiteState) -> tuple[GroupPower, ...]:
    """Give what each group of mining devices can let go."""
    may = _may_stop(state)
    drawn = _drawn_w(site, state)
    keys, of_device = groups(site)
    present = np.unique(of_device[may]).tolist()
    out: list[GroupPower] = []
    for at in present:
        watts = np.sort(drawn[may & (of_device == at)])
        row = response_of(site, state, keys[at])
        shares = [share_low(row, seconds) for seconds in (FAST_S, SLOW_S)]
        sure = [least_w(watts, share, ERROR / len(present)) / 1e6 for share in shares]
        out.append(
            GroupPower(
                device_class=row.device_class,
                firmware=row.firmware,
                devices=len(watts),
                draw_mw=pw.total(watts) / 1e6,
                samples=row.samples,
                p50_s=quantile_s(row, 0.5),
                p99_s=quantile_s(row, 0.99),
                share_5s=shares[0],
                share_10min=shares[1],
                curtailable_mw_5s=sure[0],
                curtailable_mw_10min=sure[1],
            )
        )
    return tuple(out)


def _may_stop(state: SiteState) -> FlagColumn:
    out: FlagColumn = (
        (state.activity == MINE)
        & state.reachable
        & (state.quarantine_ns <= state.now_ns)
        & (state.lease_no < 0)
        & (held_code(state) != HOLD_MINE)
    )
    return out


def _drawn_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device draws above being off: what is read, never more than the nameplate."""
    classes = site.class_of
    off_code = np.where(site.is_asic, CURTAILED, IDLE)
    plate = site.nameplate_w[classes, MINE]
    read = np.where(np.isnan(state.power_w), plate, state.power_w)
    watts = np.minimum(read, plate) - site.nameplate_w[classes, off_code]
    out: FloatColumn = np.maximum(watts, 0.0) * site.pue
    return out
