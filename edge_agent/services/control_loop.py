"""The control loop: one pass every tick, and at once when something asks for it.

Two kinds of asking. What a person, the hub or the grid waits for (a lease, a policy, an operator, a
price out of its band, a lost device) gets its pass at once, 50 ms apart. What only tidies up (a
switch that ended, a meter that closed) is gathered for 250 ms, so that it never stands in the way.

Facts wait in a bounded inbox; a pass applies them, plans, commits facts, acts and intents as one
row, and only then starts switches. Whoever offers a lease waits for that commit.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.optimizer import plan
from edge_agent.core.order_facts import next_ms, wall_ms
from edge_agent.core.plan import Plan
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.resuming import carried_on, resume_acts
from edge_agent.core.site import NS_PER_S
from edge_agent.core.site_state import SiteState
from edge_agent.core.snapshot import encode_state
from edge_agent.core.switching import Stage, Switch, codes_of, encode_switch, outcomes_of
from edge_agent.ports import Clock, CommitBatch, CoreStore, SwitchRow
from edge_agent.services.intents import (
    Opened,
    gate_opened_at,
    open_switch,
    opened_instances,
    report,
)
from edge_agent.services.journal import Journal
from edge_agent.services.lease_events import Running, lease_events, tell, told_again
from edge_agent.services.metering import MeteringService
from edge_agent.services.prewarm_metrics import PREPARE_ACTS, PrewarmMetrics
from edge_agent.services.readings_buffer import ReadingsBuffer
from edge_agent.services.switch_costs import CostLearner
from edge_agent.services.switch_executor import SwitchExecutor
from edge_agent.services.switch_metrics import SwitchMetrics
from edge_agent.services.waiting import set_or_until
from protocol.event import Alarm, SwitchReport
from protocol.market import MarketTick
from protocol.sync import Stream

GAP_S = 0.05
TIDY_S = 0.25
INBOX_MAX = 10_000
SNAPSHOT_S = 3_600
SWITCHES_KEPT = 1_000
# A price that moved by less than this since the last pass waits for the tick.
PRICE_BAND_SHARE = 0.02
PRICE_BAND_USD = 1.0


_URGENT = (
    f.LeaseSeen,
    f.MarketSeen,
    f.NodeLost,
    f.NodeSaid,
    f.OperatorHeld,
    f.OrderCancelled,
    f.OrderSeen,
    f.OwnerSeen,
    f.PolicySeen,
)


class LoopCounters(Struct):
    """What the loop counts; mutable, read by the state report."""

    passes: int = 0
    dropped_facts: int = 0
    took_us: int = 0
    alarms: int = 0


class ControlLoop:
    """Owns the inbox and the passes.

    Args:
        new_id: draws an id with a prefix at a wall time.
        tick_s: period. on_pass: called after each pass (live totals, telemetry).
    """

    def __init__(
        self,
        journal: Journal,
        store: CoreStore,
        clock: Clock,
        metering: MeteringService,
        buffer: ReadingsBuffer,
        new_id: Callable[[str, datetime], str],
        tick_s: float,
    ) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._metering = metering
        self._buffer = buffer
        self._new_id = new_id
        self._tick_s = tick_s
        self._inbox: deque[f.Fact] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._asked = asyncio.Event()
        self._urgent = self._tidy = False
        self._passed_s = self._urgent_s = -TIDY_S
        self._snapshot_ns: int | None = None
        self._order_s = math.inf
        self._price: float | None = None
        self._alarmed: tuple[str, ...] = ()
        self.costs = CostLearner(journal.site, journal.state.switch_costs)
        self.metrics = SwitchMetrics()
        self.prewarm = PrewarmMetrics()
        self.executor: SwitchExecutor | None = None
        self.on_pass: Callable[[Plan], None] | None = None
        self.counters = LoopCounters()
        self.last_plan: Plan | None = None
        self.recent: deque[SwitchReport] = deque(maxlen=SWITCHES_KEPT)

    # --- the inbox ------------------------------------------------------------------------

    def offer(self, fact: f.Fact, *, wake: bool = True) -> None:
        """Put a fact into the next pass; a full inbox drops its oldest, counted."""
        if len(self._inbox) >= INBOX_MAX:
            self._inbox.popleft()
            self.counters.dropped_facts += 1
        self._inbox.append(fact)
        if wake:
            self.wake(urgent=isinstance(fact, _URGENT))

    async def offer_durably(self, fact: f.Fact) -> None:
        """Put a fact into the next pass, and return when the pass that took it is durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.offer(fact, wake=False)
        self.wake(urgent=True)
        await done

    def offer_market(self, tick: MarketTick) -> None:
        """Take a market tick; a price that left its band asks for a pass at once."""
        price = tick.price_usd_per_mwh
        band = max(PRICE_BAND_USD, PRICE_BAND_SHARE * abs(self._price or 0.0))
        left = price is not None and (self._price is None or abs(price - self._price) > band)
        if price is not None and left:
            self._price = price
        self.offer(f.MarketSeen(tick), wake=left)  # a price out of its band is urgent

    def wake(self, *, urgent: bool = False) -> None:
        """Ask for a pass: at once, or with what else there is to tidy up."""
        self._urgent = self._urgent or urgent
        self._tidy = True
        self._asked.set()

    async def run(self) -> None:
        """Run passes until cancelled."""
        while True:
            await self.one_pass()
            await self._due()

    async def _due(self) -> None:
        """Wait until the next pass is due: by the tick, or by what was asked for."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = min(self._passed_s + self._tick_s, self._order_s)
            if self._tidy:
                due_s = min(due_s, self._passed_s + TIDY_S)
            if self._urgent:
                due_s = min(due_s, self._urgent_s + GAP_S)
            if due_s <= loop.time():
                return
            self._asked.clear()
            await set_or_until(self._asked, due_s)

    async def one_pass(self) -> None:
        """Apply what waits, plan, make it durable, then start what was decided."""
        began_ns = self._clock.boottime_ns()
        self._passed_s = asyncio.get_running_loop().time()
        if self._urgent:
            self._urgent_s = self._passed_s
        self._urgent = self._tidy = False
        facts = self._drain()
        waiting, self._waiting = self._waiting, []
        try:
            before, made = self._journal.begin(facts)
            resumed = self._resumed(made)
            opened, acts, batch = self._decide(facts, before, made, resumed)
            durable = bool(acts or waiting or batch.events)
            state, committed = await self._journal.finish(
                facts, made, acts, replace(batch, sync=durable)
            )
        except BaseException as exc:
            for future in waiting:
                if not future.done():
                    future.set_exception(
                        exc if isinstance(exc, Exception) else ConnectionError("agent stops")
                    )
            raise
        self._carry_out(resumed, opened)
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if opened:
            # Nodes are asked before the work on what only tells of the pass.
            await asyncio.sleep(0)
        self.last_plan = made
        self._order_s = self._next_order_s(state)
        self.counters.passes += 1
        self.counters.took_us = max(self._clock.boottime_ns() - began_ns, 0) // 1_000
        self.prewarm.take(acts)
        if not opened and any(not isinstance(fact, PREPARE_ACTS) for fact in acts):
            self.wake(urgent=True)  # an ended or closed lease may make room for the next one
        await self._snapshot(state, committed.fact_seq)
        if self.on_pass is not None:
            self.on_pass(made)

    async def close_switch(self, switch: Switch) -> None:
        """Make the end of a switch durable: outcomes, closed row and reports in one commit."""
        instant = self._journal.instant()
        instances = opened_instances(switch)
        known = self._metering.closed_of(instances)
        opened = tuple(key for key in instances if key not in known)
        told = report(switch, instant.wall, instant.now_ns)
        fact = f.SwitchClosed(
            switch.switch_id,
            tuple(device.device_id for device in switch.devices),
            outcomes_of(switch),
            told.took_us,
            opened,
            codes_of(switch),
            "" if switch.mode is None else switch.mode.mode,
        )
        row = SwitchRow(switch_id=switch.switch_id, body=encode_switch(switch), closed=True)
        self._metering.expect(opened, instant.wall)
        await self._journal.note(
            (fact,),
            CommitBatch(switches=(row,), events=(told,)),
            running=Running(gate_opened_at(switch), told.took_us / 1_000),
        )
        self.recent.append(told)
        self.metrics.take(switch, instant.now_ns)
        cost = self.costs.take(switch, instant.now_ns)
        if cost is not None:
            self.offer(cost, wake=False)
        self.wake()

    def dry_run(self) -> Plan:
        """Plan for the present state without acting."""
        return plan(self._journal.site, self._journal.state)

    # --- inside ---------------------------------------------------------------------------

    def _next_order_s(self, state: SiteState) -> float:
        """Give when a grid order next wants a pass, on the loop's clock; a tick may be too late."""
        at_ms = next_ms(self._journal.site, state) if state.orders else None
        if at_ms is None:
            return math.inf
        wait_s = max(at_ms - wall_ms(state), 0) / 1_000
        return max(self._passed_s + GAP_S, self._passed_s + wait_s)

    def _drain(self) -> tuple[f.Fact, ...]:
        facts = tuple(self._inbox)
        self._inbox.clear()
        state = self._journal.state
        # A node's late word may name an instance again whose meter is closed already.
        closed = self._metering.closed_of(
            tuple(key for entry in state.leases for key in entry.to_close)
        )
        if closed:
            facts = (*facts, f.MetersPassed(closed=closed))
        readings = self._buffer.collect(state)
        return facts if readings is None else (*facts, readings)

    def _resumed(self, made: Plan) -> tuple[Switch, ...]:
        """Give the held switches that are carried out from now on, on or back."""
        held = {} if self.executor is None else self.executor.held
        site, state = self._journal.site, self._journal.state
        return tuple(
            carried_on(site, state, held[row.switch_id], forward=row.forward)
            for row in made.resumes
            if row.switch_id in held
        )

    def _carry_out(self, resumed: tuple[Switch, ...], opened: tuple[Opened, ...]) -> None:
        if self.executor is None:
            return
        for switch in resumed:
            self.executor.resume(switch)
        for row in opened:
            self.executor.start(row.switch)

    def _decide(
        self,
        facts: tuple[f.Fact, ...],
        before: SiteState,
        made: Plan,
        resumed: tuple[Switch, ...],
    ) -> tuple[tuple[Opened, ...], tuple[f.Fact, ...], CommitBatch]:
        state, site = self._journal.state, self._journal.site
        wall = state.instant.wall
        usage_seq = next(
            (head.next_seq - 1 for head in self._store.heads() if head.stream is Stream.USAGE), 0
        )
        told = tell(state, made.leases, wall, usage_seq)
        room = 0 if self.executor is None else self.executor.room()
        opened = tuple(
            open_switch(site, state, intent, lambda prefix: self._new_id(prefix, wall))
            for intent in made.intents[:room]
        )
        prepares = prepare_acts(site, state, made)
        acts = (*resume_acts(made), *told.facts, *prepares, *(row.fact for row in opened))
        # A later life finds what was turned back on its way back.
        turned = (switch for switch in resumed if switch.stage is not Stage.FORWARD)
        events = (
            *lease_events(before, state, wall, self._journal.endpoints.url_of),
            *told_again(before, facts, wall),
            *told.events,
            *self._alarms(made, wall),
        )
        leases = tuple(fact.lease for fact in facts if isinstance(fact, f.LeaseSeen))
        policies = [fact.policy for fact in facts if isinstance(fact, f.PolicySeen)]
        batch = CommitBatch(
            switches=tuple(
                SwitchRow(switch_id=switch.switch_id, body=encode_switch(switch), closed=False)
                for switch in (*turned, *(row.switch for row in opened))
            ),
            events=events,
            leases=leases,
            dropped_leases=tuple(
                fact.lease_id for fact in facts if isinstance(fact, f.LeaseCleared)
            ),
            policy=state.policy if policies else None,
        )
        return opened, acts, batch

    def _alarms(self, made: Plan, wall: datetime) -> tuple[Alarm, ...]:
        """Tell an alarm once while it lasts."""
        codes = tuple(code for code, _ in made.alarms)
        fresh = [row for row in made.alarms if row[0] not in self._alarmed]
        self._alarmed = codes
        self.counters.alarms += len(fresh)
        return tuple(Alarm(at=wall, code=code, detail=detail) for code, detail in fresh)

    async def _snapshot(self, state: SiteState, fact_seq: int) -> None:
        due = self._snapshot_ns is None or state.now_ns - self._snapshot_ns >= SNAPSHOT_S * NS_PER_S
        if due:
            self._snapshot_ns = state.now_ns
            await self._store.save_snapshot(fact_seq, encode_state(self._journal.site, state))
