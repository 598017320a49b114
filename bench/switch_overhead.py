"""`switch-overhead`: what a switch takes beside the workloads' own acts, to its durable end.

A whole site of real processes (hub, broker, agent, node, host), every store synced fully. One GPU
is switched between mining and serving by a customer's submit and cancel, one switch at a time. The
agent says of each switch what it took, from the pass that decided it to the commit that closed it,
and how much of that its engines took: to carry out an order, from its sending to its answer. All
else is overhead: commits, round trips, polls, waits, and whatever the scheduler adds to them.

A switch ends with its first verified output; what comes after (the gate, readings, the close of the
journal) is told apart, in the figures to the durable close.

Twice: with the reference miner and the reference inference server, whose work is done at low weight
(nice 19, batch class), and with the simulated host, whose acts take no time, so that all is ours.
"""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.figure import Figure, at_most, quantile
from simulators.stack import Stack
from simulators.stack_config import GpuGroup, SiteSpec, Tuning

SWITCHES = 1_000
P50_MS = 5.0
P99_MS = 15.0
# Of the two stacks together.
LIMIT_S = 420.0
# The hub knows of a free one while the last is on its way back; all of them mine meanwhile.
_GPUS = 3
_WARM_UP = 20
_SYNCS = 500
_SYNC_BYTES = 4_096
_LOOK_S = 0.01
_WAIT_S = 20.0
# Between two switches: what the last one still causes (usage, events, acks) is over by then.
_APART_S = 0.05
_NAMES = {"agent-bench": "agent", "node-bench-g1": "node", "gpu-bench-g1": "host"}
_LINE = re.compile(
    r"switch=\S+ from=(\w+) to=(\w+) devices=(\d+) (\w+)=\d+"
    r" took_us=(\d+) engine_us=(\d+) phases=(\S+)"
)
_COMMITS = re.compile(r"store=(\w+)\.sqlite commits synced=(\d+) unsynced=(\d+)")


class Row(Struct, frozen=True):
    """One switch as the agent told it."""

    source: str
    target: str
    devices: int
    outcome: str
    took_us: int
    engine_us: int
    phases: dict[str, int]

    @property
    def verified_us(self) -> int:
        """Give the time to the first verified output, from the pass that decided it."""
        return sum(us for name, us in self.phases.items() if name != "commit")


def run() -> list[Figure]:
    """Measure with the reference engines, then with the simulated host."""
    return [
        *asyncio.run(_measured("reference engines", real=True)),
        *asyncio.run(_measured("simulated host", real=False)),
    ]


def parsed(text: str) -> list[Row]:
    """Read the switches that ended in one way out of an agent's log."""
    return [
        Row(
            source=source,
            target=target,
            devices=int(devices),
            outcome=outcome,
            took_us=int(took),
            engine_us=int(engine),
            phases={name: int(us) for name, us in _spans(phases)},
        )
        for source, target, devices, outcome, took, engine, phases in _LINE.findall(text)
    ]


def _spans(text: str) -> Iterator[list[str]]:
    return (span.split(":") for span in text.split(","))


async def _measured(name: str, *, real: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="hcp-bench-") as folder:
        before_ms = _fdatasync_ms(Path(folder))
        stack, group = stack_of(Path(folder), real=real)
        began_s = time.monotonic()
        try:
            await stack.start()
            before_s = _cpu_s(stack)
            log = Path(folder) / "log" / "agent-bench.log"
            told = await switched(stack, log, group.model, SWITCHES)
            rows = [row for row in told if row.outcome == "committed" and row.devices == 1]
            used_s = {name: after - before_s[name] for name, after in _cpu_s(stack).items()}
        finally:
            await stack.stop()
        conditions = {
            "with": name,
            "switches": len(rows),
            "not_committed": len(told) - len(rows),
            "took_s": round(time.monotonic() - began_s),
            "durability": "SQLite FULL in hub, agent and node",
            "priority": _priority(),
        }
        conditions |= _disk(before_ms + _fdatasync_ms(Path(folder)))
        conditions |= _commits(Path(folder), len(rows))
        conditions["cpu_ms_per_switch"] = " ".join(
            f"{name} {used * 1e3 / max(len(rows), 1):.1f}" for name, used in used_s.items()
        )
    return _figures(name, rows, conditions)


def stack_of(folder: Path, *, real: bool, kind: type[Stack] = Stack) -> tuple[Stack, GpuGroup]:
    """Make the site of one node whose GPUs are switched."""
    group = GpuGroup(node_id="bench-g1", model="L40S" if real else "H100", count=_GPUS, real=real)
    site = SiteSpec(site_id="bench", power_cap_w=1e6, gpus=(group,))
    tuning = Tuning(tick_s=5.0, time_scale=90_000.0)
    return kind(folder, (site,), tuning=tuning, op_ms=0.0), group


async def switched(stack: Stack, log: Path, model: str, switches: int) -> list[Row]:
    """Switch one GPU to and fro; give what the agent told of it."""
    log_reader = _Log(log)
    mining = 0
    while mining < _GPUS:
        mining += sum(row.devices for row in await log_reader.next_to("mine"))
    rows: list[Row] = []
    limit_s = time.monotonic() + LIMIT_S / 2
    for number in range((switches + _WARM_UP) // 2):
        if time.monotonic() > limit_s:
            break
        await asyncio.sleep(_APART_S)
        body = {"name": f"bench-{number}", "device_class": model, "priority": 3}
        answer = await stack.submit(body, f"bench-{number}")
        rows += await log_reader.next_to("serve")
        await asyncio.sleep(_APART_S)
        await stack.customer.delete(f"/api/v1/workloads/{answer['workload_id']}")
        rows += await log_reader.next_to("mine")
    return rows[_WARM_UP:]


class _Log:
    """Follows the agent's log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    async def next_to(self, target: str) -> list[Row]:
        """Wait until a switch to an activity has ended well; give all that ended up to it.

        Raises:
            TimeoutError: none did.
        """
        rows: list[Row] = []
        async with asyncio.timeout(_WAIT_S):
            while not any(row.target == target and row.outcome == "committed" for row in rows):
                await asyncio.sleep(_LOOK_S)
                rows += self._new()
        return rows

    def _new(self) -> list[Row]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, line_end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(line_end)
        return parsed(whole.decode(errors="replace"))


def _figures(name: str, rows: list[Row], conditions: dict[str, Any]) -> list[Figure]:
    over_ms = [(row.took_us - row.engine_us) / 1e3 for row in rows]
    verified_ms = [(row.verified_us - row.engine_us) / 1e3 for row in rows]
    both = conditions | {
        "max_ms": round(max(over_ms), 2),
        "whole_p50_ms": _ms([row.took_us for row in rows], 0.5),
        "engines_p50_ms": _ms([row.engine_us for row in rows], 0.5),
    }
    for source, target in sorted({(row.source, row.target) for row in rows}):
        chosen = [row for row in rows if (row.source, row.target) == (source, target)]
        over = [row.took_us - row.engine_us for row in chosen]
        both[f"{source}_to_{target}"] = (
            f"{len(chosen)} p50 {_ms(over, 0.5)} p99 {_ms(over, 0.99)} ms,"
            f" engines {_ms([row.engine_us for row in chosen], 0.5)} ms, phases "
            + " ".join(
                f"{phase} {_ms([row.phases.get(phase, 0) for row in chosen], 0.5)}"
                for phase in chosen[0].phases
            )
        )
    ends = (("first verified output", verified_ms), ("durable close", over_ms))
    return [
        at_most(
            f"{name}: overhead to the {end}, p{share}", quantile(ms, share / 100), "ms", most, both
        )
        for end, ms in ends
        for share, most in ((50, P50_MS), (99, P99_MS))
    ]


def _priority() -> str:
    """Tell whether the site's processes go before others: engines never do, by their low weight."""
    real_time = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
    return "real-time" if real_time else f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def _ms(values_us: list[int], share: float) -> float:
    return round(quantile(values_us, share) / 1e3, 2)


def _cpu_s(stack: Stack) -> dict[str, float]:
    """Give the CPU seconds of agent, node and host so far: what a quiet machine would wait for."""
    told = {}
    for name, told_as in _NAMES.items():
        threads = Path(f"/proc/{stack.programs[name].pid}/task").glob("*/schedstat")
        used_ns = sum(int(one.read_text(encoding="ascii").split()[0]) for one in threads)
        told[told_as] = used_ns / 1e9
    return told


def _fdatasync_ms(folder: Path) -> list[float]:
    """Time what the disk itself takes for a page that is appended and synced."""
    took_ms = []
    fd = os.open(folder / "synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(_SYNCS):
            os.write(fd, bytes(_SYNC_BYTES))
            began = time.perf_counter()
            os.fdatasync(fd)
            took_ms.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(fd)
    return took_ms


def _disk(took_ms: list[float]) -> dict[str, float]:
    return {
        "fdatasync_p50_ms": round(quantile(took_ms, 0.5), 3),
        "fdatasync_p99_ms": round(quantile(took_ms, 0.99), 3),
    }


def _commits(folder: Path, switches: int) -> dict[str, str]:
    """Give the commits of agent and node per switch: all of them, leases and usage among them."""
    told = {}
    for name in ("agent-bench", "node-bench-g1"):
        text = (folder / "log" / f"{name}.log").read_text(errors="replace")
        for _, synced, unsynced in _COMMITS.findall(text):
            told[f"{_NAMES[name]}_commits_per_switch"] = (
                f"{int(synced) / max(switches, 1):.2f} synced"
                f" {int(unsynced) / max(switches, 1):.2f} unsynced"
            )
    return told
