"""A day as a picture: what was, against the clairvoyant and S1."""

import numpy as np

from edge_agent.backtest.frame import STEP_S
from edge_agent.backtest.plot import Picture, break_even
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.site import IntColumn
from edge_agent.history.day import STEPS, Day
from edge_agent.history.regret import Courses


def day_picture(day: Day, courses: Courses) -> Picture:
    """Give the columns of a day's picture; time that is in no figure is a hole."""
    at_s: IntColumn = int(day.start.timestamp()) + STEP_S * np.arange(STEPS, dtype=np.int64)
    hours = np.where(day.covered_h > 0.0, day.covered_h, np.nan)
    site, grid = day.site, courses.grid
    miners = site.is_asic if site.is_asic.any() else np.ones(len(site), dtype=np.bool_)
    adder = site.spread([row.adder_usd_per_mwh for row in site.classes])
    revenue = grid.revenue_usd_per_h[:, miners].sum(axis=1)
    saved_mw = grid.rise_mw[:, miners].sum(axis=1)
    known = ~np.isnan(hours)
    modes = {name: held_h / hours for name, held_h in day.doings.mode_h.items()}
    real = day.worlds[0].profit_usd(day.price)
    return Picture(
        title=f"{site.site_id}  {day.start:%Y-%m-%d}",
        at_s=at_s,
        price=day.price,
        break_even=np.where(
            known, break_even(revenue, saved_mw, float(adder[miners].mean())), np.nan
        ),
        mining=day.doings.mining_h / hours,
        modes=modes if len(modes) > 1 else {},
        load_mw=day.doings.load_wh / hours / W_PER_MW,
        cap_mw=day.doings.cap_w / W_PER_MW,
        above_s1_usd={
            "realised": real - courses.s1_usd,
            "clairvoyant": courses.best_usd - courses.s1_usd,
        },
    )
