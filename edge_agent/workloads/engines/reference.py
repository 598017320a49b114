"""What the drivers of our own two workloads share: the words of their control API.

It answers a pause when the workers have stopped and a resume at the first verified output; it is
judged all the same, by counters, by the GPU's memory and by what it proves.
"""

from typing import Final

from edge_agent.workloads.engine import EngineCapabilities, EngineState, Probe, Strategy
from edge_agent.workloads.engines.evidence import Deadline
from edge_agent.workloads.errors import DriverRefusedError, Refusal

_STATES: Final = {
    "starting": EngineState.STARTING,
    "pausing": EngineState.DRAINING,
    "draining": EngineState.DRAINING,
    "paused": EngineState.WARM,
    "mining": EngineState.ACTIVE,
    "waiting": EngineState.ACTIVE,
    "active": EngineState.ACTIVE,
    "offloaded": EngineState.OFFLOADED,
    "failed": EngineState.FAILED,
}
# Of what is left of a deadline, for the workload: its own reason comes back before we hang up.
_TIMEOUT_SHARE: Final = 0.9


def capabilities_of(resident_mib: int | None, *, ours: bool, releases: bool) -> EngineCapabilities:
    """Give what both can do: stay resident behind a gate, and restart where they are ours."""
    return EngineCapabilities(
        strategies=(Strategy.RESIDENT_GATE, *((Strategy.RESTART,) if ours else ())),
        resident_mib=resident_mib,
        mirror_mib=0,
        releases_memory=releases,
        survives_agent=True,
    )


def state_of(word: str) -> EngineState:
    """Read its word for its state.

    Raises:
        DriverRefusedError: It is no such word.
    """
    state = _STATES.get(word)
    if state is None:
        raise DriverRefusedError(Refusal.NOT_API, f"/status: state {word[:40]!r}")
    return state


def timeout_of(deadline: Deadline) -> str:
    """Give the part of a query that bounds an act."""
    return f"timeout_s={max(0.001, deadline.left_s() * _TIMEOUT_SHARE):.3f}"


def refuse_unready(state: str, detail: str) -> None:
    """Raise while it starts, and when it failed."""
    known = state_of(state)
    if known is EngineState.STARTING:
        raise DriverRefusedError(Refusal.BUSY, "it starts")
    if known is EngineState.FAILED:
        raise DriverRefusedError(Refusal.ENGINE_ERROR, f"its state is failed: {detail[:200]}")


def live_probe(state: EngineState, *, ready: bool, detail: str) -> Probe:
    """Give the probe of one that answers."""
    return Probe(state=state, started=True, live=True, ready=ready, detail=detail)
