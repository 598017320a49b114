"""The real world and those cleared of trouble beside it, through the same rows.

A chain: each world is cleared of one kind more than the one before. Until the first trouble of its
kind a world is the one before it and costs nothing.
"""

from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core.profit import Flows, flows
from edge_agent.core.site import Site
from edge_agent.core.site_state import SiteState
from edge_agent.services.cleared import Cleared, Trouble, bound, troubled
from edge_agent.services.journal_walk import Step
from edge_agent.services.other_world import OtherWorld
from edge_agent.services.override_keys import Overrides
from edge_agent.services.what_if import Pair, both

KINDS = tuple(Trouble)


class Lived(Struct, frozen=True, eq=False):
    """A row in one world: the state before it with its flows, what was done, the state after."""

    site: Site
    before: SiteState
    flows: Flows
    acts: tuple[f.Fact, ...]
    state: SiteState


class _Led(Struct, frozen=True, eq=False):
    """A world that goes its own way, and what it is cleared of."""

    world: OtherWorld
    sift: Cleared


class ClearedWorlds:
    """Leads the worlds through the rows of a walk, the real one first."""

    def __init__(self, step: Step) -> None:
        self._site = step.site
        self._real = _real(step)
        self._led: dict[Trouble, _Led] = {}

    def pass_by(self, step: Step) -> None:
        """Take a row before the span: only what it teaches counts."""
        self._anew(step)
        self._real.follow(step)

    def take(self, step: Step) -> tuple[Lived, ...]:
        """Take a row; gives it as lived in the real world and in each of ``KINDS``."""
        self._anew(step)
        # Flows at once: what the pass has just valued need not be valued again.
        real = flows(step.site, step.before)
        lived = [Lived(step.site, step.before, real, step.row.acts, step.state)]
        parent = self._real
        pair: Pair | None = None
        for place, kind in enumerate(KINDS):
            led = self._led.get(kind)
            if led is None and _begins(kind, parent, step, pair):
                led = self._led[kind] = _part(parent, KINDS[: place + 1])
            if led is None:
                lived.append(lived[-1])
                continue
            world = led.world
            if led.sift.ails(world.site, world.state):
                world.lead(world.site, led.sift.state(world.site, world.state), led.sift)
            # The next world may have to set out from here, before the row.
            parent = world
            if any(other not in self._led for other in KINDS[place + 1 :]):
                parent = world.fork(world.site, world.state, led.sift)
            pair = both(world, step)
            own = flows(pair.site, pair.before)
            lived.append(Lived(pair.site, pair.before, own, pair.acts, pair.state))
        self._real.follow(step)
        return tuple(lived)

    def _anew(self, step: Step) -> None:
        """Where the site changed, or the state was taken over, all worlds set out anew."""
        if step.site is not self._site or not step.checked:
            self._site, self._real, self._led = step.site, _real(step), {}


def _real(step: Step) -> OtherWorld:
    everyone = tuple(range(len(step.site)))
    return OtherWorld(step.site, step.site, everyone, Overrides(), step.before)


def _begins(kind: Trouble, parent: OtherWorld, step: Step, pair: Pair | None) -> bool:
    """Say whether a world sets out from its parent with a row; a pair: how the parent lived it."""
    if troubled(kind, parent.site, parent.state, step.row.facts):
        return True
    if kind is not Trouble.LIMITS:
        return False
    made = step.acts() if pair is None else pair.made
    return made is not None and bound(made)


def _part(parent: OtherWorld, kinds: tuple[Trouble, ...]) -> _Led:
    sift = Cleared(kinds)
    site = sift.site(parent.site)
    return _Led(parent.fork(site, sift.state(site, parent.state), sift), sift)
