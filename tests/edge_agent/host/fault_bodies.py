"""The processes and the card of a world of faults: what is really there, whoever asks.

An engine's stand-in shares no code with the product; it dies, and is started anew, as a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from edge_agent.host.sensors import GpuFacts
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.engines.catalogue import EngineKind
from edge_agent.workloads.engines.program import Look
from edge_agent.workloads.errors import DriverRefusedError, Refusal
from simulators.engine_server import StandIn
from simulators.engine_xmrig import XmrigStandIn
from tests.edge_agent.workloads.engines.reference_standin import MinerStandIn

UUID = "GPU-1"
LATENCY_S = 0.0002


class Body:
    """The process behind an engine's address; it is the driver's ``Program`` too.

    Attributes:
        standin: what answers; None: no such process. starts: whether it can be started.
        started: how often it was. slow_s: what a start takes. born: what befalls a new one.
    """

    def __init__(self, make: Callable[[], StandIn], *, ours: bool) -> None:
        self._make = make
        self._ours = ours
        self.starts = True
        self.started = 0
        self.slow_s = LATENCY_S
        self.born: Callable[[StandIn], None] = lambda _standin: None
        self.standin: StandIn | None = make()

    @property
    def ours(self) -> bool:
        return self._ours

    @property
    def alive(self) -> bool:
        return self.standin is not None

    def done(self) -> int:
        """Give the hashes of a miner."""
        one = self.standin
        return one.done() if isinstance(one, XmrigStandIn | MinerStandIn) else 0

    def die(self) -> None:
        if self.standin is not None:
            self.standin.die()
        self.standin = None

    async def look(self) -> Look:
        return Look(self.alive if self._ours else None, "alive" if self.alive else "killed by 9")

    async def start(self, deadline_s: float, more: tuple[str, ...] = ()) -> bool:
        if self.alive or not self._ours:
            return False
        await asyncio.sleep(self.slow_s)
        if not self.starts:
            raise DriverRefusedError(Refusal.START_FAILED, "the model's file is not there")
        self.standin = self._make()
        self.started += 1
        self.born(self.standin)
        return True

    async def end(self, grace_s: float) -> None:
        await self.kill()

    async def kill(self) -> None:
        if not self._ours:
            raise DriverRefusedError(Refusal.NOT_OURS, "somebody else runs it")
        await asyncio.sleep(LATENCY_S)
        self.die()

    async def cpu_ns(self) -> int | None:
        return None


class Card:
    """The card, as its own sensors tell of it."""

    def __init__(self, used_mib: Callable[[], int]) -> None:
        self._used_mib = used_mib
        self.healthy = True
        self.told = True
        self.temp_c = 60.0

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def read(self) -> Mapping[str, GpuFacts]:
        if not self.told:
            return {}
        facts = GpuFacts(
            temp_c=self.temp_c,
            memory_used_mib=float(self._used_mib()),
            healthy=self.healthy,
            reason="" if self.healthy else "it fell off the bus",
        )
        return {UUID: facts}

    def prometheus(self, hostname: str) -> str:
        return ""

    async def release(self, uuid: str) -> None:
        del uuid


class Pair:
    """Which engines a world has, and how they are switched."""

    def __init__(
        self,
        name: str,
        miner: EngineKind,
        server: EngineKind,
        strategies: tuple[Strategy | None, Strategy | None] = (None, None),
        *,
        ours: bool = True,
    ) -> None:
        self.name = name
        self.kinds = {"miner": miner, "server": server}
        self.strategies = {"miner": strategies[0], "server": strategies[1]}
        self.ours = ours
