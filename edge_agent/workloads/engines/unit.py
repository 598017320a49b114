"""A program as a systemd unit: node and host may die, be upgraded or restarted beside it.

The unit is an instance of the template ``hcp-engine@.service`` of the package, and is adopted by
its name. The template says as whom and within which fences it runs; what differs (command,
environment) stands in a file that systemd and the host alone read, and resources are set as
properties of the instance. So the host needs the right to start and stop these units and no other;
who may start *transient* units may run anything as root, and systemd 252 does not tell polkit their
names (systemd #17224). Nothing is reloaded: a reload takes their GPUs from containers
(nvidia-container-toolkit #48, #251, #1227).
Source: systemctl(1), systemd.exec(5), systemd.kill(5), systemd.resource-control(5), env(1).
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
TEMPLATES: Final = tuple(
    Path(root, "systemd/system/hcp-engine@.service") for root in ("/etc", "/lib", "/usr/lib")
)
# As the template names them.
ENVIRONMENTS: Final = Path("/run/hcp-host/engines")
COMMAND: Final = "HCP_ENGINE_COMMAND"
COMMAND_S: Final = 5.0
KILL_S: Final = 5.0
LOOK_PERIOD_S: Final = 0.02
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
        devices: Device files of its GPU, in place of those of the template; empty = those.
        cpus: Processors near its GPU, such as ``0-15``; empty = all.
        memory_max_mib: Host memory, mirror of the GPU's included; None = unbounded.
    """

    weight: int = WEIGHT_NORMAL
    devices: tuple[str, ...] = ()
    cpus: str = ""
    memory_max_mib: int | None = None


class UnitProgram:
    """One program as a unit.

    Args:
        spec: What to start. mark: stands in its environment.
        limits: Of the machine. run: runs systemd's commands.
        folder: Where the template looks for its environment.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        mark: str,
        limits: UnitLimits,
        run: Run | None = None,
        folder: Path = ENVIRONMENTS,
    ) -> None:
        self._spec = spec
        self._environment = folder / f"{spec.engine_id}.env"
        self._mark = mark
        self._limits = limits
        self._run = run or run_command
        self.unit = f"hcp-engine@{spec.engine_id}.service"

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

    async def start(self, deadline_s: float, more: tuple[str, ...] = ()) -> bool:
        """Start the unit, or adopt the one of its name."""
        if (await self.look()).alive:
            return False
        await self._run(["systemctl", "reset-failed", self.unit], COMMAND_S)
        self._write_environment(more)
        properties = _properties(self._limits)
        for words, limit_s in (
            (("set-property", "--runtime", self.unit, *properties), COMMAND_S),
            (("start", self.unit), deadline_s),
        ):
            ran = await self._run(["systemctl", "--no-ask-password", *words], limit_s)
            if ran.status == 0:
                continue
            if (await self.look()).alive:  # somebody was faster
                return False
            said = " ".join(ran.err.split())[:_SAID_CHARS_MAX]
            raise DriverRefusedError(Refusal.START_FAILED, f"{self.unit}: {said}")
        return True

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

    def _write_environment(self, more: tuple[str, ...]) -> None:
        """Write command and environment for systemd alone: properties are public on the bus."""
        values = environment_of(self._spec, self._mark)
        values[COMMAND] = env_words((*self._spec.argv, *more))
        text = "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())
        self._environment.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._environment.unlink(missing_ok=True)
        file = os.open(self._environment, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as writer:
            writer.write(text)


def units_run_here() -> bool:
    """Tell whether this process is a host that systemd and our package run."""
    return (
        RUNNING_SYSTEMD.is_dir()
        and any(place.is_file() for place in TEMPLATES)
        and os.access(ENVIRONMENTS.parent, os.W_OK)
    )


def env_words(argv: Sequence[str]) -> str:
    """Write a command as ``env -S`` splits it: words in single quotes, where nothing expands."""
    return " ".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in argv)


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
    lines = [f"CPUWeight={limits.weight}"]
    if limits.devices:
        # CUDA_VISIBLE_DEVICES is a hint; this is the fence
        lines += ["DeviceAllow=", *(f"DeviceAllow={device} rw" for device in limits.devices)]
    if limits.cpus:
        lines.append(f"AllowedCPUs={limits.cpus}")
    if limits.memory_max_mib is not None:
        lines.append(f"MemoryMax={limits.memory_max_mib}M")
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
