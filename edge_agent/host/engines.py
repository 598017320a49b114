"""Kinds of engines and of sensors, by the names that a host's config gives them.

The one place where names meet classes: everything else of the host takes a factory.
"""

from typing import NoReturn

from edge_agent.host.sensors import NoSensors, Sensors
from edge_agent.workloads.engine import EngineSpec
from protocol.settings import Problem, SettingsError


def make_engine(kind: str, spec: EngineSpec) -> NoReturn:
    """Give the driver of an engine.

    Raises:
        SettingsError: there is none of that name.
    """
    problem = Problem(path=f"gpu {spec.gpu}: kind", detail=f"no engine driver named {kind}")
    raise SettingsError("host.toml", (problem,))


def make_sensors(name: str) -> Sensors:
    """Give what reads the cards.

    Raises:
        SettingsError: there is nothing of that name.
    """
    if name != "none":
        problem = Problem(path="sensors", detail=f"no sensors named {name}")
        raise SettingsError("host.toml", (problem,))
    return NoSensors()
