"""Who runs in which mode under the caps: a multiple-choice knapsack by marginal merit.

Equal devices are one group; each device of a group takes one of its options. Only options on the
upper concave hull over power can be best at some price of power; the steps between them, sorted by
worth per watt, fill the room. With whole devices the fill ends within one device's step of the
linear programme for each cap that binds; the programme's value is the bound that is told beside it.
Feeders are caps inside the site's cap: the same greedy fill solves the linear programme, because
the sets are nested.
"""

from itertools import pairwise

import numpy as np
from msgspec import Struct

from edge_agent.core.columns import order_of
from edge_agent.core.site import FloatColumn

_Point = tuple[float, float, int]


class Group(Struct, frozen=True, kw_only=True):
    """Equal devices.

    Args:
        count: devices. watts, worth: of each option, at the meter and in USD (of the same time for
            all groups). feeder: place of the feeder's room; -1: none.
    """

    count: int
    watts: tuple[float, ...]
    worth: tuple[float, ...]
    feeder: int = -1


class Allocation(Struct, frozen=True, kw_only=True):
    """What each group does.

    Args:
        counts: devices by group and option. watts, worth: in all. bound: what the linear
            programme could earn; no allocation earns more. fits: the least load is in the room.
    """

    counts: tuple[tuple[int, ...], ...]
    watts: float
    worth: float
    bound: float
    fits: bool

    @property
    def gap(self) -> float:
        """Give what the linear programme could earn above this."""
        return max(self.bound - self.worth, 0.0)


class _Rise(Struct):
    """One step of a group's hull: from option ``low`` to option ``high``."""

    density: float
    group: int
    low: int
    high: int
    watts: float
    worth: float


class _Fill(Struct):
    """A running fill, with whole devices or with fractions."""

    room_w: float
    feeders: list[float]
    held: list[list[float]]
    watts: float
    worth: float

    def copy(self) -> "_Fill":
        held = [list(row) for row in self.held]
        return _Fill(self.room_w, list(self.feeders), held, self.watts, self.worth)

    def take(self, rise: _Rise, feeder: int, amount: float) -> None:
        held, used = self.held[rise.group], amount * rise.watts
        held[rise.low] -= amount
        held[rise.high] += amount
        self.room_w -= used
        self.watts += used
        self.worth += amount * rise.worth
        if feeder >= 0:
            self.feeders[feeder] -= used

    def most(self, rise: _Rise, feeder: int) -> float:
        """Give how many devices can still take a step, in fractions."""
        room = self.room_w if feeder < 0 else min(self.room_w, self.feeders[feeder])
        there = self.held[rise.group][rise.low]
        return there if there * rise.watts <= room else max(room / rise.watts, 0.0)


def allocate(
    groups: tuple[Group, ...],
    room_w: float,
    feeders_w: tuple[float, ...] = (),
    least_w: float = 0.0,
) -> Allocation:
    """Give the options of most worth whose load is within the rooms.

    Args:
        room_w: of the site. feeders_w: of each feeder. least_w: load below which it may not fall
            (a ramp down), as far as the options reach.
    """
    rises: list[_Rise] = []
    least: list[int] = []
    for place, group in enumerate(groups):
        points = upper_hull(group.watts, group.worth)
        least.append(points[0][2])
        for low, high in pairwise(points):
            rise_w, rise_usd = high[0] - low[0], high[1] - low[1]
            rises.append(_Rise(rise_usd / rise_w, place, low[2], high[2], rise_w, rise_usd))
    rises.sort(key=_cheapest_last)
    whole = _start(groups, least, room_w, feeders_w)
    fits = whole.room_w >= 0.0 and all(room >= 0.0 for room in whole.feeders)
    done = _take_all(whole, rises, groups)
    parts = whole
    if done < len(rises):
        parts = whole.copy()
        _take_whole(whole, rises[done:], groups, least_w)
        _take_parts(parts, rises[done:], groups, least_w)
    return Allocation(
        counts=tuple(tuple(int(count) for count in row) for row in whole.held),
        watts=whole.watts,
        worth=whole.worth,
        bound=parts.worth,
        fits=fits,
    )


def _cheapest_last(rise: _Rise) -> float:
    return -rise.density


def _take_all(fill: _Fill, rises: list[_Rise], groups: tuple[Group, ...]) -> int:
    """Take the steps that pay and fit for all their devices; give the place of the first other."""
    for place, rise in enumerate(rises):
        if rise.density <= 0.0:
            return place
        feeder = groups[rise.group].feeder
        there = fill.held[rise.group][rise.low]
        room_w = fill.room_w if feeder < 0 else min(fill.room_w, fill.feeders[feeder])
        if there * rise.watts > room_w:
            return place
        fill.take(rise, feeder, there)
    return len(rises)


def _take_whole(fill: _Fill, rises: list[_Rise], groups: tuple[Group, ...], least_w: float) -> None:
    """Fill what room is left with whole devices."""
    smallest_w = min(rise.watts for rise in rises)
    for rise in rises:
        if fill.room_w < smallest_w:
            return  # no device's step fits any more
        feeder = groups[rise.group].feeder
        amount = int(fill.most(rise, feeder))
        if rise.density <= 0.0:
            # Only a load that may not fall so fast keeps what does not pay.
            lacking = (least_w - fill.watts) / rise.watts
            if lacking <= 0.0:
                return
            amount = min(amount, int(-(-lacking // 1.0)))
        if amount:
            fill.take(rise, feeder, float(amount))


def _take_parts(fill: _Fill, rises: list[_Rise], groups: tuple[Group, ...], least_w: float) -> None:
    """Fill what room is left with fractions of devices: the linear programme."""
    for rise in rises:
        if fill.room_w <= 0.0:
            return
        feeder = groups[rise.group].feeder
        amount = fill.most(rise, feeder)
        if rise.density <= 0.0:
            lacking = (least_w - fill.watts) / rise.watts
            if lacking <= 0.0:
                return
            amount = min(amount, lacking)
        fill.take(rise, feeder, amount)


def relaxed_usd(watts: FloatColumn, usd: FloatColumn, room_w: float) -> float:
    """Give what devices that are on or off could earn in a room, with fractions of devices.

    Args:
        watts: rise of each by being on. usd: what that earns; what loses is left off.
    """
    gain = np.maximum(usd, 0.0)
    needed = np.add.accumulate(watts)
    if not len(watts) or needed[-1] <= room_w:
        return float(np.add.accumulate(gain)[-1]) if len(watts) else 0.0
    earns = np.flatnonzero(gain > 0.0)
    if not len(earns):
        return 0.0
    watts, gain = watts[earns], gain[earns]
    order = order_of(-gain / np.maximum(watts, 1e-9))
    sorted_w = watts.take(order)
    before = np.add.accumulate(sorted_w) - sorted_w
    part = np.clip((room_w - before) / np.maximum(sorted_w, 1e-9), 0.0, 1.0)
    return float(np.add.accumulate(gain.take(order) * part)[-1])


def upper_hull(watts: tuple[float, ...], worth: tuple[float, ...]) -> list[_Point]:
    """Give (watts, worth, option) on the upper concave hull, from the least power upwards."""
    kept: list[_Point] = []
    below = [-usd for usd in worth]
    for each_w, usd, at in sorted(zip(watts, below, range(len(worth)), strict=True)):
        point = (each_w, -usd, at)
        if kept and point[0] <= kept[-1][0]:
            continue  # of equal power the first one is worth the most
        while len(kept) > 1 and _below(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def _start(
    groups: tuple[Group, ...], least: list[int], room_w: float, feeders_w: tuple[float, ...]
) -> _Fill:
    fill = _Fill(room_w, list(feeders_w), [], 0.0, 0.0)
    for group, option in zip(groups, least, strict=True):
        held = [0.0] * len(group.watts)
        held[option] = float(group.count)
        used = group.count * group.watts[option]
        fill.held.append(held)
        fill.room_w -= used
        fill.watts += used
        fill.worth += group.count * group.worth[option]
        if group.feeder >= 0:
            fill.feeders[group.feeder] -= used
    return fill


def _below(first: _Point, middle: _Point, last: _Point) -> bool:
    rise = (middle[1] - first[1]) * (last[0] - first[0])
    return rise <= (last[1] - first[1]) * (middle[0] - first[0])
