"""The agent's brain as one object: composed from ports, wired by ``main.py`` and the simulation."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

import numpy as np
from msgspec import Struct, structs

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.curtailable import curtailable
from edge_agent.core.device_time import device_time
from edge_agent.core.economics import hashprice
from edge_agent.core.errors import ActError
from edge_agent.core.explain import Explanation, why
from edge_agent.core.leases import lease_of
from edge_agent.core.order_facts import limit_w
from edge_agent.core.plan import Plan
from edge_agent.core.site import NS_PER_S, CodeColumn, FloatColumn, Site
from edge_agent.core.site_state import LeaseStatus, SiteState, mode_of
from edge_agent.core.snapshot import state_hash
from edge_agent.devices.ports import AsicFleet, AsicReadings
from edge_agent.ports import Clock, CommitBatch, CoreStore, NodeLinks, Recovered
from edge_agent.services import state_report as report
from edge_agent.services.control_loop import ControlLoop
from edge_agent.services.fence_words import FenceWords, Released
from edge_agent.services.grid_desk import GridDesk
from edge_agent.services.journal import Journal
from edge_agent.services.metering import MeteringService
from edge_agent.services.order_reports import OrderReports
from edge_agent.services.prewarm_words import says_new, wanted
from edge_agent.services.readings_buffer import ReadingsBuffer
from edge_agent.services.recovery import restore
from edge_agent.services.switch_executor import SwitchExecutor
from protocol.event import Alarm, SiteLive, SwitchReport
from protocol.lease import Lease, SitePolicy
from protocol.market import MarketTick
from protocol.node import (
    GpuRelease,
    Inventory,
    LeaseKeys,
    NodeDevice,
    NodeEvent,
    NodeFacts,
    Prepare,
    Readings,
)
from protocol.resource import ACTIVITY_CODES
from protocol.sync import LeaseHead
from protocol.units import minute_floor

logger = logging.getLogger(__name__)

CLOCK_OFFSET_MAX_S = 2.0
# A node's word on an activity counts when it says so twice: facts cross the answers of phases.
DISAGREEMENTS = 2
HOLD_S_MAX = 30 * 86_400.0


class AgentPorts(Struct, frozen=True, kw_only=True, eq=False):
    """What the brain needs of the world.

    Args:
        new_id: draws an id from a prefix and a wall time (``IdSource.new``).
        on_live: takes live totals after each tick. on_sample: takes telemetry columns by name and
            the wall time after each tick.
        backlog: records not yet acked by the hub, for the live totals.
    """

    store: CoreStore
    clock: Clock
    links: NodeLinks
    fleet: AsicFleet
    new_id: Callable[[str, datetime], str]
    on_live: Callable[[SiteLive], None] | None = None
    on_sample: Callable[["Sample"], None] | None = None
    backlog: Callable[[], int] | None = None


class Sample(Struct, frozen=True, eq=False):
    """Telemetry of one tick over the site's devices; NaN is unknown; columns are copies."""

    at: datetime
    activity: CodeColumn
    power_w: FloatColumn
    hashrate_ths: FloatColumn
    temp_c: FloatColumn
    utilisation: FloatColumn


class Agent:
    """The brain: facts in, plans and switches out, usage and events into the store.

    Wiring: ``recovered = await store.recover()``; ``Agent(site, ports, recovered)``; then inside
    the root's TaskGroup run ``agent.run()``, the node links (this object is their NodeSink), the
    ASIC poller (``offer_asic``), the feeds (``offer_market``) and the uplink (``offer_lease``
    and the other offers). Whatever is offered before ``run`` waits for the first pass.

    Args:
        recovered: what the store holds. tick_s: period of the decision.
    """

    def __init__(
        self, site: Site, ports: AgentPorts, recovered: Recovered, tick_s: float = 5.0
    ) -> None:
        self.site = site
        self.agent_epoch = recovered.agent_epoch
        self._ports = ports
        clock = ports.clock
        instant = f.Instant(clock.boot_id(), clock.boottime_ns(), clock.wall())
        restored = restore(site, recovered, instant)
        self._restored = restored
        self._journal = Journal(site, ports.store, clock, restored.state)
        self._buffer = ReadingsBuffer(site)
        self._metering = MeteringService(
            self._journal, self._offer, recovered.meter_heads, recovered.node_marks
        )
        self._loop = ControlLoop(
            self._journal, ports.store, clock, self._metering, self._buffer, ports.new_id, tick_s
        )
        self.grid = GridDesk(self._journal, clock.wall, self._loop.offer_durably, ports.new_id)
        self._order_reports = OrderReports(self._journal, clock.wall)
        self._executor = SwitchExecutor(
            self._journal,
            ports.links,
            ports.fleet,
            clock,
            self.agent_epoch,
            self._loop.close_switch,
        )
        self._loop.executor = self._executor
        self._loop.on_pass = self._after_pass
        self._fences = FenceWords(clock.boottime_ns)
        self._disagreed: dict[str, int] = {}
        self._agreed: dict[str, tuple[tuple[NodeDevice, ...], tuple[object, ...]]] = {}
        self._told: tuple[datetime, bytes] | None = None
        self._last_live_ns: int | None = None
        self._tick_s = tick_s
        self._report_due = asyncio.Event()

    async def run(self) -> None:
        """Recover, then run passes, switches and reports until cancelled."""
        wall = self._ports.clock.wall()
        for fact in self._restored.facts:
            self._loop.offer(fact)
        for entry in self._restored.state.leases:
            if entry.status is not LeaseStatus.CLOSED:
                self._metering.expect(entry.to_close, wall)
        for switch in self._restored.held:
            self._executor.hold(switch)
        await self._loop.one_pass()
        for switch in self._restored.switches:
            self._executor.start(switch)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._executor.run(), name="switch executor")
            group.create_task(self._loop.run(), name="control loop")
            group.create_task(self._report(), name="state report")
            group.create_task(self._order_reports.run(), name="order reports")

    # --- what the world offers ------------------------------------------------------------

    async def offer_lease(self, lease: Lease) -> None:
        """Take desired state of a lease; returns when lease and decision are durable."""
        await self._loop.offer_durably(f.LeaseSeen(lease))

    async def offer_lease_cleared(self, lease_id: str) -> None:
        """The hub cleared a released lease's topic; lost in a crash, the manifest says it again."""
        self._loop.offer(f.LeaseCleared(lease_id))

    async def offer_policy(self, policy: SitePolicy) -> None:
        """Take desired state of the site; returns when it is durable."""
        await self._loop.offer_durably(f.PolicySeen(policy))

    def offer_manifest(self, leases: tuple[LeaseHead, ...]) -> None:
        """Take the hub's manifest: work of leases that it does not name is ended."""
        self._loop.offer(f.ManifestSeen(tuple(head.lease_id for head in leases)))

    def offer_owner(self, owner: bool) -> None:  # noqa: FBT001 - the callback of the uplink
        """Take whether this store owns the site; one that does not writes to no device."""
        if owner != self.state.owner:
            self._loop.offer(f.OwnerSeen(owner))

    def offer_market(self, tick: MarketTick) -> None:
        """Take a market tick."""
        self._loop.offer_market(tick)

    def offer_asic(self, readings: AsicReadings) -> None:
        """Take the newest readings of the miners."""
        self._buffer.take_asics(readings)
        self._wake_for_held()

    def hub_heard(self, hub_time: datetime | None = None) -> None:
        """Note that a message of the hub arrived, with the hub's time when it carried one."""
        self._journal.hub_heard_ns = self._ports.clock.boottime_ns()
        if hub_time is None:
            return
        # Two hosts' walls may be compared, once, to judge the clock; nothing is measured with it.
        offset_s = abs((self._ports.clock.wall() - hub_time).total_seconds())
        suspect = offset_s > CLOCK_OFFSET_MAX_S
        if suspect != self.state.suspect:
            self._loop.offer(f.ClockSuspected(suspect))

    def hub_heard_age_ms(self) -> int | None:
        """Give the age of the last hub message for the node links; None: never in this boot."""
        heard_ns = self._journal.hub_heard_ns
        if heard_ns < 0:
            return None
        return max(self._ports.clock.boottime_ns() - heard_ns, 0) // 1_000_000

    def lease_keys(self, node_id: str) -> tuple[LeaseKeys, ...]:
        """Give the leases held on a node's devices, and who may use what they serve."""
        return self._journal.endpoints.keys_at(self.state, node_id)

    def prepare(self, node_id: str) -> tuple[Prepare, ...]:
        """Give all that is to be held ready on a node's devices now."""
        return wanted(self.site, self.state, node_id)

    def release(self, node_id: str) -> tuple[GpuRelease, ...]:
        """Give the fences of a node's devices that an operator ends now."""
        return self._fences.words(node_id)

    # --- NodeSink -------------------------------------------------------------------------

    def reading_mark(self, node_id: str) -> int:
        """Give the last reading of the node whose usage is durable; 0 is none."""
        return self._metering.mark(node_id)

    async def on_inventory(self, inventory: Inventory) -> None:
        """Adopt what the node holds."""
        self._take_url(inventory.node_id, inventory.proxy_url)
        alarm = self._metering.inventory(inventory)
        alarms = () if alarm is None else (self._alarm(*alarm),)
        foreign = self._foreign(inventory.devices)
        fact = f.NodeAdopted(inventory.node_id, inventory.devices)
        await self._journal.note(
            (fact,), CommitBatch(events=(*alarms, *foreign), sync=bool(alarms or foreign))
        )
        self._loop.wake()

    async def on_readings(self, node_id: str, readings: Readings) -> None:
        """Make usage of the readings durable."""
        await self._metering.take(node_id, readings)

    async def on_facts(self, node_id: str, facts: NodeFacts) -> None:
        """Take samples; adopt activities that differ from the belief twice in a row."""
        self._take_url(node_id, facts.proxy_url)
        self._buffer.take_gpus(facts.samples, self._ports.clock.boottime_ns())
        if unreadable := self._fences.take(node_id, facts.samples):
            await self._tell_unreadable(node_id, unreadable)
        self._wake_for_held()
        state = self.state
        if (
            state.prepares
            and not facts.unheard
            and says_new(self.site, state, node_id, facts.prepared)
        ):
            self._loop.offer(f.PrepareSaid(node_id, facts.prepared))
        believed = (state.activity, state.switch_no, state.lease_no, state.leases)
        agreed = self._agreed.get(node_id)
        # Columns are copied when written: the same ones are the same belief as a second ago.
        if agreed is not None and agreed[0] == facts.devices:
            same = (now is then for now, then in zip(believed, agreed[1], strict=True))
            if all(same):
                return
        differing = tuple(device for device in facts.devices if self._differs(device))
        if differing:
            self._loop.offer(f.NodeAdopted(node_id, differing))
        if any(device.device_id in self._disagreed for device in facts.devices):
            self._agreed.pop(node_id, None)
        else:
            self._agreed[node_id] = (facts.devices, believed)

    async def on_event(self, node_id: str, event: NodeEvent) -> None:
        """Take what happened on a node by itself."""
        self._loop.offer(f.NodeSaid(node_id, event))

    async def on_lost(self, node_id: str) -> None:
        """Note that a node cannot be reached; its intervals stay open."""
        self._buffer.lose_node(node_id)
        self._fences.lose(node_id)
        self._loop.offer(f.NodeLost(node_id))

    # --- local API ------------------------------------------------------------------------

    @property
    def state(self) -> SiteState:
        """Give the present state."""
        return self._journal.state

    def status(self) -> report.Status:
        """Give the status of the site."""
        state, site = self.state, self.site
        power = pw.view(site, state)
        age_ms = self.hub_heard_age_ms()
        can_go = curtailable(site, state)
        return report.Status(
            v=report.VIEW_VERSION,
            site_id=site.site_id,
            at=self._ports.clock.wall(),
            agent_epoch=self.agent_epoch,
            owner=state.owner,
            hub_heard_age_s=None if age_ms is None else age_ms / 1_000,
            nodes=tuple((node, self._ports.links.connected(node)) for node in site.nodes),
            power_w=power.measured_w,
            power_counted_w=power.counted_w,
            power_cap_w=power.cap_w,
            market=report.market_lines(state),
            hashprice_usd_per_ths_day=hashprice(state.market),
            earning_usd_per_h=report.earning_usd_per_h(site, state),
            hashrate_ths=report.hashrate_ths(site, state),
            classes=report.class_reports(site, state),
            leases=report.held_leases(state, self._journal.endpoints.url_of),
            switches=report.switch_stats(tuple(self._loop.recent), len(self._executor.open)),
            passes=self._loop.counters.passes,
            pass_us=self._loop.counters.took_us,
            problems=report.problems(site, state),
            feeders=fd.views(site, state),
            order_limit_w=limit_w(site, state),
            curtailable_mw_5s=sum((row.curtailable_mw_5s for row in can_go), 0.0),
            curtailable_mw_10min=sum((row.curtailable_mw_10min for row in can_go), 0.0),
            prewarm=None if site.prewarm is None else self._loop.prewarm.view(state.prepares),
        )

    def devices(self) -> tuple[report.DeviceLine, ...]:
        """Give every device."""
        return report.device_lines(self.site, self.state, self._loop.last_plan)

    def why(self, device_id: str) -> Explanation:
        """Explain what a device does.

        Raises:
            ActError: the site has no such device.
        """
        said = why(self.site, self.state, self._loop.dry_run(), self._index(device_id))
        return structs.replace(said, fence=self._fences.text(device_id))

    def plan(self) -> report.PlanView:
        """Give what would be done now; does nothing."""
        return report.plan_view(self.site, self._loop.dry_run(), self._ports.clock.wall())

    def switches(self) -> tuple[SwitchReport, ...]:
        """Give the finished switches of this run, newest last."""
        return tuple(self._loop.recent)

    def metrics(self) -> str:
        """Give the histograms of this run in the text form of Prometheus."""
        prewarm = self._loop.prewarm.text(self.state.prepares)
        return self._loop.metrics.text(self.state.switch_costs) + prewarm

    def device_time(self, device_id: str) -> report.TimeLine:
        """Give the ledger of a device's time.

        Raises:
            ActError: the site has no such device.
        """
        at = self._index(device_id)
        return report.TimeLine(
            device_id=device_id, times=device_time(self.state, at, self.state.now_ns)
        )

    @property
    def passes(self) -> int:
        """Give how many passes were made in this run."""
        return self._loop.counters.passes

    def ledger_ns(self) -> int:
        """Give the boottime up to which the ledgers count: that of the last pass."""
        return self.state.now_ns

    def state_hash(self) -> bytes:
        """Give the hash of the state, to compare with a replay."""
        return state_hash(self.site, self.state)

    async def drain(self, device_id: str, for_s: float | None, reason: str) -> None:
        """Take a device out of use; its lease moves to another device or ends.

        Args:
            for_s: None until undrained.

        Raises:
            ActError: no such device, or a time out of range.
        """
        await self.hold(device_id, f.HoldMode.DRAIN, for_s, reason)

    async def undrain(self, device_id: str) -> Released | None:
        """End any hold and any quarantine of a device, and have the fence of its GPU released.

        Returns:
            What comes of its fence, so far; None: it has none.

        Raises:
            ActError: the site has no such device.
        """
        await self.hold(device_id, f.HoldMode.NONE, None, "released")
        node_id = self.site.devices[self._index(device_id)].node_id
        return self._fences.release(device_id, node_id)

    def released(self, device_id: str) -> Released | None:
        """Give what came of the last word on the fence of a device; None: there was none."""
        return self._fences.released(device_id)

    async def hold(
        self, device_id: str, mode: f.HoldMode, for_s: float | None, reason: str
    ) -> None:
        """Hold a device in a mode; returns when that is durable.

        Raises:
            ActError: no such device, or a time out of range.
        """
        self._index(device_id)
        if for_s is not None and not 0.0 < for_s <= HOLD_S_MAX:
            raise ActError("bad_duration", f"for: must be within 0..{HOLD_S_MAX:.0f} s")
        now_ns = self._journal.instant().now_ns
        until = None if for_s is None else now_ns + int(for_s * NS_PER_S)
        await self._loop.offer_durably(f.OperatorHeld(device_id, mode, until, reason[:500]))

    # --- inside ---------------------------------------------------------------------------

    def _offer(self, fact: f.Fact) -> None:
        self._loop.offer(fact)

    def _wake_for_held(self) -> None:
        """Have readings looked at soon that a switch of a former life waits for."""
        if self._executor.held:
            self._loop.wake()

    def _index(self, device_id: str) -> int:
        at = self.site.index_of(device_id)
        if at is None:
            raise ActError("no_device", f"the site has no device {device_id[:100]!r}")
        return at

    def _alarm(self, code: str, detail: str, device_id: str | None = None) -> Alarm:
        return Alarm(
            at=self._ports.clock.wall(), code=code, detail=detail[:2_000], device_id=device_id
        )

    async def _tell_unreadable(self, node_id: str, device_ids: tuple[str, ...]) -> None:
        """Tell once that a host fenced its cards as it cannot read its record of them."""
        detail = f"{node_id}: fence record unreadable; look at each card, then `undrain` it"
        alarms = tuple(self._alarm("fence_record_unreadable", detail, key) for key in device_ids)
        await self._journal.commit(CommitBatch(events=alarms, sync=True))

    def _foreign(self, devices: tuple[NodeDevice, ...]) -> tuple[Alarm, ...]:
        known = {
            entry.lease_id
            for entry in self.state.leases
            if entry.status not in (LeaseStatus.CLOSED, LeaseStatus.FOREIGN)
        }
        return tuple(
            self._alarm("unknown_lease", f"serves {device.work.lease_id}", device.device_id)
            for device in devices
            if device.work is not None and device.work.lease_id not in known
        )[:16]

    def _differs(self, device: NodeDevice) -> bool:
        """Tell whether a node has contradicted the belief often enough to be adopted."""
        at = self.site.index_of(device.device_id)
        if at is None or self.state.switch_no[at] >= 0:
            self._disagreed.pop(device.device_id, None)
            return False
        believed = ACTIVITY_CODES[int(mode_of(self.state)[at])]
        said = "fault" if device.quarantined else device.activity.value
        if said == believed.value and not self._gate_differs(at, device):
            self._disagreed.pop(device.device_id, None)
            return False
        count = self._disagreed.get(device.device_id, 0) + 1
        self._disagreed[device.device_id] = count
        return count % DISAGREEMENTS == 0

    def _gate_differs(self, at: int, device: NodeDevice) -> bool:
        """Tell whether a node that serves means another instance or gate than believed."""
        if device.work is None:
            return False
        entry = lease_of(self.state, at)
        slots = () if entry is None else entry.slots
        believed = (row for row in slots if row.device_id == device.device_id)
        slot = next(believed, None)
        if slot is None:
            return True
        return (slot.instance_id, slot.serving) != (device.work.instance_id, device.gate_open)

    def _take_url(self, node_id: str, proxy_url: str | None) -> None:
        if self._journal.endpoints.take(node_id, proxy_url):
            self._report_due.set()

    def _after_pass(self, made: Plan) -> None:
        state = self.state
        self._order_reports.look()
        if self._told is None or self._capacity_changed() or self._minute_passed():
            self._report_due.set()
        due = self._last_live_ns is None or state.now_ns - self._last_live_ns >= int(
            self._tick_s * NS_PER_S * 0.9
        )
        if not due:
            return
        self._last_live_ns = state.now_ns
        at = state.instant.wall
        if self._ports.on_live is not None:
            backlog = 0 if self._ports.backlog is None else self._ports.backlog()
            self._ports.on_live(report.site_live(self.site, state, at, backlog))
        if self._ports.on_sample is not None:
            buffer = self._buffer
            self._ports.on_sample(
                Sample(
                    at,
                    state.activity,
                    buffer.power_w.copy(),
                    buffer.hashrate_ths.copy(),
                    buffer.temp_c.copy(),
                    buffer.utilisation.copy(),
                )
            )

    def _capacity(self) -> bytes:
        """Give a digest of what placement needs: free and total devices by class, and the cap."""
        rows = report.class_reports(self.site, self.state)
        counts = [number for row in rows for number in (row.total, row.free)]
        cap = pw.cap_w(self.site, self.state)
        return np.array([*counts, int(cap)], dtype=np.int64).tobytes()

    def _capacity_changed(self) -> bool:
        return self._told is None or self._told[1] != self._capacity()

    def _minute_passed(self) -> bool:
        wall = self.state.instant.wall
        return self._told is None or minute_floor(wall) != minute_floor(self._told[0])

    async def _report(self) -> None:
        """Tell the hub what the site has: at once, when capacity changed, and each minute."""
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            at = self._ports.clock.wall()
            self._told = (self.state.instant.wall, self._capacity())
            url_of = self._journal.endpoints.url_of
            event = report.site_report(self.site, self.state, at, url_of)
            await self._journal.commit(CommitBatch(events=(event,)))
            await self._metering.pass_minutes()
            # Capacity moves with every switch; a report a second is enough for placement.
            await asyncio.sleep(1.0)
