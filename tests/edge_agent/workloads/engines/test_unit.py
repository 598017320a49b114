"""Programs as systemd units, against a scripted systemd; and against the real one where it runs.

Answers are as `systemctl show` of systemd 252 prints them (systemctl(1), org.freedesktop.systemd1).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import EngineState
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.process import ProcessEngine, program_for
from edge_agent.workloads.engines.unit import (
    COMMAND,
    ENVIRONMENTS,
    Ran,
    UnitLimits,
    UnitProgram,
    env_words,
    run_command,
    units_run_here,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal
from tests.edge_agent.workloads.engines.rigs import spec_of

Make = Callable[..., UnitProgram]

ROOT = Path(__file__).resolve().parents[4]
LONG_S = 5.0
UNIT = "hcp-engine@thing.service"


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
            case "systemctl", "--no-ask-password":
                return self._changed(argv[2])
        return Ran(0, "", "")

    def _changed(self, verb: str) -> Ran:
        if self.fails.startswith(verb):
            return Ran(1, "", self.fails.removeprefix(verb + ": "))
        if verb == "start":
            self.state = "active"
        return Ran(0, "", "")

    def _shown(self) -> str:
        pid = 77 if self.state in ("active", "deactivating") else 0
        return (
            f"ActiveState={self.state}\nSubState=running\nMainPID={pid}\nResult={self.result}\n"
            "ExecMainStatus=1\nCPUUsageNSec=123456789\nExecMainStartTimestampMonotonic=1000000\n"
        )

    def asked(self, word: str) -> bool:
        return any(word in call[:3] for call in self.calls)


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
        return UnitProgram(
            spec, mark="m", limits=limits or UnitLimits(), run=systemd.run, folder=tmp_path
        )

    return program


async def test_the_unit_has_its_name_its_fences_and_its_file(make: Make, tmp_path: Path) -> None:
    systemd = Systemd()
    limits = UnitLimits(
        weight=10, devices=("/dev/nvidia0", "/dev/nvidiactl"), cpus="0-15", memory_max_mib=20_000
    )
    assert await make(systemd, limits).start(LONG_S)
    fence, start = systemd.calls[-2:]
    assert fence[1:5] == ["--no-ask-password", "set-property", "--runtime", UNIT]
    assert fence[5:] == [
        "CPUWeight=10",
        "DeviceAllow=",  # in place of the template's
        "DeviceAllow=/dev/nvidia0 rw",
        "DeviceAllow=/dev/nvidiactl rw",
        "AllowedCPUs=0-15",
        "MemoryMax=20000M",
    ]
    assert start[1:] == ["--no-ask-password", "start", UNIT]
    # a unit's properties are public on the bus: what is secret is in a file
    assert not any("ecret" in word for call in systemd.calls for word in call)
    file = tmp_path / "thing.env"
    assert file.stat().st_mode & 0o077 == 0
    lines = file.read_text().splitlines()
    assert 'CUDA_VISIBLE_DEVICES="GPU-1"' in lines
    assert 'CUDA_DEVICE_ORDER="PCI_BUS_ID"' in lines
    # systemd.exec(5): inside double quotes a backslash goes before each of these
    assert 'VLLM_API_KEY="a \\"\\$ecret\\`\\\\"' in lines
    assert "HCP_ENGINE_COMMAND=\"'vllm' 'serve' 'a model'\"" in lines
    # a reload takes their GPUs from containers: never asked for
    assert not any("daemon-reload" in call for call in systemd.calls)


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126)), max_size=4))
@settings(max_examples=30, deadline=None)
def test_env_splits_a_command_into_its_words(words: list[str]) -> None:
    program = "import sys; sys.stdout.buffer.write('\\0'.join(sys.argv[1:]).encode())"
    line = env_words([sys.executable, "-c", program, *words])
    done = subprocess.run(["/usr/bin/env", "-S", line], capture_output=True, check=True)
    assert done.stdout.decode() == "\0".join(words)


def test_the_template_reads_what_is_written_for_it() -> None:
    text = (ROOT / "systemd" / "hcp-engine@.service").read_text()
    assert f"\nEnvironmentFile={ENVIRONMENTS}/%i.env\n" in text
    assert f"\nExecStart=/usr/bin/env -S ${{{COMMAND}}}\n" in text


async def test_a_unit_of_its_name_is_adopted(make: Make) -> None:
    systemd = Systemd()
    assert await make(systemd).start(LONG_S)
    assert not await make(systemd).start(LONG_S)
    assert sum("start" in call for call in systemd.calls) == 1
    look = await make(systemd).look()
    assert look.alive
    assert "process 77" in look.detail
    # it started one second after boot
    assert look.age_s == pytest.approx(time.monotonic() - 1, abs=5)
    assert await make(systemd).cpu_ns() == 123_456_789


@pytest.mark.parametrize("verb", ["set-property", "start"])
async def test_a_unit_that_does_not_start_says_why(make: Make, verb: str) -> None:
    systemd = Systemd()
    systemd.fails = f"{verb}: Interactive authentication required."
    with pytest.raises(DriverRefusedError, match="authentication required") as refused:
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


async def test_words_for_one_start_follow_its_command(make: Make, tmp_path: Path) -> None:
    systemd = Systemd()
    program = make(systemd)
    for more in (("--snapshot", "/a b"), ()):
        assert await program.start(LONG_S, more)
        lines = (tmp_path / "thing.env").read_text().splitlines()
        assert any("--snapshot' '/a b'" in line for line in lines) is bool(more)
        await program.end(LONG_S)


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
@pytest.mark.skipif(not units_run_here(), reason="needs a running systemd and the package")
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
