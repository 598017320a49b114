"""How fast devices go down when told, learnt from effects; a sketch per class and firmware.

A sample is the time from the opening of a switch until a reading shows the device near its off
power, or until the switch committed where no reading showed it before; a switch that failed is a
sample of *never*. Buckets have fixed edges and a sample counts at its upper edge, so that every
figure errs on the slow side. A prior of a few slow samples stands until the device class has shown
better. Counts halve when there are many: firmware changes, and the past must not outvote it.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from edge_agent.core.columns import some
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    NS_PER_S,
    SWITCHING,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import Response, SiteState
from protocol.resource import DeviceKind

EDGES_S = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0,
           600.0)  # fmt: skip
NEVER = len(EDGES_S)
COUNT_MAX = 4_000.0
# (seconds, samples): half, nine tenths, 99 per cent, and one per cent never.
_PRIOR_ASIC = ((30.0, 10.0), (60.0, 8.0), (120.0, 1.8))
_PRIOR_GPU = ((5.0, 10.0), (10.0, 8.0), (30.0, 1.8))
_PRIOR_NEVER = 0.2
# A device is down when its reading has come so near to its off power.
_NEAR_OFF = 0.1
Z_99 = 2.326_347_9


class Groups(NamedTuple):
    """Devices by (class, firmware): the key of each group, and the group of each device."""

    keys: tuple[tuple[str, str], ...]
    of_device: IntColumn


@lru_cache(maxsize=4)
def groups(site: Site) -> Groups:
    """Give the groups of a site in the order in which they first appear."""
    keys = [(row.device_class, row.firmware) for row in site.devices]
    order = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    return Groups(tuple(order), site.once(_group_column))


def _group_column(site: Site) -> IntColumn:
    order: dict[tuple[str, str], int] = {}
    out = [order.setdefault((row.device_class, row.firmware), len(order)) for row in site.devices]
    return np.array(out, dtype=np.int64)


def response_of(site: Site, state: SiteState, key: tuple[str, str]) -> Response:
    """Give the sketch of a group; one without samples has its prior alone."""
    for row in state.responses:
        if (row.device_class, row.firmware) == key:
            return row
    at = site.class_index(key[0])
    kind = DeviceKind.ASIC if at is None else site.classes[at].model.kind
    counts = [0.0] * (NEVER + 1)
    for seconds, weight in _PRIOR_ASIC if kind is DeviceKind.ASIC else _PRIOR_GPU:
        counts[EDGES_S.index(seconds)] = weight
    counts[NEVER] = _PRIOR_NEVER
    return Response(key[0], key[1], tuple(counts), 0)


def share_within(row: Response, seconds: float) -> float:
    """Give the share of all samples that were down within a time; never counts as not down."""
    down = total = 0.0
    for at, count in enumerate(row.counts):
        total += count
        if at < NEVER and EDGES_S[at] <= seconds:
            down += count
    return down / total


def share_low(row: Response, seconds: float) -> float:
    """Give a lower 99 % bound of ``share_within``, for few samples (normal approximation)."""
    share = share_within(row, seconds)
    total = sum(row.counts, 0.0)
    return max(share - Z_99 * float(np.sqrt(share * (1.0 - share) / total)), 0.0)


def quantile_s(row: Response, share: float) -> float:
    """Give the time within which a share of those devices that do go down are down."""
    wanted = share * sum(row.counts[:NEVER], 0.0) * (1.0 - 1e-9)
    down = 0.0
    for at, edge in enumerate(EDGES_S):
        down += row.counts[at]
        if down >= wanted:
            return edge
    return EDGES_S[-1]


def share_after(row: Response, age_s: float, horizon_s: float) -> float:
    """Give the share down within ``horizon_s`` more, of those not down at ``age_s``."""
    before = share_within(row, age_s)
    if before >= 1.0:
        return 0.0
    return (share_within(row, age_s + horizon_s) - before) / (1.0 - before)


def going_off(state: SiteState) -> FlagColumn:
    """Tell which devices have an open switch that turns them off."""
    switching: FlagColumn = state.activity == SWITCHING
    if not some(switching):
        return switching
    out: FlagColumn = switching & ((state.target == CURTAILED) | (state.target == IDLE))
    return out


def down_w(site: Site, state: SiteState, at: IntColumn) -> FloatColumn:
    """Give the reading at or below which a device that goes off counts as down."""
    classes = site.class_of[at]
    off_w = site.nameplate_w[classes, state.target[at]]
    on_w = site.nameplate_w[classes, state.origin[at]]
    out: FloatColumn = off_w + _NEAR_OFF * np.maximum(on_w - off_w, 0.0)
    return out


def learn_readings(
    site: Site, state: SiteState, at: IntColumn, power_w: FloatColumn
) -> tuple[Response, ...]:
    """Learn from readings that show devices down for the first time in their switch."""
    every_off = going_off(state)
    if not some(every_off):
        return state.responses
    off, limit = every_off[at], down_w(site, state, at)
    was = np.where(state.read_ns[at] > state.since_ns[at], state.power_w[at], np.inf)
    crossed = off & (power_w <= limit) & ~(was <= limit)
    took_s = (state.now_ns - state.since_ns[at]) / NS_PER_S
    return _learn(site, state, at[crossed], took_s[crossed])


def learn_closed(
    site: Site, state: SiteState, at: IntColumn, good: FlagColumn, took_s: float
) -> tuple[Response, ...]:
    """Learn from a switch that closed: what no reading had shown down yet, and what failed."""
    off = going_off(state)[at]
    if not some(off):
        return state.responses
    read = (state.read_ns[at] > state.since_ns[at]) & (state.power_w[at] <= down_w(site, state, at))
    told = off & ~(good & read)
    took = np.where(good, took_s, np.inf)
    return _learn(site, state, at[told], took[told])


def _learn(
    site: Site, state: SiteState, at: IntColumn, took_s: FloatColumn
) -> tuple[Response, ...]:
    if not len(at):
        return state.responses
    keys, of_device = groups(site)
    bucket = np.searchsorted(np.array(EDGES_S), took_s, side="left")
    rows = {(row.device_class, row.firmware): row for row in state.responses}
    for group in np.unique(of_device[at]):
        key = keys[int(group)]
        row = rows[key] if key in rows else response_of(site, state, key)
        added = np.bincount(bucket[of_device[at] == group], minlength=NEVER + 1)
        counts = [have + float(more) for have, more in zip(row.counts, added, strict=True)]
        while sum(counts, 0.0) > COUNT_MAX:
            counts = [count * 0.5 for count in counts]
        rows[key] = replace(row, counts=tuple(counts), samples=row.samples + int(added.sum()))
    return tuple(rows.values())
