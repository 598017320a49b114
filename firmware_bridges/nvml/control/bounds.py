"""The helper's configuration, and whether a setting is within bounds. Pure.

Two fences, and a value must be within both: the operator's, in the file, and the card's own, which
NVML tells. What the file does not name cannot be set at all.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct, field

from firmware_bridges.nvml.control.messages import (
    LockGpuClocks,
    LockMemoryClocks,
    Reason,
    Refused,
    ResetGpuClocks,
    ResetMemoryClocks,
    SetPersistence,
    SetPowerLimit,
    Setting,
)
from protocol.settings import Problem, SettingsError, parse_settings

Watts = Annotated[float, Meta(ge=1.0, le=10_000.0)]
Megahertz = Annotated[int, Meta(ge=0, le=10_000)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Range = tuple[float, float]


class CardBounds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be set on cards, and what is set when the helper starts.

    Args:
        card: a UUID, a model as NVML names it, or ``*``; the first row that fits a card counts.
        power_w: with persistence, what is set at start: the driver forgets both when it is
            loaded anew.
        power_w_min: with power_w_max, the range; without both no power limit can be set. The
            same holds for the clocks.
    """

    card: Name
    persistence: bool | None = None
    power_w: Watts | None = None
    power_w_min: Watts | None = None
    power_w_max: Watts | None = None
    gpu_mhz_min: Megahertz | None = None
    gpu_mhz_max: Megahertz | None = None
    memory_mhz_min: Megahertz | None = None
    memory_mhz_max: Megahertz | None = None


class ControlConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the helper must be told.

    Args:
        socket: where it listens. users: names or numbers of those who may set anything.
        call_s: how long a call may take before its outcome is called unknown.
        cards: written as ``[[card]]`` in TOML.
    """

    socket: Annotated[str, Meta(min_length=1, max_length=100)]
    users: tuple[Name, ...]
    call_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    cards: tuple[CardBounds, ...] = field(name="card", default=())


class CardRanges(Struct, frozen=True, kw_only=True):
    """What the card itself takes; None: it does not tell, and then it is not set."""

    uuid: str
    model: str | None = None
    power_w: Range | None = None
    gpu_mhz: Range | None = None
    memory_mhz: Range | None = None


def control_config_from_toml(text: str, source: str = "gpu-control.toml") -> ControlConfig:
    """Read and check the helper's configuration.

    Raises:
        SettingsError: with every problem found.
    """
    config = parse_settings(text, ControlConfig, source)
    problems = tuple(_problems(config))
    if problems:
        raise SettingsError(source, problems)
    return config


def bounds_of(config: ControlConfig, uuid: str, model: str | None) -> CardBounds | None:
    """Give the first row that fits a card."""
    names = {uuid, model, "*"}
    return next((row for row in config.cards if row.card in names), None)


def refusal_of(setting: Setting, bounds: CardBounds | None, card: CardRanges) -> Refused | None:
    """Say why a setting must not reach the card; None: it may."""
    if bounds is None:
        return Refused(reason=Reason.NOT_CONFIGURED, detail=f"no row fits {card.uuid}")
    match setting:
        case SetPowerLimit():
            named = (bounds.power_w_min, bounds.power_w_max)
            return _outside("power limit", (setting.power_w,), named, card.power_w)
        case LockGpuClocks():
            named = (bounds.gpu_mhz_min, bounds.gpu_mhz_max)
            return _outside("GPU clocks", _span(setting), named, card.gpu_mhz)
        case LockMemoryClocks():
            named = (bounds.memory_mhz_min, bounds.memory_mhz_max)
            return _outside("memory clocks", _span(setting), named, card.memory_mhz)
        case ResetGpuClocks():
            return _unless(bounds.gpu_mhz_max is not None, "GPU clocks")
        case ResetMemoryClocks():
            return _unless(bounds.memory_mhz_max is not None, "memory clocks")
        case SetPersistence():
            return _unless(bounds.persistence is not None, "persistence")


def start_settings(bounds: CardBounds, uuid: str) -> tuple[Setting, ...]:
    """Give what is set on a card when the helper starts."""
    settings: list[Setting] = []
    if bounds.persistence is not None:
        settings.append(SetPersistence(uuid=uuid, on=bounds.persistence))
    if bounds.power_w is not None:
        settings.append(SetPowerLimit(uuid=uuid, power_w=bounds.power_w))
    return tuple(settings)


def _span(setting: LockGpuClocks | LockMemoryClocks) -> tuple[float, float]:
    return float(setting.mhz_min), float(setting.mhz_max)


def _outside(
    what: str,
    values: tuple[float, ...],
    named: tuple[float | None, float | None],
    told: Range | None,
) -> Refused | None:
    low, high = named
    if low is None or high is None:
        return _unless(False, what)  # noqa: FBT003 - there are no bounds
    if told is None:
        return Refused(reason=Reason.NOT_SUPPORTED, detail=f"the card does not tell its {what}")
    low, high = max(low, told[0]), min(high, told[1])
    # so written that NaN is outside
    inside = all(low <= value <= high for value in values)
    if inside and list(values) == sorted(values):
        return None
    said = " to ".join(f"{value:g}" for value in values)
    return Refused(
        reason=Reason.OUT_OF_BOUNDS,
        detail=f"{what} {said}, bounds {low:g} to {high:g}",
        low=low,
        high=high,
    )


def _unless(named: bool, what: str) -> Refused | None:  # noqa: FBT001 - one word for the caller
    if named:
        return None
    return Refused(reason=Reason.NOT_CONFIGURED, detail=f"the file does not name {what}")


def _problems(config: ControlConfig) -> Iterator[Problem]:
    if not config.socket.startswith("/"):
        yield Problem(path="socket", detail="must be an absolute path")
    if not config.users:
        yield Problem(path="users", detail="nobody could ask for anything")
    for place, row in enumerate(config.cards):
        for what in ("power_w", "gpu_mhz", "memory_mhz"):
            low, high = getattr(row, f"{what}_min"), getattr(row, f"{what}_max")
            if (low is None) != (high is None):
                yield Problem(path=f"card[{place}].{what}_min", detail="wants its other end too")
            elif low is not None and low > high:
                yield Problem(path=f"card[{place}].{what}_min", detail="is above its other end")
        if row.power_w is not None and not _within(row):
            yield Problem(path=f"card[{place}].power_w", detail="is outside its own bounds")


def _within(row: CardBounds) -> bool:
    if row.power_w is None or row.power_w_min is None or row.power_w_max is None:
        return False
    return row.power_w_min <= row.power_w <= row.power_w_max
