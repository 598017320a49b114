"""A program as a transient systemd unit: the node may die, be upgraded or restarted beside it.

A unit is adopted by its name. It is made by systemd-run and never from a file, so that systemd need
not reload: a reload takes their GPUs from containers (nvidia-container-toolkit #48, #251, #1227).
Source: systemd-run(1), systemd.exec(5), systemd.kill(5), systemd.resource-control(5).
"""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.program import WEIGHT_NORMAL, Look, environment_of
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal

RUNNING_SYSTEMD: Final = Path("/run/systemd/system")
COMMAND_S: Final = 5.0
KILL_S: Final = 5.0
LOOK_PERIOD_S: Final = 0.02
# Longer than any grace of ours: it is systemd's own end of a stop whose asker has died.
STOP_S: Final = 90
_SAID_CHARS_MAX: Final = 300
_SHOWN: Final = (
    "ActiveState",
    "MainPID",
    "Result",
    "ExecMainStatus",
    "CPUUsageNSec",
    "ExecMainStartTimestampMonotonic",
)


class Ran(Struct, frozen=True):
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[[Sequence[str], float], Awaitable[Ran]]


class UnitLimits(Struct, frozen=True, kw_only=True):
    """What the unit may have of the machine.

    Args:
        weight: Share of the processors beside 100 of others.
        devices: Device files of its GPU; empty = no device is fenced.
        cpus: Processors near its GPU, such as ``0-15``; empty = all.
        memory_max_mib: Host memory, mirror of the GPU's included; None = unbounded.
        writable: Folders that it may write to.
    """

    weight: int = WEIGHT_NORMAL
    devices: tuple[str, ...] = ()
    cpus: str = ""
    memory_max_mib: int | None = None
    writable: tuple[str, ...] = ()


class UnitProgram:
    """One program as a unit.

    Args:
        spec: What to start. folder: for its environment. mark: stands in that.
        limits: Of the machine. run: runs systemd's commands.
    """

    def __init__(
        self,
        spec: EngineSpec,
        folder: Path,
        *,
        mark: str,
        limits: UnitLimits,
        run: Run | None = None,
    ) -> None:
        self._spec = spec
        self._environment = folder / f"{spec.engine_id}.env"
        self._mark = mark
        self._limits = limits
        self._run = run or run_command
        self.unit = f"hcp-engine-{spec.engine_id}.service"

    @property
    def ours(self) -> bool:
        """Tell that it is started and ended from here."""
        return True

    async def look(self) -> Look:
        """Ask systemd."""
        shown = await self._show()
        if shown is None:
            return Look(None, "systemd does not answer")
        state = shown.get("ActiveState", "")
        if state in ("active", "activating", "deactivating", "reloading"):
            detail = f"{self.unit}: process {shown.get('MainPID', '?')}"
            return Look(alive=True, detail=detail, age_s=_age_s(shown))
        if state == "failed":
            status = shown.get("ExecMainStatus", "?")
            detail = f"{self.unit} failed: {shown.get('Result', '?')}, status {status}"
            return Look(alive=False, detail=detail)
        return Look(alive=False, detail=f"{self.unit} is {state or 'unknown'}")

    async def start(self, deadline_s: float) -> bool:
        """Start the unit, or adopt the one of its name."""
        if (await self.look()).alive:
            return False
        await self._run(["systemctl", "reset-failed", self.unit], COMMAND_S)
        self._write_environment()
        ran = await self._run(self._command(), deadline_s)
        if ran.status == 0:
            return True
        if (await self.look()).alive:  # somebody was faster
            return False
        said = " ".join(ran.err.split())[:_SAID_CHARS_MAX]
        raise DriverRefusedError(Refusal.START_FAILED, f"{self.unit}: {said}")

    async def end(self, grace_s: float) -> None:
        """Stop the unit, and kill what is left after the grace."""
        await self._run(["systemctl", "stop", "--no-block", self.unit], COMMAND_S)
        if not await self._gone(grace_s):
            await self.kill()

    async def kill(self) -> None:
        """Kill everything in the unit's control group."""
        await self._run(["systemctl", "kill", "--signal=SIGKILL", self.unit], COMMAND_S)
        if not await self._gone(KILL_S):
            raise DriverUnavailableError(f"kill: {self.unit} lives on after {KILL_S:g} s")
        await self._run(["systemctl", "reset-failed", self.unit], COMMAND_S)

    async def cpu_ns(self) -> int | None:
        """Give the processor time of the control group."""
        return _number((await self._show() or {}).get("CPUUsageNSec", ""))

    async def _gone(self, limit_s: float) -> bool:
        end = asyncio.get_running_loop().time() + limit_s
        while (look := await self.look()).alive is not False:
            if asyncio.get_running_loop().time() >= end:
                return False
            if look.alive is None:
                raise DriverUnavailableError(f"{self.unit}: {look.detail}")
            await asyncio.sleep(LOOK_PERIOD_S)
        return True

    async def _show(self) -> dict[str, str] | None:
        try:
            shown = f"--property={','.join(_SHOWN)}"
            ran = await self._run(["systemctl", "show", shown, self.unit], COMMAND_S)
        except DriverUnavailableError:
            return None
        if ran.status != 0:
            return None
        pairs = (line.partition("=") for line in ran.out.splitlines())
        return {name: value for name, _, value in pairs}

    def _write_environment(self) -> None:
        """Write the environment for systemd alone: a unit's properties are public on the bus."""
        lines = environment_of(self._spec, self._mark).items()
        text = "".join(f"{name}={_quoted(value)}\n" for name, value in lines)
        self._environment.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._environment.unlink(missing_ok=True)
        file = os.open(self._environment, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as writer:
            writer.write(text)

    def _command(self) -> list[str]:
        slice_name = f"hcp-{re.sub('[^A-Za-z0-9_]', '_', self._spec.gpu)}.slice"
        return [
            "systemd-run",
            "--quiet",
            "--no-ask-password",
            f"--unit={self.unit}",
            f"--slice={slice_name}",
            "--service-type=exec",
            *(f"--property={line}" for line in _properties(self._limits)),
            f"--property=EnvironmentFile={self._environment}",
            "--",
            *self._spec.argv,
        ]


def _quoted(value: str) -> str:
    """Quote a value of an EnvironmentFile (systemd.exec(5)).

    Raises:
        DriverRefusedError: It cannot stand in one.
    """
    if not value.isprintable():
        raise DriverRefusedError(Refusal.BAD_REQUEST, "environment: a value is not printable")
    return '"' + re.sub(r'([\\"`$])', r"\\\1", value) + '"'


def _age_s(shown: dict[str, str]) -> float | None:
    """Give how long its process has lived; systemd counts microseconds of CLOCK_MONOTONIC."""
    started_us = _number(shown.get("ExecMainStartTimestampMonotonic", ""))
    if not started_us:
        return None
    return max(0.0, time.monotonic_ns() / 1e9 - started_us / 1e6)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _properties(limits: UnitLimits) -> list[str]:
    lines = [
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        "Restart=no",
        f"CPUWeight={limits.weight}",
        # the mirror of a GPU's memory is pinned
        "LimitMEMLOCK=infinity",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        # rather a workload than agent or node
        "OOMScoreAdjust=500",
        "StandardInput=null",
    ]
    if limits.devices:
        # CUDA_VISIBLE_DEVICES is a hint; this is the fence
        lines.append("DevicePolicy=closed")
        lines += [f"DeviceAllow={device} rw" for device in limits.devices]
    if limits.cpus:
        lines.append(f"AllowedCPUs={limits.cpus}")
    if limits.memory_max_mib is not None:
        lines.append(f"MemoryMax={limits.memory_max_mib}M")
    lines += [f"ReadWritePaths={folder}" for folder in limits.writable]
    return lines


async def run_command(argv: Sequence[str], limit_s: float) -> Ran:
    """Run a command to its end.

    Raises:
        DriverUnavailableError: It is not there, or did not end in time; what it did is unknown.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise DriverUnavailableError(f"{argv[0]}: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate()
    except TimeoutError as exc:
        raise DriverUnavailableError(f"{argv[0]}: no end in {limit_s:g} s") from exc
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                process.kill()
            await process.wait()
    return Ran(
        process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
    )
