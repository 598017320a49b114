"""The workload host's config: one frozen Struct from TOML, unknown keys refused with their path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from edge_agent.addresses import split_tcp
from edge_agent.host.door import DoorLimits
from edge_agent.host.http_server import HttpLimits
from edge_agent.host.proxy import ProxyLimits
from edge_agent.workloads.engine import EngineSpec, Strategy
from protocol.settings import Problem, SettingsError, located, parse_settings
from protocol.units import Count, Ident, Positive, check_base_url

Seconds = Annotated[float, Meta(gt=0, le=3_600)]
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine of a GPU; the fields of the same name are those of ``EngineSpec``.

    Args:
        kind: of the driver. engine_id: empty = named after the GPU and what it does there.
        token_credential: names the secret that its API wants; empty = none.
        strategy: how it leaves its GPU and comes back; None: the cheapest that it can.
        starts_paused: of a miner: its program does not hash before it is told to, so that it may be
            made ready beside what else its GPU does.
    """

    kind: Ident
    engine_id: str = ""
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    url: str = ""
    token_credential: str = ""
    model: str = ""
    vram_mib: Count = 0
    mirror_mib: Count = 0
    canary_prompt: str = "canary"
    canary_sha256: Digest = ""
    start_s: Seconds = 120.0
    strategy: Strategy | None = None
    starts_paused: bool = False

    def spec(self, gpu: "GpuConfig", role: str, token: str) -> EngineSpec:
        """Give what a driver makes an engine of."""
        return EngineSpec(
            engine_id=self.engine_id or f"{gpu.name}-{role}",
            gpu=gpu.name,
            gpu_uuid=gpu.uuid,
            argv=self.argv,
            environment=tuple(sorted(self.environment.items())),
            url=self.url,
            token=token,
            model=self.model,
            vram_mib=self.vram_mib,
            mirror_mib=self.mirror_mib,
            canary_prompt=self.canary_prompt,
            canary_sha256=self.canary_sha256,
            start_s=self.start_s,
        )


class GpuConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU: its name here, its model, its uuid on the machine, and its engines."""

    name: Ident
    model: Ident
    uuid: str = ""
    vram_mib: Positive | None = None
    miner: EngineConfig | None = None
    server: EngineConfig | None = None


class ProxyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where requests come in, and their bounds.

    Args:
        listen: ``tcp:host:port`` of the customers. admin: the same, of /metrics and /status.
        public_url: under which customers reach ``listen``, such as ``https://gpu1.example.net``;
            the hub shows it to the owners of what is served here. Empty: not told.
        require_key: whether a request must bring a key of its lease's workload.
        outlive: what becomes of requests that outlive their gate: ended with an error, or kept
            until a gate of the same lease opens on the same GPU.
    """

    listen: str = "tcp:127.0.0.1:8400"
    admin: str = "tcp:127.0.0.1:9400"
    public_url: str = ""
    require_key: bool = True
    outlive: Literal["end", "keep"] = "end"
    http: HttpLimits = HttpLimits()
    request: ProxyLimits = ProxyLimits()
    door: DoorLimits = DoorLimits()


class HostLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times of the host.

    Args:
        act_s: longest time for one act on an engine; below the node's ``driver.timeout_s``.
        drain_s: how long requests may go on once the gate is to shut.
        grace_s: between asking an engine's process to end and killing it.
        lost_s: silence of an engine behind an open gate after which its gate shuts.
        look_s: period of looking at engines and cards.
    """

    act_s: Seconds = 4.0
    drain_s: Annotated[float, Meta(ge=0, le=3_600)] = 2.0
    grace_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    lost_s: Seconds = 5.0
    look_s: Seconds = 0.5


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a workload host must be told.

    Args:
        socket: Unix socket that the node connects to. data_dir: folder of the log of the gates.
        sensors: what reads the cards: ``none``, or a name known to the program.
        gpus: written as ``[[gpu]]`` in TOML.
    """

    host_id: Ident
    socket: str
    data_dir: str
    gpus: tuple[GpuConfig, ...] = msgspec.field(name="gpu")
    sensors: Ident = "none"
    credentials_dir: str = ""
    proxy: ProxyConfig = ProxyConfig()
    limits: HostLimits = HostLimits()


def host_config_from_toml(text: str, source: str = "host.toml") -> HostConfig:
    """Read and check a host's config.

    Raises:
        SettingsError: with every problem found.
    """
    config = parse_settings(text, HostConfig, source)
    problems = located(text, _check(config))
    if problems:
        raise SettingsError(source, problems)
    return config


def load_host_config(path: Path) -> HostConfig:
    """Read a host's config file.

    Raises:
        SettingsError: with every problem found, or naming the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), (Problem(path="file", detail=str(exc)),)) from exc
    return host_config_from_toml(text, str(path))


def _check(config: HostConfig) -> Iterator[Problem]:
    for field in ("listen", "admin"):
        try:
            split_tcp(getattr(config.proxy, field))
        except ValueError as exc:
            yield Problem(path=f"proxy.{field}", detail=str(exc))
    if config.proxy.public_url:
        try:
            check_base_url("it", config.proxy.public_url)
        except ValueError as exc:
            yield Problem(path="proxy.public_url", detail=str(exc))
    if not config.socket.startswith("/"):
        yield Problem(path="socket", detail="want the absolute path of a Unix socket")
    if not config.gpus:
        yield Problem(path="gpu", detail="a host has at least one GPU")
    yield from _check_names(config)
    yield from _check_engines(config)


def _check_engines(config: HostConfig) -> Iterator[Problem]:
    addresses: dict[tuple[str, int], str] = {}
    ids: dict[str, str] = {}
    for path, name, engine in _engines(config):
        if (other := ids.setdefault(name, path)) != path:
            yield Problem(path=f"{path}.engine_id", detail=f"{name} is {other} too")
        if not engine.argv and not engine.url:
            yield Problem(path=path, detail="needs argv, url or both")
        if path.endswith("server") and not engine.url.startswith("http://"):
            yield Problem(path=f"{path}.url", detail="want http://HOST:PORT")
        try:
            address = _address(engine.url)
        except ValueError as exc:
            yield Problem(path=f"{path}.url", detail=str(exc))
            continue
        # One engine behind two GPUs would be sold twice, and paused for both at once.
        if address is not None and (other := addresses.setdefault(address, path)) != path:
            yield Problem(path=f"{path}.url", detail=f"is the address of {other} too")


def _engines(config: HostConfig) -> Iterator[tuple[str, str, EngineConfig]]:
    """Give each engine with its place in the config and its name."""
    for index, gpu in enumerate(config.gpus):
        for role, engine in (("miner", gpu.miner), ("server", gpu.server)):
            if engine is not None:
                name = engine.engine_id or f"{gpu.name}-{role}"
                yield f"gpu[{index}].{role}", name, engine


def _address(url: str) -> tuple[str, int] | None:
    """Give where an engine listens; None: it has no API.

    Raises:
        ValueError: its port is none.
    """
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return None if host is None else (host, parts.port or 80)


def _check_names(config: HostConfig) -> Iterator[Problem]:
    for field in ("name", "uuid"):
        seen: set[str] = set()
        for index, gpu in enumerate(config.gpus):
            value = str(getattr(gpu, field))
            if value and value in seen:
                yield Problem(path=f"gpu[{index}].{field}", detail=f"{value} is named twice")
            seen.add(value)
