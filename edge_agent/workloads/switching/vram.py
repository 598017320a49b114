"""Which engines fit on a card together, which must leave, and whether host memory takes them.

A card has three zones. *Reserve*: never given away. *Persistent*: the contexts of all processes on
the card, never evicted, because a paused or swapped process keeps its own. *Active*: what is left,
for weights and KV. All in MiB; what is not known is not assumed to be free.
"""

from collections.abc import Iterable

from msgspec import Struct

# Source: 1.2 GiB stays in use when a server of work has freed everything it can (vllm#28714).
CONTEXT_MIB = 1_229
RESERVE_MIB = 1_024


class Card(Struct, frozen=True, kw_only=True):
    """One GPU; ``reserve_mib`` stays free for fragmentation and what nobody declared."""

    gpu: str
    vram_mib: int
    reserve_mib: int = RESERVE_MIB


class Claim(Struct, frozen=True, kw_only=True):
    """What one engine needs.

    Args:
        weights_mib, kv_mib: on the card while it is active. mirror_mib: of host memory while it is
            swapped out. mirror_pinned: the mirror exists, and takes no more host memory.
        context_mib: stays on the card as long as the process lives.
    """

    engine_id: str
    weights_mib: int
    kv_mib: int = 0
    mirror_mib: int = 0
    mirror_pinned: bool = False
    context_mib: int = CONTEXT_MIB

    @property
    def active_mib(self) -> int:
        """Give what it takes of the active zone while it is resident."""
        return self.weights_mib + self.kv_mib


class Fit(Struct, frozen=True, kw_only=True):
    """A layout of the card with the wanted engine resident.

    Args:
        resident, leave: engines that may stay, and that must free their active zone.
        used_mib: reserve, contexts and what is resident. mirror_mib: host memory still to be taken.
    """

    resident: tuple[str, ...]
    leave: tuple[str, ...]
    used_mib: int
    free_mib: int
    mirror_mib: int


class NoFit(Struct, frozen=True, kw_only=True):
    """Why there is no layout: ``vram``, ``host_ram``, ``unknown_engine`` or ``bad_claim``."""

    code: str
    need_mib: int
    have_mib: int
    detail: str


def layout(
    card: Card, claims: Iterable[Claim], wanted: str, host_free_mib: int | None
) -> Fit | NoFit:
    """Lay out a card so that one engine is resident, with as many others as fit.

    The smallest others stay first, so the most engines stay; equal ones go by name. A larger card
    never makes an engine leave that a smaller one keeps.

    Args:
        claims: of every process on the card, the wanted one among them, in any order.
        host_free_mib: host memory that may be pinned; None: unknown, nothing can be swapped out.
    """
    by_id = {claim.engine_id: claim for claim in sorted(claims, key=lambda one: one.engine_id)}
    bad = _bad(card, by_id, wanted)
    if bad is not None:
        return bad
    target = by_id[wanted]
    others = sorted(
        (one for one in by_id.values() if one is not target),
        key=lambda one: (one.active_mib, one.engine_id),
    )
    fixed = card.reserve_mib + sum(one.context_mib for one in by_id.values())
    used = fixed + target.active_mib
    if used > card.vram_mib:
        return _no_vram(card, target, fixed, used)
    resident = [target.engine_id]
    leaving: list[Claim] = []
    for one in others:
        if not leaving and used + one.active_mib <= card.vram_mib:
            used += one.active_mib
            resident.append(one.engine_id)
        else:
            leaving.append(one)
    mirror = sum(one.mirror_mib for one in leaving if not one.mirror_pinned)
    short = _no_host_ram(leaving, mirror, host_free_mib)
    if short is not None:
        return short
    return Fit(
        resident=tuple(sorted(resident)),
        leave=tuple(sorted(one.engine_id for one in leaving)),
        used_mib=used,
        free_mib=card.vram_mib - used,
        mirror_mib=mirror,
    )


def _bad(card: Card, by_id: dict[str, Claim], wanted: str) -> NoFit | None:
    if wanted not in by_id:
        return NoFit(
            code="unknown_engine",
            need_mib=0,
            have_mib=0,
            detail=f"{wanted!r} has no claim on {card.gpu}",
        )
    for one in by_id.values():
        numbers = (one.weights_mib, one.kv_mib, one.mirror_mib, one.context_mib)
        if min(numbers) < 0 or not 0 <= card.reserve_mib <= card.vram_mib:
            return NoFit(
                code="bad_claim",
                need_mib=min(numbers),
                have_mib=card.vram_mib,
                detail=f"{one.engine_id} on {card.gpu}: a size below 0, or a reserve out of range",
            )
    return None


def _no_vram(card: Card, target: Claim, fixed: int, used: int) -> NoFit:
    return NoFit(
        code="vram",
        need_mib=used,
        have_mib=card.vram_mib,
        detail=f"{target.engine_id} needs {target.active_mib} MiB beside {fixed} MiB of contexts"
        f" and reserve; {card.gpu} has {card.vram_mib} MiB",
    )


def _no_host_ram(leaving: list[Claim], mirror: int, host_free_mib: int | None) -> NoFit | None:
    free = 0 if host_free_mib is None else host_free_mib
    if mirror <= free:
        return None
    names = ", ".join(one.engine_id for one in leaving)
    known = "unknown" if host_free_mib is None else f"{host_free_mib} MiB"
    return NoFit(
        code="host_ram",
        need_mib=mirror,
        have_mib=free,
        detail=f"the mirrors of {names} need {mirror} MiB of host memory; free: {known}",
    )
