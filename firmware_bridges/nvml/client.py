"""The parent's side of the telemetry: attends to the children, keeps the newest row of each card.

Thin: which child to start or to kill is decided by `fencing.Overseer`, which is pure.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from firmware_bridges.nvml.child import NS_PER_S, ChildOptions, boottime_ns
from firmware_bridges.nvml.errors import ChildAwayError, ChildSilentError
from firmware_bridges.nvml.fencing import Overseer
from firmware_bridges.nvml.pipe import FROM_CHILD, Unpacker, pack
from firmware_bridges.nvml.samples import AskProcesses, FromChild, GpuEvent, Hello, Processes
from firmware_bridges.nvml.spawn import ChildProcess, Spawn
from firmware_bridges.nvml.states import Bounds, GpuView, Kill, Start
from protocol.errors import DecodeError

logger = logging.getLogger(__name__)

STEP_S: Final = 0.1
STALL_S: Final = 1.0
ASK_S: Final = 2.0
REAP_S: Final = 2.0
EVENTS_MAX: Final = 4_096


class Telemetry:
    """Readings and events of all NVIDIA cards of this host.

    Args:
        spawn: starts children. period_s: of the sweep.
    """

    def __init__(
        self,
        spawn: Spawn,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        period_s: float = 1.0,
        now_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        self._spawn = spawn
        self._period_s = period_s
        self._now_ns = now_ns
        self._overseer = Overseer(bounds)
        self._children: dict[int, ChildProcess] = {}
        # killed, and not yet gone: the kernel keeps a process for as long as its call hangs
        self._dying: set[int] = set()
        self._main: int | None = None
        self._events: deque[GpuEvent] = deque()
        self._asked: dict[int, asyncio.Future[Processes]] = {}
        self._next_request = 0
        self.events_lost = 0
        self.driver: str | None = None

    async def run(self) -> None:
        """Keep the children running until cancelled."""
        async with asyncio.TaskGroup() as group:
            looked_ns = self._now_ns()
            while True:
                now_ns = self._now_ns()
                # after a stall of ours (or of the host) what the children said is still unread
                stalled = now_ns - looked_ns > STALL_S * NS_PER_S
                looked_ns = now_ns
                if not stalled:
                    self._step(group, now_ns)
                await asyncio.sleep(STEP_S)

    def _step(self, group: asyncio.TaskGroup, now_ns: int) -> None:
        for effect in self._overseer.step(now_ns, len(self._dying)):
            if isinstance(effect, Start):
                group.create_task(self._attend(effect), name=f"nvml-child-{effect.child}")
            else:
                self._kill(effect)

    @property
    def problem(self) -> str:
        """Say why there are no readings at all, if that is known; empty when there are some."""
        return self._overseer.problem

    def view(self) -> tuple[GpuView, ...]:
        """Give every card as it stands now."""
        return self._overseer.view(self._now_ns())

    def take_events(self) -> tuple[GpuEvent, ...]:
        """Give the events since the last time, each once, in order."""
        taken = tuple(self._events)
        self._events.clear()
        return taken

    async def processes(self, uuid: str) -> Processes:
        """List the processes of one card: only when asked for, never in a sweep.

        Raises:
            ChildAwayError: no child runs. ChildSilentError: no answer in time.
        """
        child = None if self._main is None else self._children.get(self._main)
        if child is None:
            raise ChildAwayError("no telemetry child runs")
        self._next_request += 1
        request = AskProcesses(request=self._next_request, uuid=uuid)
        answered: asyncio.Future[Processes] = asyncio.get_running_loop().create_future()
        self._asked[request.request] = answered
        try:
            child.write(pack(request))
            async with asyncio.timeout(ASK_S):
                return await answered
        except TimeoutError as exc:
            raise ChildSilentError(f"{uuid}: no list of processes in {ASK_S} s") from exc
        finally:
            del self._asked[request.request]

    def _kill(self, effect: Kill) -> None:
        logger.warning("nvml child=%d killed: %s", effect.child, effect.reason)
        # one that is only now being started is killed as soon as it is there
        self._dying.add(effect.child)
        child = self._children.get(effect.child)
        if child is not None:
            child.kill()

    async def _attend(self, start: Start) -> None:
        """Start one child and listen to it until it ends."""
        options = ChildOptions(period_s=self._period_s, cards=start.cards, events=start.events)
        try:
            child = await self._spawn(options)
        except OSError as exc:
            logger.warning("nvml child=%d not started: %s", start.child, exc)
            self._overseer.ended(start.child, self._now_ns())
            self._dying.discard(start.child)
            return
        self._children[start.child] = child
        # the one child that tells events is the one that reads all cards
        if start.events:
            self._main = start.child
        try:
            if start.child in self._dying:
                child.kill()
            await self._listen(start.child, child)
        finally:
            self._dying.add(start.child)
            child.kill()
            del self._children[start.child]
            self._main = None if self._main == start.child else self._main
            self._overseer.ended(start.child, self._now_ns())
            await self._reap(child)
            self._dying.discard(start.child)

    async def _listen(self, number: int, child: ChildProcess) -> None:
        unpacker: Unpacker[FromChild] = Unpacker(FROM_CHILD)
        while data := await child.read():
            try:
                for message in unpacker.feed(data):
                    self._hear(number, message)
            except DecodeError as exc:
                logger.warning("nvml child=%d speaks no sense: %s", number, exc)
                return

    def _hear(self, number: int, message: FromChild) -> None:
        match message:
            case GpuEvent():
                self._events.append(message)
                if len(self._events) > EVENTS_MAX:
                    self._events.popleft()
                    self.events_lost += 1
            case Processes(request=request):
                answered = self._asked.get(request)
                if answered is not None and not answered.done():
                    answered.set_result(message)
            case Hello(driver=driver):
                self.driver = driver
        self._overseer.heard(number, message, self._now_ns())

    async def _reap(self, child: ChildProcess) -> None:
        """Wait for a killed process; one that hangs in the kernel stays until its call returns."""
        this = asyncio.current_task()
        at_the_end = this is not None and this.cancelling() > 0
        try:
            async with asyncio.timeout(REAP_S if at_the_end else None):
                await child.wait()
        except TimeoutError:
            logger.warning("a killed nvml child is still there")
        finally:
            child.close()
