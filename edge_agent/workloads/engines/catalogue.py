"""The kinds of engine, by the name that a host's config gives them."""

from enum import StrEnum
from typing import assert_never

from edge_agent.workloads.engine import Engine, EngineSpec
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.openai import OpenAiEngine
from edge_agent.workloads.engines.process import ProcessEngine
from edge_agent.workloads.engines.reference import ReferenceMiner, ReferenceServer
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
