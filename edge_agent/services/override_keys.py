"""``--what-if KEY=VALUE``: which keys a site has, and what the texts ask for.

Keys: ``limits.FIELD``, ``feeder.NAME.power_cap_w``, ``class.NAME.FIELD`` (economics, nameplate,
or ``count``), ``class.NAME.modes.MODE.rate_ths|power_w``, ``market.FIELD``,
``market.CLASS.serve_usd_per_h|mine_usd_per_h``, ``policy.FIELD``. A number stands for itself;
``+N`` and ``-N`` are added to what was, ``xN`` multiplies it, ``=N`` is a value whatever its sign.
``class.NAME.pue_by_ambient_c`` takes ``TEMPERATURE:PUE,...``, or ``none``.
"""

import difflib
import math
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct, structs

from edge_agent.core.errors import CoreError
from edge_agent.core.site import DeviceClass, Limits, Site
from protocol.resource import DeviceModel

PRICE = "price_usd_per_mwh"
# What ticks tell of the surroundings, beside prices.
BESIDE = ("ambient_c", "grid_load_mw", "peak_probability")
_MARKET = (PRICE, "btc_price_usd", "difficulty", "subsidy_btc", "fees_btc", *BESIDE)
_RATES = ("serve_usd_per_h", "mine_usd_per_h")
_POLICY = ("power_cap_w", "curtail")
MODEL_FIELDS = tuple(
    row.name for row in structs.fields(DeviceModel) if row.name not in ("name", "kind", "vram_gib")
)
CLASS_FIELDS = tuple(
    row.name
    for row in structs.fields(DeviceClass)
    if row.name not in ("model", "name") and not isinstance(row.default, tuple)
)
_LIMITS = tuple(row.name for row in structs.fields(Limits))
# What takes a word, not a number.
_WORDS = tuple(row.name for row in structs.fields(Limits) if isinstance(row.default, str))
_POINT = ("rate_ths", "power_w")
TABLE = "pue_by_ambient_c"
# A word that is empty, as it is shown and given.
EMPTY = '""'

Family = Literal["limits", "feeder", "class", "count", "mode", "market", "rate", "policy"]


class OverrideError(CoreError):
    """A key that does not exist, or a value that it cannot have."""


class Key(Struct, frozen=True, kw_only=True):
    """One key.

    Args:
        text: as it is given. owner: feeder or class, where it has one. mode: of the class.
        value: what the site has; None: the journal has it, or there is none.
    """

    text: str
    family: Family
    field: str
    owner: str = ""
    mode: str = ""
    value: str | None = None


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

    def flag(self) -> bool:
        """Give the new flag.

        Raises:
            OverrideError: it is neither true nor false.
        """
        if self.text.lower() not in ("true", "false"):
            detail = f"{self.key}={self.text}: want true or false"
            raise OverrideError("bad_value", detail)
        return self.text.lower() == "true"

    def table(self) -> tuple[tuple[float, float], ...]:
        """Give the new table of (temperature, PUE).

        Raises:
            OverrideError: it is none.
        """
        if self.text.lower() == "none":
            return ()
        try:
            pairs = [tuple(map(float, part.split(":"))) for part in self.text.split(",")]
            return tuple((temp_c, pue) for temp_c, pue in pairs)
        except ValueError:
            detail = f"{self.key}={self.text}: want TEMPERATURE:PUE,... or none"
            raise OverrideError("bad_value", detail) from None


class Overrides(Struct, frozen=True):
    """What is different in the other world.

    Args:
        limits: by field. feeders: by name. classes: by (class, field). modes: by (class, mode,
            field). counts: devices by class. market: by field. rates: by (class, field).
            policy: by field.
    """

    limits: dict[str, Change] = {}
    feeders: dict[str, Change] = {}
    classes: dict[tuple[str, str], Change] = {}
    modes: dict[tuple[str, str, str], Change] = {}
    counts: dict[str, Change] = {}
    market: dict[str, Change] = {}
    rates: dict[tuple[str, str], Change] = {}
    policy: dict[str, Change] = {}


def keys_of(site: Site) -> tuple[Key, ...]:
    """Give every key that can be set on a site, with what the site has there."""
    return (*_site_keys(site), *(key for row in site.classes for key in _class_keys(site, row)))


def _site_keys(site: Site) -> Iterator[Key]:
    for name in _LIMITS:
        value = getattr(site.limits, name)
        yield Key(text=f"limits.{name}", family="limits", field=name, value=_shown(value))
    for feeder in site.feeders:
        text = f"feeder.{feeder.name}.power_cap_w"
        value = _shown(feeder.power_cap_w)
        yield Key(text=text, family="feeder", owner=feeder.name, field="power_cap_w", value=value)
    for name in _MARKET:
        yield Key(text=f"market.{name}", family="market", field=name)
    for name in _POLICY:
        yield Key(text=f"policy.{name}", family="policy", field=name)


def _class_keys(site: Site, row: DeviceClass) -> Iterator[Key]:
    owner = row.class_name
    head = f"class.{owner}"
    for name in (*CLASS_FIELDS, *MODEL_FIELDS):
        own = row if name in CLASS_FIELDS else row.model
        value = _shown(getattr(own, name))
        yield Key(text=f"{head}.{name}", family="class", owner=owner, field=name, value=value)
    table = ",".join(f"{temp_c:g}:{pue:g}" for temp_c, pue in row.pue_by_ambient_c) or "none"
    yield Key(text=f"{head}.{TABLE}", family="class", owner=owner, field=TABLE, value=table)
    count = sum(device.device_class == owner for device in site.devices)
    yield Key(text=f"{head}.count", family="count", owner=owner, field="count", value=str(count))
    for point in row.modes:
        for name in _POINT:
            text, value = f"{head}.modes.{point.mode}.{name}", _shown(getattr(point, name))
            yield Key(
                text=text, family="mode", owner=owner, mode=point.mode, field=name, value=value
            )
    for name in _RATES:
        yield Key(text=f"market.{owner}.{name}", family="rate", owner=owner, field=name)


def _shown(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return EMPTY
    if isinstance(value, int | float):
        # A sign alone would be taken for a difference.
        return f"={value:.12g}" if value < 0 else f"{value:.12g}"
    return str(value)


def parse_overrides(texts: list[str], site: Site) -> Overrides:
    """Read ``key=value`` texts.

    Raises:
        OverrideError: an unknown key (with the nearest known one), a key twice, or no value.
    """
    known = {key.text: key for key in keys_of(site)}
    out = Overrides({}, {}, {}, {}, {}, {}, {}, {})
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
        _put(out, known[key], Change(key, value))
    return out


def _put(out: Overrides, key: Key, change: Change) -> None:
    match key.family:
        case "limits":
            out.limits[key.field] = change
        case "feeder":
            out.feeders[key.owner] = change
        case "class":
            out.classes[key.owner, key.field] = change
        case "mode":
            out.modes[key.owner, key.mode, key.field] = change
        case "count":
            out.counts[key.owner] = change
        case "market":
            out.market[key.field] = change
        case "rate":
            out.rates[key.owner, key.field] = change
        case "policy":
            out.policy[key.field] = change
    # What can be seen to be wrong is told before anything is run.
    if key.field in ("curtail", "set_modes"):
        change.flag()
    elif key.field == TABLE:
        change.table()
    elif key.family != "limits" or key.field not in _WORDS:
        change.number(1.0)


def _nearest(key: str, known: dict[str, Key]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; `hcp-agent replay --keys` lists all"
