"""Seeded plans of faults for a simulated site, and the link's part of carrying them out.

A plan is a list of (at_s, kind, target, duration_s, amount), drawn before the run starts, so that a
failure is repeated by its seed and cut down by leaving lines out. The harness of a simulation
carries out what concerns processes, clocks and databases; `apply_to_link` does what concerns the
link.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from simulators.errors import SettingError
from simulators.link import Direction, SimLink, Weather


class SiteFaultKind(StrEnum):
    """What happens to a simulated site."""

    LOSS = "loss"
    """Messages to an MQTT client are acknowledged and never delivered."""
    DUPLICATION = "duplication"
    """Messages to an MQTT client come twice."""
    REORDER = "reorder"
    """Messages of different topics overtake each other on the way to an MQTT client."""
    DISCONNECT = "disconnect"
    """An MQTT client's connection breaks."""
    PARTITION = "partition"
    """Packets of an MQTT client are held one or both ways."""
    CRASH = "crash"
    """A process dies at once and starts again after the duration."""
    BROKER_CRASH = "broker_crash"
    """The broker dies and comes back with its state."""
    WIPED_BROKER = "wiped_broker"
    """The broker dies and comes back empty: no sessions, no retained messages."""
    CLOCK_STEP = "clock_step"
    """A host's wall clock steps by `amount` seconds."""
    RESTORED_SNAPSHOT = "restored_snapshot"
    """An edge database is put back to an older copy, taken `amount` seconds before."""


class SiteFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of a plan.

    Args:
        at_s: Virtual seconds from the start.
        target: MQTT client id, process, host or store that it hits.
        duration_s: How long it lasts; 0 for what has no length.
        amount: Share for loss and duplication, seconds for the other kinds that have a size.
        direction: Which way a partition blocks.
    """

    at_s: float
    kind: SiteFaultKind
    target: str
    duration_s: float = 0.0
    amount: float = 0.0
    direction: Direction = Direction.BOTH


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What faults may hit, by name."""

    clients: tuple[str, ...]
    processes: tuple[str, ...]
    hosts: tuple[str, ...]
    stores: tuple[str, ...]


class _Range(msgspec.Struct, frozen=True):
    """The ranges that a kind's duration and amount are drawn from."""

    targets: str
    duration_s: tuple[float, float]
    amount: tuple[float, float] = (0.0, 0.0)


# Amounts are chosen to cross the limits that the system promises: 2 s of clock error, 15 s of will
# delay, 30 s of keepalive, the 10 s heartbeat.
_RANGES = {
    SiteFaultKind.LOSS: _Range("clients", (10, 120), (0.05, 0.5)),
    SiteFaultKind.DUPLICATION: _Range("clients", (10, 120), (0.1, 1.0)),
    SiteFaultKind.REORDER: _Range("clients", (10, 120), (0.5, 10.0)),
    SiteFaultKind.DISCONNECT: _Range("clients", (0, 0)),
    SiteFaultKind.PARTITION: _Range("clients", (1, 180)),
    SiteFaultKind.CRASH: _Range("processes", (0.5, 60)),
    SiteFaultKind.BROKER_CRASH: _Range("", (0.5, 60)),
    SiteFaultKind.WIPED_BROKER: _Range("", (0.5, 60)),
    SiteFaultKind.CLOCK_STEP: _Range("hosts", (0, 0), (-30.0, 30.0)),
    SiteFaultKind.RESTORED_SNAPSHOT: _Range("stores", (0.5, 10), (5.0, 600.0)),
}
BROKER = "broker"


def plan(
    seed: int,
    targets: Targets,
    *,
    count: int,
    from_s: float,
    until_s: float,
    kinds: Sequence[SiteFaultKind] = tuple(SiteFaultKind),
) -> tuple[SiteFault, ...]:
    """Draw a plan: `count` faults in order of time, each kind before any comes again.

    Args:
        seed: Seed of the plan.
        count: Number of faults.
        from_s: Earliest time. until_s: Latest end; give the system time after it to settle.
        kinds: Kinds to draw from; one without a target is left out.

    Raises:
        SettingError: When there is nothing to draw from.
    """
    rng = random.Random(seed)
    usable = [kind for kind in kinds if _names(kind, targets)]
    if not usable or not 0 <= from_s < until_s:
        raise SettingError("kinds", "no kind with a target, or no time for it")
    drawn: list[SiteFault] = []
    while len(drawn) < count:
        round_kinds = rng.sample(usable, min(len(usable), count - len(drawn)))
        drawn += [_draw(rng, kind, targets, from_s, until_s) for kind in round_kinds]
    return tuple(sorted(drawn, key=lambda fault: (fault.at_s, fault.kind, fault.target)))


def apply_to_link(link: SimLink, fault: SiteFault) -> bool:
    """Carry out a fault of the link, now; return False when it concerns something else."""
    loop = asyncio.get_running_loop()
    if fault.kind is SiteFaultKind.DISCONNECT:
        link.cut(fault.target)
    elif fault.kind is SiteFaultKind.PARTITION:
        link.partition(fault.target, fault.direction, fault.duration_s)
    elif fault.kind in {SiteFaultKind.BROKER_CRASH, SiteFaultKind.WIPED_BROKER}:
        keep_state = fault.kind is SiteFaultKind.BROKER_CRASH
        link.crash(down_s=fault.duration_s, keep_state=keep_state)
    elif fault.kind in {SiteFaultKind.LOSS, SiteFaultKind.DUPLICATION, SiteFaultKind.REORDER}:
        weather = _weather(fault)
        link.set_weather(weather, fault.target)
        loop.call_later(fault.duration_s, link.clear_weather, weather, fault.target)
    else:
        return False
    return True


def _draw(
    rng: random.Random, kind: SiteFaultKind, targets: Targets, from_s: float, until_s: float
) -> SiteFault:
    ranges = _RANGES[kind]
    duration_s = min(rng.uniform(*ranges.duration_s), until_s - from_s)
    return SiteFault(
        at_s=round(rng.uniform(from_s, until_s - duration_s), 3),
        kind=kind,
        target=rng.choice(_names(kind, targets)),
        duration_s=round(duration_s, 3),
        amount=round(rng.uniform(*ranges.amount), 3),
        direction=rng.choice(list(Direction)),
    )


def _names(kind: SiteFaultKind, targets: Targets) -> tuple[str, ...]:
    field = _RANGES[kind].targets
    if not field:
        return (BROKER,)
    names: tuple[str, ...] = getattr(targets, field)
    return names


def _weather(fault: SiteFault) -> Weather:
    if fault.kind is SiteFaultKind.LOSS:
        return Weather(loss=fault.amount)
    if fault.kind is SiteFaultKind.DUPLICATION:
        return Weather(duplication=fault.amount)
    return Weather(reorder_s=fault.amount)
