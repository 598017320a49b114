"""From rows to figures: pure, but for the machine's load that each figure carries."""

from typing import Any

import msgspec

from bench.figure import Figure, at_least, at_most, pending, quantile
from bench.gpu.plans import TAX_LIMIT, Plan, Target
from bench.gpu.supervisor import Row

WAYS = ("in", "out")
ROLES = ("mine", "infer")


def judged(
    plan: Plan, rows: list[Row], facts: dict[str, Any], cut: str | None = None
) -> list[Figure]:
    """Make the figures of a plan from its rows.

    Args:
        cut: why there are fewer than promised; then nothing is judged but wrong outputs.
    """
    by_way = {way: [row for row in rows if row.way == way] for way in WAYS}
    counted = {f"switches_{way}": len(kept) for way, kept in by_way.items()}
    shared = counted | ({} if cut is None else {"cut short": cut}) | facts
    figures = [_quantile(plan, target, by_way[target.way], shared, cut) for target in plan.targets]
    return [*figures, _wrong(plan, rows, by_way, shared, cut)]


def _quantile(
    plan: Plan, target: Target, rows: list[Row], shared: dict[str, Any], cut: str | None
) -> Figure:
    values = [float(getattr(row, target.phase)) for row in rows]
    if not values:
        reason = cut or "no switch was made"
        return pending(_name(plan, target), "ms", f"<= {target.limit_ms:g}", reason, shared)
    value = quantile(values, target.share)
    conditions = _spread(values) | {"rows_ms": [round(one, 3) for one in values]} | shared
    figure = at_most(_name(plan, target), value, "ms", target.limit_ms, conditions)
    return figure if cut is None else msgspec.structs.replace(figure, ok=None)


def _wrong(
    plan: Plan,
    rows: list[Row],
    by_way: dict[str, list[Row]],
    shared: dict[str, Any],
    cut: str | None,
) -> Figure:
    told: dict[str, Any] = {
        "total_ms": {way: _spread([row.total_ms for row in kept]) for way, kept in by_way.items()},
        "idle_gap_ms": _spread([row.idle_gap_ms for row in rows]),
        "after_ms": _spread([row.after_ms for row in by_way["out"]]),
    }
    wrong = sum(not row.verified for row in rows)
    name = f"gpu-switch {plan.name} wrong outputs"
    figure = at_most(name, float(wrong), "outputs", 0.0, told | shared)
    return msgspec.structs.replace(figure, ok=None) if cut is not None and wrong == 0 else figure


def unmeasured(plan: Plan, reason: str, facts: dict[str, Any] | None = None) -> list[Figure]:
    """Give the figures of a plan that could not be run here."""
    names = [(_name(plan, one), "ms", f"<= {one.limit_ms:g}") for one in plan.targets]
    names.append((f"gpu-switch {plan.name} wrong outputs", "outputs", "<= 0"))
    return [pending(name, unit, target, reason, facts or {}) for name, unit, target in names]


def taxed(role: str, ratio: float, conditions: dict[str, Any]) -> Figure:
    """Make the figure of one side's tax."""
    return at_least(_tax_name(role), ratio, "of alone", TAX_LIMIT, conditions)


def untaxed(
    reason: str, facts: dict[str, Any] | None = None, roles: tuple[str, ...] = ROLES
) -> list[Figure]:
    """Give the figures of the tax where it could not be measured."""
    target = f">= {TAX_LIMIT}"
    return [pending(_tax_name(role), "of alone", target, reason, facts or {}) for role in roles]


def missed(figure: Figure, reason: str) -> Figure:
    """Judge a figure whose run failed: a machine that has all it needs owes it."""
    conditions = {"failed": reason} | figure.conditions
    conditions.pop("test pending", None)
    return msgspec.structs.replace(figure, ok=False, conditions=conditions)


def _tax_name(role: str) -> str:
    return f"gpu-switch tax {role}"


def _name(plan: Plan, target: Target) -> str:
    phase = "" if target.phase == "total_ms" else f" {target.phase.removesuffix('_ms')}"
    return f"gpu-switch {plan.name} {target.way}{phase} p{round(target.share * 100)}"


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, share), 3) for name, share in shares.items()}
