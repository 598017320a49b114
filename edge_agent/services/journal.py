"""The state and its journal: every change is a row, applied and committed in one order."""

from msgspec.structs import replace

from edge_agent.core.decided import decided
from edge_agent.core.facts import ROW_VERSION, Fact, Instant, TickRow, encode_row
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.plan import Plan
from edge_agent.core.site import NS_PER_S, Site
from edge_agent.core.site_file import encode_site
from edge_agent.core.site_state import SiteState, new_state
from edge_agent.ports import Clock, CommitBatch, Committed, CoreStore
from edge_agent.services.endpoints import Endpoints
from edge_agent.services.lease_events import Running, lease_events
from edge_agent.version import VERSION


class Journal:
    """Holds the state; the only place that changes it.

    A row is applied at once and handed to the store in the same turn of the loop, so that rows
    stand in the order in which they were applied. Whoever acts on a row awaits its commit first. A
    commit that fails is fatal to the agent: its recovery starts from what is durable.

    Args:
        state: as recovered.
    """

    def __init__(self, site: Site, store: CoreStore, clock: Clock, state: SiteState) -> None:
        self.site = site
        self.state = state
        self.endpoints = Endpoints(site)
        self.hub_heard_ns = _hub_heard_ns(state.instant, clock)
        self._store = store
        self._clock = clock
        self._site_body: bytes | None = encode_site(site, VERSION)

    def instant(self) -> Instant:
        """Give the present instant; boottime never goes back within a boot."""
        boot_id = self._clock.boot_id()
        now_ns = self._clock.boottime_ns()
        if boot_id == self.state.instant.boot_id:
            now_ns = max(now_ns, self.state.now_ns)
        return Instant(boot_id, now_ns, self._clock.wall(), self.hub_heard_ns)

    async def note(
        self,
        facts: tuple[Fact, ...],
        batch: CommitBatch,
        *,
        running: Running | None = None,
    ) -> Committed:
        """Apply facts without planning and commit them with the batch.

        Args:
            running: when and how fast the switch made a lease run, for its event.
        """
        instant = self.instant()
        before = self._before(instant)
        self.state = enter(self.site, before, instant, facts)
        events = lease_events(before, self.state, instant.wall, self.endpoints.url_of, running)
        row = TickRow(ROW_VERSION, instant, planned=False, facts=facts)
        return await self._store.commit(
            replace(batch, facts=encode_row(row), events=batch.events + events)
        )

    async def commit(self, batch: CommitBatch) -> Committed:
        """Commit what changes no decision: usage, meter heads, phase notes."""
        return await self._store.commit(batch)

    def begin(self, facts: tuple[Fact, ...]) -> tuple[SiteState, Plan]:
        """Begin a pass: apply the facts and plan; gives the state before and the plan."""
        instant = self.instant()
        before = self._before(instant)
        self.state = enter(self.site, before, instant, facts)
        return before, plan(self.site, self.state)

    async def finish(
        self, facts: tuple[Fact, ...], made: Plan, acts: tuple[Fact, ...], batch: CommitBatch
    ) -> tuple[SiteState, Committed]:
        """End the pass begun in this turn of the loop: apply the acts, commit the row.

        The first row of a run says by which site its decisions are made.
        """
        state = self.state = act(self.site, self.state, acts)
        row = TickRow(
            ROW_VERSION, state.instant, planned=True, facts=facts, acts=acts,
            decided=decided(self.site, made),
        )  # fmt: skip
        site_body, self._site_body = self._site_body, None
        return state, await self._store.commit(
            replace(batch, facts=encode_row(row), site=site_body)
        )

    def _before(self, instant: Instant) -> SiteState:
        """Give the state that a row begins from; history begins with the first row, not before."""
        return self.state if self.state.rows else new_state(self.site, instant)


def _hub_heard_ns(last: Instant, clock: Clock) -> int:
    """Carry over when the hub was last heard: a restart must not put off a lapse.

    A reboot puts it no earlier than the boot; the nodes keep their own count as well.
    """
    if last.hub_heard_ns < 0 or last.boot_id == clock.boot_id():
        return last.hub_heard_ns
    gone_s = max((clock.wall() - last.wall).total_seconds(), 0.0)
    age_ns = last.now_ns - last.hub_heard_ns + int(gone_s * NS_PER_S)
    return max(clock.boottime_ns() - age_ns, 0)
