"""Move workloads: place what is queued, end what is cancelled, too dear, expired or cut off.

A reconciler: woken by commits that matter, and by what only time brings about, to the second; each
step is one guarded write job, so that a pass which raced with a report of a site changes nothing.
While nothing is due the store is asked for no more than whether a rate card was added.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from msgspec.structs import replace

from hub.core.leases import after_release, end_of, is_lapsed, lapses_after_s
from hub.core.placement import (
    OpenLease,
    PlaceRequest,
    SiteOffer,
    best,
    rank,
    waiting_reason,
)
from hub.core.rating import RateCard
from hub.core.workload_states import WorkloadState
from hub.errors import HubError
from hub.ingest.counters import Counters
from hub.ingest.effects import Effects
from hub.ports import Clock, Store
from hub.services.agenda import NS_PER_S, Agenda
from hub.store import leases, rate_cards, sites, sync_tables, workloads
from hub.store.offers import read_offers
from hub.store.workloads import WorkloadRow
from protocol.event import ReleaseOutcome
from protocol.ids import WorkloadId, lease_id_of
from protocol.lease import EndReason, Lease, LeaseState
from protocol.units import to_ms

_log = logging.getLogger("hub.placement")

# How finely time is looked at, and how soon a pass follows one that may not have seen everything.
PERIOD_S = 1.0
# asyncio may fire a timer this much early.
TIMER_SLACK_S = 0.001
# After a pass that could place nothing, the next one waits: a stream of submissions to full sites
# must not read the whole queue again for each of them.
IDLE_GAP_S = 0.05
# Workloads of one state looked at in a pass; the rest waits for the next one.
PASS_MAX = 200
# A lease ends this long before a price above its limit comes into force.
PRICE_LEAD = timedelta(seconds=60)
REFUSED_PAUSE_MS = 10_000
_ACTIVE = (WorkloadState.PLACING, WorkloadState.STARTING, WorkloadState.RUNNING)

Job = Callable[[sqlite3.Connection], Effects]


class Placement:
    """The placement service; also the ``Dispatcher`` that wakes it.

    Args:
        store: the operational store. clock: time. counters: what happened.
        carry_out: does what a commit left (live channel, publishing of leases).
        heard_ns: boottime at which each site was last heard from, in this run.
        energy_prices: present energy price by site in USD/MWh, where known.

    Attributes:
        waiting: why each queued workload could not be placed in the last pass.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        counters: Counters,
        carry_out: Callable[[Effects], None],
        heard_ns: dict[str, int],
        energy_prices: Callable[[], dict[str, float | None]] = dict,
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._carry_out = carry_out
        self._heard_ns = heard_ns
        self._energy_prices = energy_prices
        self._agenda = Agenda(clock)
        self._wake = asyncio.Event()
        self._woken = False
        self._again = False
        self._card_version = 0
        # A site not heard from in this run counts as silent from here on, never from before.
        self._started_ns = clock.boottime_ns()
        self.waiting: dict[str, str] = {}

    def wake(self) -> None:
        """Ask for a pass soon."""
        self._woken = True
        self._wake.set()

    def publish(self, lease_ids: Sequence[str]) -> None:
        """Have newer generations of these leases sent to their sites at once."""
        effects = Effects()
        effects.lease_ids.extend(lease_ids)
        self._carry_out(effects)

    def publish_orders(self) -> None:
        """Have changed grid orders sent to their sites at once."""
        effects = Effects()
        effects.orders = True
        self._carry_out(effects)

    async def run(self) -> None:
        """Make passes until cancelled."""
        loop = asyncio.get_running_loop()
        sweep_s = loop.time()
        while True:
            # A pass without a sweep, one that failed and one that moved something has a successor.
            self._again = loop.time() < sweep_s - TIMER_SLACK_S
            self._woken = False
            moved = 0
            try:
                if not self._again:
                    sweep_s = loop.time() + PERIOD_S
                    await self.sweep()
                moved = await self.cancel_and_place()
            except HubError as exc:
                self._failed(exc)
            if moved:
                self._again = True
            else:
                await asyncio.sleep(IDLE_GAP_S)
            await self._until_due(sweep_s)

    async def _until_due(self, at_s: float) -> None:
        """Wait for a wake, or to the end of the first period in which something became due."""
        loop = asyncio.get_running_loop()
        while not self._woken:
            self._wake.clear()
            timer = loop.call_at(at_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
            if self._is_due():
                return
            at_s = max(at_s, loop.time()) + PERIOD_S

    def _is_due(self) -> bool:
        return self._woken or self._again or self._agenda.is_due() or self._card_added()

    async def sweep(self) -> None:
        """Look at what only time brings about: expiry, prices, sites that fell silent."""
        now = self._clock.wall()
        self._agenda.begin(now)
        cards = self._read_cards()
        epoch = sync_tables.read_epoch(self._store)
        settled = not sites.not_reported_since_restore(self._store, epoch)
        jobs: list[Job] = []
        for row in self._with_states((WorkloadState.QUEUED, *_ACTIVE)):
            self._agenda.at_wall(row.expires_at)
            if row.expires_at is not None and row.expires_at <= now:
                jobs.append(_end_or_close(row, WorkloadState.EXPIRED, EndReason.EXPIRED, now))
            elif row.state in _ACTIVE and _too_dear(cards, row, now):
                jobs.append(_end(row, EndReason.PRICE_ABOVE_MAX))
        jobs += [_lapse(lease, now) for lease in self._lapsed()] if settled else []
        await self._do(jobs)

    def _read_cards(self) -> tuple[RateCard, ...]:
        cards = rate_cards.list_cards(self._store)
        self._card_version = max((card.version for card in cards), default=0)
        for card in cards:
            self._agenda.at_wall(card.effective_from - PRICE_LEAD)
            self._agenda.at_wall(card.effective_from)
        return cards

    def _card_added(self) -> bool:
        """Tell whether another process has added a rate card: nobody wakes us for that."""
        return rate_cards.newest_version(self._store) != self._card_version

    def _lapsed(self) -> list[Lease]:
        lapsed: list[Lease] = []
        for row in leases.open_leases(self._store):
            after_s = lapses_after_s(row.lease)
            if row.lapsed_at is not None or after_s is None:
                continue
            heard_ns = self._heard_ns.get(row.lease.site_id, self._started_ns)
            self._agenda.at_boottime(heard_ns + int(after_s * NS_PER_S))
            if is_lapsed(row.lease, (self._clock.boottime_ns() - heard_ns) / NS_PER_S):
                lapsed.append(row.lease)
        return lapsed

    async def cancel_and_place(self) -> int:
        """End what customers cancelled, then place what is queued; gives how many it moved."""
        now = self._clock.wall()
        ended = await self._do(
            _end_or_close(row, WorkloadState.CANCELLED, EndReason.CANCELLED, now)
            for row in self._with_states((WorkloadState.CANCELLING,))
        )
        queued = self._with_states((WorkloadState.QUEUED,))
        self.waiting = {}
        if not queued:
            return ended
        epoch = sync_tables.read_epoch(self._store)
        unsettled = sites.not_reported_since_restore(self._store, epoch)
        if unsettled:
            # Any of them may run what looks queued here.
            self.waiting = {row.workload_id: "sites_not_reported" for row in queued}
            return ended
        return ended + await self._do(self._choose(queued, now))

    def _choose(self, queued: Sequence[WorkloadRow], now: datetime) -> list[Job]:
        cards = rate_cards.list_cards(self._store)
        offers = {row.site_id: row for row in read_offers(self._store, self._energy_prices())}
        jobs: list[Job] = []
        for row in queued:
            price = rate_cards.price_now(cards, row.device_class, now)
            if _too_dear(cards, row, now):
                self.waiting[row.workload_id] = "price_above_max"
                continue
            request = PlaceRequest(
                device_class=row.device_class,
                count=row.count,
                priority=row.priority,
                site_id=row.site_id,
                avoid=self._refused(row, now),
            )
            candidates = rank(request, tuple(offers.values()))
            chosen = best(candidates)
            if chosen is None:
                self.waiting[row.workload_id] = waiting_reason(candidates)
                continue
            offers[chosen.site_id] = _promised(offers[chosen.site_id], row)
            jobs.append(_issue(row.workload_id, chosen.site_id, price or Decimal(0), now))
        return jobs

    def _refused(self, row: WorkloadRow, now: datetime) -> tuple[str, ...]:
        if row.attempt == 0:
            return ()
        since_ms = to_ms(now) - REFUSED_PAUSE_MS
        refused = leases.refused_since(self._store, row.workload_id, since_ms)
        self._again = self._again or bool(refused)
        return refused

    def _with_states(self, states: Iterable[WorkloadState]) -> tuple[WorkloadRow, ...]:
        found: list[WorkloadRow] = []
        for state in states:
            rows = workloads.find_by_state(self._store, state, PASS_MAX)
            self._again = self._again or len(rows) == PASS_MAX
            found += rows
        return tuple(found)

    async def _do(self, jobs: Iterable[Job]) -> int:
        """Run jobs together, so that they share a commit; one that fails harms no other."""
        started = 0
        async with asyncio.TaskGroup() as tasks:
            for started, job in enumerate(jobs, start=1):
                tasks.create_task(self._do_one(job), name=f"placement-{started}")
        return started

    async def _do_one(self, job: Job) -> None:
        try:
            effects = await self._store.write(job)
        except HubError as exc:
            self._failed(exc)
            return
        # What a step of ours leaves needs no second pass, except a wake for a freed workload.
        self._carry_out(effects)

    def _failed(self, exc: HubError) -> None:
        self._again = True
        self._counters.add(f"placement_{exc.code}")
        _log.error("placement=failed why=%s", exc)


def _too_dear(cards: Sequence[RateCard], row: WorkloadRow, now: datetime) -> bool:
    """Tell whether a price in force now or about to be is above the customer's limit or unknown."""
    limit = row.max_price_usd_per_h
    if limit is None:
        return False
    prices = (
        rate_cards.price_now(cards, row.device_class, now),
        rate_cards.price_now(cards, row.device_class, now + PRICE_LEAD),
    )
    return any(price is None or price > limit for price in prices)


def _promised(offer: SiteOffer, row: WorkloadRow) -> SiteOffer:
    lease = OpenLease(
        device_class=row.device_class,
        count=row.count,
        priority=row.priority,
        reported=False,
        ending=False,
    )
    return replace(offer, leases=(*offer.leases, lease))


def _issue(workload_id: str, site_id: str, price_usd_per_h: Decimal, now: datetime) -> Job:
    """Issue the next attempt, unless the workload moved on or its last attempt is not over."""

    def job(connection: sqlite3.Connection) -> Effects:
        effects = Effects()
        row = workloads.get(connection, workload_id)
        last = leases.newest_attempt(connection, workload_id)
        previous = leases.get(connection, lease_id_of(WorkloadId(workload_id), last))
        over = previous is None or previous.released_at is not None
        lapsed = previous is not None and previous.lapsed_at is not None
        if row.state is not WorkloadState.QUEUED or not (over or lapsed):
            effects.counts["issue_overtaken"] += 1
            return effects
        attempt = max(last, row.attempt) + 1
        lease = Lease(
            hub_epoch=sync_tables.meta(connection, "hub_epoch"),
            generation=1,
            lease_id=lease_id_of(WorkloadId(workload_id), attempt),
            workload_id=workload_id,
            attempt=attempt,
            site_id=site_id,
            state=LeaseState.RUN,
            device_class=row.device_class,
            count=row.count,
            priority=row.priority,
            spec=row.spec,
            issued_at=now,
            on_partition=row.on_partition,
            lapse_after_s=row.lapse_after_s,
            price_usd_per_h=price_usd_per_h,
            keys=row.keys,
        )
        leases.insert(connection, lease, row.customer_id)
        effects.lease_ids.append(lease.lease_id)
        effects.transition(
            workloads.transition(
                connection,
                workload_id,
                WorkloadState.PLACING,
                reason="issued",
                actor="hub",
                at=now,
                attempt=attempt,
                placed_site_id=site_id,
            )
        )
        effects.wake = False
        return effects

    return job


def _end(row: WorkloadRow, reason: EndReason) -> Job:
    """Ask the edge to end the newest attempt, once."""

    def job(connection: sqlite3.Connection) -> Effects:
        effects = Effects()
        _ask_end(connection, row, reason, effects)
        return effects

    return job


def _end_or_close(row: WorkloadRow, to: WorkloadState, reason: EndReason, now: datetime) -> Job:
    """Ask for the end of the newest attempt; with none open, close the workload."""

    def job(connection: sqlite3.Connection) -> Effects:
        effects = Effects()
        current = workloads.get(connection, row.workload_id)
        if current.state is not row.state or current.attempt != row.attempt:
            return effects
        if not _ask_end(connection, row, reason, effects):
            effects.transition(
                workloads.transition(
                    connection, row.workload_id, to, reason=reason.value, actor="hub", at=now
                )
            )
            effects.wake = False
        return effects

    return job


def _ask_end(
    connection: sqlite3.Connection, row: WorkloadRow, reason: EndReason, effects: Effects
) -> bool:
    """Give the newest attempt its end generation; False when no attempt is open."""
    held = leases.get(connection, lease_id_of(WorkloadId(row.workload_id), row.attempt))
    if held is None or held.released_at is not None or held.lapsed_at is not None:
        return False
    if held.lease.state is LeaseState.RUN:
        epoch = sync_tables.meta(connection, "hub_epoch")
        leases.update(connection, end_of(held.lease, hub_epoch=epoch, reason=reason))
        effects.lease_ids.append(held.lease.lease_id)
        effects.counts[f"lease_end_{reason.value}"] += 1
    return True


def _lapse(lease: Lease, now: datetime) -> Job:
    """Give up a silent site: end the attempt there for good, and free the workload."""

    def job(connection: sqlite3.Connection) -> Effects:
        effects = Effects()
        held = leases.get(connection, lease.lease_id)
        if held is None or held.released_at is not None or held.lapsed_at is not None:
            return effects
        leases.set_lapsed(connection, lease.lease_id, now)
        epoch = sync_tables.meta(connection, "hub_epoch")
        if held.lease.state is LeaseState.RUN:
            ended = end_of(held.lease, hub_epoch=epoch, reason=EndReason.MOVED)
            leases.update(connection, ended)
        effects.lease_ids.append(lease.lease_id)
        effects.counts["lease_lapsed"] += 1
        row = workloads.get(connection, lease.workload_id)
        if row.attempt != lease.attempt:
            return effects
        for step in after_release(row.state, ReleaseOutcome.LAPSED, held.lease.end_reason):
            effects.transition(
                workloads.transition(
                    connection,
                    lease.workload_id,
                    step.to,
                    reason="site_silent" if step.to is WorkloadState.QUEUED else step.reason,
                    actor="hub",
                    at=now,
                )
            )
        return effects

    return job
