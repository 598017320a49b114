"""A figure as a bench gives it."""

import os
import platform
from collections.abc import Sequence
from typing import Any

from msgspec import Struct


class Figure(Struct, frozen=True, kw_only=True):
    """One promised figure.

    Args:
        value: None: not measured. target: text such as ``<= 20``.
        ok: whether it was reached in this run; None: not judged, the conditions say why.
        conditions: machine, load, sizes: what a reader needs to judge the value.
    """

    name: str
    value: float | None
    unit: str
    target: str
    ok: bool | None
    conditions: dict[str, Any]


def at_most(name: str, value: float, unit: str, limit: float, conditions: dict[str, Any]) -> Figure:
    """Make a figure that must not exceed a limit."""
    return Figure(
        name=name,
        value=round(float(value), 4),
        unit=unit,
        target=f"<= {limit:g}",
        ok=bool(value <= limit),
        conditions=conditions | machine(),
    )


def at_least(
    name: str, value: float, unit: str, limit: float, conditions: dict[str, Any]
) -> Figure:
    """Make a figure that must reach a limit."""
    return Figure(
        name=name,
        value=round(float(value), 4),
        unit=unit,
        target=f">= {limit:g}",
        ok=bool(value >= limit),
        conditions=conditions | machine(),
    )


def pending(name: str, unit: str, target: str, reason: str, conditions: dict[str, Any]) -> Figure:
    """Make a figure that could not be taken here."""
    return Figure(
        name=name,
        value=None,
        unit=unit,
        target=target,
        ok=None,
        conditions={"test pending": reason} | conditions | machine(),
    )


def machine() -> dict[str, Any]:
    """Describe the machine and how busy it is."""
    return {
        "cpus": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Give the value at ``share`` of the sorted values (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
