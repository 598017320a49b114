"""A fleet with true response times: it goes down when told, late, or never; and wakes by itself."""

import random  # noqa: TID251 - draws the fleet's faults; the core itself draws nothing

import numpy as np

from edge_agent.core import facts as f
from edge_agent.core.power import total
from edge_agent.core.site import CODE_OF, CURTAILED, MINE, Site
from edge_agent.core.site_state import OrderEntry
from protocol.resource import Activity
from protocol.units import to_ms
from tests.edge_agent.core.plant import START, Plant

DEADLINE_S = 120.0
WAKE_S = 20.0
NEVER_S = 1e9


class OrderPlant(Plant):
    """Args: ``goes_s``: per device, the time from a switch to sleep; ``NEVER_S`` is never."""

    def __init__(self, site: Site, goes_s: np.ndarray) -> None:
        super().__init__(site)
        self.goes_s = goes_s
        self.opened_s: dict[str, float] = {}
        self.true = np.full(len(site), MINE, dtype=np.uint8)
        self.told: set[int] = set()
        self.seen: list[tuple[float, float]] = []

    def run(self, dt_s: float, *facts: f.Fact) -> None:
        """One pass with the readings and closings that are due by then."""
        at_s = self.at_s + dt_s
        closed = [fact for key in list(self.open) if (fact := self._closing(key, at_s)) is not None]
        self.step(dt_s, *closed, self._readings(), *facts)
        for key, opened in self.open.items():
            self.opened_s.setdefault(key, self.at_s)
            if opened.to_activity is Activity.CURTAILED:
                self.told.update(self.site.indices_of(opened.device_ids).tolist())
        self.seen.append((self.at_s, self.true_w()))

    def true_w(self) -> float:
        mode = self.site.nameplate_w[self.site.class_of, self.true]
        return total(mode * self.site.pue)

    def entry(self, order_id: str) -> OrderEntry:
        return next(row for row in self.state.orders if row.order.order_id == order_id)

    def worst_w(self, start_s: float, end_s: float) -> float:
        return max(watts for at_s, watts in self.seen if start_s <= at_s < end_s)

    def _closing(self, key: str, at_s: float) -> f.SwitchClosed | None:
        opened, age_s = self.open[key], at_s - self.opened_s[key]
        at = self.site.indices_of(opened.device_ids)
        down = opened.to_activity is Activity.CURTAILED
        needs = self.goes_s[at] if down else np.full(len(at), WAKE_S)
        done = needs <= age_s
        self.true[at[done]] = CODE_OF[opened.to_activity]
        if not down:
            self.true[at] = MINE  # it draws from the first moment
        if not done.all() and age_s < DEADLINE_S:
            return None
        del self.open[key]
        self.activity[at[done]] = CODE_OF[opened.to_activity]
        outcomes = tuple("committed" if good else "rolled_back" for good in done)
        took_us = int(min(float(needs.max()), age_s) * 1e6)
        return f.SwitchClosed(key, opened.device_ids, outcomes, took_us)

    def _readings(self) -> f.ReadingsSeen:
        watts = self.site.nameplate_w[self.site.class_of, self.true]
        return self.readings(power_w=watts)


def order(order_id: str, limit_w: float, due_s: float, until_s: float) -> f.OrderSeen:
    start = to_ms(START)
    return f.OrderSeen(
        f.GridOrder(order_id, limit_w, start + int(due_s * 1e3), start + int(until_s * 1e3), "test")
    )


def response_times(rng: random.Random, count: int, late: float, never: float) -> np.ndarray:
    out = []
    for _ in range(count):
        luck = rng.random()
        if luck < never:
            out.append(NEVER_S)
        elif luck < never + late:
            out.append(rng.uniform(80.0, 115.0))
        else:
            out.append(rng.uniform(4.0, 40.0))
    return np.array(out)


def least_w(site: Site, goes_s: np.ndarray, within_s: float) -> float:
    """The load when all that go down within a time are down."""
    off = site.nameplate_w[site.class_of, CURTAILED] * site.pue
    on = site.nameplate_w[site.class_of, MINE] * site.pue
    return total(np.where(goes_s <= within_s, off, on))
