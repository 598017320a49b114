"""Engines in memory: each fault does what it says, and memory adds up."""

from __future__ import annotations

import pytest

from edge_agent.workloads.engine import EngineState, HashSample, PauseMode, TokenSample
from edge_agent.workloads.engines.simulated import (
    RIGHT,
    SimulatedEngine,
    SimulatedFault,
    SimulatedMachine,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal
from tests.edge_agent.workloads.engines.rigs import spec_of

LONG_S = 5.0


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def boottime_ns(self) -> int:
        return self.ns


def _pair() -> tuple[Clock, SimulatedMachine, SimulatedEngine, SimulatedEngine]:
    clock = Clock()
    machine = SimulatedMachine(clock, vram_mib=20_000)
    miner = SimulatedEngine(spec_of("miner", vram_mib=8_000), machine, mines=True)
    server = SimulatedEngine(spec_of("server", vram_mib=14_000), machine)
    return clock, machine, miner, server


async def test_who_wakes_on_a_full_gpu_runs_out_of_memory() -> None:
    _, machine, miner, server = _pair()
    await miner.prepare(LONG_S)
    with pytest.raises(DriverRefusedError) as refused:
        await server.prepare(LONG_S)
    assert refused.value.answer_code == Refusal.OUT_OF_MEMORY
    receipt = await miner.offload(LONG_S)
    assert receipt.freed_mib == 8_000
    await server.prepare(LONG_S)
    assert await machine.used_mib("gpu0") == 14_000
    assert await machine.used_mib("gpu1") == 0


async def test_work_counts_only_while_it_is_active() -> None:
    clock, _, miner, server = _pair()
    await miner.prepare(LONG_S)
    clock.ns += 10**9
    await miner.resume(LONG_S)
    clock.ns += 2 * 10**9
    await miner.pause(PauseMode.KEEP, LONG_S)
    clock.ns += 10**9
    sample = await miner.sample()
    assert isinstance(sample, HashSample)
    assert (sample.hashes, sample.hashrate_hs) == (2_000_000, 0.0)
    await miner.offload(LONG_S)
    await server.prepare(LONG_S)
    assert isinstance(await server.sample(), TokenSample)


@pytest.mark.parametrize(
    ("fault", "error", "state"),
    [
        (SimulatedFault.REFUSED, DriverRefusedError, EngineState.ACTIVE),
        (SimulatedFault.NO_EFFECT, DriverRefusedError, EngineState.ACTIVE),
        (SimulatedFault.HANG, DriverUnavailableError, EngineState.ACTIVE),
        (SimulatedFault.LOST, DriverUnavailableError, EngineState.WARM),
        (SimulatedFault.DIES, DriverUnavailableError, EngineState.ABSENT),
    ],
)
async def test_a_fault_of_one_act(
    fault: SimulatedFault, error: type[Exception], state: EngineState
) -> None:
    _, _, miner, _ = _pair()
    await miner.prepare(LONG_S)
    await miner.resume(LONG_S)
    miner.faults["pause"] = fault
    with pytest.raises(error):
        await miner.pause(PauseMode.KEEP, 0.02)
    assert (await miner.probe()).state is state
    del miner.faults["pause"]
    if state is not EngineState.ABSENT:
        assert (await miner.pause(PauseMode.KEEP, LONG_S)).idle_ns is not None
    assert miner.calls[:3] == ["prepare", "resume", "pause"]


async def test_an_effect_that_nothing_shows_has_no_instant() -> None:
    _, _, miner, _ = _pair()
    await miner.prepare(LONG_S)
    miner.faults["offload"] = SimulatedFault.UNSEEN
    assert (await miner.offload(LONG_S)).idle_ns is None


async def test_wrong_output_lasts_until_it_is_started_anew() -> None:
    _, machine, _, server = _pair()
    await server.prepare(LONG_S)
    server.faults["offload"] = SimulatedFault.WRONG
    await server.offload(LONG_S)
    server.faults.clear()
    with pytest.raises(DriverRefusedError) as refused:
        await server.resume(LONG_S)
    assert refused.value.answer_code == Refusal.WRONG_OUTPUT
    assert (await server.probe()).state is EngineState.FAILED
    assert await server.canary("x", LONG_S) != RIGHT
    machine.kill("server")
    assert (await server.probe()).state is EngineState.ABSENT
    await server.prepare(LONG_S)
    await server.resume(LONG_S)
    assert await server.canary("x", LONG_S) == RIGHT


async def test_a_mute_engine_is_not_live_and_an_absent_one_has_no_counters() -> None:
    _, _, miner, _ = _pair()
    with pytest.raises(DriverUnavailableError):
        await miner.sample()
    with pytest.raises(DriverUnavailableError):
        await miner.pause(PauseMode.KEEP, LONG_S)
    await miner.prepare(LONG_S)
    miner.faults["probe"] = SimulatedFault.HANG
    assert not (await miner.probe()).live
