"""An asyncio event loop whose clock jumps when every task waits.

Theory of operation. The loop is an ordinary SelectorEventLoop with two things replaced: its clock,
which is a number, and its selector, which never sleeps. Each turn polls the real file descriptors
with no wait. If one is ready it is served at the present virtual instant; otherwise the clock jumps
to the next timer. A simulated day so costs only the work done in it.

What makes a run repeatable, whatever the hash seed and the addresses of objects:
- ready descriptors are served in the order in which they were registered, not in the kernel's;
- tasks hash by their number, because TaskGroup keeps its children in a set and cancels them in that
  set's order;
- threads are refused: the clock would jump while one works.
TCP on loopback addresses is carried in memory (`memory_net`). Both ends of a Unix socket may live
in this loop: the kernel hands the bytes over inside the send call, so the next poll sees them. Not
repeatable, and left to the caller to avoid: iteration over sets of plain objects,
asyncio.as_completed, other processes.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from simulators.errors import (
    SettingError,
    ThreadRefusedError,
    VirtualDeadlockError,
    VirtualLivelockError,
    VirtualTimeError,
)
from simulators.memory_net import MemoryNetwork, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping

    from _typeshed import FileDescriptorLike

_T = TypeVar("_T")

# Real seconds to wait for a descriptor when no timer is left: a busy kernel needs less.
STALL_S = 1.0
# Turns at one instant before the run counts as a livelock: a whole site's takes some thousands.
TURNS_PER_INSTANT_MAX = 1_000_000
# A timer may fire up to 1 ns early, and whoever then sleeps for the rest never gets there: as in
# the world, turns take time, but so little that only those who spin come to see it.
TURNS_PER_NS = 256
# asyncio fires timers to within 1 ns, which a float no longer tells above 2**22 s (48 days).
CLOCK_S_MAX = 2.0**22


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop that runs in virtual time.

    Args:
        start_s: Virtual seconds on the loop's clock at the start, below 48 days.

    Raises:
        VirtualDeadlockError: From the run, when nothing is ready and nothing can become ready.
        VirtualLivelockError: From the run, when tasks spin without the clock moving.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._turns = 0
        self._tasks_made = 0
        self.network = MemoryNetwork()
        super().__init__(_JumpingSelector(self._jump))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def time_ns(self) -> int:
        """Return the virtual time in whole nanoseconds."""
        return round(self._now_s * 1e9)

    def next_task_number(self) -> int:
        """Return the number of the next task; tasks are numbered in the order of their making."""
        self._tasks_made += 1
        return self._tasks_made

    def run_in_executor(self, executor: object, func: object, *args: object) -> NoReturn:
        """Refuse, because the clock would jump while the thread works.

        Raises:
            ThreadRefusedError: Always.
        """
        del executor, args
        raise ThreadRefusedError(f"{func!r}: put the thread behind a port with an inline variant")

    async def create_connection(  # type: ignore[override]  # fewer options than typeshed lists
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        **options: Any,  # noqa: ANN401 - handed through
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect in memory to a loopback address, else as asyncio does.

        Raises:
            OSError: When the connect fails.
        """
        if host is not None and port is not None and is_loopback(host):
            return await self.network.connect(protocol_factory, host, port)
        return await super().create_connection(
            protocol_factory,
            host,  # type: ignore[arg-type]  # the overloads of typeshed part None from str
            port,  # type: ignore[arg-type]  # as host
            **options,
        )

    async def create_server(  # type: ignore[override]  # fewer options than typeshed lists
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        **options: Any,  # noqa: ANN401 - handed through
    ) -> asyncio.AbstractServer:
        """Listen in memory on a loopback or wildcard address, else as asyncio does.

        Raises:
            OSError: When the address is taken.
        """
        if host is not None and port is not None and is_loopback(host):
            return self.network.listen(protocol_factory, host, port)
        return await super().create_server(protocol_factory, host, port, **options)

    def _jump(self, timeout_s: float | None) -> None:
        """Move the clock by `timeout_s`; None means that no timer is set."""
        if timeout_s is None:
            raise VirtualDeadlockError(
                "all tasks wait, no timer is set and no descriptor became ready"
            )
        if timeout_s <= 0:
            self._turns += 1
            if self._turns > TURNS_PER_INSTANT_MAX:
                self._turns = 0  # the tasks still need turns to be cancelled in
                raise VirtualLivelockError(f"no progress at virtual second {self._now_s}")
            if self._turns % TURNS_PER_NS == 0:
                self._now_s += 1e-9
            return
        self._turns = 0
        # The sum may round to the present instant when the timer is nearer than the clock resolves.
        self._now_s = max(self._now_s + timeout_s, math.nextafter(self._now_s, math.inf))
        if self._now_s > CLOCK_S_MAX:
            raise VirtualTimeError(f"the virtual clock went past {CLOCK_S_MAX} s")


class _NumberedTask(asyncio.Task[_T]):
    """A task whose place in a set depends on its number, not on its address."""

    def __init__(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        loop: VirtualTimeLoop,
        **options: Any,  # noqa: ANN401 - handed through to asyncio.Task, whose options differ by version
    ) -> None:
        self.number = loop.next_task_number()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
    **options: Any,  # noqa: ANN401 - as above
) -> asyncio.Task[_T]:
    assert isinstance(loop, VirtualTimeLoop)
    return _NumberedTask(coro, loop=loop, **options)


class _JumpingSelector(selectors.BaseSelector):
    """A selector that polls without waiting and then lets the clock jump."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._inner = selectors.DefaultSelector()
        self._jump = jump
        self._rank: dict[int, int] = {}
        self._registered = 0

    def register(
        self,
        fileobj: FileDescriptorLike,
        events: int,
        data: Any = None,  # noqa: ANN401 - the base class says so
    ) -> selectors.SelectorKey:
        key = self._inner.register(fileobj, events, data)
        self._registered += 1
        self._rank[key.fd] = self._registered
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        key = self._inner.unregister(fileobj)
        del self._rank[key.fd]
        return key

    def modify(
        self,
        fileobj: FileDescriptorLike,
        events: int,
        data: Any = None,  # noqa: ANN401 - the base class says so
    ) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # The loop's own pipe tells of threads and signals, which reach the loop's queue as well.
        ready = self._inner.select(0) if len(self._rank) > 1 or timeout is None else []
        if not ready and timeout is None and len(self._rank) > 1:
            # Only a descriptor can still wake the loop (another process): give it a real moment.
            ready = self._inner.select(STALL_S)
        if ready:
            self._jump(0.0)
            return sorted(ready, key=lambda pair: self._rank[pair[0].fd])
        self._jump(timeout)
        return []

    def close(self) -> None:
        self._inner.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()


def run(main: Coroutine[Any, Any, _T], *, start_s: float = 0.0) -> _T:
    """Run a coroutine to its end in virtual time.

    Args:
        main: The coroutine to run.
        start_s: Virtual seconds on the loop's clock at the start.

    Returns:
        What the coroutine returned.

    Raises:
        VirtualTimeError: When the simulation can not go on.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start_s)) as runner:
        return runner.run(main)


class SimClock:
    """The clocks of one simulated host: boot time, wall time and boot id.

    Several hosts may share one loop, each with its own offset, drift and boots. Boot time runs with
    the loop and is never stepped; wall time may be, by a fault.

    Args:
        now_s: The source of time, such as `loop.time`.
        wall_at_start: Aware UTC time of the host's wall clock at the present instant.
        host: Name that the boot ids begin with.
    """

    def __init__(
        self, now_s: Callable[[], float], wall_at_start: datetime, *, host: str = "host"
    ) -> None:
        if wall_at_start.utcoffset() != timedelta(0):
            raise SettingError("wall_at_start", "must be an aware UTC time")
        self._now_s = now_s
        self._host = host
        self._boots = 1
        self._booted_ns = self._now_ns()
        self._anchor_ns = self._booted_ns
        self._anchor_wall = wall_at_start
        self._drift_ppm = 0.0

    def boottime_ns(self) -> int:
        """Return the nanoseconds since this host's boot, suspend included."""
        # Asked for more often than anything else: no call in between.
        return round(self._now_s() * 1e9) - self._booted_ns

    def wall(self) -> datetime:
        """Return the host's wall clock as aware UTC, steps and drift included."""
        elapsed_ns = self._now_ns() - self._anchor_ns
        skewed_ns = elapsed_ns + round(elapsed_ns * self._drift_ppm / 1e6)
        return self._anchor_wall + timedelta(microseconds=skewed_ns // 1000)

    def boot_id(self) -> str:
        """Return the id of the present boot."""
        return f"{self._host}-boot-{self._boots}"

    def step_wall(self, by_s: float) -> None:
        """Step the wall clock by `by_s` seconds, forward or back, as a wrong time server does."""
        self._reanchor(self.wall() + timedelta(seconds=by_s))

    def set_drift(self, ppm: float) -> None:
        """Let the wall clock gain `ppm` microseconds per second from now on."""
        self._reanchor(self.wall())
        self._drift_ppm = ppm

    def reboot(self) -> None:
        """Start another boot: boot time begins at zero, the wall clock goes on."""
        self._booted_ns = self._now_ns()
        self._boots += 1

    def _reanchor(self, wall: datetime) -> None:
        self._anchor_wall = wall.astimezone(UTC)
        self._anchor_ns = self._now_ns()

    def _now_ns(self) -> int:
        return round(self._now_s() * 1e9)
