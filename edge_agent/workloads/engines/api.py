"""A driver whose engine has an HTTP API: starting it, and waiting until it answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.base import EngineBase, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline
from edge_agent.workloads.engines.http import EngineHttp
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    Refusal,
    WorkloadError,
)

T = TypeVar("T")

START_PERIOD_S: Final = 0.02
ASK_S_MAX: Final = 2.0


class ApiEngine(EngineBase):
    """The part of a driver that is the same for all engines with an HTTP API.

    Args:
        spec: The engine; its ``url`` is needed. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        self._api = EngineHttp(spec.url, spec.token, ports.exchange)

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
        if not self._record().parked:
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
        if quick and not self._record().parked:
            try:
                return await self._greet(Deadline(deadline.act, deadline.left_s() / 2))
            except DriverUnavailableError:
                if not self._program.ours:
                    raise
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
