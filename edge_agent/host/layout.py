"""How the engines of one GPU make way for each other: memory planner and chooser, for one host.

Theory of operation.
1. Where all sizes are known, the planner lays out the card, and each engine leaves by the first
   way, in the order of their cost, that it can and that makes room for the other one.
2. Real switches are learnt. Once that first way was seen often enough, another one takes its place
   where it is expected to be faster; one that nobody has seen here must be twice as fast.
3. What the config names wins over both. Where a size is unknown nothing is planned: an engine
   leaves by the first way that it names itself.
"""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.workloads.engine import EngineCapabilities, EngineSpec, Strategy
from edge_agent.workloads.switching.chooser import ORDER, Choice, Side, choose, side_of
from edge_agent.workloads.switching.latency import Book, Key, estimate, size_of
from edge_agent.workloads.switching.vram import Card, NoFit, layout

# The move under which an engine's way off its GPU and back again is learnt.
MOVE = "away-back"
# Real switches, by weight, on which a learnt time rests.
LEARNT_MIN = 5.0
# How much a way that was never seen here must promise to be tried.
UNSEEN_FACTOR = 2.0


class Party(Struct, frozen=True, kw_only=True):
    """One engine of a GPU.

    Args:
        kind: of its driver. fixed: the way that the config names; None: to be chosen.
        moved_mib: what it moved when it last left; None: it has not yet.
    """

    kind: str
    spec: EngineSpec
    capabilities: EngineCapabilities
    fixed: Strategy | None = None
    moved_mib: int | None = None

    @property
    def first(self) -> Strategy:
        """Give the way that it takes where nothing is planned."""
        able = self.capabilities.strategies
        return self.fixed or (able[0] if able else Strategy.RESTART)

    @property
    def side(self) -> Side:
        """Give what the chooser is told of it."""
        return side_of(self.spec, self.capabilities)


class Layout(Struct, frozen=True, kw_only=True):
    """What was decided for one GPU.

    Args:
        miner, server: how each leaves; None: there is none.
        together: both may stay on the card; None: sizes are not known.
        allowed_mib: memory in use that the claims account for; None: not known.
        no_fit: why the server cannot come beside what stays; empty: it can, or nobody knows.
        reason: of the two ways, for a person.
    """

    miner: Strategy | None = None
    server: Strategy | None = None
    together: bool | None = None
    allowed_mib: int | None = None
    no_fit: str = ""
    reason: str = "not planned: a size is not known"


def lay_out(
    card: Card | None,
    model: str,
    miner: Party | None,
    server: Party | None,
    *,
    host_free_mib: int | None,
    book: Book,
) -> Layout:
    """Decide how the engines of one GPU make way for each other.

    Args:
        card: None: its size is not known. model: of the card, under which times are learnt.
        host_free_mib: host memory that may be pinned; None: unknown, nothing is swapped out.
        book: of real switches on this host.

    Returns:
        The layout; without sizes it holds each engine's first way and nothing else.
    """
    unplanned = Layout(
        miner=None if miner is None else miner.first,
        server=None if server is None else server.first,
    )
    parties = [one for one in (miner, server) if one is not None]
    if card is None or not parties or not all(one.spec.vram_mib for one in parties):
        return unplanned
    claims = [one.side.claim for one in parties]
    allowed = card.reserve_mib + sum(one.active_mib + one.context_mib for one in claims)
    if miner is None or server is None:
        alone = layout(card, claims, claims[0].engine_id, host_free_mib)
        no_fit = alone.detail if isinstance(alone, NoFit) and server is not None else ""
        return replace(unplanned, allowed_mib=allowed, no_fit=no_fit, reason="alone on its card")
    asked = _Asked(card=card, model=model, host_free_mib=host_free_mib, book=book)
    out, back = asked.choose(miner, server), asked.choose(server, miner)
    both = layout(card, claims, server.spec.engine_id, host_free_mib)
    return Layout(
        miner=miner.fixed or out.strategy or miner.first,
        server=server.fixed or back.strategy or server.first,
        together=not isinstance(both, NoFit) and not both.leave,
        allowed_mib=allowed,
        no_fit="" if miner.fixed or out.strategy is not None else _objections(out),
        reason=f"miner: {_said(miner, out)}; server: {_said(server, back)}",
    )


class _Asked(Struct, frozen=True, kw_only=True):
    """What both choices of one GPU share."""

    card: Card
    model: str
    host_free_mib: int | None
    book: Book

    def choose(self, leaving: Party, entering: Party) -> Choice:
        """Choose how one engine makes way for the other, which comes back in its own way."""
        side = entering.side
        coming = replace(side, strategies=ORDER, claim=replace(side.claim, mirror_mib=0))
        first = choose(self.card, leaving.side, coming, host_free_mib=self.host_free_mib)
        times = self._times(leaving, first.strategy)
        if times is None:
            return first
        return choose(
            self.card,
            leaving.side,
            coming,
            host_free_mib=self.host_free_mib,
            expected_s=times,
        )

    def _times(self, leaving: Party, first: Strategy | None) -> Mapping[Strategy, float] | None:
        """Give the expected times by way; None while the first way was seen too seldom."""
        times: dict[Strategy, float] = {}
        for strategy in Strategy:
            key = key_of(leaving, strategy, self.model)
            found = estimate(self.book, key)
            if found is None:
                continue
            seen = found.learnt >= LEARNT_MIN
            if strategy is first and not seen:
                return None
            times[strategy] = found.expected_s * (1.0 if seen else UNSEEN_FACTOR)
        return None if first is None else times


def key_of(party: Party, strategy: Strategy, model: str, move: str = MOVE) -> Key:
    """Give the cell under which an engine's way off and back is learnt."""
    moves = strategy in (Strategy.PINNED_SWAP, Strategy.EXTERNAL_API, Strategy.CUDA_CHECKPOINT)
    known = party.spec.mirror_mib if party.moved_mib is None else party.moved_mib
    return Key(party.kind, strategy.value, move, size_of(known if moves else 0), model)


def _said(party: Party, choice: Choice) -> str:
    if party.fixed is not None:
        return f"{party.fixed.value}, by the config"
    if choice.strategy is None:
        return f"{party.first.value}, though nothing fits"
    return f"{choice.strategy.value}, {choice.reason}"


def _objections(choice: Choice) -> str:
    """Give why nothing fits: of the ways that the engine can go."""
    able = [one for one in choice.rejected if one.code != "not_offered"]
    return "; ".join(f"{one.strategy.value} {one.detail}" for one in able or choice.rejected)
