"""The kinds of engine, by the name that a host's config gives them."""

from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, assert_never

import msgspec

from edge_agent.workloads.engine import Engine, EngineSpec
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.evidence import GpuMemory, UnknownWork
from edge_agent.workloads.engines.kept import KeptExchange
from edge_agent.workloads.engines.openai import OpenAiEngine
from edge_agent.workloads.engines.process import ProcessEngine, program_for
from edge_agent.workloads.engines.program import WEIGHT_MINER, WEIGHT_NORMAL, ProgramWork
from edge_agent.workloads.engines.record import RecordFile
from edge_agent.workloads.engines.reference_miner import ReferenceMiner
from edge_agent.workloads.engines.reference_server import ReferenceServer
from edge_agent.workloads.engines.unit import UnitLimits
from edge_agent.workloads.engines.vllm import VllmEngine
from edge_agent.workloads.engines.xmrig import XmrigEngine


class EngineKind(StrEnum):
    """What an engine is; it names the driver."""

    PROCESS = "process"
    OPENAI = "openai-compatible"
    VLLM = "vllm"
    XMRIG = "xmrig"
    REFERENCE_MINER = "reference-miner"
    REFERENCE_SERVER = "reference-server"


# XMRig takes its token by its command line or config alone.
_TOKEN_VARIABLES: Final = {
    EngineKind.VLLM: "VLLM_API_KEY",
    EngineKind.REFERENCE_MINER: "HCP_REFERENCE_TOKEN",
    EngineKind.REFERENCE_SERVER: "HCP_REFERENCE_TOKEN",
}


class Machine(Protocol):
    """What the drivers need of the clocks."""

    def boottime_ns(self) -> int:
        """Give CLOCK_BOOTTIME."""
        ...

    def boot_id(self) -> str:
        """Give the boot's identity."""
        ...


def engine_here(
    kind: EngineKind,
    spec: EngineSpec,
    *,
    folder: Path,
    clock: Machine,
    memory: GpuMemory,
    limits: UnitLimits | None = None,
) -> Engine:
    """Make the driver of an engine of this machine, with its program and its record.

    Args:
        kind: Names the driver. spec: the engine. folder: of records and output.
        clock: Of this machine. memory: of its GPUs.
        limits: Of its program; by default a miner takes what processors others leave.

    Raises:
        DriverRefusedError: The engine has an API, and its address is none.
        ValueError: Its id is no name for a file.
    """
    spec = _with_token(kind, spec)
    mines = kind in (EngineKind.XMRIG, EngineKind.REFERENCE_MINER)
    limits = limits or UnitLimits(weight=WEIGHT_MINER if mines else WEIGHT_NORMAL)
    program = program_for(spec, folder=folder, boot_id=clock.boot_id(), limits=limits)
    ports = EnginePorts(
        clock=clock,
        program=program,
        records=RecordFile(folder, spec.engine_id),
        memory=memory,
        # what works on a GPU may do so with idle processors: there this is no evidence
        work=UnknownWork() if spec.vram_mib else ProgramWork(program),
        exchange=KeptExchange(),
    )
    return engine_of(kind, spec, ports)


def _with_token(kind: EngineKind, spec: EngineSpec) -> EngineSpec:
    """Give a program of ours its API's token by its environment, where it reads it from there."""
    name = _TOKEN_VARIABLES.get(kind)
    if name is None or not spec.token or not spec.argv:
        return spec
    return msgspec.structs.replace(spec, environment=(*spec.environment, (name, spec.token)))


def engine_of(kind: EngineKind, spec: EngineSpec, ports: EnginePorts) -> Engine:
    """Make the driver of an engine.

    Raises:
        DriverRefusedError: The engine has an API, and its address is none.
    """
    match kind:
        case EngineKind.PROCESS:
            return ProcessEngine(spec, ports)
        case EngineKind.OPENAI:
            return OpenAiEngine(spec, ports)
        case EngineKind.VLLM:
            return VllmEngine(spec, ports)
        case EngineKind.XMRIG:
            return XmrigEngine(spec, ports)
        case EngineKind.REFERENCE_MINER:
            return ReferenceMiner(spec, ports)
        case EngineKind.REFERENCE_SERVER:
            return ReferenceServer(spec, ports)
        case _:
            assert_never(kind)
