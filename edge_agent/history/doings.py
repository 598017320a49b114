"""What a site did on a day, and how near it came to its cap: plain counts, for the report."""

import math
from collections import Counter

import numpy as np
from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core.plan import PowerView
from edge_agent.core.site import MINE, FloatColumn, Site
from edge_agent.core.site_state import SiteState
from edge_agent.services.journal_walk import Step
from protocol.resource import Activity


class Doings(Struct, eq=False):
    """Counts and power of a day; filled by the walk, whole once it is over.

    Args:
        switches: devices told to change, by activity. reasons: the same by reason. outcomes: of
            switches that ended, by device. curtailments: of devices put to sleep, by reason.
        load_wh: at the meter, by interval. mining_h: the miners' share times hours (all
            devices' where there are no miners). cap_w, limit_w, counted_w: lowest cap in force,
            lowest of it and the orders in force, and highest counted load. margin_w: least room of
            counted load below the cap, infinite before the first pass; over_cap_h: above it.
        faults: nodes lost, devices lost, work lost. mode_h: miners' share times hours in each power
            mode, the lowest first; empty where the agent sets none.
    """

    load_wh: FloatColumn
    mining_h: FloatColumn
    cap_w: FloatColumn
    limit_w: FloatColumn
    counted_w: FloatColumn
    switches: Counter[str]
    reasons: Counter[str]
    outcomes: Counter[str]
    curtailments: Counter[str]
    faults: Counter[str]
    mode_h: dict[str, FloatColumn]
    passes: int = 0
    margin_w: float = math.inf
    over_cap_h: float = 0.0

    @staticmethod
    def empty(steps: int) -> "Doings":
        """Give the counts before the first row."""
        nan = np.full(steps, np.nan)
        return Doings(
            load_wh=np.zeros(steps),
            mining_h=np.zeros(steps),
            cap_w=nan,
            limit_w=nan.copy(),
            counted_w=nan.copy(),
            switches=Counter(),
            reasons=Counter(),
            outcomes=Counter(),
            curtailments=Counter(),
            faults=Counter(),
            mode_h={},
        )

    def note(self, step: Step, power: PowerView | None, place: int) -> None:
        """Count what a row says and does.

        Args:
            power: as the pass of the row saw it; None: there was none.
        """
        for fact in step.row.acts:
            if isinstance(fact, f.SwitchOpened):
                what = f"mode {fact.mode}" if fact.mode else fact.to_activity.value
                self.switches[what] += len(fact.device_ids)
                self.reasons[fact.reason] += len(fact.device_ids)
                if fact.to_activity is Activity.CURTAILED:
                    self.curtailments[fact.reason] += len(fact.device_ids)
        for said in step.row.facts:
            if isinstance(said, f.SwitchClosed):
                self.outcomes.update(said.outcomes)
            elif isinstance(said, f.NodeLost):
                self.faults["node_lost"] += 1
            elif isinstance(said, f.NodeSaid):
                self.faults[said.event.kind.value] += 1
        if power is not None:
            self.passes += 1
            self.margin_w = min(self.margin_w, power.cap_w - power.counted_w)
            self.cap_w[place] = np.fmin(self.cap_w[place], power.cap_w)
            # An order's limit ends the headroom before the cap does.
            limit_w = power.counted_w + power.headroom_w
            self.limit_w[place] = np.fmin(self.limit_w[place], limit_w)
            self.counted_w[place] = np.fmax(self.counted_w[place], power.counted_w)

    def load(
        self, step: Step, power: PowerView | None, place: int, dt_h: float, site_w: float
    ) -> None:
        """Add the load of a time, and whether the pass at its end stood above the cap."""
        self.load_wh[place] += site_w * dt_h
        for mode, share in mode_shares(step.site, step.before).items():
            held_h = self.mode_h.setdefault(mode, np.zeros(len(self.load_wh)))
            held_h[place] += share * dt_h
        mines = step.before.activity == MINE
        miners = int(np.count_nonzero(step.site.is_asic))
        running = np.count_nonzero(mines & step.site.is_asic if miners else mines)
        self.mining_h[place] += running / (miners or len(mines)) * dt_h
        if power is not None and power.counted_w > power.cap_w:
            self.over_cap_h += dt_h


def mode_shares(site: Site, state: SiteState) -> dict[str, float]:
    """Give the share of the miners that mine in each power mode, the lowest mode first.

    What mines in a mode that is not known, or on a class whose modes nobody sets, comes last and
    only where there is some. Nothing where the agent sets no modes.
    """
    if site.steps is None:
        return {}
    width = site.steps.most + 1
    on = (state.activity == MINE) & site.is_asic
    cells = site.class_of[on] * width + state.step[on]
    counts = np.bincount(cells, minlength=len(site.classes) * width).reshape(-1, width)
    names = site.steps.names
    held = {row[step - 1]: 0 for step in range(1, width) for row in names if step <= len(row)}
    rest = {"unknown": 0, "fixed": 0}
    for row, count in zip(names, counts.tolist(), strict=True):
        for mode, number in zip(row, count[1:], strict=False):
            held[mode] += number
        rest["unknown" if row else "fixed"] += count[0]
    held |= {name: number for name, number in rest.items() if number}
    miners = int(np.count_nonzero(site.is_asic))
    return {name: number / miners for name, number in held.items()}
