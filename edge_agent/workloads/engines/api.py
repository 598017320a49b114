"""A driver whose engine has an HTTP API: starting it, and waiting until it answers."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from edge_agent.workloads.engine import EngineSpec, EngineState, Probe
from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.base import EngineBase, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline
from edge_agent.workloads.engines.http import EngineHttp
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    NobodyListensError,
    Refusal,
    WorkloadError,
)

T = TypeVar("T")

START_PERIOD_S: Final = 0.02
ASK_S_MAX: Final = 2.0
# A program that was seen alive so long ago is taken to be still: systemd is asked by a process.
ALIVE_S: Final = 2.0


class ApiEngine(EngineBase, ABC):
    """The part of a driver that is the same for all engines with an HTTP API.

    Args:
        spec: The engine; its ``url`` is needed. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        self._api = EngineHttp(spec.url, spec.token, ports.exchange)
        self._alive_until_s = 0.0

    async def probe(self) -> Probe:
        """Ask where it stands; an answer counts while the program that is to give it lives."""
        found = await self._probe()
        if not found.live or not await self._gone():
            return found
        look = await self._program.look()
        detail = f"{look.detail}; somebody else answers at {self._api.address}"
        return Probe(
            state=EngineState.ABSENT, started=False, live=False, ready=False, detail=detail
        )

    async def _gone(self) -> bool:
        """Tell whether the program that is to give the answers is known to be gone."""
        now_s = asyncio.get_running_loop().time()
        if not self._program.ours or now_s < self._alive_until_s:
            return False
        if (await self._program.look()).alive is False:
            return True
        self._alive_until_s = now_s + ALIVE_S
        return False

    @abstractmethod
    async def _probe(self) -> Probe:
        """Ask its API where it stands; raises nothing of the world."""

    async def _greet(self, deadline: Deadline) -> None:
        """Ask for the least that only a living engine answers.

        Raises:
            WorkloadError: It is not answered, or not yet.
        """
        await self._api.ask("GET", "/health", None, deadline)

    async def _ordered(self, order: Callable[[Deadline], Awaitable[T]], deadline: Deadline) -> T:
        """Give an order to what runs, as a rule; where it does not answer, start it before.

        Raises:
            DriverRefusedError: It does not start, or refuses.
            DriverUnavailableError: Somebody else's engine is silent.
        """
        if not self._record().parked and not await self._gone():
            try:
                return await order(deadline)
            except DriverUnavailableError:
                if not self._program.ours:
                    raise
        await self._start(deadline)
        return await order(deadline)

    async def _start(self, deadline: Deadline, *, quick: bool = False) -> None:
        """Have the program run, and wait until its API answers.

        Args:
            deadline: Of the act.
            quick: Take an answer of the API for a sign that it runs: within a switch.

        Raises:
            DriverRefusedError: It does not start, ends, does not get ready, or answers wrongly.
            DriverUnavailableError: Somebody else's engine is silent.
        """
        if quick and not self._record().parked and not await self._gone():
            try:
                return await self._greet(Deadline(deadline.act, deadline.left_s() / 2))
            except DriverUnavailableError:
                if not self._program.ours:
                    raise
        await self._refuse_taken_address(deadline)
        await self._run(deadline)
        self._note(parked=False)
        limit = Deadline(deadline.act, min(deadline.left_s(), self._spec.start_s))
        while True:
            ask = Deadline(deadline.act, min(ASK_S_MAX, limit.left_s()))
            try:
                return await self._greet(ask)
            except WorkloadError as exc:
                await self._not_yet(exc, limit)
            await asyncio.sleep(START_PERIOD_S)

    async def _refuse_taken_address(self, deadline: Deadline) -> None:
        """Refuse to start a program where somebody else answers already.

        It would fail to listen, seconds later, and meanwhile the other's answers pass for its own:
        they would be learnt, and what that engine does on its GPU be sold as done on this one.
        """
        if not self._program.ours or (await self._program.look()).alive is not False:
            return
        try:
            await self._greet(Deadline(deadline.act, min(ASK_S_MAX, deadline.left_s() / 2)))
        except NobodyListensError:
            return
        except WorkloadError:
            pass  # whatever it says, or does not: somebody listens
        detail = f"{self._api.address} is taken: a program that is not ours answers there"
        raise DriverRefusedError(Refusal.START_FAILED, detail)

    async def _run(self, deadline: Deadline) -> None:
        """Start the program, or adopt it."""
        with engine_acts():
            await self._program.start(deadline.left_s())

    async def _not_yet(self, error: WorkloadError, limit: Deadline) -> None:
        """Raise where waiting on is of no use."""
        if isinstance(error, DriverRefusedError) and error.answer_code != Refusal.BUSY:
            raise error
        look = await self._program.look()
        if look.alive is False:
            raise DriverRefusedError(Refusal.START_FAILED, look.detail) from error
        if limit.left_s() > 2 * START_PERIOD_S:
            return
        if look.alive:
            detail = f"not ready after {limit.seconds:.3g} s: {error}"
            raise DriverRefusedError(Refusal.START_FAILED, detail) from error
        raise DriverUnavailableError(str(error)) from error
