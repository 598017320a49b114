"""What if: the journalled span decided again in another world, beside what was decided.

Two states go through the same rows. What came from outside (market, leases, people, nodes) reaches
both; what the agent itself brought about reaches the other world only as far as it decided the
same. Where it decided differently its switches are its own: they take as long as the last real one
of their kind, succeed, and read as their mode does. So equal values give equal decisions.
"""

from collections.abc import Iterator
from datetime import datetime

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.plan import Plan
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.profit import profit_usd_per_h, wear_usd
from edge_agent.core.resuming import resume_acts
from edge_agent.core.site import NS_PER_S, IntColumn, Site
from edge_agent.core.site_state import OFF_CODES, SiteState
from edge_agent.ports import JournalSource
from edge_agent.services.intents import open_switch
from edge_agent.services.journal_walk import Step, Walk
from edge_agent.services.lease_events import tell
from edge_agent.services.other_world import OtherWorld
from edge_agent.services.override_keys import Overrides
from edge_agent.services.overrides import other_site
from protocol.resource import Activity

VIEW_VERSION = 1
CHANGES_MAX = 1_000
_DEVICES_SHOWN = 8
_ROOM_MAX = 4_096
_SECONDS_PER_H = 3_600.0


class Made(Struct, frozen=True, kw_only=True):
    """One act of a pass: a switch of 1..n devices, or a lease act (no activity)."""

    what: str
    reason: str
    devices: int
    first_devices: tuple[str, ...]


class ChangedPass(Struct, frozen=True, kw_only=True):
    """A pass that acted differently: what was done, and what would have been."""

    at: datetime
    seq: int
    was: tuple[Made, ...]
    would: tuple[Made, ...]


class WhatIfReport(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent replay --what-if``; money in USD over the span.

    Args:
        passes: in the span. changed: passes that acted differently; ``changes`` holds the first.
        profit_was_usd: as decided, in the world as it was. profit_would_usd: as it would have been
            decided, in the other world. difference_usd: would - was, of which
            by_conditions_usd is what the other world does to the decisions as they were (None when
            the fleets differ) and by_decisions_usd what deciding differently adds.
        unvalued_s: time in which a price was unknown, or the machine was down.
        over_cap_was_s, over_cap_would_s: counted load above the cap in force.
        over_feeder_was_s, over_feeder_would_s: above that of any feeder.
    """

    v: int
    what_if: tuple[str, ...]
    from_at: datetime | None
    to_at: datetime | None
    passes: int
    changed: int
    changes: tuple[ChangedPass, ...]
    profit_was_usd: float
    profit_would_usd: float
    difference_usd: float
    by_conditions_usd: float | None
    by_decisions_usd: float | None
    unvalued_s: float
    over_cap_was_s: float
    over_cap_would_s: float
    over_feeder_was_s: float
    over_feeder_would_s: float


class Pair(Struct, frozen=True, kw_only=True, eq=False):
    """A row in both worlds; the states are those after it."""

    step: Step
    site: Site
    before: SiteState
    made: Plan | None
    acts: tuple[f.Fact, ...]
    state: SiteState


def pairs(
    source: JournalSource,
    overrides: Overrides,
    *,
    from_at: datetime | None = None,
    to_at: datetime | None = None,
    otherwise: Site | None = None,
) -> Iterator[Pair]:
    """Go through a span in both worlds at once; until ``from_at`` they are one.

    Raises:
        JournalError: there is nothing to start from. OverrideError: the other site cannot be.
    """
    world: OtherWorld | None = None
    based: Site | None = None
    for step in Walk(source, otherwise).steps(from_at, plans=False):
        wall = step.row.instant.wall
        if to_at is not None and wall > to_at:
            return
        if from_at is not None and wall < from_at:
            continue
        if world is None or based is not step.site or not step.checked:
            # At the start, and where the site itself changed, the other world sets out anew.
            based = step.site
            world = OtherWorld(step.site, *other_site(step.site, overrides), overrides, step.before)
        yield both(world, step)


def what_if(
    source: JournalSource,
    texts: tuple[str, ...],
    overrides: Overrides,
    *,
    from_at: datetime | None = None,
    to_at: datetime | None = None,
    otherwise: Site | None = None,
) -> WhatIfReport:
    """Decide a span again under other values; say what differs and what it is worth.

    Raises:
        JournalError: there is nothing to start from. OverrideError: the other site cannot be.
    """
    sums = _Sums()
    changes: list[ChangedPass] = []
    span = {"from_at": from_at, "to_at": to_at}
    for pair in pairs(source, overrides, otherwise=otherwise, **span):
        sums.add(pair)
        changed = _changed(pair)
        if changed is not None:
            sums.changed += 1
            if len(changes) < CHANGES_MAX:
                changes.append(changed)
    conditions = None if sums.apart_fleets else sums.same_acts_usd - sums.was_usd
    return WhatIfReport(
        v=VIEW_VERSION,
        what_if=texts,
        from_at=sums.first,
        to_at=sums.last,
        passes=sums.passes,
        changed=sums.changed,
        changes=tuple(changes),
        profit_was_usd=sums.was_usd,
        profit_would_usd=sums.would_usd,
        difference_usd=sums.would_usd - sums.was_usd,
        by_conditions_usd=conditions,
        by_decisions_usd=None if conditions is None else sums.would_usd - sums.same_acts_usd,
        unvalued_s=sums.unvalued_s,
        over_cap_was_s=sums.over_was_s,
        over_cap_would_s=sums.over_would_s,
        over_feeder_was_s=sums.feeder_was_s,
        over_feeder_would_s=sums.feeder_would_s,
    )


class _Sums(Struct):
    """Sums over a span; mutable, inside one call of ``what_if``."""

    passes: int = 0
    changed: int = 0
    first: datetime | None = None
    last: datetime | None = None
    was_usd: float = 0.0
    would_usd: float = 0.0
    same_acts_usd: float = 0.0
    unvalued_s: float = 0.0
    over_was_s: float = 0.0
    over_would_s: float = 0.0
    feeder_was_s: float = 0.0
    feeder_would_s: float = 0.0
    apart_fleets: bool = False

    def add(self, pair: Pair) -> None:
        """Add the time since the row before, at the values that held, and this row's wear."""
        step = pair.step
        self.first = step.row.instant.wall if self.first is None else self.first
        self.last = step.row.instant.wall
        self.passes += step.planned
        self.apart_fleets = self.apart_fleets or pair.site.digest != step.site.digest
        dt_s = _elapsed_s(step)
        was = profit_usd_per_h(step.site, step.before)
        would = profit_usd_per_h(pair.site, pair.before)
        same: float | None = 0.0
        if not self.apart_fleets:
            same = profit_usd_per_h(pair.site, replace(step.before, market=pair.before.market))
        if was is None or would is None or same is None:
            self.unvalued_s += dt_s
        else:
            self.was_usd += was * dt_s / _SECONDS_PER_H
            self.would_usd += would * dt_s / _SECONDS_PER_H
            self.same_acts_usd += same * dt_s / _SECONDS_PER_H
        self.over_was_s += dt_s * _over_cap(step.site, step.before)
        self.over_would_s += dt_s * _over_cap(pair.site, pair.before)
        self.feeder_was_s += dt_s * _over_feeder(step.site, step.before)
        self.feeder_would_s += dt_s * _over_feeder(pair.site, pair.before)
        self.was_usd -= _wear(step.site, step.entered, step.row.acts)
        self.would_usd -= _wear(pair.site, pair.state, pair.acts)
        if not self.apart_fleets:
            self.same_acts_usd -= _wear(pair.site, step.entered, step.row.acts)


def _over_cap(site: Site, state: SiteState) -> bool:
    power = pw.view(site, state)
    return power.counted_w > power.cap_w


def _over_feeder(site: Site, state: SiteState) -> bool:
    if not site.feeders:
        return False
    return bool(np.any(fd.rooms_w(site, pw.counted_w(site, state)) < 0.0))


def _elapsed_s(step: Step) -> float:
    before, now = step.before.instant, step.row.instant
    if before.boot_id != now.boot_id:
        return 0.0  # the machine was down: neither world decided
    return max(now.now_ns - before.now_ns, 0) / NS_PER_S


def woken(site: Site, state: SiteState, acts: tuple[f.Fact, ...]) -> Iterator[IntColumn]:
    """Give the devices of each wake-up among the acts; off is seen in either state around them."""
    for fact in acts:
        if isinstance(fact, f.SwitchOpened) and fact.to_activity is Activity.MINE:
            at = site.indices_of(fact.device_ids)
            yield at[(state.origin[at] == OFF_CODES[0]) | (state.origin[at] == OFF_CODES[1])]


def _wear(site: Site, state: SiteState, acts: tuple[f.Fact, ...]) -> float:
    return sum((wear_usd(site, at) for at in woken(site, state, acts)), 0.0)


def both(world: OtherWorld, step: Step) -> Pair:
    """Take a row into the other world too; the world moves on."""
    if not step.checked:
        return Pair(
            step=step, site=world.site, before=world.state, made=None, acts=(), state=world.state
        )
    before = world.state
    facts = world.facts_of(step)
    entered = enter(world.site, before, step.row.instant, facts)
    made = plan(world.site, entered, acts_only=True) if step.row.planned else None
    acts = () if made is None else _acts(world, step, entered, made)
    state = act(world.site, entered, acts)
    world.moved(step, state, acts)
    return Pair(step=step, site=world.site, before=before, made=made, acts=acts, state=state)


def _acts(world: OtherWorld, step: Step, entered: SiteState, made: Plan) -> tuple[f.Fact, ...]:
    """Give what the other world does; where it is what was done, the same facts with their ids."""
    wall = step.row.instant.wall
    done = {_key(fact): fact for fact in step.row.acts}
    room = _ROOM_MAX
    opened = sum(isinstance(fact, f.SwitchOpened) for fact in step.row.acts)
    if opened < len(made.intents):
        # An agent without room for all its intents leaves the last ones for later.
        was = step.acts()
        room = opened if was is not None and opened < len(was.intents) else room
    facts: list[f.Fact] = list(resume_acts(made))
    facts += list(tell(entered, made.leases, wall, 0).facts)
    facts += prepare_acts(world.site, entered, made)
    facts += [
        open_switch(world.site, entered, intent, world.new_id).fact
        for intent in made.intents[:room]
    ]
    return tuple(done.get(_key(fact), fact) for fact in facts)


def _key(fact: f.Fact) -> f.Fact:
    """Give an act without what is drawn, or counted elsewhere."""
    if isinstance(fact, f.SwitchOpened):
        return replace(fact, switch_id="", instances=())
    return replace(fact, final_usage_seq=0) if isinstance(fact, f.LeaseClosed) else fact


def _changed(pair: Pair) -> ChangedPass | None:
    was, would = pair.step.row.acts, pair.acts
    if was == would:
        return None
    keys = [{_key(fact) for fact in acts} for acts in (was, would)]
    only_was = tuple(_made(fact) for fact in was if _key(fact) not in keys[1])
    only_would = tuple(_made(fact) for fact in would if _key(fact) not in keys[0])
    if not only_was and not only_would:
        return None
    return ChangedPass(
        at=pair.step.row.instant.wall, seq=pair.step.seq, was=only_was, would=only_would
    )


def _made(fact: f.Fact) -> Made:
    if isinstance(fact, f.SwitchOpened):
        return Made(
            what=f"mode {fact.mode}" if fact.mode else fact.to_activity.value,
            reason=fact.reason if fact.lease_id is None else f"{fact.reason} {fact.lease_id}",
            devices=len(fact.device_ids),
            first_devices=fact.device_ids[:_DEVICES_SHOWN],
        )
    if isinstance(fact, f.PrepareAsked | f.PrepareEnded):
        what = "prepare" if isinstance(fact, f.PrepareAsked) else "end preparing"
        reason = fact.why if isinstance(fact, f.PrepareAsked) else fact.outcome.value
        return Made(what=what, reason=reason, devices=1, first_devices=(fact.device_id,))
    device_ids = fact.device_ids if isinstance(fact, f.LeaseTaken) else ()
    names = {
        f.LeaseTaken: "take lease",
        f.LeaseEnding: "end lease",
        f.LeaseReplaced: "replace a device of lease",
    }
    refused = isinstance(fact, f.LeaseClosed) and fact.refused
    what = names.get(type(fact), "refuse lease" if refused else "release lease")
    return Made(
        what=what,
        reason=str(getattr(fact, "lease_id", "")),
        devices=len(device_ids),
        first_devices=device_ids[:_DEVICES_SHOWN],
    )
