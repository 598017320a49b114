"""vLLM's sleep: what failed is none, and what has no pause is not put to sleep by another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.workloads.engine import EngineState, PauseMode
from edge_agent.workloads.errors import DriverRefusedError, Refusal
from simulators.engine_lies import Lie
from simulators.engine_server import Reply
from simulators.engine_vllm import VllmStandIn, VllmVersion
from tests.edge_agent.workloads.engines.rigs import VRAM_MIB, rigged

LONG_S = 5.0
# For what is looked at again and again: the last look must be whole on a busy machine.
LIE_S = 0.8


async def test_an_older_version_is_held_by_its_gate_and_loses_no_weights(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        assert isinstance(rig.standin, VllmStandIn)
        rig.standin._version = VllmVersion(has_pause=False)
        engine = rig.again()
        await engine.prepare(LONG_S)
        assert rig.used_mib is not None
        # vllm#33195: to a version that knows no /pause, level 0 is a sleep that drops all weights
        assert (rig.standin.slept, rig.used_mib()) == (0, VRAM_MIB)
        assert (await engine.probe()).state is EngineState.WARM
        receipt = await engine.pause(PauseMode.KEEP, LONG_S)
        assert "no pause" in receipt.evidence
        assert (receipt.inflight_left, receipt.idle_ns is not None) == (0, True)
        assert (await engine.offload(LONG_S)).idle_ns is not None
        await engine.resume(LONG_S)
        assert (await engine.probe()).ready


async def test_an_older_version_is_not_put_to_sleep_under_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged("vllm", tmp_path) as rig:
        assert isinstance(rig.standin, VllmStandIn)
        rig.standin._version = VllmVersion(has_pause=False)
        engine = rig.again()
        await engine.prepare(LONG_S)
        text = b"vllm:num_requests_running 2.0\n"
        monkeypatch.setattr(rig.standin, "_metrics", lambda: Reply(200, text, "text/plain"))
        with pytest.raises(DriverRefusedError) as paused:
            await engine.pause(PauseMode.KEEP, LIE_S)
        assert paused.value.answer_code == Refusal.NO_EFFECT
        with pytest.raises(DriverRefusedError) as slept:
            await engine.offload(LONG_S)
        assert (slept.value.answer_code, rig.standin.slept) == (Refusal.BUSY, 0)


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
@pytest.mark.parametrize("lie", [Lie.FALSE, Lie.KEEPS_MEMORY, Lie.ERROR])
async def test_a_sleep_that_failed_is_no_sleep_when_looked_at_or_asked_again(
    name: str, lie: Lie, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        rig.lie("/sleep", lie)
        codes = []
        for engine in (rig.again(), rig.again()):  # of a restarted host too
            with pytest.raises(DriverRefusedError) as refused:
                await engine.offload(LIE_S)
            codes.append(refused.value.answer_code)
            # else the next engine would start on a full card
            assert (await engine.probe()).state is EngineState.WARM
        assert set(codes) == {Refusal.ENGINE_ERROR if lie is Lie.ERROR else Refusal.NO_EFFECT}
        rig.lie("/sleep", None)
        await engine.resume(LONG_S)
        assert (await engine.probe()).ready
