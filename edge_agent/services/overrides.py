"""``--what-if key=value``: another cap, policy, price or fleet, checked before anything is run.

Keys: ``limits.FIELD``, ``class.NAME.FIELD`` (economics, nameplate, or ``count``),
``market.FIELD``, ``market.CLASS.serve_usd_per_h|mine_usd_per_h``, ``policy.FIELD``.
A number stands for itself; ``+N`` and ``-N`` are added to what was, ``xN`` multiplies it, and
``=N`` is a value whatever its sign.
"""

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from edge_agent.core.errors import CoreError
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from protocol.lease import SitePolicy
from protocol.market import PRICE_USD_PER_MWH_MAX, PRICE_USD_PER_MWH_MIN, GpuRate, MarketTick
from protocol.resource import DeviceModel
from protocol.units import EPOCH

_MARKET = ("price_usd_per_mwh", "btc_price_usd", "difficulty", "subsidy_btc", "fees_btc")
_RATES = ("serve_usd_per_h", "mine_usd_per_h")
_POLICY = ("power_cap_w", "curtail")
_MODEL = tuple(
    row.name for row in structs.fields(DeviceModel) if row.name not in ("name", "kind", "vram_gib")
)
_CLASS = tuple(
    row.name
    for row in structs.fields(DeviceClass)
    if row.name not in ("model", "name") and not isinstance(row.default, tuple)
)
_LIMITS = tuple(row.name for row in structs.fields(Limits))
# What takes a word, not a number.
_WORDS = tuple(
    f"limits.{row.name}" for row in structs.fields(Limits) if isinstance(row.default, str)
)
DEVICES_MAX = 65_536
_T = TypeVar("_T")


class OverrideError(CoreError):
    """A key that does not exist, or a value that it cannot have."""


class Change(Struct, frozen=True):
    """One value as asked for: how it follows from what was."""

    key: str
    text: str

    def number(self, was: float) -> float:
        """Give the new number.

        Raises:
            OverrideError: it is no number.
        """
        sign, rest = self.text[:1], self.text[1:]
        try:
            value = float(rest if sign in ("+", "-", "x", "=") else self.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            detail = f"{self.key}={self.text}: want a number, +N or -N to add, xN to multiply"
            raise OverrideError("bad_value", detail)
        if sign == "x":
            return was * value
        return was + value if sign == "+" else was - value if sign == "-" else value


class Overrides(Struct, frozen=True):
    """What is different in the other world.

    Args:
        limits: by field. classes: by (class, field). counts: devices by class.
        market: by field. rates: by (class, field). policy: by field.
    """

    limits: dict[str, Change] = {}
    classes: dict[tuple[str, str], Change] = {}
    counts: dict[str, Change] = {}
    market: dict[str, Change] = {}
    rates: dict[tuple[str, str], Change] = {}
    policy: dict[str, Change] = {}


def keys_of(site: Site) -> tuple[str, ...]:
    """Give every key that can be set on a site."""
    names = [row.class_name for row in site.classes]
    return (
        *(f"limits.{name}" for name in _LIMITS),
        *(f"class.{row}.{name}" for row in names for name in (*_CLASS, *_MODEL, "count")),
        *(f"market.{name}" for name in _MARKET),
        *(f"market.{row}.{name}" for row in names for name in _RATES),
        *(f"policy.{name}" for name in _POLICY),
    )


def parse_overrides(texts: list[str], site: Site) -> Overrides:
    """Read ``key=value`` texts.

    Raises:
        OverrideError: an unknown key (with the nearest known one), a key twice, or no value.
    """
    known = keys_of(site)
    out = Overrides({}, {}, {}, {}, {}, {})
    seen: set[str] = set()
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value:
            raise OverrideError("bad_override", f"{text}: want KEY=VALUE")
        if key not in known:
            raise OverrideError("unknown_key", f"no key {key}{_nearest(key, known)}")
        if key in seen:
            raise OverrideError("key_twice", f"{key} is given twice")
        seen.add(key)
        _put(out, Change(key, value))
    return out


def other_site(site: Site, overrides: Overrides) -> tuple[Site, tuple[int, ...]]:
    """Give the site of the other world, and for each of its devices the one that it stands for.

    A class that shrinks loses its last devices; one that grows gets copies of its devices, which
    read as the copied one does.

    Raises:
        OverrideError: a value that a site cannot have.
    """
    limits = _changed(site.limits, overrides.limits)
    classes = []
    for row in site.classes:
        mine = {
            field: at for (name, field), at in overrides.classes.items() if name == row.class_name
        }
        model = _changed(row.model, {key: at for key, at in mine.items() if key in _MODEL})
        own = _changed(row, {key: at for key, at in mine.items() if key in _CLASS})
        classes.append(structs.replace(own, model=model))
    kept = list(_fleet(site, overrides.counts))
    try:
        devices = tuple(row for _, row in kept)
        made = Site(site.site_id, tuple(classes), devices, limits, site.feeders, site.prewarm)
    except CoreError as exc:
        raise OverrideError(exc.code, exc.detail) from exc
    return made, tuple(at for at, _ in kept)


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
    if name == "price_usd_per_mwh":
        return min(max(value, PRICE_USD_PER_MWH_MIN), PRICE_USD_PER_MWH_MAX)
    _said(**{name: value})
    return value


def other_hours(value: Struct, overrides: Overrides) -> dict[str, tuple[float, ...]]:
    """Give what a tick or a state knows of the energy price at other times: it moves with it."""
    if "price_usd_per_mwh" not in overrides.market:
        return {}
    return {
        row.name: tuple(other_number("price_usd_per_mwh", hour, overrides) for hour in hours)
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
            changes[name] = _flag(change)
        else:
            was = base.power_cap_w
            changes[name] = change.number(math.inf if was is None else was)
            if math.isinf(changes[name]):
                changes[name] = None  # relative to a cap that the policy never set
    return _checked(lambda: structs.replace(base, **changes))


def _put(out: Overrides, change: Change) -> None:
    family, _, rest = change.key.partition(".")
    name, _, field = rest.rpartition(".")
    if family == "class" and field == "count":
        out.counts[name] = change
    elif family == "class":
        out.classes[name, field] = change
    elif family == "market" and name:
        out.rates[name, field] = change
    else:
        {"limits": out.limits, "market": out.market, "policy": out.policy}[family][rest] = change
    if change.key == "policy.curtail" or field == "set_modes":
        _flag(change)
    elif change.key not in _WORDS:
        change.number(1.0)


def _changed(value: Any, changes: dict[str, Change]) -> Any:  # noqa: ANN401 - one Struct or another
    """Give a Struct with fields changed and checked by their types."""
    if not changes:
        return value
    body = structs.asdict(value)
    for name, change in changes.items():
        if isinstance(body[name], str):
            body[name] = change.text
            continue
        if isinstance(body[name], bool):
            body[name] = _flag(change)
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


def _flag(change: Change) -> bool:
    if change.text.lower() not in ("true", "false"):
        raise OverrideError("bad_value", f"{change.key}={change.text}: want true or false")
    return change.text.lower() == "true"


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known[:3])} and so on"
