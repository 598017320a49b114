"""What drivers take as evidence beyond an engine's own answer, and how long they look for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal

# Between two looks at an engine; a look over loopback takes about half of it.
LOOK_PERIOD_S: Final = 0.002
# The end of a deadline belongs to the last look: one that is cut off proves nothing either way.
LAST_LOOK_SHARE: Final = 0.2


class BootClock(Protocol):
    """CLOCK_BOOTTIME."""

    def boottime_ns(self) -> int:
        """Give the nanoseconds since boot."""
        ...


class GpuMemory(Protocol):
    """What the driver of the GPU says of its memory, whatever an engine says."""

    async def used_mib(self, gpu: str) -> int | None:
        """Give the memory in use of a GPU by the host's name of it; None = unknown."""
        ...


class UnknownMemory:
    """A machine where nobody can tell: no GPU, or no right to ask."""

    async def used_mib(self, gpu: str) -> int | None:
        """Give None."""
        return None


class WorkCounter(Protocol):
    """Something that grows while an engine works, such as hashes done or processor time.

    Growth of up to ``noise_per_s`` is no work: a paused program still answers its API.
    """

    noise_per_s: float

    async def read(self) -> int | None:
        """Give the counter; None = unknown."""
        ...


class UnknownWork:
    """No counter is at hand."""

    noise_per_s = 0.0

    async def read(self) -> int | None:
        """Give None."""
        return None


class Deadline:
    """The end of one act.

    Args:
        act: Its name, for messages. seconds: from now.
    """

    def __init__(self, act: str, seconds: float) -> None:
        self.act = act
        self.seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds

    def left_s(self) -> float:
        """Give what is left, never below zero."""
        return max(0.0, self._end - asyncio.get_running_loop().time())


@asynccontextmanager
async def within(act: str, seconds: float) -> AsyncIterator[Deadline]:
    """Bound one act.

    Raises:
        DriverUnavailableError: The deadline passed; what the act did is unknown.
    """
    deadline = Deadline(act, seconds)
    try:
        async with asyncio.timeout(seconds):
            yield deadline
    except TimeoutError as exc:
        raise DriverUnavailableError(f"{act}: not done in {seconds:g} s") from exc


async def until(
    lacking: Callable[[], Awaitable[str]], deadline: Deadline, *, period_s: float = LOOK_PERIOD_S
) -> None:
    """Look until the evidence is complete.

    Args:
        lacking: Gives what is still missing, in words; empty = nothing.
        deadline: Of the act.
        period_s: Between two looks.

    Raises:
        DriverRefusedError: The engine said yes, and to the last the evidence said no.
    """
    while reason := await lacking():
        if deadline.left_s() <= max(2 * period_s, LAST_LOOK_SHARE * deadline.seconds):
            raise DriverRefusedError(
                Refusal.NO_EFFECT, f"{deadline.act}: {reason} after {deadline.seconds:g} s"
            )
        await asyncio.sleep(period_s)


async def stands_still(work: WorkCounter, over_s: float) -> bool | None:
    """Tell whether a counter stood still over a stretch of time; None = no counter."""
    before = await work.read()
    if before is None:
        return None
    started = asyncio.get_running_loop().time()
    await asyncio.sleep(over_s)
    after = await work.read()
    if after is None:
        return None
    elapsed_s = asyncio.get_running_loop().time() - started
    return after - before <= work.noise_per_s * elapsed_s
