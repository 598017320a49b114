"""The rule for money as worths: what a step of power is worth kept, and started, now.

The rule judges each step alone; under a cap what it wants may not fit. Its worth says how much each
step is missed: kept ``gain + share`` restarts, started one restart less. The signs are the rule's
verdict (regret, credit and dwell included), so that with room for all the allocation does what the
rule says, step by step.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.outlook import Outlook
from edge_agent.core.rule import wants
from edge_agent.core.site import FlagColumn, FloatColumn

# Of a restart: what the rule wants kept or begun is worth at least this, and at most its negative
# if it wants it ended or left.
LEAST = 1e-6
# Both parts of each step are judged at once: the part that runs, and the part that does not.
RUNS_OR_NOT: FlagColumn = np.array([[True], [False]])


class Worths(Struct, frozen=True, eq=False):
    """Worth in USD of keeping each step and of starting it, and which changes the rule wants."""

    keep_usd: FloatColumn
    start_usd: FloatColumn
    leaves: FlagColumn
    starts: FlagColumn


class Standing(Struct, frozen=True, eq=False, kw_only=True):
    """What the rule remembers of each step.

    Args:
        regret_usd: (2, steps), of the part that runs and of the part that does not.
        debt: open restarts. dwelt: (2, steps), it may change for money.
    """

    regret_usd: FloatColumn
    debt: FloatColumn
    dwelt: FlagColumn


def weigh(
    outlook: Outlook,
    cost_usd: FloatColumn,
    standing: Standing,
    ski_rental: FloatColumn,
    *,
    known: bool,
) -> Worths:
    """Weigh each step; ``cost_usd`` is the prudent restart cost."""
    found = wants(
        RUNS_OR_NOT,
        outlook,
        cost_usd,
        standing.regret_usd,
        standing.debt,
        ski_rental,
        known=known,
    )
    leaves, starts = found.change & standing.dwelt
    kept = outlook.gain + outlook.share
    keep = np.where(leaves, np.minimum(-np.abs(kept), -LEAST), np.maximum(kept, LEAST))
    begun = kept - 1.0
    start = np.where(starts, np.maximum(begun, LEAST), np.minimum(begun, -LEAST))
    return Worths(keep * cost_usd, start * cost_usd, leaves, starts)
