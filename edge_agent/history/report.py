"""The daily report: the regret of a day, and what the site did on it."""

from datetime import datetime

import numpy as np
from msgspec import Struct

from edge_agent.core.economics import W_PER_MW
from edge_agent.core.site import FloatColumn
from edge_agent.history import grid as g
from edge_agent.history.day import Day
from edge_agent.history.regret import Courses, Regret
from protocol.resource import ACTIVITY_CODES

VIEW_VERSION = 1
TOP_DEVICES = 10


class DeviceRegret(Struct, frozen=True, kw_only=True):
    """What one device left on the table, and how it spent its hours.

    Args:
        regret_usd: clairvoyant less realised, without what leases pay.
    """

    device_id: str
    device_class: str
    regret_usd: float
    hours: dict[str, float]


class PowerOfDay(Struct, frozen=True, kw_only=True):
    """Power against the cap; None where no pass told.

    Args:
        energy_mwh: at the meter, over the covered time. peak_mw: highest counted load.
        margin_mw: least room between counted load and the cap in force; below 0 is above the cap.
        over_cap_h: time with counted load above it.
    """

    energy_mwh: float
    peak_mw: float | None
    lowest_cap_mw: float | None
    margin_mw: float | None
    over_cap_h: float


class DayReport(Struct, frozen=True, kw_only=True):
    """The answer of ``hcp-agent report``.

    Args:
        device_hours: by class and activity. switches: devices told to change, by activity;
            reasons: the same by reason. outcomes: of the devices of switches that ended.
            curtailments: devices put to sleep, by reason. faults: what nodes told.
        restarts_best: wake-ups that the clairvoyant pays for.
    """

    v: int
    regret: Regret
    passes: int
    device_hours: dict[str, dict[str, float]]
    switches: dict[str, int]
    reasons: dict[str, int]
    outcomes: dict[str, int]
    curtailments: dict[str, int]
    faults: dict[str, int]
    restarts_best: int
    power: PowerOfDay
    top_devices: tuple[DeviceRegret, ...]


def day_report(day: Day, courses: Courses, told: Regret) -> DayReport:
    """Put the report together."""
    doings = day.doings
    return DayReport(
        v=VIEW_VERSION,
        regret=told,
        passes=doings.passes,
        device_hours=_class_hours(day),
        switches=dict(doings.switches.most_common()),
        reasons=dict(doings.reasons.most_common()),
        outcomes=dict(doings.outcomes.most_common()),
        curtailments=dict(doings.curtailments.most_common()),
        faults=dict(doings.faults.most_common()),
        restarts_best=g.restarts(courses.grid, courses.best),
        power=PowerOfDay(
            energy_mwh=round(float(doings.load_wh.sum()) / W_PER_MW, 6),
            peak_mw=_mw(doings.counted_w, np.fmax),
            lowest_cap_mw=_mw(doings.cap_w, np.fmin),
            margin_mw=round(doings.margin_w / W_PER_MW, 6) if doings.passes else None,
            over_cap_h=round(doings.over_cap_h, 4),
        ),
        top_devices=_top(day, courses),
    )


def _mw(column: FloatColumn, worst: np.ufunc) -> float | None:
    value = float(worst.reduce(column))
    return None if np.isnan(value) else round(value / W_PER_MW, 6)


def _class_hours(day: Day) -> dict[str, dict[str, float]]:
    site, hours = day.site, day.devices.hours
    return {
        row.class_name: _hours(hours[site.class_of == place].sum(axis=0))
        for place, row in enumerate(site.classes)
    }


def _hours(by_code: FloatColumn) -> dict[str, float]:
    return {
        activity.value: round(float(hours), 4)
        for activity, hours in zip(ACTIVITY_CODES, by_code, strict=True)
        if hours > 0.0
    }


def _top(day: Day, courses: Courses) -> tuple[DeviceRegret, ...]:
    """Give the devices with the most regret, worst first; none without any."""
    own = day.devices
    priced = np.where(np.isnan(day.price), 0.0, day.price)[:, None]
    adder = day.site.spread([row.adder_usd_per_mwh for row in day.site.classes])
    energy = own.wh / W_PER_MW * (priced + adder)
    known = ~np.isnan(day.price)[:, None]
    realised = np.where(known, own.revenue_usd - energy - own.wear_usd, 0.0).sum(axis=0)
    left = g.settle_devices(courses.grid, courses.best) - realised
    order = np.argsort(-left, kind="stable")[:TOP_DEVICES]
    return tuple(
        DeviceRegret(
            device_id=day.site.devices[at].device_id,
            device_class=day.site.devices[at].device_class,
            regret_usd=round(float(left[at]), 4),
            hours=_hours(own.hours[at]),
        )
        for at in order.tolist()
        if left[at] >= 0.005
    )


def at_day(text: str) -> datetime | None:
    """Read ``YYYY-MM-DD``; None when it is no day."""
    try:
        return datetime.strptime(f"{text}+0000", "%Y-%m-%d%z")
    except ValueError:
        return None
