"""Invariants that hold at every instant, looked at once a second, and after the faults."""

from __future__ import annotations

import asyncio
import sqlite3

from edge_agent.core import power
from edge_agent.core.site import MAINTENANCE
from edge_agent.core.site_state import LeaseStatus, SiteState
from protocol.sync import Stream
from simulators.faults import SiteFaultKind
from tests.simulation.truth import Truth
from tests.simulation.world import SiteWorld, World

LOOK_S = 1.0
# Floats are summed in another order here.
EPSILON_W = 0.5
UNACKED_MAX_S = 20.0
# An agent restored from an old copy may believe in a lease that is over until the hub is heard.
TORN_MAX_S = 5.0
# Load is shed within this; a miner takes up to 40 s of warm-up before it can be told to sleep.
OBEY_S = 90.0
# Three GPUs idle and three miners asleep.
CURTAILED_W = 3 * 350.0 * 1.2 + 3 * 20.0 * 1.05
# What the wall may be wrong by when it measures the gap between two boots.
GAP_ERROR_S = 0.001
CLOCK_STEP_MAX_S = 30.0


class Watcher:
    """Looks at the world beside everything that it does."""

    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        self._reported: set[str] = set()
        self._policy_since: dict[str, tuple[tuple[int, int] | None, float]] = {}
        self._torn: set[str] = set()
        self._torn_since: dict[str, float] = {}
        self._counted: dict[str, tuple[SiteState, float]] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for site in self._world.sites.values():
                self._obedience(site, self.power(site))
                self._devices(site)
                self._maintenance(site)
                self._acks(site)

    def _once(self, key: str, text: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self._world.problem(text)

    def power(self, site: SiteWorld) -> float:
        """Check the power rule now; gives the true power."""
        true_w, cap_w = site.true_power_w(), site.site.limits.power_cap_w
        if true_w > cap_w + EPSILON_W:
            self._once(f"cap {site.site_id}", f"{site.site_id}: {true_w:.0f} W > cap {cap_w:.0f} W")
        agent = site.agent
        if agent is None:
            return true_w
        state = agent.state
        kept = self._counted.get(site.site_id)
        if kept is None or kept[0] is not state:
            kept = (state, power.total(power.counted_w(site.site, state)))
            self._counted[site.site_id] = kept
        counted_w = kept[1]
        if true_w > counted_w + EPSILON_W:
            self._once(
                f"counted {site.site_id}",
                f"{site.site_id}: counted {counted_w:.0f} W < true {true_w:.0f} W",
            )
        return true_w

    def _obedience(self, site: SiteWorld, true_w: float) -> None:
        """Check that a policy, once known, is kept soon, where all devices can be reached."""
        agent, now_s = site.agent, asyncio.get_running_loop().time()
        policy = None if agent is None else agent.state.policy
        able = agent is not None and policy is not None and bool(agent.state.reachable.all())
        key = (policy.generation, id(agent)) if able and policy is not None else None
        if key is None or self._policy_since.get(site.site_id, (None, 0.0))[0] != key:
            self._policy_since[site.site_id] = (key, now_s)
            return
        assert policy is not None
        if now_s - self._policy_since[site.site_id][1] < OBEY_S:
            return
        cap_w = CURTAILED_W if policy.curtail else policy.power_cap_w
        if policy.curtail and self._truth.open:
            return  # leases go on being served under a grid order that names no cap
        if cap_w is not None and true_w > cap_w + EPSILON_W:
            self._once(
                f"policy {site.site_id}",
                f"{site.site_id}: {true_w:.0f} W {OBEY_S:.0f} s after {policy}",
            )

    def _devices(self, site: SiteWorld) -> None:
        """Check that the agent believes a device to be of one lease; a restored one soon does."""
        agent = site.agent
        if agent is None:
            return
        now_s = asyncio.get_running_loop().time()
        owner: dict[str, str] = {}
        torn: list[str] = []
        for entry in agent.state.leases:
            # A device of a lease that ends may be promised to the next one.
            if entry.status not in (
                LeaseStatus.ACCEPTED,
                LeaseStatus.STARTING,
                LeaseStatus.RUNNING,
            ):
                continue
            for slot in entry.slots:
                other = owner.setdefault(slot.device_id, entry.lease_id)
                if other == entry.lease_id:
                    continue
                torn.append(slot.device_id)
                since_s = self._torn_since.setdefault(slot.device_id, now_s)
                if now_s - since_s >= TORN_MAX_S:
                    self._once(
                        f"owner {slot.device_id}",
                        f"{slot.device_id} belongs to {other} and {entry.lease_id}",
                    )
        for device in site.site.devices:
            if device.device_id not in torn:
                self._torn_since.pop(device.device_id, None)

    def _maintenance(self, site: SiteWorld) -> None:
        """Check that nothing is served on a device in maintenance that the agent can see."""
        state = None if site.agent is None else site.agent.state
        if state is None or not (state.activity == MAINTENANCE).any():
            return
        for gate in self._truth.open.values():
            at = site.site.index_of(gate.device_id)
            if at is not None and state.reachable[at] and state.activity[at] == MAINTENANCE:
                self._once(f"maintenance {gate.device_id}", f"served in maintenance: {gate}")

    def _acks(self, site: SiteWorld) -> None:
        store = site.store
        if store is None:
            return
        for head in store.heads():
            if head.acked_wm >= head.next_seq:
                self._once(
                    f"ack {site.site_id} {head.stream}",
                    f"{site.site_id}: ack {head.acked_wm} of {head.stream} >= {head.next_seq}",
                )

    # --- after the faults -------------------------------------------------------------------

    def settled(self) -> None:
        """Check what must hold a minute after the last fault has ended."""
        world = self._world
        if world.back is None or not world.back.connected:
            world.problem("not settled: the hub is not connected")
        for site in world.sites.values():
            self._site_settled(site)

    def about_to_compare(self) -> None:
        """Note what the hub and the gates disagree on, some seconds before ``compared``."""
        self._torn = self._running_is_not_served()

    def compared(self) -> None:
        """Check that what the hub says is running is served, and nothing else.

        What comes to its end in this very second is not told yet, so it must have stood a while.
        """
        for wrong in sorted(self._torn & self._running_is_not_served()):
            self._world.problem(wrong)

    def _site_settled(self, site: SiteWorld) -> None:
        world, name = self._world, site.site_id
        if site.agent is None or site.uplink is None or site.store is None or site.service is None:
            world.problem(f"not settled: {name} is down")
            return
        status = site.uplink.status()
        if not status.connected or not status.welcomed or status.owner is not True:
            world.problem(f"not settled: {name}: uplink {status}")
        if not all(up for _, up in site.agent.status().nodes):
            world.problem(f"not settled: {name}: node not connected")
        now_ms = int(site.agent_clock.wall().timestamp() * 1_000)
        for row in site.store.backlog():
            old_ms = row.oldest_unacked_at_ms
            if row.stream is Stream.TELE:
                continue  # sent again after half a minute at the earliest, and after the rest
            if row.unacked and old_ms is not None and now_ms - old_ms > UNACKED_MAX_S * 1_000:
                world.problem(f"not settled: {name}: {row}")

    def _running_is_not_served(self) -> set[str]:
        """Compare what the hub says is running with the gates that are open."""
        with sqlite3.connect(self._world.hub_path) as connection:
            rows = connection.execute(
                "SELECT workload_id, count, state FROM workloads ORDER BY workload_id"
            ).fetchall()
        connection.close()
        wrong = set()
        for workload_id, count, state in rows:
            open_gates = sum(
                gate.lease_id.rpartition(".")[0] == workload_id
                for gate in self._truth.open.values()
            )
            if state == "running" and open_gates != count:
                wrong.add(f"{workload_id} is running with {open_gates} of {count} gates")
            if state in ("queued", "completed", "failed", "cancelled", "expired") and open_gates:
                wrong.add(f"{workload_id} is {state} with {open_gates} open gates")
        return wrong

    def all_shut(self) -> None:
        """Check that nothing is served a minute after the hub wanted every lease to end."""
        for gate in self._truth.open.values():
            self._world.problem(f"still served a minute after its end: {gate}")

    def ended(self) -> None:
        """Check what must hold at the very end, when every workload was asked to end."""
        world = self._world
        for gate in self._truth.open.values():
            world.problem(f"still served at the end: {gate}")
        for site in world.sites.values():
            if site.agent is None or site.store is None:
                world.problem(f"{site.site_id} is down at the end")
                continue
            for row in site.store.backlog():
                if row.stream is Stream.USAGE and row.unacked > 1:
                    world.problem(f"{site.site_id}: usage not acked at the end: {row}")
            for entry in site.agent.state.leases:
                if entry.status is not LeaseStatus.CLOSED:
                    world.problem(f"{site.site_id}: {entry.lease_id} is {entry.status} at the end")
            self._device_time(site)

    def _device_time(self, site: SiteWorld) -> None:
        agent = site.agent
        assert agent is not None
        sums = {
            sum(row.spent_ns for row in agent.device_time(device.device_id).times)
            for device in site.site.devices
        }
        # The first agent starts with the run. A reboot leaves a gap that only the wall can measure.
        now_ns = round(asyncio.get_running_loop().time() * 1e9)
        elapsed_ns = now_ns - site.agent_clock.boottime_ns() + agent.state.now_ns
        exact = site.agent_clock.boottime_ns() == now_ns
        wall_s = 0.0 if exact else GAP_ERROR_S + CLOCK_STEP_MAX_S * self._stepped(site)
        wrong_s = abs(next(iter(sums)) - elapsed_ns) / 1e9
        if len(sums) != 1 or wrong_s > wall_s:
            self._world.problem(
                f"{site.site_id}: device time {sorted(sums)} is not the elapsed {elapsed_ns} ns"
            )

    def _stepped(self, site: SiteWorld) -> bool:
        return any(
            fault.kind is SiteFaultKind.CLOCK_STEP and fault.target == f"agent-{site.site_id}"
            for fault in self._world.scenario.faults
        )
