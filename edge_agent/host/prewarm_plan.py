"""Whether an engine is made ready on one GPU beside what works there: memory, and money; pure.

What the agent expects comes with the wish; what a start from cold takes, and what fits on the card,
is known here. An engine that could only be ready in host memory is not made ready beside another:
it would be loaded over the card first.
"""

from msgspec import Struct

from edge_agent.host.layout import MOVE, Party, key_of
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.ports import Wish
from edge_agent.workloads.switching.latency import Book, estimate
from edge_agent.workloads.switching.prewarm import Candidate, Prewarm, prewarm
from edge_agent.workloads.switching.vram import Card, Claim

# The move under which the way of an engine that was made ready is learnt.
MOVE_READY = f"{MOVE}-ready"
SECONDS_PER_H = 3_600.0
WH_PER_MWH = 1e6
# Stands in for the other engine on a GPU that has one alone.
_NOBODY = Claim(engine_id="", weights_mib=0, context_mib=0)


class Judged(Struct, frozen=True, kw_only=True):
    """Whether to make an engine ready; ``code`` is empty: yes, and else why not."""

    code: str
    detail: str


def judge(
    card: Card | None,
    model: str,
    working: Party | None,
    wanted: Party | None,
    wish: Wish,
    *,
    host_free_mib: int | None,
    book: Book,
) -> Judged:
    """Judge one wish.

    Args:
        card: None: its size is not known. working: the other engine of the GPU, if it has one.
        wanted: the engine to make ready; None: the GPU has none. book: of real switches.
    """
    if wanted is None:
        return Judged(code="no_engine", detail=f"it has no engine to {wish.enters.value}")
    if all(strategy is Strategy.RESTART for strategy in wanted.capabilities.strategies):
        return Judged(code="no_pause", detail="it works from its start on: it has no pause")
    if card is None or not wanted.spec.vram_mib or (working and not working.spec.vram_mib):
        return Judged(code="size_unknown", detail="sizes of card and engines are not all known")
    return _judged(
        prewarm(
            card,
            _NOBODY if working is None else working.side.claim,
            (),
            (_candidate(wanted, wish, model, book),),
            host_free_mib=host_free_mib,
            energy_usd_per_wh=wish.energy_usd_per_mwh / WH_PER_MWH,
        )
    )


def start_s(book: Book, party: Party, model: str, *, ready: bool) -> float:
    """Give the expected time from an order to the first output, from cold or once made ready."""
    key = key_of(party, Strategy.RESTART, model, MOVE_READY if ready else MOVE)
    if ready:
        learnt = estimate(book, key)
        # Nobody published anything of this; what is resident behind a gate is as ready.
        if learnt is None or learnt.learnt == 0.0:
            key = key_of(party, Strategy.RESIDENT_GATE, model)
    found = estimate(book, key)
    return party.spec.start_s if found is None else found.expected_s


def _candidate(wanted: Party, wish: Wish, model: str, book: Book) -> Candidate:
    cold_s = start_s(book, wanted, model, ready=False)
    return Candidate(
        claim=wanted.side.claim,
        probability=wish.probability,
        within_s=wish.within_s,
        why=wish.why or "asked for",
        cold_s=cold_s,
        warm_s=start_s(book, wanted, model, ready=True),
        earns_usd_per_h=wish.earns_usd_per_h,
        prepare_wh=wish.draw_w * cold_s / SECONDS_PER_H,
    )


def _judged(found: Prewarm) -> Judged:
    if found.intent is None:
        why = found.not_prepared[0]
        return Judged(code=why.code, detail=why.detail)
    if not found.intent.resident:
        return Judged(code="vram", detail="it fits in host memory alone, and loads on the card")
    return Judged(code="", detail=found.intent.reason)
