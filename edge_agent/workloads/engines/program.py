"""The program behind an engine: how it is started, found again, and ended.

It is nobody's child in effect: a session or a unit of its own, so that it lives on when agent, node
or host die, and is adopted by whoever comes next.
"""

from typing import Final, Protocol

from msgspec import Struct

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.processes import MARK
from edge_agent.workloads.errors import DriverRefusedError, Refusal

# A miner takes what is left of the processors: its share beside a program of weight 100.
WEIGHT_NORMAL: Final = 100
WEIGHT_MINER: Final = 10

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Look(Struct, frozen=True):
    """What can be seen of a program.

    Args:
        alive: None = it is not ours to see.
        detail: How it ended, or who it is.
        age_s: How long it has lived; None = unknown.
    """

    alive: bool | None
    detail: str = ""
    age_s: float | None = None


class Program(Protocol):
    """One program of one engine."""

    @property
    def ours(self) -> bool:
        """Tell whether it is started and ended from here."""
        ...

    async def look(self) -> Look:
        """See whether it lives; raises nothing of the world."""
        ...

    async def start(self, deadline_s: float, more: tuple[str, ...] = ()) -> bool:
        """Start it, or adopt what lives already; gives whether it is new.

        Args:
            more: Words after those of its command, for this start alone.

        Raises:
            DriverRefusedError: It cannot be started.
            DriverUnavailableError: Whether it was started is unknown.
        """
        ...

    async def end(self, grace_s: float) -> None:
        """Ask it to end, and kill what is left after the grace; fine when there is nothing.

        Raises:
            DriverUnavailableError: It does not die.
        """
        ...

    async def kill(self) -> None:
        """Kill it and everything it started.

        Raises:
            DriverUnavailableError: It does not die.
        """
        ...

    async def cpu_ns(self) -> int | None:
        """Give the processor time that it and its kin have used; None = unknown."""
        ...


class ForeignProgram:
    """A program that somebody else runs."""

    @property
    def ours(self) -> bool:
        """Tell that it is not ours."""
        return False

    async def look(self) -> Look:
        """Give that it cannot be seen from here."""
        return Look(None, "somebody else runs it")

    async def start(self, deadline_s: float, more: tuple[str, ...] = ()) -> bool:
        """Leave it alone: it runs, or its API will be found silent."""
        return False

    async def end(self, grace_s: float) -> None:
        """Refuse."""
        raise DriverRefusedError(Refusal.NOT_OURS, "somebody else runs it and must end it")

    async def kill(self) -> None:
        """Refuse."""
        raise DriverRefusedError(Refusal.NOT_OURS, "somebody else runs it and must end it")

    async def cpu_ns(self) -> int | None:
        """Give that it is unknown."""
        return None


class ProgramWork:
    """A program's processor time as the counter of its work: good for what works on processors."""

    # what answering its API and keeping time costs: a twentieth of a processor
    noise_per_s = 50e6

    def __init__(self, program: Program) -> None:
        self._program = program

    async def read(self) -> int | None:
        """Give the nanoseconds."""
        return await self._program.cpu_ns()


def environment_of(spec: EngineSpec, mark: str) -> dict[str, str]:
    """Give the whole environment of an engine's program: little, and with its own GPU only."""
    environment = {"PATH": _PATH, "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    environment |= dict(spec.environment)
    # last: a workload does not choose its GPU. Without one it sees none.
    environment |= {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": spec.gpu_uuid,
        MARK: mark,
    }
    return environment
