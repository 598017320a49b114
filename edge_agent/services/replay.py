"""Replay: the journalled facts through the same pure functions, compared with what was decided.

Checked are the chain of the rows, every decision by its digest, the acts that came of it, and the
state at each snapshot.
"""

import time
from datetime import datetime

from msgspec import Struct

from edge_agent.core.decided import mismatch
from edge_agent.core.errors import ActError, JournalError
from edge_agent.core.explain import Explanation, why
from edge_agent.core.site import Site
from edge_agent.core.snapshot import state_hash
from edge_agent.ports import JournalSource
from edge_agent.services.journal_walk import Step, Walk
from edge_agent.services.replay_compare import Difference, act_difference, state_difference
from edge_agent.version import VERSION
from protocol.sync import digest_of

VIEW_VERSION = 1
DIFFERENCES_MAX = 100


class ReplayReport(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent replay``.

    Args:
        decisions: compared. unkept: decisions of an agent that kept none to compare with.
        states: compared at snapshots. sites: how many sites were in force, one after another.
        programs: versions of the agents that decided. differences: in order; the first is first.
        state_hash: of the state after the last row, in hex.
    """

    v: int
    equal: bool
    from_at: datetime | None
    to_at: datetime | None
    rows: int
    decisions: int
    unkept: int
    states: int
    sites: int
    programs: tuple[str, ...]
    program: str
    differences: tuple[Difference, ...]
    state_hash: str | None
    took_s: float


def replay(
    source: JournalSource,
    *,
    from_at: datetime | None = None,
    to_at: datetime | None = None,
    otherwise: Site | None = None,
) -> ReplayReport:
    """Recompute the decisions of a span, and compare each with what was decided.

    Args:
        from_at, to_at: by the wall stamps of the rows; None is the oldest or newest there is.
        otherwise: the site to take where the journal names none.

    Raises:
        JournalError: there is nothing to start from.
    """
    began_s = time.perf_counter()
    walk = Walk(source, otherwise)
    count = _Count()
    differences: list[Difference] = []
    last: Step | None = None
    for step in walk.steps(from_at):
        wall = step.row.instant.wall
        if to_at is not None and wall > to_at:
            break
        if from_at is not None and wall < from_at:
            continue
        last = step
        found = _compare(source, step, count)
        if found is not None:
            differences.append(found)
            break
    problems = [row for row in walk.problems if to_at is None or row.at is None or row.at <= to_at]
    merged = sorted((*problems, *differences), key=lambda row: row.seq)[:DIFFERENCES_MAX]
    return ReplayReport(
        v=VIEW_VERSION,
        equal=not merged,
        from_at=count.first,
        to_at=count.last,
        rows=count.rows,
        decisions=count.decisions,
        unkept=count.unkept,
        states=count.states,
        sites=walk.sites,
        programs=tuple(walk.programs),
        program=VERSION,
        differences=tuple(merged),
        state_hash=None if last is None else state_hash(last.site, last.state).hex(),
        took_s=round(time.perf_counter() - began_s, 3),
    )


def why_at(
    source: JournalSource, device_id: str, at: datetime, otherwise: Site | None = None
) -> tuple[datetime, Explanation]:
    """Explain the decision on a device that was in force at an instant, and say when it was made.

    Raises:
        JournalError: no decision was made by then. ActError: the site had no such device.
    """
    last: Step | None = None
    for step in Walk(source, otherwise).steps(at):
        if step.row.instant.wall > at:
            break
        last = step if step.made is not None else last
    if last is None or last.made is None:
        raise JournalError("no_decision", f"no decision is journalled for {at.isoformat()}")
    index = last.site.index_of(device_id)
    if index is None:
        raise ActError("no_device", f"the site had no device {device_id[:100]!r} then")
    return last.row.instant.wall, why(last.site, last.entered, last.made, index)


class _Count(Struct):
    """What a replay has compared so far; mutable, inside one call of ``replay``."""

    rows: int = 0
    decisions: int = 0
    unkept: int = 0
    states: int = 0
    first: datetime | None = None
    last: datetime | None = None


def _compare(source: JournalSource, step: Step, count: _Count) -> Difference | None:
    wall = step.row.instant.wall
    count.rows += 1
    count.first = wall if count.first is None else count.first
    count.last = wall
    if step.made is not None and step.checked:
        if step.row.decided is None:
            count.unkept += 1
        else:
            count.decisions += 1
            found = mismatch(step.site, step.row.decided, step.made)
            if found is not None:
                return Difference(
                    kind="decision", at=wall, seq=step.seq, device_id=found.device_id,
                    column=found.column, journalled=found.decided, replayed=found.replayed,
                    detail=found.detail,
                )  # fmt: skip
        wrong = act_difference(step.site, step.entered, step.made, step.row, step.seq)
        if wrong is not None:
            return wrong
    return _compare_state(source, step, count) if step.checked else None


def _compare_state(source: JournalSource, step: Step, count: _Count) -> Difference | None:
    digest = source.state_digest(step.seq)
    if digest is None:
        return None
    count.states += 1
    told = state_hash(step.site, step.state)
    body = source.snapshot(step.seq)
    if told == digest and (body is None or digest_of(body) == digest):
        return None
    found = Difference(
        kind="snapshot" if told == digest else "state",
        at=step.row.instant.wall,
        seq=step.seq,
        device_id=None,
        column="hash",
        journalled=(digest if told != digest or body is None else digest_of(body)).hex(),
        replayed=told.hex(),
        detail="the snapshot was changed after it was written"
        if told == digest
        else "the state differs from what it hashed to",
    )
    return found if body is None else state_difference(step.site, step.state, body, found)
