"""The other world of a what-if: its site, market and policy, each checked as if it were told.

What the texts ask for is ``override_keys``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from edge_agent.core.curve import ModePoint
from edge_agent.core.errors import CoreError
from edge_agent.core.site import Device, DeviceClass, Feeder, Site
from edge_agent.core.site_state import MarketState, PeakState
from edge_agent.core.step_table import step_points
from edge_agent.services.override_keys import (
    CLASS_FIELDS,
    EMPTY,
    MODEL_FIELDS,
    PRICE,
    TABLE,
    Change,
    OverrideError,
    Overrides,
)
from protocol.lease import SitePolicy
from protocol.market import PRICE_USD_PER_MWH_MAX, PRICE_USD_PER_MWH_MIN, GpuRate, MarketTick
from protocol.units import EPOCH

DEVICES_MAX = 65_536
# What the state keeps of the grid.
_OF_PEAK = ("grid_load_mw", "peak_probability")
_T = TypeVar("_T")


def other_site(site: Site, overrides: Overrides) -> tuple[Site, tuple[int, ...]]:
    """Give the site of the other world, and for each of its devices the one that it stands for.

    A class that shrinks loses its last devices; one that grows gets copies of its devices, which
    read as the copied one does.

    Raises:
        OverrideError: a value that a site cannot have.
    """
    limits = _changed(site.limits, overrides.limits)
    classes = tuple(_other_class(row, overrides) for row in site.classes)
    feeders = tuple(_other_feeder(row, overrides) for row in site.feeders)
    kept = list(_fleet(site, overrides.counts))
    try:
        devices = tuple(row for _, row in kept)
        made = Site(site.site_id, classes, devices, limits, feeders, site.prewarm)
    except CoreError as exc:
        raise OverrideError(exc.code, exc.detail) from exc
    return made, tuple(at for at, _ in kept)


def _other_feeder(row: Feeder, overrides: Overrides) -> Feeder:
    change = overrides.feeders.get(row.name)
    return row if change is None else _changed(row, {"power_cap_w": change})


def _other_class(row: DeviceClass, overrides: Overrides) -> DeviceClass:
    name = row.class_name
    mine = {field: at for (owner, field), at in overrides.classes.items() if owner == name}
    model = _changed(row.model, {key: at for key, at in mine.items() if key in MODEL_FIELDS})
    own = _changed(row, {key: at for key, at in mine.items() if key in CLASS_FIELDS})
    table = mine.get(TABLE)
    made: DeviceClass = structs.replace(
        own,
        model=model,
        modes=_other_modes(row, overrides),
        pue_by_ambient_c=row.pue_by_ambient_c if table is None else table.table(),
    )
    # A journal names modes by their place on the curve.
    was, now = (tuple(point.mode for point in step_points(one)) for one in (row, made))
    if row.set_modes and made.set_modes and was != now:
        detail = f"class.{name}: the curve would have the modes {', '.join(now)}, not "
        raise OverrideError("bad_value", detail + ", ".join(was))
    return made


def _other_modes(row: DeviceClass, overrides: Overrides) -> tuple[ModePoint, ...]:
    return tuple(
        _changed(
            point,
            {
                field: change
                for (owner, mode, field), change in overrides.modes.items()
                if (owner, mode) == (row.class_name, point.mode)
            },
        )
        for point in row.modes
    )


def other_tick(tick: MarketTick, overrides: Overrides) -> MarketTick:
    """Give a market tick of the other world; what it leaves out stays out."""
    changes: dict[str, Any] = {
        name: other_number(name, was, overrides)
        for name in overrides.market
        if (was := getattr(tick, name)) is not None
    } | other_hours(tick, overrides)
    if overrides.rates:
        changes["gpu_rates"] = other_rates(tick.gpu_rates, overrides)
    return structs.replace(tick, **changes) if changes else tick


def other_number(name: str, was: float, overrides: Overrides) -> float:
    """Give a market number of the other world; an energy price stays in the legal range.

    Raises:
        OverrideError: no market says such a number.
    """
    change = overrides.market.get(name)
    if change is None:
        return was
    value = change.number(was)
    if name == PRICE:
        return min(max(value, PRICE_USD_PER_MWH_MIN), PRICE_USD_PER_MWH_MAX)
    _said(**{name: value})
    return value


def other_market(market: MarketState, overrides: Overrides) -> MarketState:
    """Give what is held of the market in the other world, as if it had been told so."""
    changes: dict[str, Any] = dict(other_hours(market, overrides))
    for name in overrides.market:
        if name in _OF_PEAK:
            continue
        held = getattr(market, name)
        if held is not None:
            number = other_number(name, held.value, overrides)
            changes[name] = structs.replace(held, value=number)
    changes["gpu_rates"] = other_rates(market.gpu_rates, overrides)
    return structs.replace(market, peak=_other_peak(market.peak, overrides), **changes)


def _other_peak(held: PeakState, overrides: Overrides) -> PeakState:
    """Give the grid's load and indicator of the other world, its largest of the month as well."""
    if not overrides.market.keys() & set(_OF_PEAK):
        return held
    load, given, most = held.load_mw, held.given, held.most_mw
    load_name, given_name = _OF_PEAK
    if load is not None:
        most = other_number(load_name, most, overrides)
        value = other_number(load_name, load.value, overrides)
        load = structs.replace(load, value=value)
    if given is not None:
        value = other_number(given_name, given.value, overrides)
        given = structs.replace(given, value=value)
    return structs.replace(held, load_mw=load, given=given, most_mw=most)


def other_hours(value: Struct, overrides: Overrides) -> dict[str, tuple[float, ...]]:
    """Give what a tick or a state knows of the energy price at other times: it moves with it."""
    if PRICE not in overrides.market:
        return {}
    return {
        row.name: tuple(other_number(PRICE, hour, overrides) for hour in hours)
        for row in structs.fields(value)
        if row.name.endswith("_usd_per_mwh")
        and isinstance(hours := getattr(value, row.name), tuple)
    }


def other_rates(rates: tuple[GpuRate, ...], overrides: Overrides) -> tuple[GpuRate, ...]:
    """Give the rates of the GPU classes in the other world.

    Raises:
        OverrideError: no market says such a rate.
    """
    made = tuple(
        structs.replace(
            rate,
            **{
                name: change.number(getattr(rate, name))
                for (row, name), change in overrides.rates.items()
                if row == rate.device_class
            },
        )
        for rate in rates
    )
    _said(gpu_rates=made)
    return made


def other_policy(
    policy: SitePolicy | None, site_id: str, overrides: Overrides
) -> SitePolicy | None:
    """Give the policy of the other world."""
    if not overrides.policy:
        return policy
    base = policy or SitePolicy(hub_epoch=0, generation=1, site_id=site_id)
    changes: dict[str, Any] = {}
    for name, change in overrides.policy.items():
        if name == "curtail":
            changes[name] = change.flag()
        else:
            was = base.power_cap_w
            changes[name] = change.number(math.inf if was is None else was)
            if math.isinf(changes[name]):
                changes[name] = None  # relative to a cap that the policy never set
    return _checked(lambda: structs.replace(base, **changes))


def _changed(value: Any, changes: dict[str, Change]) -> Any:  # noqa: ANN401 - one Struct or another
    """Give a Struct with fields changed and checked by their types."""
    if not changes:
        return value
    body = structs.asdict(value)
    for name, change in changes.items():
        if isinstance(body[name], str):
            body[name] = "" if change.text == EMPTY else change.text
            continue
        if isinstance(body[name], bool):
            body[name] = change.flag()
            continue
        number = change.number(_base(value, name, change))
        whole = isinstance(body[name], int) and number.is_integer()
        body[name] = int(number) if whole else number
    return _checked(lambda: msgspec.convert(body, type(value)))


def _base(value: Any, name: str, change: Change) -> float:  # noqa: ANN401 - one Struct or another
    """Give the number that a relative value starts from."""
    was = getattr(value, name)
    if was is None and change.text[0] in "+-x":
        raise OverrideError("bad_value", f"{change.key}: has no value to start from; give a number")
    return 0.0 if was is None else float(was)


def _fleet(site: Site, counts: dict[str, Change]) -> Iterator[tuple[int, Device]]:
    wanted: dict[str, int] = {}
    for row in site.classes:
        name = row.class_name
        own = [at for at, device in enumerate(site.devices) if device.device_class == name]
        change = counts.get(name)
        number = len(own) if change is None else change.number(float(len(own)))
        if number < 0 or not float(number).is_integer() or number > DEVICES_MAX:
            raise OverrideError("bad_value", f"class.{name}.count: want 0..{DEVICES_MAX}")
        if number > len(own) == 0:
            raise OverrideError("bad_value", f"class.{name}.count: no device of it to copy")
        wanted[name] = int(number)
    left = dict(wanted)
    for at, device in enumerate(site.devices):
        if left[device.device_class] > 0:
            left[device.device_class] -= 1
            yield at, device
    for name, missing in left.items():
        own = [at for at, device in enumerate(site.devices) if device.device_class == name]
        for number in range(missing):
            at = own[number % len(own)]
            device_id = f"{site.devices[at].device_id}+{number // len(own) + 1}"
            yield at, structs.replace(site.devices[at], device_id=device_id)


def _said(**fields: Any) -> None:  # noqa: ANN401 - one field of a tick or another
    """Check numbers as if a market had said them."""
    _checked(lambda: MarketTick(feed="other", measured_at=EPOCH, source_at=EPOCH, **fields))


def _checked(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except (msgspec.ValidationError, ValueError) as exc:
        raise OverrideError("bad_value", str(exc)) from exc
