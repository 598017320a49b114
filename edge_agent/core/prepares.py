"""Which engines are held ready for likely switches: asked for, kept, let go; a plan's further acts.

Theory of operation.
1. A device is asked once the forecast is likely enough, and kept until it is clearly less so: what
   is ready is not let go at the first doubt. Whether it fits and pays its node's host says.
2. At most so many per node; none while a switch of the device is open, and then what was ready
   stays as it is: the switch uses it.
3. A device that is off draws more while it makes an engine ready: that has to fit under the cap,
   an order, its feeder and the ramp, with room left for a start in earnest; it goes when it is
   wanted.
4. What ends otherwise than by a switch leaves the device alone for a while.
5. A pass that starts a lease's work leaves all this to the next one: somebody waits for it.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import leases as ls
from edge_agent.core import power as pw
from edge_agent.core.ahead import Ahead, ahead
from edge_agent.core.plan import Plan
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.ready import PrepareEntry, PrepareStatus, entry_of
from edge_agent.core.site import CODE_OF, CURTAILED, IDLE, NS_PER_S, FloatColumn, Site
from edge_agent.core.site_state import SiteState, mode_of
from protocol.resource import Activity

Outcome = f.PrepareOutcome
_SAID = {
    PrepareStatus.REFUSED: Outcome.REFUSED,
    PrepareStatus.FAILED: Outcome.FAILED,
    # What was made ready is kept: this is what was so before.
    PrepareStatus.PREPARED: Outcome.STANDING,
}
_ENTERED = (Activity.MINE, Activity.SERVE)
# What a node says whose host holds nothing ready.
UNSUPPORTED = "unsupported"
# Of a site that has it switched off: what was asked for before ends.
NOTHING = PrewarmLimits()
# A start in earnest finds as much room left as one that is only likely takes.
SPARE_FACTOR = 2.0


def prepare_acts(site: Site, state: SiteState, made: Plan) -> tuple[f.Fact, ...]:
    """Give what to ask for and what to let go, beside what the plan does.

    Args:
        state: that the plan was made from.
    """
    limits = site.prewarm or NOTHING
    if limits.per_node <= 0 and not state.prepares:
        return ()
    if any(intent.lease_id is not None for intent in made.intents):
        return ()
    expected = {(row.device_id, row.enters): row for row in ahead(site, state, idle=False)}
    found = ((row, _end(site, state, limits, made, row, expected)) for row in state.prepares)
    ended = {row.device_id: fact for row, fact in found if row.live and fact is not None}
    return (*ended.values(), *_asked(site, state, limits, made, expected, frozenset(ended)))


def _end(
    site: Site,
    state: SiteState,
    limits: PrewarmLimits,
    made: Plan,
    entry: PrepareEntry,
    expected: dict[tuple[str, Activity], Ahead],
) -> f.PrepareEnded | None:
    """Say how an entry ends now; None: it goes on."""
    at = site.index_of(entry.device_id)
    row = expected.get((entry.device_id, entry.enters))
    outcome: f.PrepareOutcome | None = None
    detail = ""
    if at is None:
        outcome = Outcome.LOST
    elif state.switch_no[at] >= 0:
        return None
    elif mode_of(state)[at] == CODE_OF[entry.enters]:
        outcome = Outcome.USED if entry.ready else Outcome.LATE
    elif state.now_ns - entry.since_ns > int(limits.expire_s * NS_PER_S):
        outcome = Outcome.EXPIRED
    elif not state.reachable[at]:
        return None  # its node is away, as at each start of the agent, and goes by what it heard
    elif not _fit(site, state, at) or not state.owner or limits.per_node <= 0:
        outcome = Outcome.LOST
    elif entry.status is PrepareStatus.GONE:
        outcome, detail = Outcome.LOST, f"{entry.code}: {entry.detail}"
    elif entry.status in _SAID and not entry.ready:
        outcome, detail = _SAID[entry.status], f"{entry.code}: {entry.detail}"
    elif _is_off(state, at) and _short(site, state, made, at):
        outcome = Outcome.POWER
    elif row is None or row.probability < limits.keep_chance:
        outcome, detail = Outcome.TURNED, "" if row is None else f"chance {row.probability:.2f}"
    if outcome is None:
        return None
    was_ready = entry.ready or entry.status is PrepareStatus.GONE
    return f.PrepareEnded(entry.device_id, outcome, was_ready, detail)


def _asked(
    site: Site,
    state: SiteState,
    limits: PrewarmLimits,
    made: Plan,
    expected: dict[tuple[str, Activity], Ahead],
    ended: frozenset[str],
) -> Iterator[f.PrepareAsked]:
    if not state.owner or limits.per_node <= 0:
        return
    busy = {int(at) for intent in made.intents for at in intent.indices}
    held = Counter(_node(site, row) for row in state.prepares if row.live)
    room = _Room(site, state, made)
    unable = {_node(site, row) for row in state.prepares if _unable(row, state.now_ns)}
    likely = [
        row
        for row in expected.values()
        if row.enters in _ENTERED and row.probability >= limits.start_chance
    ]
    # Of equal ones the sooner, then in index order: the sort is stable.
    for row in sorted(likely, key=lambda one: (-one.probability, one.within_s)):
        at = site.index_of(row.device_id)
        entry = entry_of(state.prepares, row.device_id)
        rests = entry is not None and (entry.live or state.now_ns < entry.until_ns)
        if at is None or at in busy or rests or row.device_id in ended:
            continue
        node = site.devices[at].node_id or ""
        full = held[node] >= limits.per_node or node in unable
        if full or state.switch_no[at] >= 0 or not _fit(site, state, at):
            continue
        if room.take(at, row.enters):
            held[node] += 1
            busy.add(at)
            yield f.PrepareAsked(row.device_id, row.enters, row.probability, row.within_s, row.why)


class _Room:
    """What devices that are off may draw more by making engines ready; used up as it is given."""

    def __init__(self, site: Site, state: SiteState, made: Plan) -> None:
        self._site = site
        self._state = state
        # What the plan itself is about to start comes first: the next pass knows what is left.
        self._left_w = made.power.headroom_w if not made.intents else 0.0
        self._ramp_w = state.ramp_left_w
        counted = pw.counted_w(site, state)
        self._counted = counted
        self._feeders: FloatColumn = fd.rooms_w(site, counted) if site.feeders else fd.NONE

    def take(self, at: int, enters: Activity) -> bool:
        """Take what one device needs; False: there is not so much."""
        site, place = self._site, np.array([at], dtype=np.int64)
        code = CODE_OF[enters]
        plate_w = float(site.nameplate_w[site.class_of[at], code] * site.pue[at])
        rise = np.array([max(plate_w - float(self._counted[at]), 0.0)])
        rise_w = float(rise[0])
        origin = mode_of(self._state)[place]
        ramp_w = pw.total(pw.ramp_rise_w(site, self._state, place, origin, code))
        if rise_w > 0.0 and (
            SPARE_FACTOR * rise_w > self._left_w or SPARE_FACTOR * ramp_w > self._ramp_w
        ):
            return False
        if site.feeders:
            need = fd.need_w(site, place, rise)
            if rise_w > 0.0 and np.any(SPARE_FACTOR * need > np.maximum(self._feeders, 0.0)):
                return False
            self._feeders = self._feeders - need
        self._left_w -= rise_w
        self._ramp_w -= ramp_w
        return True


def _fit(site: Site, state: SiteState, at: int) -> bool:
    """Tell whether a device may hold an engine ready: in use, and in nobody's hands."""
    free = bool(ls.usable(state)[at]) and int(ls.held_code(state)[at]) == 0
    return free and site.devices[at].node_id is not None and int(state.activity[at]) != CURTAILED


def _unable(entry: PrepareEntry, now_ns: int) -> bool:
    """Tell whether a device rests because its node's host knows nothing of this."""
    return not entry.live and now_ns < entry.until_ns and entry.detail.startswith(UNSUPPORTED)


def _is_off(state: SiteState, at: int) -> bool:
    return int(state.activity[at]) == IDLE


def _short(site: Site, state: SiteState, made: Plan, at: int) -> bool:
    """Tell whether the load of a device is wanted back, on the site or on its feeder."""
    if made.power.headroom_w < 0.0:
        return True
    feeder = int(site.feeder_of[at])
    return feeder >= 0 and bool(fd.rooms_w(site, pw.counted_w(site, state))[feeder] < 0.0)


def _node(site: Site, entry: PrepareEntry) -> str:
    at = site.index_of(entry.device_id)
    return "" if at is None else site.devices[at].node_id or ""
