"""The node's config: one frozen Struct from TOML, unknown keys refused with their path."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edge_agent.node.channel import check_address
from edge_agent.node.errors import NodeConfigError
from protocol.units import Ident, Positive, SiteName

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<path>[^`]*)`)?")
Seconds = Annotated[float, Meta(gt=0, le=3_600)]


class NodeDriverConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which workload driver, and where its host listens."""

    kind: Ident = "simulated"
    socket: str = ""
    timeout_s: Seconds = 5.0


class NodeDeviceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU: our name, the host's name of it, and its class."""

    device_id: Ident
    gpu: str
    device_class: Ident


class NodeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Local safety limits and bounds; nobody outside can loosen them.

    Args:
        temp_c_max: at this temperature the device is made safe. temp_c_back: below it may return.
        driver_lost_s: silence of the workload host after which its devices are reported lost.
        switch_hold_s: how long an unfinished switch keeps the node from restoring the assignment.
        readings_max: unacknowledged readings above which minute readings are left out.
    """

    temp_c_max: float = 90.0
    temp_c_back: float = 75.0
    driver_lost_s: Seconds = 10.0
    switch_hold_s: Seconds = 120.0
    readings_max: Positive = 2_000_000


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a node must be told.

    Args:
        listen: ``unix:/path`` or ``tcp:host:port``. data_dir: folder of ``node.sqlite``.
        devices: written as ``[[device]]`` in TOML.
    """

    node_id: Ident
    site_id: SiteName
    listen: str
    data_dir: str
    devices: tuple[NodeDeviceConfig, ...] = msgspec.field(name="device")
    driver: NodeDriverConfig = NodeDriverConfig()
    limits: NodeLimits = NodeLimits()


def node_config_from_toml(text: str) -> NodeConfig:
    """Read and check a node's config.

    Raises:
        NodeConfigError: naming the field by its path.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise NodeConfigError("toml", str(exc)) from exc
    return node_config_from_document(document)


def node_config_from_document(document: dict[str, object]) -> NodeConfig:
    """Check a parsed document, e.g. one table of a larger file.

    Raises:
        NodeConfigError: naming the field by its path.
    """
    try:
        config = msgspec.convert(document, NodeConfig)
    except msgspec.ValidationError as exc:
        raise _config_error(str(exc)) from exc
    _check(config)
    return config


def load_node_config(path: Path) -> NodeConfig:
    """Read a node's config file.

    Raises:
        NodeConfigError: naming the field by its path, or the file.
    """
    try:
        return node_config_from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise NodeConfigError(str(path), str(exc)) from exc


def _config_error(text: str) -> NodeConfigError:
    found = _UNKNOWN.search(text)
    if found is None:
        reason, _, path = text.partition(" - at `$")
        return NodeConfigError(path.rstrip("`").lstrip(".") or "config", reason)
    key = found["key"]
    path = ".".join(part for part in ((found["path"] or "").lstrip("."), key) if part)
    near = difflib.get_close_matches(key, _known_keys(), n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return NodeConfigError(path, f"unknown key{hint}")


def _known_keys() -> list[str]:
    kinds = (NodeConfig, NodeDriverConfig, NodeDeviceConfig, NodeLimits)
    return sorted({field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)})


def _check(config: NodeConfig) -> None:
    try:
        check_address(config.listen)
    except ValueError as exc:
        raise NodeConfigError("listen", str(exc)) from exc
    if not config.devices:
        raise NodeConfigError("device", "a node has at least one device")
    for field in ("device_id", "gpu"):
        seen: set[str] = set()
        for index, device in enumerate(config.devices):
            value = str(getattr(device, field))
            if value in seen:
                raise NodeConfigError(f"device[{index}].{field}", f"{value} is named twice")
            seen.add(value)
    if config.driver.kind != "simulated":
        raise NodeConfigError("driver.kind", f"no driver named {config.driver.kind}")
    if not config.driver.socket:
        raise NodeConfigError("driver.socket", "the simulated driver needs a socket")
    if config.limits.temp_c_back >= config.limits.temp_c_max:
        raise NodeConfigError("limits.temp_c_back", "must be below temp_c_max")
