"""The next step of the difficulty: when it comes, how large it will be, and what it is worth now.

Blocks come at random at the mean time of their epoch. The step follows from how long the epoch
takes, so that it is the better known the more of its blocks were seen: an estimate from few is
drawn to no step at all. What the step changes lies in the future, and the outlook tells what the
future is worth; so it weighs by the chance that a stay still lasts when the step comes.
"""

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.outlook import INTERVAL_S
from edge_agent.core.site_state import Blocks, MarketState

EPOCH_BLOCKS = 2_016
BLOCK_S = 600.0
# By consensus a step is at most a factor of four, either way.
STEP_MAX = 4.0
# A rate seen over fewer blocks than these says little: their number is Poisson (10 % at 100).
_BLOCKS_MIN = 36
# Standard deviation of a step before anything is known of it.
# Source: ln of the ratio of successive difficulties, the 60 steps to 2025-03 (0.039).
STEP_SD = 0.04
# A stay that is near a change ends, by a price that settles it, after so long in the mean: 0.72 of
# them live through an interval. Source: 2024-01 .. 2025-03, share and gain of the shipped weights,
# 0.51 to 0.76 by hashprice and by what is known of the price.
STAY_S = 2_700.0
# Below this weight a step is as good as none, and costs no time.
WEIGHT_MIN = 0.01
# A second feed may be so many blocks behind the first; a chain that forked takes back fewer.
BEHIND_MAX = 6
# Nobody has told a height for so long: of the step nothing is known. Twelve blocks come in it.
HEIGHT_STALE_S = 7_200.0
_MS_PER_S = 1_000


class ComingStep(Struct, frozen=True, kw_only=True):
    """A step that is near.

    Args:
        revenue_ratio: revenue of mining after it over before it. weight: of the time after it in
            what a stay is worth, 0..1.
    """

    revenue_ratio: float
    weight: float


def next_difficulty(difficulty: float, block_s: float) -> float:
    """Give the difficulty after the next step, if blocks go on to take so long.

    Source: the consensus rule: 2,016 blocks should take two weeks, a step is at most a factor of 4.
    """
    return difficulty * min(max(BLOCK_S / block_s, 1.0 / STEP_MAX), STEP_MAX)


def blocks_seen(held: Blocks | None, height: int, at_ms: int) -> Blocks:
    """Count a block height in; a new epoch begins anew, and so does a count that goes far back.

    Args:
        at_ms: in the market's own time, which a replay does not stretch.
    """
    if held is not None and 0 <= held.height - height <= BEHIND_MAX:
        return held
    epoch = height // EPOCH_BLOCKS
    if held is None or held.first_height // EPOCH_BLOCKS != epoch or height < held.height:
        return Blocks(height, at_ms, height, at_ms)
    return replace(held, height=height, at_ms=at_ms)


def block_s(held: Blocks | None) -> float | None:
    """Give the mean block time of the running epoch; None while too few were seen."""
    if held is None or held.height - held.first_height < _BLOCKS_MIN:
        return None
    return max((held.at_ms - held.first_ms) / _MS_PER_S / (held.height - held.first_height), 1.0)


def blocks_left(held: Blocks) -> int:
    """Give how many blocks the running epoch still has."""
    return EPOCH_BLOCKS - held.height % EPOCH_BLOCKS


def expected_difficulty(difficulty: float, seen: int, block_s: float) -> float:
    """Give the expected difficulty after the next step, by so many blocks of the epoch.

    Source: block times are exponential. With a mean of which only the spread of the steps is known
        before, the blocks seen count as if ``1 / STEP_SD ** 2`` at the due time had come as well.
    """
    unseen = max(EPOCH_BLOCKS - seen, 0)
    coming_s = BLOCK_S + (block_s - BLOCK_S) * seen / (seen + 1.0 / (STEP_SD * STEP_SD))
    return next_difficulty(difficulty, (seen * block_s + unseen * coming_s) / (seen + unseen))


def step_weight(blocks: int, block_s: float) -> float:
    """Give the chance that a stay still lasts when so many blocks have come; 0 where it is small.

    Source: block times and stays are exponential, so each block outruns the stay with chance
        STAY_S / (STAY_S + block_s).
    """
    each = STAY_S / (STAY_S + block_s)
    # One by one: a power may differ in its last bit from machine to machine.
    weight = 1.0
    for _ in range(blocks):
        weight *= each
        if weight < WEIGHT_MIN:
            return 0.0
    return weight


def coming_step(held: Blocks | None) -> ComingStep | None:
    """Give the step that the blocks of the running epoch foretell; None while none is near."""
    mean_s = block_s(held)
    if held is None or mean_s is None:
        return None
    weight = step_weight(blocks_left(held), mean_s)
    if not weight:
        return None
    after = expected_difficulty(1.0, held.height - held.first_height, mean_s)
    return ComingStep(revenue_ratio=1.0 / after, weight=weight)


def step_ahead(market: MarketState) -> ComingStep | None:
    """Give the step that a site's market foretells now; None where its height is not fresh."""
    held = market.blocks
    if held is None or market.interval_no < 0:
        return None
    now_ms = market.interval_no * int(INTERVAL_S) * _MS_PER_S
    return None if now_ms - held.at_ms > HEIGHT_STALE_S * _MS_PER_S else coming_step(held)
