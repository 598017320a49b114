"""Drivers with an API over real programs: the stand-ins of `hcp-sim engine` as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import Engine, EngineState, PauseMode, Strategy
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.catalogue import EngineKind, engine_of
from edge_agent.workloads.engines.process import group_for
from edge_agent.workloads.engines.processes import find
from edge_agent.workloads.engines.program import ProgramWork
from edge_agent.workloads.engines.record import RecordFile
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal
from tests.edge_agent.workloads.engines.rigs import ROOT, python, spec_of

LONG_S = 20.0


class Server:
    """One engine as a process of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def engine(self, kind: str, *options: str, start_s: float = LONG_S) -> Engine:
        """Give a new driver, as a host does after its restart."""
        words = ("-m", "simulators", "engine", kind, "--port", str(self.port), *options)
        spec = spec_of(
            "served",
            argv=python(*words),
            environment=(("PYTHONPATH", str(ROOT)),),
            url=f"http://127.0.0.1:{self.port}",
            start_s=start_s,
        )
        clock = SystemClock()
        program = group_for(spec, folder=self.folder, boot_id=clock.boot_id())
        ports = EnginePorts(
            clock=clock,
            program=program,
            records=RecordFile(self.folder, "served"),
            work=ProgramWork(program),
        )
        kinds = {"openai": EngineKind.OPENAI, "vllm": EngineKind.VLLM, "xmrig": EngineKind.XMRIG}
        return engine_of(kinds[kind], spec, ports)

    @property
    def pid(self) -> int:
        return RecordFile(self.folder, "served").read().pid


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    yield server
    await server.engine("vllm").kill()


async def _kill_9(server: Server) -> None:
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(LONG_S):
        while find(pid) is not None:  # noqa: ASYNC110 - another process gives no event for it
            await asyncio.sleep(0.005)


async def test_vllm_loads_sleeps_is_killed_and_starts_again(server: Server) -> None:
    engine = server.engine("vllm", "--loads", "3")
    assert Strategy.RESTART in engine.capabilities().strategies
    assert (await engine.probe()).state is EngineState.ABSENT
    assert (await engine.prepare(LONG_S)).state is EngineState.WARM
    pid = server.pid
    await engine.resume(LONG_S)
    assert (await engine.probe()).ready
    # the host is restarted: the engine is adopted, not started again
    engine = server.engine("vllm", "--loads", "3")
    await engine.pause(PauseMode.KEEP, LONG_S)
    await engine.offload(LONG_S)
    assert (await server.engine("vllm").probe()).state is EngineState.OFFLOADED
    assert server.pid == pid
    await _kill_9(server)
    probe = await engine.probe()
    assert (probe.state, probe.live) == (EngineState.ABSENT, False)
    with pytest.raises(DriverUnavailableError):
        await engine.pause(PauseMode.KEEP, LONG_S)
    # the right answer is known from before: a new process has to give it too
    await engine.resume(LONG_S)
    assert (await engine.probe()).ready
    assert server.pid not in (0, pid)
    await engine.stop(LONG_S)
    assert (await engine.probe()).state is EngineState.ABSENT


async def test_openai_frees_its_gpu_by_ending_and_starts_again(server: Server) -> None:
    engine = server.engine("openai")
    await engine.prepare(LONG_S)
    await engine.resume(LONG_S)
    receipt = await engine.pause(PauseMode.WAIT, LONG_S)
    assert receipt.idle_ns is not None  # its processor time stands still
    receipt = await engine.offload(LONG_S)
    assert receipt.idle_ns is not None
    assert (await server.engine("openai").probe()).state is EngineState.OFFLOADED
    await engine.resume(LONG_S)
    assert (await engine.probe()).ready
    await engine.kill()
    assert find(server.pid) is None


async def test_a_model_that_does_not_start_says_why(server: Server) -> None:
    engine = server.engine("vllm", "--lie", "/health=no-such-lie")
    with pytest.raises(DriverRefusedError) as refused:
        await engine.prepare(LONG_S)
    assert refused.value.answer_code == Refusal.START_FAILED
    assert "ended with status 2" in refused.value.detail
    assert "no-such-lie" in refused.value.detail
    assert (await engine.probe()).state is EngineState.ABSENT


async def test_a_model_that_never_gets_ready_is_named_and_can_be_killed(server: Server) -> None:
    engine = server.engine("vllm", "--loads", "1000000", start_s=0.2)
    # its own start takes longer than it is given
    with pytest.raises(DriverRefusedError) as refused:
        await engine.prepare(LONG_S)
    assert refused.value.answer_code == Refusal.START_FAILED
    assert "not ready after 0.2 s" in refused.value.detail
    # it runs for longer than its start may take, and is not ready
    async with asyncio.timeout(LONG_S):
        while (await engine.probe()).state is not EngineState.FAILED:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    patient = server.engine("vllm", start_s=LONG_S)
    assert (await patient.probe()).state is EngineState.STARTING
    await engine.kill()
    assert (await engine.probe()).state is EngineState.ABSENT
