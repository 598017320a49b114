"""Power modes as a person reads them: of one miner, and counted by class."""

import numpy as np

from edge_agent.core.site import MINE, Site
from edge_agent.core.site_state import SiteState

UNKNOWN = "unknown"


def mode_of_miner(site: Site, state: SiteState, at: int) -> str | None:
    """Give the mode of a miner, ``low>high`` while it changes; None where the agent sets none."""
    if site.steps is None or not site.has_steps[at]:
        return None
    names = (UNKNOWN, *site.steps.names[int(site.class_of[at])])
    step, to = int(state.step[at]), int(state.step_to[at])
    return names[step] if step == to else f"{names[step]}>{names[to]}"


def modes_by_class(site: Site, state: SiteState) -> tuple[dict[str, int], ...]:
    """Count the miners that mine by their confirmed mode, for each class."""
    if site.steps is None:
        return tuple({} for _ in site.classes)
    width = site.steps.most + 1
    mines = np.flatnonzero((state.activity == MINE) & site.has_steps)
    rows = site.class_of[mines].astype(np.int64) * width + state.step[mines]
    counts = np.bincount(rows, minlength=len(site.classes) * width).reshape(-1, width).tolist()
    return tuple(
        {name: count for name, count in zip((UNKNOWN, *names), own, strict=False) if count}
        for names, own in zip(site.steps.names, counts, strict=True)
    )
