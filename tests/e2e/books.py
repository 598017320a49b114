"""The books at the end: what the hub and the sites hold, against the truth files."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from simulators.stack import CUSTOMER_ID, Stack, parse_json
from simulators.stack_config import SiteSpec, node_home
from simulators.truth import Served, read_truth, stays
from tests.e2e.kills import Death

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KILL_SHORT_MS = 1_000
# A node reads the meters each second.
_READ_NS = 1_500_000_000


class Stay(Struct, frozen=True, kw_only=True):
    """One stay at an open gate on one device of one site.

    Args:
        cut: its host was killed before the gate shut, or before a node had surely read that.
    """

    site_id: str
    device_id: str
    served: Served
    cut: bool = False

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Name it as usage rows do."""
        return (self.served.lease_id, self.served.attempt, self.device_id, self.served.instance_id)

    @property
    def served_ms(self) -> int:
        """Return whole milliseconds on the counter at its end (each instance opens once)."""
        return self.served.served_after_ns // 1_000_000


class Metered(Struct, kw_only=True):
    """What the hub holds of one instance."""

    intervals: list[int]
    active_ms: int = 0
    energy_j: int = 0


def truth_of(stack: Stack, deaths: Sequence[Death] = ()) -> list[Stay]:
    """Read the truth of all hosts."""
    return [
        Stay(
            site_id=site.site_id,
            device_id=f"{group.node_id}-{served.gpu}",
            served=served,
            cut=not served.closed
            or any(
                death.program == f"gpu-{group.node_id}"
                and 0 <= death.at_ns - served.ended_ns <= _READ_NS
                for death in deaths
            ),
        )
        for site in stack.sites
        for group in site.gpus
        for served in stays(read_truth([node_home(stack.home(site), group) / "truth.jsonl"]))
    ]


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Read from a store beside the program that owns it."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def metered(stack: Stack) -> dict[tuple[str, int, str, str], Metered]:
    """Read the hub's usage by instance; usage_id is the table's primary key, so none is double."""
    found: dict[tuple[str, int, str, str], Metered] = defaultdict(lambda: Metered(intervals=[]))
    for row in rows(
        stack.root / "hub" / "hub.sqlite",
        "SELECT lease_id, attempt, device_id, instance_id, interval_no, active_ms, energy_j"
        " FROM usage ORDER BY interval_no",
    ):
        one = found[row[:4]]
        one.intervals.append(row[4])
        one.active_ms += row[5]
        one.energy_j += row[6]
    return dict(found)


def usage_problems(
    truth: Sequence[Stay], found: dict[tuple[str, int, str, str], Metered]
) -> list[str]:
    """Compare metered with served time: exact, or within a second below where a host was killed."""
    problems = [f"usage without truth: {key}" for key in found.keys() - {one.key for one in truth}]
    for stay in truth:
        one = found.get(stay.key, Metered(intervals=[]))
        if one.intervals != list(range(len(one.intervals))):
            problems.append(f"{stay.key}: intervals {one.intervals}")
        short_ms = stay.served_ms - one.active_ms
        if stay.cut:
            right = 0 <= short_ms <= KILL_SHORT_MS
        else:
            right = short_ms == 0 and one.energy_j == stay.served.energy_after_mj // 1_000
        if not right:
            problems.append(
                f"{stay.key}: {one.active_ms} ms, {one.energy_j} J of {stay.served_ms} ms,"
                f" {stay.served.energy_after_mj} mJ ({'cut' if stay.cut else 'whole'})"
            )
    return problems


def owner_problems(truth: Sequence[Stay]) -> list[str]:
    """Find devices that served two at once, and workloads served by two attempts at once."""
    problems: list[str] = []
    by_device: dict[str, list[Stay]] = defaultdict(list)
    by_workload: dict[str, list[Stay]] = defaultdict(list)
    for stay in sorted(truth, key=lambda one: one.served.opened_ns):
        by_device[f"{stay.site_id} {stay.device_id}"].append(stay)
        by_workload[stay.served.workload_id].append(stay)
    for name, owned in by_device.items():
        for one, other in pairwise(owned):
            if other.served.opened_ns < one.served.ended_ns:
                problems.append(f"{name} served {one.key} and {other.key} at once")
    for name, owned in by_workload.items():
        last: Stay | None = None
        for stay in owned:
            if last is not None and stay.served.attempt != last.served.attempt:
                until_ns = max(
                    one.served.ended_ns
                    for one in owned
                    if one.served.attempt == last.served.attempt
                )
                if stay.served.opened_ns < until_ns:
                    problems.append(f"{name}: attempts overlap: {last.key} and {stay.key}")
            last = stay
    return problems


def cancelled_ms(stack: Stack) -> dict[str, int]:
    """Read when the cancel of each workload was accepted."""
    sql = (
        "SELECT workload_id, cancel_accepted_at_ms FROM workloads"
        " WHERE cancel_accepted_at_ms IS NOT NULL"
    )
    return dict(rows(stack.root / "hub" / "hub.sqlite", sql))


async def wait_acked(stack: Stack) -> None:
    """Wait until the hub has acknowledged every ordered record of every site."""
    for site in stack.sites:
        while outbox_lag(stack, site):  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.2)


def outbox_lag(stack: Stack, site: SiteSpec) -> dict[str, int]:
    """Give how many records of each ordered stream the hub has not acknowledged."""
    sql = "SELECT name, next_seq - 1 - acked_wm FROM log WHERE name IN ('usage', 'event', 'schema')"
    return {name: lag for name, lag in rows(stack.home(site) / "data" / "core.sqlite", sql) if lag}


def time_problems(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Check that what each device did sums to what the boot clock says has passed."""
    elapsed_ns = after["now_ns"] - before["now_ns"]
    earlier = {row["device"]["device_id"]: row["time_ns"] for row in before["items"]}
    problems = []
    for row in after["items"]:
        device_id = row["device"]["device_id"]
        spent_ns = sum(row["time_ns"].values()) - sum(earlier[device_id].values())
        if spent_ns != elapsed_ns:
            problems.append(f"{device_id}: {spent_ns} ns of {elapsed_ns} ns")
    return problems


async def close_invoice(stack: Stack, start: datetime, end: datetime) -> dict[str, Any]:
    """Close the customer's period as finance does, as soon as the hub lets it."""
    args = ["--customer", CUSTOMER_ID, "--from", _text(start), "--to", _text(end), "--json"]
    while True:
        answer: dict[str, Any] = parse_json(
            await stack.hub_command("invoice", "close", *args, ok=(0, 1))
        )
        if "total_usd" in answer:
            return answer
        await asyncio.sleep(0.5)


def minute_after(at: datetime) -> datetime:
    """Return the next whole minute."""
    return at.replace(second=0, microsecond=0) + timedelta(minutes=1)


def to_ms(at: datetime) -> int:
    """Return milliseconds since 1970."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def shown(problems: Iterable[str], most: int = 12) -> str:
    """Show the first of many problems."""
    found = list(problems)
    return "\n".join([f"{len(found)} problems", *found[:most]])


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
