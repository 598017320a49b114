"""Kinds of engines and of sensors, by the names that a host's config gives them.

The one place where names meet classes: everything else of the host takes a factory.
"""

from pathlib import Path

from edge_agent.clock import SystemClock
from edge_agent.host.config import HostConfig
from edge_agent.host.fences import FenceFile
from edge_agent.host.main import EngineFactory
from edge_agent.host.nvml_sensors import NvmlSensors
from edge_agent.host.sensors import NoSensors, Sensors
from edge_agent.workloads.engine import Engine, EngineSpec
from edge_agent.workloads.engines.catalogue import EngineKind, engine_here
from edge_agent.workloads.engines.evidence import GpuMemory, UnknownMemory
from edge_agent.workloads.errors import DriverRefusedError
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.spawn import SpawnPiped
from protocol.settings import Problem, SettingsError

_FOLDER = "engines"
_MODE = 0o750


def engine_factory(config: HostConfig, memory: GpuMemory) -> EngineFactory:
    """Give what makes the driver of an engine, by its kind.

    Args:
        config: names the folder of the engines' records and output.
        memory: of this machine's cards.
    """
    folder = Path(config.data_dir) / _FOLDER
    clock = SystemClock()

    def make(kind: str, spec: EngineSpec) -> Engine:
        """Make one.

        Raises:
            SettingsError: there is no such kind, or its address or id is none.
        """
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
        try:
            return engine_here(EngineKind(kind), spec, folder=folder, clock=clock, memory=memory)
        except DriverRefusedError as exc:
            raise _wrong(spec, exc.detail) from exc
        except ValueError as exc:
            known = ", ".join(EngineKind)
            raise _wrong(spec, f"kind {kind}: {exc}; kinds are {known}") from exc

    return make


def make_sensors(config: HostConfig) -> Sensors:
    """Give what reads the cards.

    Raises:
        SettingsError: there is nothing of that name.
    """
    if config.sensors == "none":
        return NoSensors()
    if config.sensors == "nvml":
        clock = SystemClock()
        return NvmlSensors(
            Telemetry(SpawnPiped()),
            {gpu.name: gpu.uuid for gpu in config.gpus if gpu.uuid},
            now_ns=clock.boottime_ns,
            kept=FenceFile(Path(config.data_dir) / "fences.json"),
            boot_id=clock.boot_id(),
        )
    detail = f"no sensors named {config.sensors}; there are none, nvml"
    raise SettingsError("host.toml", (Problem(path="sensors", detail=detail),))


def memory_of(sensors: Sensors) -> GpuMemory:
    """Give what tells the memory in use of a card, where something does."""
    return sensors if isinstance(sensors, NvmlSensors) else UnknownMemory()


def _wrong(spec: EngineSpec, detail: str) -> SettingsError:
    problem = Problem(path=f"gpu {spec.gpu}: {spec.engine_id}", detail=detail)
    return SettingsError("host.toml", (problem,))
