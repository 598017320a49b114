"""The node's config: one frozen Struct from TOML, unknown keys refused with their path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edge_agent.addresses import check_address, is_local
from protocol.settings import Problem, SettingsError, located, parse_settings
from protocol.units import Ident, Positive, SiteName

Seconds = Annotated[float, Meta(gt=0, le=3_600)]


class NodeDriverConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which workload driver, and where its host listens (``hcp-agent host``, ``hcp-sim gpu``)."""

    kind: Ident = "host"
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


class NodeTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files of the node's certificate, by the names of their credentials.

    Args:
        tls_ca: who signs the site's certificate and this node's. tls_cert: its common name is the
            node id. tls_key: belongs to it.
    """

    tls_ca: Ident
    tls_cert: Ident
    tls_key: Ident


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a node must be told.

    Args:
        listen: ``unix:/path`` or ``tcp:host:port``. data_dir: folder of ``node.sqlite``.
        devices: written as ``[[device]]`` in TOML. tls: of the link; needed where it listens to
            more than this machine. credentials_dir: of the files, where systemd gives none.
    """

    node_id: Ident
    site_id: SiteName
    listen: str
    data_dir: str
    devices: tuple[NodeDeviceConfig, ...] = msgspec.field(name="device")
    driver: NodeDriverConfig = NodeDriverConfig()
    limits: NodeLimits = NodeLimits()
    tls: NodeTls | None = None
    credentials_dir: str = ""


def node_config_from_toml(text: str, source: str = "node.toml") -> NodeConfig:
    """Read and check a node's config.

    Raises:
        SettingsError: with every problem found.
    """
    config = parse_settings(text, NodeConfig, source)
    problems = located(text, _check(config))
    if problems:
        raise SettingsError(source, problems)
    return config


def load_node_config(path: Path) -> NodeConfig:
    """Read a node's config file.

    Raises:
        SettingsError: with every problem found, or naming the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), (Problem(path="file", detail=str(exc)),)) from exc
    return node_config_from_toml(text, str(path))


def _check(config: NodeConfig) -> Iterator[Problem]:
    try:
        check_address(config.listen)
    except ValueError as exc:
        yield Problem(path="listen", detail=str(exc))
    else:
        if config.tls is None and not is_local(config.listen):
            detail = "is for other machines: [tls] must name the node's certificate"
            yield Problem(path="listen", detail=detail)
        if config.tls is not None and config.listen.startswith("unix:"):
            yield Problem(path="tls", detail="a unix socket has none")
    if not config.devices:
        yield Problem(path="device", detail="a node has at least one device")
    for field in ("device_id", "gpu"):
        seen: set[str] = set()
        for index, device in enumerate(config.devices):
            value = str(getattr(device, field))
            if value in seen:
                yield Problem(path=f"device[{index}].{field}", detail=f"{value} is named twice")
            seen.add(value)
    if config.driver.kind != "host":
        yield Problem(path="driver.kind", detail=f"no driver named {config.driver.kind}")
    if not config.driver.socket:
        yield Problem(path="driver.socket", detail="the driver needs the socket of its host")
    if config.limits.temp_c_back >= config.limits.temp_c_max:
        yield Problem(path="limits.temp_c_back", detail="must be below temp_c_max")
