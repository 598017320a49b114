"""States of a workload and the transitions between them: one table, nothing else decides.

``queued -> placing -> starting -> running -> completed | failed | cancelled | expired``;
``running -> preempted -> queued``; ``queued | placing | starting | running -> cancelling ->
cancelled``. A refused attempt goes back to ``queued`` with its reason. ``starting`` is entered
again when an attempt is interrupted and the edge is bringing it back by itself.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class WorkloadState(StrEnum):
    """Where a workload stands, as the hub knows it."""

    QUEUED = "queued"
    PLACING = "placing"
    STARTING = "starting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_S = WorkloadState

TRANSITIONS: Mapping[WorkloadState, tuple[WorkloadState, ...]] = MappingProxyType(
    {
        _S.QUEUED: (_S.PLACING, _S.CANCELLING, _S.EXPIRED, _S.FAILED),
        # An event overtaken by the next one (accepted, then running in one batch) skips a state.
        _S.PLACING: (
            _S.STARTING, _S.RUNNING, _S.QUEUED, _S.CANCELLING, _S.COMPLETED, _S.FAILED, _S.EXPIRED,
        ),
        _S.STARTING: (
            _S.RUNNING, _S.QUEUED, _S.PREEMPTED, _S.CANCELLING, _S.COMPLETED, _S.FAILED, _S.EXPIRED,
        ),
        # Straight to queued: the hub itself ended the attempt (price above max, partition lapse).
        _S.RUNNING: (
            _S.STARTING, _S.QUEUED, _S.PREEMPTED, _S.CANCELLING, _S.COMPLETED, _S.FAILED,
            _S.EXPIRED,
        ),
        _S.PREEMPTED: (_S.QUEUED, _S.CANCELLING, _S.FAILED, _S.EXPIRED),
        # The work may end by itself before the edge hears of the cancel.
        _S.CANCELLING: (_S.CANCELLED, _S.COMPLETED, _S.FAILED, _S.EXPIRED),
        _S.COMPLETED: (),
        _S.FAILED: (),
        _S.CANCELLED: (),
        _S.EXPIRED: (),
    }
)  # fmt: skip

FINAL: frozenset[WorkloadState] = frozenset(
    state for state, following in TRANSITIONS.items() if not following
)
LIVE: tuple[WorkloadState, ...] = tuple(state for state in WorkloadState if state not in FINAL)
# A model may be asked: it serves, or a switch is under way that a request waits for.
SERVING: frozenset[WorkloadState] = frozenset({_S.STARTING, _S.RUNNING})
CANCELLABLE: frozenset[WorkloadState] = frozenset(
    state for state, following in TRANSITIONS.items() if _S.CANCELLING in following
)


def is_allowed(current: WorkloadState, following: WorkloadState) -> bool:
    """Tell whether a workload may go from ``current`` to ``following``."""
    return following in TRANSITIONS[current]
