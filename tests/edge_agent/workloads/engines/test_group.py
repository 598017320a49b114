"""Real programs in process groups: started, found again, ended, and never confused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import EngineState, PauseMode
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.evidence import stands_still
from edge_agent.workloads.engines.group import GroupProgram
from edge_agent.workloads.engines.output import KEPT_BYTES, OUTPUT_BYTES_MAX, Output
from edge_agent.workloads.engines.process import ProcessEngine, group_for
from edge_agent.workloads.engines.processes import family, find
from edge_agent.workloads.engines.program import WEIGHT_MINER, ForeignProgram, ProgramWork
from edge_agent.workloads.engines.record import EngineRecord, RecordFile
from edge_agent.workloads.errors import DriverRefusedError, Refusal
from tests.edge_agent.workloads.engines.rigs import ROOT, python, spec_of

BOOT_ID = SystemClock().boot_id()
LONG_S = 10.0


class Host:
    """What starts programs; ``again`` stands for its restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[GroupProgram] = []

    def program(self, *argv: str, weight: int = 100, **fields: object) -> GroupProgram:
        spec = spec_of("thing", argv=argv, **fields)
        program = group_for(spec, folder=self.folder, boot_id=BOOT_ID, weight=weight)
        self.programs.append(program)
        return program

    def record(self) -> EngineRecord:
        return RecordFile(self.folder, "thing").read()

    def said(self) -> str:
        return (self.folder / "thing.log").read_text()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    for program in host.programs:
        await program.kill()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - another process gives no event for it
            await asyncio.sleep(0.005)


async def test_it_leads_its_own_session_with_little_around_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "do not pass on")
    words = ("sh", "-c", "env; exec sleep 60")
    program = host.program(
        *words,
        gpu_uuid="GPU-1",
        environment=(("CUDA_VISIBLE_DEVICES", "all"), ("MODEL", "tiny")),
        weight=WEIGHT_MINER,
    )
    assert await program.start(LONG_S)
    pid = host.record().pid
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
    # weight 10 beside 100 is ten steps of nice, each a fifth: 0.8 ** 10 = 0.107
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    await _until(lambda: "MODEL" in host.said() and "PWD" in host.said())
    lines = dict(line.split("=", 1) for line in host.said().splitlines())
    assert lines["CUDA_VISIBLE_DEVICES"] == "GPU-1"  # a workload does not choose its GPU
    assert lines["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert lines["MODEL"] == "tiny"
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    known = {"PATH", "HOME", "LANG", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "MODEL"}
    assert set(lines) - shell == known | {"HCP_ENGINE"}


async def test_words_for_one_start_follow_its_command_and_change_nothing_that_runs(
    host: Host,
) -> None:
    program = host.program("sh", "-c", "echo $0 $1; exec sleep 60", "always")
    assert await program.start(LONG_S, ("once",))
    await _until(lambda: "always once" in host.said())
    assert not await program.start(LONG_S, ("again",))
    await program.kill()
    assert await program.start(LONG_S)
    await _until(lambda: host.said().split() == ["always", "once", "always"])


async def test_it_is_adopted_by_who_comes_next_and_not_started_twice(host: Host) -> None:
    assert await host.program("sleep", "60").start(LONG_S)
    pid = host.record().pid
    next_one = host.program("sleep", "60")
    assert not await next_one.start(LONG_S)
    assert (await next_one.look()).alive
    assert host.record().pid == pid
    # a program that is being executed has no environment for a moment
    await _until(lambda: len(family(next_one._mark, None)) == 1)


async def test_it_is_found_by_its_mark_when_the_record_is_lost(host: Host) -> None:
    program = host.program("sleep", "60")
    await program.start(LONG_S)
    pid = host.record().pid
    await _until(lambda: len(family(program._mark, None)) == 1)
    # as when the host is killed between starting it and writing that down
    (host.folder / "thing.json").write_text("{")
    assert (await host.program("sleep", "60").look()).alive
    assert host.record().pid == pid
    assert not await host.program("sleep", "60").start(LONG_S)


async def test_it_outlives_the_process_that_started_it(host: Host) -> None:
    code = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.process import group_for
spec = EngineSpec(engine_id="thing", gpu="gpu0", argv=("sleep", "60"))
program = group_for(spec, folder=Path({str(host.folder)!r}), boot_id={BOOT_ID!r})
asyncio.run(program.start(5))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert ran.returncode == -signal.SIGKILL
    program = host.program("sleep", "60")
    assert (await program.look()).alive
    await program.end(LONG_S)
    assert not (await program.look()).alive


@pytest.mark.parametrize("case", ["another-process", "another-boot"])
async def test_a_pid_that_is_used_again_is_left_alone(host: Host, case: str) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        found = find(bystander.pid)
        assert found is not None
        ticks = found.start_ticks if case == "another-boot" else found.start_ticks - 1
        boot_id = "another" if case == "another-boot" else BOOT_ID
        RecordFile(host.folder, "thing").write(
            EngineRecord(boot_id=boot_id, pid=bystander.pid, start_ticks=ticks)
        )
        program = host.program("sleep", "60")
        assert (await program.look()).alive is False
        await program.kill()
        assert find(bystander.pid) == found
        assert await program.start(LONG_S)
        assert host.record().pid != bystander.pid
    finally:
        bystander.kill()
        await bystander.wait()


async def test_what_ignores_sigterm_is_killed_after_the_grace_with_all_its_kin(host: Host) -> None:
    # the child leaves the group and the session; only the mark still tells whose it is
    script = "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 60; sleep 60\" & sleep 60; sleep 60"
    program = host.program("sh", "-c", script)
    await program.start(LONG_S)
    await _until(lambda: len(family(program._mark, None)) >= 4)
    began = time.monotonic()
    await program.end(0.1)
    assert time.monotonic() - began >= 0.1
    assert family(program._mark, None) == []
    assert (await program.look()).alive is False


async def test_what_heeds_sigterm_ends_before_the_grace(host: Host) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done"
    program = host.program("sh", "-c", script)
    await program.start(LONG_S)
    await _until(lambda: "hello" in host.said())
    began = time.monotonic()
    await program.end(LONG_S)
    assert time.monotonic() - began < LONG_S
    assert "bye" in host.said()


async def test_strays_of_a_former_life_are_killed_before_a_start(host: Host) -> None:
    program = host.program("sh", "-c", "sleep 61 & sleep 60; sleep 60")
    await program.start(LONG_S)
    await _until(lambda: len(family(program._mark, None)) >= 3)
    before = {process.pid for process in family(program._mark, None)}
    os.kill(host.record().pid, signal.SIGKILL)
    await _until(lambda: find(host.record().pid) is None)
    assert await program.start(LONG_S)
    await _until(lambda: len(family(program._mark, None)) >= 3)
    assert before.isdisjoint(process.pid for process in family(program._mark, None))


async def test_an_end_is_told_with_its_status_and_last_words(host: Host) -> None:
    program = host.program("sh", "-c", "echo no GPU found >&2; exit 3")
    await program.start(LONG_S)
    await _until(lambda: find(host.record().pid) is None)
    look = await program.look()
    assert look.alive is False
    assert look.detail == "ended with status 3: no GPU found"


@pytest.mark.parametrize("name", ["/no/such/program", "no-such-program-at-all", "/etc/passwd"])
async def test_what_cannot_be_started_is_named(host: Host, name: str) -> None:
    with pytest.raises(DriverRefusedError, match=name) as refused:
        await host.program(name).start(LONG_S)
    assert refused.value.answer_code == Refusal.START_FAILED


async def test_processor_time_shows_work_and_rest(host: Host) -> None:
    busy = host.program(*python("-c", "while True: pass"))
    await busy.start(LONG_S)
    first = await busy.cpu_ns()
    assert first is not None

    async def works() -> bool:
        return await stands_still(ProgramWork(busy), 0.05) is False

    async with asyncio.timeout(LONG_S):
        while not await works():
            pass
    await busy.kill()
    assert await busy.cpu_ns() is None
    idle = host.program("sleep", "60")
    await idle.start(LONG_S)
    assert await stands_still(ProgramWork(idle), 0.05) is True


async def test_output_is_cut_and_its_end_kept(tmp_path: Path) -> None:
    output = Output(tmp_path / "x.log")
    output.make()
    with output.path.open("ab") as writer:  # as a program that appends
        writer.write(b"a" * OUTPUT_BYTES_MAX + b"the end")
        writer.flush()
        output.cut()
        assert output.path.stat().st_size == 0
        writer.write(b"goes on\n")
    assert output.path.read_bytes() == b"goes on\n"
    assert output.last_words() == "goes on"
    kept = output.path.with_suffix(".old").read_bytes()
    assert len(kept) == KEPT_BYTES
    assert kept.endswith(b"the end")
    assert output.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 65])
def test_a_record_is_never_outside_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine_id"):
        RecordFile(tmp_path, name)


# --- the driver ------------------------------------------------------------------------------


def _engine(host: Host, *argv: str) -> ProcessEngine:
    program = host.program(*argv)
    ports = EnginePorts(
        clock=SystemClock(), program=program, records=RecordFile(host.folder, "thing")
    )
    return ProcessEngine(program._spec, ports)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0]


async def test_it_has_no_pause_and_is_not_stopped_in_its_tracks(host: Host) -> None:
    engine = _engine(host, "sleep", "60")
    await engine.resume(LONG_S)
    with pytest.raises(DriverRefusedError) as refused:
        await engine.pause(PauseMode.KEEP, LONG_S)
    assert refused.value.answer_code == Refusal.UNSUPPORTED
    assert _state(host.record().pid) in "SR"  # not T, as after SIGSTOP


async def test_a_program_that_ends_at_once_did_not_start(host: Host) -> None:
    engine = _engine(host, "sh", "-c", "echo bad option >&2; exit 2")
    with pytest.raises(DriverRefusedError) as refused:
        await engine.resume(LONG_S)
    assert refused.value.answer_code == Refusal.START_FAILED
    assert "status 2: bad option" in refused.value.detail
    assert (await engine.probe()).state is EngineState.ABSENT


@pytest.mark.parametrize("moment", ["before", "working", "ending"])
async def test_kill_9_at_any_moment_is_seen_and_healed(host: Host, moment: str) -> None:
    engine = _engine(host, "sh", "-c", "trap '' TERM; sleep 60; sleep 60")
    await engine.resume(LONG_S)
    pid = host.record().pid
    if moment == "ending":
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.stop(0.2), name="stop")
            await asyncio.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
        await _until(lambda: find(pid) is None)
    if moment == "before":
        engine = _engine(host, "sleep", "60")  # the host was restarted meanwhile
    probe = await engine.probe()
    assert (probe.state, probe.live) == (EngineState.ABSENT, False)
    await engine.resume(LONG_S)
    assert (await engine.probe()).state is EngineState.ACTIVE


async def test_offload_ends_it_and_resume_starts_it_anew(host: Host) -> None:
    engine = _engine(host, "sleep", "60")
    await engine.resume(LONG_S)
    first = host.record().pid
    receipt = await engine.offload(LONG_S)
    assert receipt.idle_ns is not None
    assert find(first) is None
    assert (await _engine(host, "sleep", "60").probe()).state is EngineState.OFFLOADED
    await engine.resume(LONG_S)
    assert host.record().pid not in (0, first)


async def test_a_program_of_somebody_else_is_nothing_to_drive() -> None:
    engine = ProcessEngine(
        spec_of("thing"), EnginePorts(clock=SystemClock(), program=ForeignProgram())
    )
    with pytest.raises(DriverRefusedError) as refused:
        await engine.prepare(LONG_S)
    assert refused.value.answer_code == Refusal.NOT_OURS


def test_a_record_survives_unknown_fields_and_damage(tmp_path: Path) -> None:
    records = RecordFile(tmp_path, "thing")
    assert records.read() == EngineRecord()
    records.write(EngineRecord(pid=7, asleep_level=2))
    assert RecordFile(tmp_path, "thing").read() == EngineRecord(pid=7, asleep_level=2)
    document = msgspec.json.decode((tmp_path / "thing.json").read_bytes()) | {"new": 1}
    (tmp_path / "thing.json").write_bytes(msgspec.json.encode(document))
    assert records.read().pid == 7
