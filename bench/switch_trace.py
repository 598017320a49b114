"""`switch-trace`: where the milliseconds of a switch go, span by span.

The site of `switch-overhead` with agent, node and host watched from outside (`bench/_traced.py`),
which costs each of them some time of its own: the spans say where, the other bench says how much.
Offsets count from the beginning of the pass that decided the switch.
"""

import asyncio
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench import switch_overhead as overhead
from bench.figure import Figure, machine, quantile
from simulators.stack import Stack

SWITCHES = 120
_WATCHED = ("agent-", "node-", "gpu-")
_SEEN_SHARE = 0.5
_NS_PER_MS = 1e6
# An exchange of the host with an engine; a look asks where it stands and has it do nothing.
_ENGINE, _LOOK = "gpu ask:/", "/status"


class Span(Struct, frozen=True):
    """Something that took from one instant to another, in one process."""

    name: str
    began_ns: int
    ended_ns: int


class WatchedStack(Stack):
    """A stack whose edge processes note their spans."""

    async def _start(self, name: str, argv: list[str], *, ready: Path | None = None) -> None:
        if name.startswith(_WATCHED) and argv[2] == "edge_agent":
            spans = str(self.root / "log" / f"{name}.spans")
            argv = [*argv[:2], "bench._traced", spans, *argv[2:]]
        await super()._start(name, argv, ready=ready)


def run() -> list[Figure]:
    """Trace switches with the reference engines, then with the simulated host."""
    return [
        *asyncio.run(_traced("reference engines", real=True)),
        *asyncio.run(_traced("simulated host", real=False)),
    ]


async def _traced(name: str, *, real: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="hcp-bench-") as folder:
        stack, group = overhead.stack_of(Path(folder), real=real, kind=WatchedStack)
        try:
            await stack.start()
            log = Path(folder) / "log" / "agent-bench.log"
            await overhead.switched(stack, log, group.model, SWITCHES)
        finally:
            await stack.stop()
        spans = [
            span
            for program in ("agent-bench", "node-bench-g1", "gpu-bench-g1")
            for span in _read(Path(folder) / "log" / f"{program}.spans", program.split("-")[0])
        ]
    return [
        Figure(
            name=f"{name}, {way}: to the durable close, p50",
            value=told.pop("whole_ms"),
            unit="ms",
            target="none",
            ok=None,
            conditions=told | machine(),
        )
        for way, told in timelines(spans).items()
    ]


def _read(path: Path, program: str) -> list[Span]:
    if not path.exists():
        return []
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return [Span(f"{program} {name}", int(began), int(ended)) for name, began, ended in lines]


def timelines(spans: list[Span]) -> dict[str, dict[str, Any]]:
    """Give the median offset and length of each span of a switch, by the way it went.

    Args:
        spans: of all processes, of switches that did not overlap.
    """
    by_way: dict[str, list[list[tuple[str, float, float]]]] = defaultdict(list)
    whole: dict[str, list[float]] = defaultdict(list)
    drives = [span for span in spans if span.name == "agent drive"]
    passes = sorted(
        (span for span in spans if span.name == "agent one_pass"), key=lambda one: one.began_ns
    )
    ordered = sorted(spans, key=lambda one: one.began_ns)
    for drive in drives:
        began_ns = max(one.began_ns for one in passes if one.began_ns <= drive.began_ns)
        inside = [one for one in ordered if began_ns <= one.began_ns <= drive.ended_ns]
        served = any(one.name == "node act:canary" for one in inside)
        way = "to serve" if served else "to mine"
        whole[way].append((drive.ended_ns - began_ns) / _NS_PER_MS)
        seen: dict[str, int] = defaultdict(int)
        row = []
        for one in inside:
            seen[one.name] += 1
            key = f"{one.name} #{seen[one.name]}"
            offset_ms = (one.began_ns - began_ns) / _NS_PER_MS
            row.append((key, offset_ms, (one.ended_ns - one.began_ns) / _NS_PER_MS))
        by_way[way].append(row)
    return {
        way: {"switches": len(rows), "whole_ms": round(quantile(whole[way], 0.5), 2)}
        | _waits(rows)
        | _medians(rows)
        for way, rows in by_way.items()
    }


def _waits(rows: list[list[tuple[str, float, float]]]) -> dict[str, str]:
    """Give how long each switch waited for its engines' answers, and how many there were."""
    told = {}
    for kind, is_look in (("looks", True), ("orders_and_answers", False)):
        waits = [
            [took for key, _, took in row if _ENGINE in key and (_LOOK in key) is is_look]
            for row in rows
        ]
        sums = [sum(one) for one in waits]
        number = quantile([len(one) for one in waits], 0.5)
        told[f"engine_{kind}"] = (
            f"{number} in p50 {quantile(sums, 0.5):.2f} p90 {quantile(sums, 0.9):.2f} ms"
        )
    return told


def _medians(rows: list[list[tuple[str, float, float]]]) -> dict[str, str]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for key, offset_ms, took_ms in row:
            found[key].append((offset_ms, took_ms))
    medians = {
        key: (
            quantile([offset for offset, _ in values], 0.5),
            quantile([took for _, took in values], 0.5),
            quantile([took for _, took in values], 0.9),
        )
        for key, values in found.items()
        if len(values) >= _SEEN_SHARE * len(rows)
    }
    return {
        key: f"at {at_ms:.2f} took {took_ms:.2f} p90 {most_ms:.2f} ms"
        for key, (at_ms, took_ms, most_ms) in sorted(medians.items(), key=lambda one: one[1][0])
    }
