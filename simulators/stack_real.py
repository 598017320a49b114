"""GPUs of the stack that are none: on each, real processes mine and serve on this machine's CPU.

A workload host of the platform itself owns them: a double-SHA256 miner that works for a pool, and
an inference server whose answers can be checked. What is switched here really pauses and resumes.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from simulators.process import python_module
from simulators.stack_config import RESTART_S, GpuGroup, node_home
from simulators.web_client import WebClient

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "The price of power is"
_TOKENS = 8
_LOOPBACK = "127.0.0.1"
# Claims on a card that is none: both engines fit beside each other.
_CARD_MIB, _MINER_MIB, _SERVER_MIB = 16_000, 500, 2_000


class RealPorts(Struct, frozen=True, kw_only=True):
    """TCP ports of one such host; one miner and one server for each of its GPUs."""

    pool: int
    proxy: int
    admin: int
    miners: tuple[int, ...]
    servers: tuple[int, ...]


class Answered(Struct, frozen=True, kw_only=True):
    """One completion that a customer got through the proxy."""

    text: str
    tokens: int


class _Record(Struct):
    """What the host keeps of an engine's process."""

    pid: int = 0


def host_toml(group: GpuGroup, ports: RealPorts, *, home: Path) -> str:
    """Write the config of the workload host of a group."""
    place = node_home(home, group)
    parts = [
        f'host_id = "{group.node_id}"',
        f'socket = "{place / "gpu.sock"}"',
        f'data_dir = "{host_data(home, group)}"',
        f'[proxy]\nlisten = "tcp:{_LOOPBACK}:{ports.proxy}"',
        f'admin = "tcp:{_LOOPBACK}:{ports.admin}"',
        f'public_url = "http://{_LOOPBACK}:{ports.proxy}"',
    ]
    if group.restarts:
        parts.append(f"[limits]\nact_s = {RESTART_S}")
    for number, (miner, server) in enumerate(zip(ports.miners, ports.servers, strict=True)):
        parts += [
            f'[[gpu]]\nname = "gpu{number}"\nmodel = "{group.model}"' + _sizes(_CARD_MIB, group),
            _engine("miner", miner, "miner", "--pool", f"stratum+tcp://{_LOOPBACK}:{ports.pool}",
                    "--threads", "1") + _sizes(_MINER_MIB, group),
            _engine("server", server, "inference", "--layers", "2", "--dim", "64", "--heads", "4",
                    "--context", "256") + _sizes(_SERVER_MIB, group),
        ]  # fmt: skip
        if group.restarts:
            parts.append('strategy = "restart"')
    return "\n".join(parts) + "\n"


def _sizes(vram_mib: int, group: GpuGroup) -> str:
    """Name a size where engines are held ready: whether both fit is judged by it."""
    return f"\nvram_mib = {vram_mib}" if group.restarts else ""


def host_data(home: Path, group: GpuGroup) -> Path:
    """Give the data folder of a group's workload host."""
    return node_home(home, group) / "host"


async def complete(endpoint_url: str, key: str) -> Answered:
    """Ask a served model where the hub says that it listens, as its customer does.

    Args:
        key: of the workload.

    Raises:
        WebError: with the proxy's answer. OSError, TimeoutError: it is away.
    """
    parts = urlsplit(endpoint_url)
    client = WebClient(parts.hostname or "", parts.port or 80, token=key)
    try:
        body = {"prompt": PROMPT, "max_tokens": _TOKENS, "temperature": 0}
        answer = await client.post(f"{parts.path}/completions", body)
    finally:
        await client.close()
    return Answered(text=answer["choices"][0]["text"], tokens=answer["usage"]["completion_tokens"])


async def shares_of(ports: RealPorts) -> int:
    """Give the shares that the pool has taken from the miners of a host."""
    accepted = 0
    for port in ports.miners:
        client = WebClient(_LOOPBACK, port)
        try:
            accepted += (await client.get("/status"))["accepted"]
        finally:
            await client.close()
    return accepted


def end_engines(home: Path, group: GpuGroup) -> None:
    """End what the host started: engines outlive it on purpose."""
    for path in (host_data(home, group) / "engines").glob("*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            pid = msgspec.json.decode(path.read_bytes(), type=_Record).pid
            if pid > 1:
                os.killpg(pid, signal.SIGKILL)


def _engine(role: str, port: int, workload: str, *options: str) -> str:
    argv = python_module(
        "edge_agent", "reference", workload, "--listen", f"{_LOOPBACK}:{port}", "--paused", *options
    )
    words = ", ".join(f'"{word}"' for word in argv)
    kind = "reference-miner" if role == "miner" else "reference-server"
    return (
        f'[gpu.{role}]\nkind = "{kind}"\nurl = "http://{_LOOPBACK}:{port}"\nargv = [{words}]\n'
        f'environment = {{PYTHONPATH = "{ROOT}"}}'
    )
