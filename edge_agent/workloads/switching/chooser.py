"""Which strategy takes one engine off a GPU for another: the cheapest that fits, with reasons.

The order of the rules is the order of their cost where none has been learnt: resident gate, pinned
swap, the engine's own API, driver checkpoint, restart. Where an expected time of every strategy
that fits is given, the shortest wins instead.
"""

from collections.abc import Mapping

from msgspec import Struct

from edge_agent.workloads.engine import EngineCapabilities, EngineSpec, Strategy
from edge_agent.workloads.switching.vram import Card, Claim

ORDER: tuple[Strategy, ...] = (
    Strategy.RESIDENT_GATE,
    Strategy.PINNED_SWAP,
    Strategy.EXTERNAL_API,
    Strategy.CUDA_CHECKPOINT,
    Strategy.RESTART,
)


class Side(Struct, frozen=True, kw_only=True):
    """One engine of a switch.

    Args:
        strategies: as its capabilities name them. resident_mib: what it keeps on the card once its
            API has paused and offloaded it, context included; None = unknown, counts in full.
        traits: what it uses that a driver checkpoint does not bear: ``uvm``, ``nccl``, ``ipc``,
            ``mps``, ``mig``.
    """

    claim: Claim
    strategies: tuple[Strategy, ...]
    resident_mib: int | None = None
    traits: frozenset[str] = frozenset()

    @property
    def whole_mib(self) -> int:
        """Give what it takes while it is active, context included."""
        return self.claim.active_mib + self.claim.context_mib


def side_of(
    spec: EngineSpec,
    capabilities: EngineCapabilities,
    *,
    mirror_pinned: bool = False,
    traits: frozenset[str] = frozenset(),
) -> Side:
    """Make one engine's side of what it was made of and what it can do."""
    claim = Claim(
        engine_id=spec.engine_id,
        weights_mib=spec.vram_mib,
        mirror_mib=max(spec.mirror_mib, capabilities.mirror_mib or 0),
        mirror_pinned=mirror_pinned,
    )
    kept = capabilities.resident_mib if capabilities.releases_memory else None
    return Side(claim=claim, strategies=capabilities.strategies, resident_mib=kept, traits=traits)


class Rejected(Struct, frozen=True, kw_only=True):
    """A strategy that was not taken: a stable code, and the numbers for a person."""

    strategy: Strategy
    code: str
    detail: str


class Choice(Struct, frozen=True, kw_only=True):
    """What was chosen (None: nothing fits), why, and why not the others."""

    strategy: Strategy | None
    reason: str
    rejected: tuple[Rejected, ...]


def choose(
    card: Card,
    leaving: Side | None,
    entering: Side,
    *,
    host_free_mib: int | None,
    others_mib: int = 0,
    expected_s: Mapping[Strategy, float] | None = None,
) -> Choice:
    """Choose how ``leaving`` makes way for ``entering``.

    Args:
        leaving: None when nothing of ours is on the card: then only what ``entering`` can do and
            its own size count.
        host_free_mib: host memory that may be pinned; None: unknown. others_mib: contexts and
            engines on the card that are no part of this switch.
        expected_s: learnt time of a whole switch by strategy.
    """
    rejected: list[Rejected] = []
    fitting: list[Strategy] = []
    for strategy in ORDER:
        why = _objection(strategy, card, leaving, entering, host_free_mib, others_mib)
        if why is None:
            fitting.append(strategy)
        else:
            rejected.append(Rejected(strategy=strategy, code=why[0], detail=why[1]))
    if not fitting:
        return Choice(strategy=None, reason="nothing fits", rejected=tuple(rejected))
    known = expected_s or {}
    by_time = all(strategy in known for strategy in fitting)
    chosen = min(fitting, key=lambda one: known[one]) if by_time else fitting[0]
    reason = f"shortest of those that fit: {known[chosen]:.3f} s" if by_time else "first that fits"
    dearer = tuple(
        Rejected(strategy=one, code="dearer", detail=_dearer(one, chosen, known, by_time=by_time))
        for one in fitting
        if one is not chosen
    )
    return Choice(strategy=chosen, reason=reason, rejected=(*rejected, *dearer))


def _dearer(
    one: Strategy, chosen: Strategy, known: Mapping[Strategy, float], *, by_time: bool
) -> str:
    if by_time:
        return f"{known[one]:.3f} s, {chosen.value} {known[chosen]:.3f} s"
    return f"fits, but {chosen.value} comes first"


def _objection(
    strategy: Strategy,
    card: Card,
    leaving: Side | None,
    entering: Side,
    host_free_mib: int | None,
    others_mib: int,
) -> tuple[str, str] | None:
    for side in (leaving, entering):
        if side is not None and strategy not in side.strategies:
            return "not_offered", f"{side.claim.engine_id} does not offer it"
    if strategy is Strategy.CUDA_CHECKPOINT:
        used = frozenset() if leaving is None else leaving.traits
        if used | entering.traits:
            return "not_allowed", f"not with {', '.join(sorted(used | entering.traits))}"
    need = card.reserve_mib + others_mib + entering.whole_mib + _left_mib(strategy, leaving)
    if need > card.vram_mib:
        return "vram", f"needs {need} MiB of the card's {card.vram_mib} MiB"
    ram = _host_mib(strategy, leaving, entering)
    if ram and host_free_mib is None:
        return "host_ram", f"needs {ram} MiB of host memory, and how much is free is unknown"
    if host_free_mib is not None and ram > host_free_mib:
        return "host_ram", f"needs {ram} MiB of host memory, {host_free_mib} MiB are free"
    return None


def _left_mib(strategy: Strategy, leaving: Side | None) -> int:
    """Give what the leaving engine keeps on the card."""
    if leaving is None:
        return 0
    match strategy:
        case Strategy.RESIDENT_GATE:
            return leaving.whole_mib
        case Strategy.PINNED_SWAP:
            return leaving.claim.context_mib
        case Strategy.EXTERNAL_API:
            return leaving.whole_mib if leaving.resident_mib is None else leaving.resident_mib
        case _:
            return 0


def _host_mib(strategy: Strategy, leaving: Side | None, entering: Side) -> int:
    """Give the host memory that is still to be taken."""
    if strategy is Strategy.PINNED_SWAP:
        sides = (entering,) if leaving is None else (leaving, entering)
        return sum(one.claim.mirror_mib for one in sides if not one.claim.mirror_pinned)
    if leaving is None:
        return 0
    if strategy is Strategy.CUDA_CHECKPOINT:
        # The driver copies all of it out: weights, KV and context.
        return leaving.whole_mib
    if strategy is Strategy.EXTERNAL_API and not leaving.claim.mirror_pinned:
        return leaving.claim.mirror_mib
    return 0
