"""Which engine is worth preparing before it is asked for: an intent that does nothing by itself.

Prepared means loaded and paused: resident when the card has room beside what works there, else in
its mirror. It is worth it when what a start from cold would lose, times the chance that it is
needed, is more than what preparing and holding it costs.
"""

from collections.abc import Iterable

from msgspec import Struct

from edge_agent.workloads.switching.vram import Card, Claim, NoFit, layout

SECONDS_PER_H = 3_600.0
# Below this chance nothing is prepared: a card that prepares for everything serves nothing.
PROBABILITY_MIN = 0.05


class Candidate(Struct, frozen=True, kw_only=True):
    """One engine that may be needed on a card.

    Args:
        probability: that it is needed ``within_s`` seconds. why: where that number is from.
        cold_s, warm_s: expected time to its first output from cold, and once prepared.
        earns_usd_per_h: of it, lost while it is not there.
        prepare_wh: energy of preparing it. hold_w: what holding it draws.
        tax_usd_per_h: what the engine that works now loses beside it.
    """

    claim: Claim
    probability: float
    within_s: float
    why: str
    cold_s: float
    warm_s: float
    earns_usd_per_h: float
    prepare_wh: float = 0.0
    hold_w: float = 0.0
    tax_usd_per_h: float = 0.0


class PrepareIntent(Struct, frozen=True, kw_only=True):
    """Prepare this engine on this card now; ``resident`` or else in its mirror."""

    gpu: str
    engine_id: str
    resident: bool
    saving_usd: float
    cost_usd: float
    reason: str


class NotPrepared(Struct, frozen=True, kw_only=True):
    """Why an engine is not prepared: ``unlikely``, ``dearer``, ``another`` or what does not fit."""

    engine_id: str
    code: str
    detail: str


class Prewarm(Struct, frozen=True, kw_only=True):
    """What is worth doing on one card: at most one engine, and why none of the others."""

    intent: PrepareIntent | None
    not_prepared: tuple[NotPrepared, ...]


def prewarm(
    card: Card,
    working: Claim,
    held: Iterable[Claim],
    candidates: Iterable[Candidate],
    *,
    host_free_mib: int | None,
    energy_usd_per_wh: float,
) -> Prewarm:
    """Choose what to prepare on a card.

    Args:
        working: the engine that works there; it stays. held: others that are prepared already.
        energy_usd_per_wh: at the card's plug; below 0 it is income, and then counts as free.
    """
    beside = (working, *held)
    known = {claim.engine_id for claim in beside}
    left_out: list[NotPrepared] = []
    worth: list[PrepareIntent] = []
    for one in sorted(candidates, key=lambda row: row.claim.engine_id):
        if one.claim.engine_id in known:
            continue
        found = _judge(card, working, beside, one, host_free_mib, max(energy_usd_per_wh, 0.0))
        if isinstance(found, PrepareIntent):
            worth.append(found)
        else:
            left_out.append(found)
    if not worth:
        return Prewarm(intent=None, not_prepared=tuple(left_out))
    best = max(worth, key=lambda row: (row.saving_usd - row.cost_usd, row.engine_id))
    left_out += [
        NotPrepared(engine_id=row.engine_id, code="another", detail=f"{best.engine_id} saves more")
        for row in worth
        if row is not best
    ]
    return Prewarm(intent=best, not_prepared=tuple(left_out))


def _judge(
    card: Card,
    working: Claim,
    beside: tuple[Claim, ...],
    one: Candidate,
    host_free_mib: int | None,
    energy_usd_per_wh: float,
) -> PrepareIntent | NotPrepared:
    name = one.claim.engine_id
    if not PROBABILITY_MIN <= one.probability <= 1.0:
        detail = f"{one.probability:.3f}, at least {PROBABILITY_MIN}"
        return NotPrepared(engine_id=name, code="unlikely", detail=detail)
    lost_h = max(one.cold_s - one.warm_s, 0.0) / SECONDS_PER_H
    saving = one.probability * lost_h * max(one.earns_usd_per_h, 0.0)
    hold_h = max(one.within_s, 0.0) / SECONDS_PER_H
    energy_wh = one.prepare_wh + one.hold_w * hold_h
    cost = energy_wh * energy_usd_per_wh + one.tax_usd_per_h * hold_h
    if not saving > cost:
        detail = f"saves {saving:.6f} USD, costs {cost:.6f} USD"
        return NotPrepared(engine_id=name, code="dearer", detail=detail)
    fit = layout(card, (*beside, one.claim), working.engine_id, host_free_mib)
    if isinstance(fit, NoFit):
        return NotPrepared(engine_id=name, code=fit.code, detail=fit.detail)
    pushed = [claim.engine_id for claim in beside if claim.engine_id in fit.leave]
    if pushed:
        detail = f"{', '.join(pushed)} would have to leave for it"
        return NotPrepared(engine_id=name, code="vram", detail=detail)
    return PrepareIntent(
        gpu=card.gpu,
        engine_id=name,
        resident=name in fit.resident,
        saving_usd=saving,
        cost_usd=cost,
        reason=f"{one.why}: {one.probability:.2f} x {one.cold_s - one.warm_s:.1f} s saved",
    )
