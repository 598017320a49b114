"""Programs as systemd units, against a scripted systemd; and against the real one where it runs.

Answers are as `systemctl show` of systemd 252 prints them (systemctl(1), org.freedesktop.systemd1).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import EngineState
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.process import ProcessEngine, program_for
from edge_agent.workloads.engines.unit import (
    RUNNING_SYSTEMD,
    Ran,
    UnitLimits,
    UnitProgram,
    run_command,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal
from tests.edge_agent.workloads.engines.rigs import spec_of

Make = Callable[..., UnitProgram]

LONG_S = 5.0
UNIT = "hcp-engine-thing.service"


class Systemd:
    """As much of systemd as the driver asks; units live on whoever asks."""

    def __init__(self) -> None:
        self.state = "inactive"
        self.result = "success"
        self.heeds_stop = True
        self.mute = False
        self.fails = ""
        self.calls: list[list[str]] = []

    async def run(self, argv: Sequence[str], limit_s: float) -> Ran:
        self.calls.append(list(argv))
        if self.mute:
            raise DriverUnavailableError(f"{argv[0]}: no end in {limit_s:g} s")
        match argv[0], argv[1]:
            case "systemctl", "show":
                return Ran(0, self._shown(), "")
            case "systemctl", "stop" if self.state == "active":
                self.state = "inactive" if self.heeds_stop else "deactivating"
            case "systemctl", "kill":
                assert "--signal=SIGKILL" in argv
                self.state, self.result = "failed", "signal"
            case "systemctl", "reset-failed":
                self.state = "inactive" if self.state == "failed" else self.state
            case "systemd-run", _:
                if self.fails:
                    return Ran(1, "", self.fails)
                self.state = "active"
        return Ran(0, "", "")

    def _shown(self) -> str:
        pid = 77 if self.state in ("active", "deactivating") else 0
        return (
            f"ActiveState={self.state}\nSubState=running\nMainPID={pid}\nResult={self.result}\n"
            "ExecMainStatus=1\nCPUUsageNSec=123456789\nExecMainStartTimestampMonotonic=1000000\n"
        )

    def asked(self, word: str) -> bool:
        return any(word in call[:2] for call in self.calls)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def program(systemd: Systemd, limits: UnitLimits | None = None) -> UnitProgram:
        spec = spec_of(
            "thing",
            argv=("vllm", "serve", "a model"),
            environment=(("VLLM_API_KEY", 'a "$ecret`\\'),),
            gpu="gpu 0/x",
            gpu_uuid="GPU-1",
        )
        return UnitProgram(spec, tmp_path, mark="m", limits=limits or UnitLimits(), run=systemd.run)

    return program


async def test_the_unit_has_its_name_its_slice_and_its_fences(make: Make, tmp_path: Path) -> None:
    systemd = Systemd()
    limits = UnitLimits(
        weight=10,
        devices=("/dev/nvidia0", "/dev/nvidiactl"),
        cpus="0-15",
        memory_max_mib=20_000,
        writable=("/var/lib/models",),
    )
    assert await make(systemd, limits).start(LONG_S)
    command = systemd.calls[-1]
    assert command[0] == "systemd-run"
    assert f"--unit={UNIT}" in command
    # a dash in a slice's name makes a tree: hcp.slice holds them all
    assert "--slice=hcp-gpu_0_x.slice" in command
    assert "--service-type=exec" in command
    properties = {word.removeprefix("--property=") for word in command if "--property" in word}
    assert {
        "KillMode=mixed",
        "CPUWeight=10",
        "LimitMEMLOCK=infinity",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "DevicePolicy=closed",
        "DeviceAllow=/dev/nvidia0 rw",
        "DeviceAllow=/dev/nvidiactl rw",
        "AllowedCPUs=0-15",
        "MemoryMax=20000M",
        "ReadWritePaths=/var/lib/models",
    } <= properties
    # a unit's properties are public on the bus: what is secret is in a file
    assert not any("ecret" in word for word in command)
    file = tmp_path / "thing.env"
    assert f"EnvironmentFile={file}" in properties
    assert file.stat().st_mode & 0o077 == 0
    lines = file.read_text().splitlines()
    assert 'CUDA_VISIBLE_DEVICES="GPU-1"' in lines
    assert 'CUDA_DEVICE_ORDER="PCI_BUS_ID"' in lines
    # systemd.exec(5): inside double quotes a backslash goes before each of these
    assert 'VLLM_API_KEY="a \\"\\$ecret\\`\\\\"' in lines
    assert command[command.index("--") + 1 :] == ["vllm", "serve", "a model"]
    # a reload takes their GPUs from containers: never asked for
    assert not any("daemon-reload" in call for call in systemd.calls)


async def test_a_unit_of_its_name_is_adopted(make: Make) -> None:
    systemd = Systemd()
    assert await make(systemd).start(LONG_S)
    assert not await make(systemd).start(LONG_S)
    assert sum(call[0] == "systemd-run" for call in systemd.calls) == 1
    look = await make(systemd).look()
    assert look.alive
    assert "process 77" in look.detail
    # it started one second after boot
    assert look.age_s == pytest.approx(time.monotonic() - 1, abs=5)
    assert await make(systemd).cpu_ns() == 123_456_789


async def test_a_unit_that_does_not_start_says_why(make: Make) -> None:
    systemd = Systemd()
    systemd.fails = "Failed to find executable vllm: No such file or directory"
    with pytest.raises(DriverRefusedError, match="No such file") as refused:
        await make(systemd).start(LONG_S)
    assert refused.value.answer_code == Refusal.START_FAILED


async def test_a_failed_unit_is_absent_with_its_result(make: Make) -> None:
    systemd = Systemd()
    systemd.state, systemd.result = "failed", "exit-code"
    program = make(systemd)
    engine = ProcessEngine(
        spec_of("thing", argv=("x",)), EnginePorts(clock=SystemClock(), program=program)
    )
    probe = await engine.probe()
    assert probe.state is EngineState.ABSENT
    assert "exit-code, status 1" in probe.detail
    # and its name is free again for the next start
    assert await program.start(LONG_S)
    assert systemd.asked("reset-failed")


async def test_stop_is_asked_first_and_killed_after_the_grace(make: Make) -> None:
    systemd = Systemd()
    program = make(systemd)
    await program.start(LONG_S)
    await program.end(LONG_S)
    assert not systemd.asked("kill")
    await program.start(LONG_S)
    systemd.heeds_stop = False
    await program.end(0.05)
    assert systemd.asked("kill")
    assert (await program.look()).alive is False
    await program.end(LONG_S)  # there is nothing left, and that is fine


async def test_a_mute_systemd_is_unknown_and_not_absent(make: Make) -> None:
    systemd = Systemd()
    systemd.mute = True
    assert (await make(systemd).look()).alive is None
    assert await make(systemd).cpu_ns() is None
    for act in (make(systemd).start(LONG_S), make(systemd).kill()):
        with pytest.raises(DriverUnavailableError):
            await act


async def test_commands_are_bounded_and_named() -> None:
    assert await run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], LONG_S) == Ran(
        3, "out\n", "err\n"
    )
    with pytest.raises(DriverUnavailableError, match=r"sleep: no end in 0\.05 s"):
        await run_command(["sleep", "60"], 0.05)
    with pytest.raises(DriverUnavailableError, match="no-such-command"):
        await run_command(["no-such-command"], LONG_S)


@pytest.mark.root
@pytest.mark.skipif(
    not RUNNING_SYSTEMD.is_dir() or os.geteuid() != 0, reason="needs a running systemd and root"
)
async def test_a_real_unit_starts_is_adopted_and_ends(tmp_path: Path) -> None:
    spec = spec_of("hcp-test-unit", argv=("sleep", "60"))
    first = program_for(spec, folder=tmp_path, boot_id="any")
    try:
        assert await first.start(LONG_S)
        assert not await program_for(spec, folder=tmp_path, boot_id="any").start(LONG_S)
        assert (await first.look()).alive
    finally:
        await first.end(LONG_S)
    assert (await first.look()).alive is False
