"""One seed as one run: start everything, let customers and faults act, watch, and settle."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from msgspec import Struct

from edge_agent.services.agent import Agent
from hub.core.workload_states import CANCELLABLE, WorkloadState
from hub.store import sites, workloads
from hub.store.workloads import WorkloadRow
from protocol.lease import SitePolicy, WorkloadSpec
from protocol.units import from_ms, to_ms
from simulators.errors import VirtualTimeError
from simulators.faults import SiteFault, SiteFaultKind, apply_to_link
from simulators.gpu_host import GpuHost, TruthLine
from simulators.virtual_loop import run
from tests.simulation import audit, watch
from tests.simulation.scenario import (
    CLOCK_WRONG_S,
    END_ALL_S,
    SETTLE_S,
    SPAN_S,
    START,
    Drained,
    HostFault,
    Order,
    Scenario,
    draw,
    fault_kinds,
    faults_end_s,
)
from tests.simulation.truth import Truth
from tests.simulation.world import SiteWorld, World

# The node keeps every open meter's value this often: what a killed workload may cost.
NODE_READS_S = 1.0
# A lease that the hub wants to end is not served longer than this, when nothing is broken.
END_MAX_S = 60.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a seed."""

    seed: int
    digest: str
    problems: tuple[str, ...]
    faults: tuple[str, ...]
    counts: dict[str, int]

    def text(self) -> str:
        """Tell what broke and how to see it again."""
        lines = "\n  ".join(self.problems)
        return f"seed {self.seed}:\n  {lines}\nreplay: python -m tests.simulation {self.seed}"


def simulate(seed: int, folder: Path, scenario: Scenario | None = None) -> Outcome:
    """Run one seed.

    Args:
        folder: empty, for the databases. scenario: instead of the seed's own, to cut one down.
    """
    made = _Run(scenario or draw(seed), folder)
    # Collecting cycles while the run makes millions of objects costs a fifth of its time.
    gc.collect()
    gc.disable()
    logging.disable(logging.CRITICAL)
    try:
        return run(made.main())
    except VirtualTimeError as exc:
        problems = (*made.world.problems, f"the run can not go on: {exc}")
        return Outcome(seed=seed, digest="", problems=problems, faults=(), counts={})
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


class _Run:
    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.truth = Truth()
        self.cancel_accepted: dict[str, int] = {}

    async def main(self) -> Outcome:
        world = self.world = World(self.scenario, self.folder)
        world.on_truth = self._on_truth
        world.truth_ended = self._on_host_killed
        watcher = watch.Watcher(world, self.truth)
        world.on_act = watcher.power
        async with asyncio.TaskGroup() as group:
            for process in world.processes():
                process.start()
            tasks = [group.create_task(work) for work in self._works(watcher)]
            await self._script(watcher)
            for task in tasks:
                task.cancel()
        for process in world.processes():
            await process.kill()
        await asyncio.sleep(1.0)
        for site in world.sites.values():
            if site.host is not None:
                for view in site.host.meters(None):
                    device_id = site.device_of[view.gpu]
                    self.truth.harvest(site.site_id, device_id, view, loss_ms_max=0)
        found = audit.audit(world, self.truth)
        return Outcome(
            seed=world.seed,
            digest=self._digest(),
            problems=tuple(world.problems),
            faults=tuple(sorted(fault_kinds(self.scenario))),
            counts=found,
        )

    def _works(self, watcher: watch.Watcher) -> list[Coroutine[Any, Any, None]]:
        return [
            watcher.run(),
            *(self._customer(order) for order in self.scenario.orders),
            self._operator(),
            *(self._fault(fault) for fault in self.scenario.faults),
            *(self._host_fault(fault) for fault in self.scenario.host_faults),
            *(self._drain(drained) for drained in self.scenario.drains),
        ]

    async def _script(self, watcher: watch.Watcher) -> None:
        await _until(faults_end_s(self.scenario) + SETTLE_S)
        watcher.settled()
        await _until(END_ALL_S - 6.0)
        watcher.about_to_compare()
        await _until(END_ALL_S - 1.0)
        watcher.compared()
        await self._cancel_all()
        await _until(END_ALL_S + END_MAX_S)
        watcher.all_shut()
        await _until(SPAN_S)
        watcher.ended()

    # --- truth ------------------------------------------------------------------------------

    def _on_truth(self, site: SiteWorld, line: TruthLine) -> None:
        if line.t != "mark":
            self.world.log(
                f"{line.t} {site.site_id} {line.gpu} {line.instance_id} {line.served_ns}"
            )
        wrong = self.truth.take(site.site_id, site.device_of[line.gpu], line)
        if wrong:
            self.world.problem(wrong)

    def _on_host_killed(self, site: SiteWorld, host: GpuHost) -> None:
        """Keep the truth of a host that dies; what its node had not yet read is lost with it."""
        unread_ms = round(site.node_process.deaf_s(NODE_READS_S) * 1_000)
        since_ns = host.now_ns() - unread_ms * 1_000_000
        for view in host.meters(None):
            read = view.closed_ns is not None and view.closed_ns < since_ns
            self.truth.harvest(
                site.site_id,
                site.device_of[view.gpu],
                view,
                loss_ms_max=0 if read else unread_ms,
            )

    # --- customers --------------------------------------------------------------------------

    async def _customer(self, order: Order) -> None:
        await _until(order.at_s)
        await self._submit(order)
        if order.cancel_at_s is not None:
            await _until(min(order.cancel_at_s, END_ALL_S - 2.0))
            await self._cancel(order.workload_id)

    async def _submit(self, order: Order) -> None:
        """Submit as the API does, until it is answered; the key makes it one workload."""
        now = from_ms(to_ms(self.world.hub_clock.wall()))
        row = WorkloadRow(
            workload_id=order.workload_id,
            customer_id=order.customer_id,
            name=order.workload_id,
            device_class="H100",
            count=order.count,
            priority=order.priority,
            spec=WorkloadSpec(run_s=order.run_s),
            state=WorkloadState.QUEUED,
            created_at=now,
            updated_at=now,
            site_id=order.site_id,
            on_partition=order.on_partition,
            lapse_after_s=order.lapse_after_s,
            max_price_usd_per_h=order.max_price_usd_per_h,
            expires_at=None
            if order.expires_at_s is None
            else START + timedelta(seconds=order.expires_at_s),
        )

        def job(connection: sqlite3.Connection) -> None:
            known = connection.execute(
                "SELECT 1 FROM workloads WHERE workload_id = ?", (order.workload_id,)
            ).fetchone()
            if known is None:
                workloads.insert_workload(connection, row, f"user:{order.customer_id}")

        await self._ask_hub(job, f"submit {order.workload_id}")

    async def _cancel(self, workload_id: str) -> None:
        now = from_ms(to_ms(self.world.hub_clock.wall()))

        def job(connection: sqlite3.Connection) -> None:
            row = workloads.get(connection, workload_id)
            if row.state in CANCELLABLE and row.state is not WorkloadState.CANCELLING:
                workloads.transition(
                    connection,
                    workload_id,
                    WorkloadState.CANCELLING,
                    reason="cancelled_by_user",
                    actor="user:customer",
                    at=now,
                    cancel_accepted_at=now,
                )

        await self._ask_hub(job, f"cancel {workload_id}")

    async def _operator(self) -> None:
        """Set each policy at its time, one after another."""
        wishes = sorted(self.scenario.wishes, key=lambda wish: wish.at_s)
        for generation, wish in enumerate(wishes, start=1):
            await _until(wish.at_s)
            policy = SitePolicy(
                hub_epoch=1,
                generation=generation,
                site_id=wish.site_id,
                power_cap_w=wish.power_cap_w,
                curtail=wish.curtail,
            )
            await self._ask_hub(
                lambda connection, policy=policy: sites.set_policy(connection, policy),
                f"policy {wish.site_id} {wish.power_cap_w} {wish.curtail}",
            )

    async def _cancel_all(self) -> None:
        for order in self.scenario.orders:
            await self._cancel(order.workload_id)

    async def _ask_hub(self, job: Any, what: str) -> None:  # noqa: ANN401 - a write job
        """Ask until an answer comes, as a client with an idempotency key does."""
        while True:
            store, back = self.world.store, self.world.back
            if store is not None and back is not None:
                try:
                    async with asyncio.timeout(2.0):
                        await store.write(job)
                except (TimeoutError, OSError, Exception):  # noqa: BLE001 - any failure is asked again
                    await asyncio.sleep(1.0)
                    continue
                self.world.log(what)
                back.placement.wake()
                return
            await asyncio.sleep(0.5)

    # --- faults -----------------------------------------------------------------------------

    async def _fault(self, fault: SiteFault) -> None:
        if fault.kind is SiteFaultKind.RESTORED_SNAPSHOT:
            await self._restored_snapshot(fault)
            return
        await _until(fault.at_s)
        self.world.log(
            f"fault {fault.kind} {fault.target} {fault.duration_s} {fault.amount} {fault.direction}"
        )
        if apply_to_link(self.world.link, fault):
            return
        if fault.kind is SiteFaultKind.CRASH:
            await self._crash(fault)
        elif fault.kind is SiteFaultKind.CLOCK_STEP:
            clock = {
                "hub": self.world.hub_clock,
                **{f"agent-{name}": site.agent_clock for name, site in self.world.sites.items()},
                **{f"node-{name}": site.node_clock for name, site in self.world.sites.items()},
            }[fault.target]
            clock.step_wall(fault.amount)
            await asyncio.sleep(CLOCK_WRONG_S)
            clock.step_wall(-fault.amount)

    async def _crash(self, fault: SiteFault) -> None:
        """Kill a process: at once, or at one of its next commits, before or after it."""
        process = next(row for row in self.world.processes() if row.name == fault.target)
        # The digits of the time are as good as another draw, and part of the plan.
        digits = round(fault.at_s * 1_000)
        if digits % 2 and process.fuse is not None and process.up:
            process.fuse.arm(1 + digits // 2 % 5, after=digits % 4 == 1)
            await asyncio.sleep(fault.duration_s)
            return
        await process.hold()
        await asyncio.sleep(fault.duration_s)
        process.release()

    async def _restored_snapshot(self, fault: SiteFault) -> None:
        """Put an old copy of a site's database back, as a person does who restores a disk image."""
        site = self.world.sites[fault.target]
        copy = self.folder / f"copy-{fault.target}-{fault.at_s}.sqlite"
        await _until(max(6.0, fault.at_s - fault.amount))
        source, target = sqlite3.connect(site.core_path), sqlite3.connect(copy)
        source.backup(target)
        source.close()
        target.close()
        await _until(fault.at_s)
        self.world.log(f"fault {fault.kind} {fault.target} {fault.amount}")
        await site.agent_process.hold()
        _put_back(copy, site.core_path)
        await asyncio.sleep(fault.duration_s)
        site.agent_process.release()
        fuse, digits = site.agent_process.fuse, round(fault.at_s * 1_000)
        if digits % 2 and fuse is not None and site.agent_process.up:
            # Not heard of the site yet, it dies again: what it has begun by then goes on alone.
            fuse.arm(1 + digits // 2 % 8, after=digits % 4 == 1)

    async def _host_fault(self, fault: HostFault) -> None:
        await _until(fault.at_s)
        site = self.world.sites[fault.site_id]
        self.world.log(f"fault {fault.kind} {fault.site_id} {fault.duration_s}")
        if fault.kind == "workload_crash":
            site.kill_host()
            await asyncio.sleep(fault.duration_s)
            site.restart_host()
        elif fault.kind == "link_cut":
            self.world.network.cut(site.address, down=True)
            await asyncio.sleep(fault.duration_s)
            self.world.network.restore(site.address)
        elif fault.kind == "reboot_agent":
            await site.agent_process.hold()
            await asyncio.sleep(fault.duration_s)
            site.agent_clock.reboot()
            site.agent_process.release()
        else:
            await site.node_process.hold()
            site.kill_host()
            await asyncio.sleep(fault.duration_s)
            site.node_clock.reboot()
            site.restart_host()
            site.node_process.release()

    async def _drain(self, drained: Drained) -> None:
        await _until(drained.at_s)
        key, for_s = drained.device_id, drained.for_s if drained.by_time else None
        await self._ask_agent(drained, lambda agent: agent.drain(key, for_s, "fan"))
        await _until(drained.at_s + drained.for_s)
        if not drained.by_time:
            await self._ask_agent(drained, lambda agent: _given_back(agent, key))

    async def _ask_agent(self, drained: Drained, act: Callable[[Agent], Awaitable[None]]) -> None:
        """Ask until the agent says that it is durable, as a person at the site does."""
        while True:
            agent = self.world.sites[drained.site_id].agent
            if agent is not None:
                try:
                    async with asyncio.timeout(10.0):
                        await act(agent)
                except (TimeoutError, OSError, Exception):  # noqa: BLE001 - a dying agent's error
                    await asyncio.sleep(1.0)
                    continue
                self.world.log(f"drain {drained}")
                return
            await asyncio.sleep(1.0)

    # --- the digest -------------------------------------------------------------------------

    def _digest(self) -> str:
        state = blake2b(digest_size=16)
        for line in self.world.events:
            state.update(line.encode() + b"\n")
        for problem in self.world.problems:
            state.update(problem.encode())
        for row in self.world.metrics.rows:
            state.update(f"{row.store_id} {row.record.seq} {row.record.digest!r}".encode())
        for path, query in (
            (self.world.hub_path, "SELECT * FROM usage ORDER BY usage_id"),
            (self.world.hub_path, "SELECT * FROM transitions ORDER BY seq"),
            *(
                (site.core_path, "SELECT seq, body FROM journal ORDER BY seq")
                for site in self.world.sites.values()
            ),
        ):
            connection = sqlite3.connect(path)
            for row in connection.execute(query):
                state.update(repr(row).encode())
            connection.close()
        return state.hexdigest()


def _put_back(copy: Path, path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.move(copy, path)


async def _given_back(agent: Agent, device_id: str) -> None:
    await agent.undrain(device_id)


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))
