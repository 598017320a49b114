"""Each driver with what it drives, and the truth about that from behind."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import Engine, EngineSpec
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.catalogue import EngineKind, engine_of
from edge_agent.workloads.engines.evidence import UnknownMemory, UnknownWork
from edge_agent.workloads.engines.process import group_for
from edge_agent.workloads.engines.program import ForeignProgram, Program
from edge_agent.workloads.engines.record import RecordFile
from edge_agent.workloads.engines.simulated import SimulatedEngine, SimulatedMachine
from simulators.engine_lies import EVERY_PATH, Lie
from simulators.engine_openai import OpenAiStandIn
from simulators.engine_server import EngineServer, StandIn
from simulators.engine_vllm import VllmStandIn, VllmVersion
from simulators.engine_xmrig import XmrigStandIn
from tests.edge_agent.workloads.engines.reference_standin import MinerStandIn, ServerStandIn

ROOT = Path(__file__).resolve().parents[4]
TOKEN = "secret"
VRAM_MIB = 14_000
FOREIGN = ("openai", "vllm", "vllm-newer", "xmrig", "reference-miner", "reference-server")
ALL = (*FOREIGN, "process", "simulated")


class TrueMemory:
    """A GPU's memory as its driver would tell it."""

    def __init__(self, used_mib: Callable[[], int]) -> None:
        self._used_mib = used_mib

    async def used_mib(self, gpu: str) -> int | None:
        return self._used_mib()


class TrueWork:
    noise_per_s = 0.0

    def __init__(self, done: Callable[[], int]) -> None:
        self._done = done

    async def read(self) -> int | None:
        return self._done()


class Rig:
    """One engine.

    ``again`` gives a new driver of it, as a restarted host would make; ``acts`` names the path that
    carries an act.
    """

    def __init__(self, name: str, make: Callable[[], Engine], acts: dict[str, str]) -> None:
        self.name = name
        self._make = make
        self.acts = acts
        self.standin: StandIn | None = None
        self.server: EngineServer | None = None
        self.machine: SimulatedMachine | None = None
        self.used_mib: Callable[[], int] | None = None
        self.done: Callable[[], int] | None = None

    def again(self) -> Engine:
        return self._make()

    def lie(self, path: str, lie: Lie | None) -> None:
        assert self.standin is not None
        self.standin.lies.tell(path, lie)

    def lie_always(self, lie: Lie | None) -> None:
        self.lie(EVERY_PATH, lie)


def spec_of(name: str, **fields: object) -> EngineSpec:
    base: dict[str, object] = {"engine_id": name, "gpu": "gpu0", "vram_mib": VRAM_MIB}
    return EngineSpec(**(base | fields))  # type: ignore[arg-type]


@asynccontextmanager
async def rigged(name: str, folder: Path, program: Program | None = None) -> AsyncIterator[Rig]:
    """Give a rig by name, alive until the block ends."""
    if name == "simulated":
        machine = SimulatedMachine(SystemClock())
        spec = spec_of(name)
        rig = Rig(name, lambda: SimulatedEngine(spec, machine), {})
        rig.machine = machine
        rig.used_mib = lambda: machine.used("gpu0")
        yield rig
    elif name == "process":
        clock = SystemClock()
        spec = spec_of(name, argv=("sleep", "60"), vram_mib=0)

        def make() -> Engine:
            sleeper = group_for(spec, folder=folder, boot_id=clock.boot_id())
            return engine_of(
                EngineKind.PROCESS,
                spec,
                EnginePorts(clock=clock, program=sleeper, records=RecordFile(folder, name)),
            )

        try:
            yield Rig(name, make, {})
        finally:
            await make().kill()
    else:
        async with _served(name, folder, program or ForeignProgram()) as rig:
            yield rig


@asynccontextmanager
async def _served(name: str, folder: Path, program: Program) -> AsyncIterator[Rig]:
    standin, kind, acts = _standin(name)
    server = EngineServer(standin)
    async with server.serving() as port:
        spec = spec_of(name, url=f"http://127.0.0.1:{port}", token=TOKEN, model=_model(name))
        used_mib = getattr(standin, "used_mib", None)
        done = getattr(standin, "done", None)
        ports = EnginePorts(
            clock=SystemClock(),
            program=program,
            records=RecordFile(folder, name),
            memory=TrueMemory(used_mib) if used_mib else UnknownMemory(),
            work=TrueWork(done) if done else UnknownWork(),
        )
        rig = Rig(name, lambda: engine_of(kind, spec, ports), acts)
        rig.standin, rig.server, rig.used_mib, rig.done = standin, server, used_mib, done
        yield rig


def _model(name: str) -> str:
    return "" if name == "openai" else "tiny"


def _standin(name: str) -> tuple[StandIn, EngineKind, dict[str, str]]:
    sleep = {"pause": "/pause", "offload": "/sleep", "resume": "/wake_up"}
    match name:
        case "openai":
            return OpenAiStandIn(token=TOKEN), EngineKind.OPENAI, {"resume": "/v1/completions"}
        case "vllm":
            return VllmStandIn(token=TOKEN), EngineKind.VLLM, sleep
        case "vllm-newer":
            version = VllmVersion(paused_sleeps=True)
            return VllmStandIn(token=TOKEN, version=version), EngineKind.VLLM, sleep
        case "xmrig":
            rpc = {"pause": "/json_rpc", "resume": "/json_rpc"}
            return XmrigStandIn(token=TOKEN, hash_s=0.01), EngineKind.XMRIG, rpc
        case "reference-miner":
            gate = {"pause": "/pause", "resume": "/resume"}
            return MinerStandIn(), EngineKind.REFERENCE_MINER, gate
        case _:
            swap = {"pause": "/pause", "offload": "/offload", "resume": "/resume"}
            return ServerStandIn(), EngineKind.REFERENCE_SERVER, swap


def python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)
