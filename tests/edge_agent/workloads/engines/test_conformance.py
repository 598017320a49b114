"""What every driver must do: the same acts against each one's stand-in and real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge_agent.workloads.engine import Engine, EngineState, PauseMode, Receipt
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    Refusal,
    WorkloadError,
)
from simulators.engine_lies import Lie
from tests.edge_agent.workloads.engines.rigs import ALL, FOREIGN, Rig, rigged

LONG_S = 5.0
SHORT_S = 0.1
SLEEPERS = ("vllm", "vllm-newer", "reference-server")
PAUSERS = tuple(name for name in ALL if name != "process")


async def _act(engine: Engine, act: str, deadline_s: float) -> Receipt:
    match act:
        case "pause":
            return await engine.pause(PauseMode.WAIT, deadline_s)
        case "offload":
            return await engine.offload(deadline_s)
        case _:
            return await engine.resume(deadline_s)


async def _bring_to(engine: Engine, act: str) -> None:
    """Bring it to where an act makes sense."""
    await engine.prepare(LONG_S)
    if act == "pause":
        await engine.resume(LONG_S)
    elif act == "resume" and engine.capabilities().releases_memory:
        await engine.offload(LONG_S)


@pytest.mark.parametrize("name", ALL)
async def test_prepare_makes_warm_and_again_changes_nothing(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        first = await engine.prepare(LONG_S)
        second = await engine.prepare(LONG_S)
        # without a pause of its own, what is prepared works
        warm = EngineState.ACTIVE if name == "process" else EngineState.WARM
        assert (first.state, second.state) == (warm, warm)
        assert first.live


@pytest.mark.parametrize("name", ALL)
async def test_without_a_state_to_keep_it_says_so_and_gives_no_empty_one(
    name: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        assert not engine.capabilities().keeps_state  # here somebody else runs the programs
        with pytest.raises(DriverRefusedError):
            await engine.snapshot(SHORT_S)
        with pytest.raises(DriverRefusedError):
            engine.restore(tmp_path / "state")


@pytest.mark.parametrize("name", PAUSERS)
async def test_pause_and_resume_show_their_effect_and_may_be_repeated(
    name: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        for act, state in (("resume", EngineState.ACTIVE), ("pause", EngineState.WARM)) * 2:
            for _ in range(2):
                receipt = await _act(engine, act, LONG_S)
                if receipt.idle_ns is not None:
                    assert receipt.idle_ns >= receipt.acked_ns
                assert receipt.evidence
                assert (await engine.probe()).state is state
            if name != "openai":  # its gate holds, and nothing counts its work
                assert receipt.idle_ns is not None
            if rig.done is not None and act == "pause":
                done = rig.done()
                await asyncio.sleep(0.03)  # three hashes of the stand-ins
                assert rig.done() == done


@pytest.mark.parametrize("name", [*SLEEPERS, "simulated"])
async def test_offload_frees_memory_and_may_be_repeated(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        assert engine.capabilities().releases_memory
        await engine.prepare(LONG_S)
        assert rig.used_mib is not None
        before_mib = rig.used_mib()
        first = await engine.offload(LONG_S)
        assert first.freed_mib == before_mib - rig.used_mib()
        assert first.freed_mib > 12_000
        assert first.idle_ns is not None
        again = await engine.offload(LONG_S)
        assert again.acked_ns >= first.acked_ns
        assert (await engine.probe()).state is EngineState.OFFLOADED
        await engine.resume(LONG_S)
        assert rig.used_mib() == before_mib
        assert (await engine.probe()).ready


@pytest.mark.parametrize("name", ["openai", "xmrig", "reference-miner"])
async def test_offload_of_what_frees_nothing_is_refused(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        assert not engine.capabilities().releases_memory
        await engine.prepare(LONG_S)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.offload(LONG_S)
        assert refused.value.answer_code == Refusal.UNSUPPORTED


@pytest.mark.parametrize("name", SLEEPERS)
async def test_offload_at_work_is_refused(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.offload(LONG_S)
        assert refused.value.answer_code == Refusal.BUSY
        assert (await engine.probe()).ready


@pytest.mark.parametrize("name", ALL)
async def test_a_new_driver_adopts_the_engine_where_it_stands(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        await rig.again().resume(LONG_S)
        adopted = await rig.again().probe()
        assert adopted.state is EngineState.ACTIVE
        assert adopted.ready
        if name not in ("process", "openai"):  # of these two, held is what the gate knows
            await rig.again().pause(PauseMode.KEEP, LONG_S)
            assert (await rig.again().probe()).state is EngineState.WARM
        if rig.again().capabilities().releases_memory:
            await rig.again().offload(LONG_S)
            assert (await rig.again().probe()).state is EngineState.OFFLOADED
        await rig.again().resume(LONG_S)
        assert (await rig.again().probe()).ready


def _acts(names: tuple[str, ...]) -> list[tuple[str, str]]:
    rows = []
    for name in names:
        acts = ["pause", "resume"]
        if name in SLEEPERS:
            acts.append("offload")
        if name == "openai":
            acts.remove("pause")  # it asks nothing of the engine but its health
        rows += [(name, act) for act in acts]
    return rows


async def _fail(rig: Rig, act: str, lie: Lie, deadline_s: float) -> WorkloadError:
    """Carry out an act under a lie that must not go unseen."""
    engine = rig.again()
    await _bring_to(engine, act)
    rig.lie(rig.acts[act], lie)
    with pytest.raises(WorkloadError) as failed:
        await _act(engine, act, deadline_s)
    return failed.value


@pytest.mark.parametrize(("name", "act"), _acts(FOREIGN))
async def test_past_its_deadline_an_act_is_unknown(name: str, act: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        began = asyncio.get_running_loop().time()
        error = await _fail(rig, act, Lie.HANG, SHORT_S)
        assert isinstance(error, DriverUnavailableError)
        assert asyncio.get_running_loop().time() - began < SHORT_S + LONG_S


@pytest.mark.parametrize(("name", "act"), _acts(FOREIGN))
async def test_an_act_whose_answer_was_lost_is_asked_again(
    name: str, act: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        error = await _fail(rig, act, Lie.LOST, LONG_S)
        assert isinstance(error, DriverUnavailableError)
        rig.lie(rig.acts[act], None)
        engine = rig.again()
        await _act(engine, act, LONG_S)
        wanted = {"pause": EngineState.WARM, "offload": EngineState.OFFLOADED}
        assert (await engine.probe()).state is wanted.get(act, EngineState.ACTIVE)


@pytest.mark.parametrize(("name", "act"), _acts(FOREIGN))
async def test_an_engine_that_dies_in_an_act_is_absent(name: str, act: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        error = await _fail(rig, act, Lie.DIES, LONG_S)
        assert isinstance(error, DriverUnavailableError)
        probe = await rig.again().probe()
        assert probe.state is EngineState.ABSENT
        assert (probe.live, probe.ready) == (False, False)
        assert probe.detail


@pytest.mark.parametrize(("name", "act"), _acts(FOREIGN))
async def test_an_engine_that_died_before_an_act_is_found_so(
    name: str, act: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await _bring_to(engine, act)
        assert rig.server is not None
        rig.server.kill()
        with pytest.raises(DriverUnavailableError):
            await _act(engine, act, SHORT_S)


@pytest.mark.parametrize("name", FOREIGN)
async def test_a_mute_engine_is_probed_without_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("openai", "vllm", "xmrig", "reference_miner", "reference_server"):
        monkeypatch.setattr(f"edge_agent.workloads.engines.{module}.PROBE_S", SHORT_S)
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie_always(Lie.HANG)
        probe = await engine.probe()
        assert (probe.live, probe.ready) == (False, False)


@pytest.mark.parametrize("name", FOREIGN)
async def test_what_somebody_else_runs_is_not_ended_from_here(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        for end in (engine.stop(0.1), engine.kill()):
            with pytest.raises(DriverRefusedError) as refused:
                await end
            assert refused.value.answer_code == Refusal.NOT_OURS
        assert (await engine.probe()).live


@pytest.mark.parametrize("name", ["process", "simulated"])
async def test_stop_and_kill_end_it_and_may_be_repeated(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        for end in ("stop", "kill"):
            engine = rig.again()
            await engine.prepare(LONG_S)
            await engine.resume(LONG_S)
            for _ in range(2):
                await (engine.stop(LONG_S) if end == "stop" else engine.kill())
                probe = await rig.again().probe()
                assert (probe.state, probe.started) == (EngineState.ABSENT, False)


@pytest.mark.parametrize("name", FOREIGN)
async def test_canary_and_counters_of_an_engine_at_work(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        first = await engine.canary("canary", LONG_S)
        assert first
        if name in ("openai", "vllm", "vllm-newer", "reference-server"):
            assert await engine.canary("canary", LONG_S) == first
        assert await engine.sample() is not None
