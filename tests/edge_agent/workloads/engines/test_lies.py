"""Every driver against every lie: a clear refusal or an unknown, and never a false success.

What each lie is made of: notes of the projects named in `simulators/engine_lies.py`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_agent.workloads.engine import EngineState, PauseMode, TokenSample
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.evidence import UnknownMemory, UnknownWork
from edge_agent.workloads.engines.record import RecordFile
from edge_agent.workloads.engines.vllm import VllmEngine
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    Refusal,
    WorkloadError,
)
from simulators.engine_lies import EVERY_PATH, Lie
from simulators.engine_openai import OpenAiStandIn, right_answer
from simulators.engine_server import Reply
from simulators.engine_vllm import VllmStandIn, VllmVersion
from simulators.engine_xmrig import XmrigStandIn
from tests.edge_agent.workloads.engines.reference_standin import GENESIS_HASH, GENESIS_NONCE
from tests.edge_agent.workloads.engines.rigs import FOREIGN, VRAM_MIB, Rig, rigged

LONG_S = 5.0
# For what answers nothing: this passes whatever the machine does.
SHORT_S = 0.1
# For what is looked at again and again: the last look must be whole on a busy machine.
LIE_S = 0.8
MUTE = frozenset({Lie.HANG, Lie.DRIP})
UNKNOWN = "unknown"
DRIVERS = [
    f"edge_agent.workloads.engines.{name}"
    for name in ("openai", "vllm", "xmrig", "reference_miner", "reference_server")
]

# What a lie about everything makes of any act: a refusal by its code, or an unknown outcome.
WIRE = {
    Lie.HTML: Refusal.NOT_API,
    Lie.GATEWAY: UNKNOWN,
    Lie.FLOOD: UNKNOWN,
    Lie.HANG: UNKNOWN,
    Lie.DRIP: UNKNOWN,
    Lie.CUT: UNKNOWN,
    Lie.LOST: UNKNOWN,
    Lie.DIES: UNKNOWN,
    Lie.ERROR: Refusal.ENGINE_ERROR,
}
# Of acts whose answer is not read, the lie is found by what is read after it.
BLIND = (Lie.GARBAGE, Lie.SHAPE)


def _outcome(error: WorkloadError) -> str:
    if isinstance(error, DriverRefusedError):
        return error.answer_code
    assert isinstance(error, DriverUnavailableError)
    return UNKNOWN


async def _pause(rig: Rig, lie: Lie, path: str, deadline_s: float) -> str:
    """Give what comes of a pause under a lie that must not pass for one."""
    rig.lie(path, lie)
    with pytest.raises(WorkloadError) as failed:
        await rig.again().pause(PauseMode.KEEP, deadline_s)
    assert str(failed.value)
    rig.lie(path, None)
    return _outcome(failed.value)


def _limit_s(lie: Lie) -> float:
    return SHORT_S if lie in MUTE else LONG_S


def _lies_of(name: str, *, of_probe: bool) -> list[Lie]:
    """Give the lies of the wire in an order that keeps the engine to the last."""
    # of an OpenAI server's /health no body is read, and its pause is the gate's
    blind = () if name == "openai" and not of_probe else BLIND
    return [*blind, *(lie for lie in WIRE if lie is not Lie.DIES), Lie.DIES]


@pytest.mark.parametrize("name", FOREIGN)
async def test_no_lie_of_the_wire_passes_for_a_pause(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        await rig.again().resume(LONG_S)
        lies = _lies_of(name, of_probe=False)
        outcomes = {lie: await _pause(rig, lie, EVERY_PATH, _limit_s(lie)) for lie in lies}
        assert outcomes == {lie: WIRE.get(lie, Refusal.NOT_API) for lie in lies}


ACTS = [
    *((name, "resume") for name in FOREIGN),
    *((name, "offload") for name in ("vllm", "vllm-newer", "reference-server")),
]


@pytest.mark.parametrize(("name", "act"), ACTS)
async def test_no_lie_of_the_wire_passes_for_an_act_and_the_truth_does(
    name: str, act: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)

        async def outcome(lie: Lie | None, deadline_s: float) -> str:
            rig.lie_always(lie)
            try:
                await (engine.resume(deadline_s) if act == "resume" else engine.offload(deadline_s))
            except WorkloadError as exc:
                assert str(exc)
                return _outcome(exc)
            return "done"

        *lies, death = _lies_of(name, of_probe=True)
        outcomes = {lie: await outcome(lie, _limit_s(lie)) for lie in lies}
        assert outcomes == {lie: WIRE.get(lie, Refusal.NOT_API) for lie in lies}
        assert await outcome(None, LONG_S) == "done"
        assert await outcome(death, LONG_S) == UNKNOWN
        assert (await engine.probe()).state is EngineState.ABSENT


@pytest.mark.parametrize("name", FOREIGN)
async def test_an_engine_that_lies_on_the_wire_is_never_ready(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        for lie in _lies_of(name, of_probe=True):
            for module in DRIVERS:
                monkeypatch.setattr(f"{module}.PROBE_S", _limit_s(lie))
            rig.lie_always(lie)
            probe = await engine.probe()
            # silence is no absence: what hangs may be at work
            assert (lie, probe.state, probe.ready) == (lie, EngineState.FAILED, False)
            assert probe.detail
        assert (await engine.probe()).state is EngineState.ABSENT  # the last lie was its death


PAUSERS = [name for name in FOREIGN if name != "openai"]


@pytest.mark.parametrize("name", PAUSERS)
async def test_a_pause_that_did_nothing_is_found_by_its_state(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        await rig.again().resume(LONG_S)
        outcome = await _pause(rig, Lie.FALSE, rig.acts["pause"], LIE_S)
        assert outcome == Refusal.NO_EFFECT


@pytest.mark.parametrize("name", ["xmrig", "reference-miner"])
async def test_a_miner_that_hashes_on_is_found_by_its_counter(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        await rig.again().resume(LONG_S)
        outcome = await _pause(rig, Lie.WORKS_ON, rig.acts["pause"], LIE_S)
        assert outcome == Refusal.NO_EFFECT


@pytest.mark.parametrize("name", ["xmrig", "reference-miner"])
async def test_a_miner_that_resumes_without_work_is_found_by_its_counter(
    name: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie(rig.acts["resume"], Lie.WORKS_ON)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.resume(LIE_S)
        assert refused.value.answer_code == Refusal.NO_EFFECT


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
async def test_a_pause_answered_early_is_waited_for(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        rig.lie("/pause", Lie.EARLY)
        receipt = await engine.pause(PauseMode.KEEP, LONG_S)
        assert receipt.idle_ns is not None
        # the stand-in pauses 30 ms after its answer
        assert receipt.idle_ns - receipt.acked_ns > 20_000_000


async def test_xmrig_is_idle_after_its_answer_and_not_before(tmp_path: Path) -> None:
    async with rigged("xmrig", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        receipt = await engine.pause(PauseMode.WAIT, LONG_S)
        assert receipt.idle_ns is not None
        # the counter had to stand still for 50 ms, five of the stand-in's hashes
        assert receipt.idle_ns - receipt.acked_ns >= 50_000_000


async def test_xmrig_without_a_counter_says_that_nothing_was_seen(tmp_path: Path) -> None:
    async with rigged("xmrig", tmp_path) as rig:
        engine = rig.again()
        ports = engine._ports  # type: ignore[attr-defined]
        blind = type(engine)(  # type: ignore[call-arg]
            engine.spec, EnginePorts(clock=ports.clock, work=UnknownWork())
        )
        await blind.prepare(LONG_S)
        await blind.resume(LONG_S)
        receipt = await blind.pause(PauseMode.WAIT, LONG_S)
        assert receipt.idle_ns is None
        assert "own word" in receipt.evidence


@pytest.mark.parametrize(
    ("token", "authorized"), [("wrong", Refusal.DENIED), ("", Refusal.DENIED)], ids=["403", "401"]
)
async def test_xmrig_refuses_a_wrong_token_and_none(
    token: str, authorized: Refusal, tmp_path: Path
) -> None:
    async with rigged("xmrig", tmp_path) as rig:
        assert isinstance(rig.standin, XmrigStandIn)
        rig.standin._token = "another" if token else "secret"
        engine = rig.again()
        if not token:
            engine._api._proof = None  # type: ignore[attr-defined]
        with pytest.raises(DriverRefusedError) as refused:
            await engine.pause(PauseMode.WAIT, LONG_S)
        assert refused.value.answer_code == authorized
        probe = await engine.probe()
        assert probe.state is EngineState.FAILED
        assert "denied" in probe.detail


async def test_xmrig_that_may_only_be_read_is_denied(tmp_path: Path) -> None:
    async with rigged("xmrig", tmp_path) as rig:
        assert isinstance(rig.standin, XmrigStandIn)
        rig.standin._restricted = True
        engine = rig.again()
        assert (await engine.probe()).state is EngineState.ACTIVE
        with pytest.raises(DriverRefusedError) as refused:
            await engine.pause(PauseMode.WAIT, LONG_S)
        assert refused.value.answer_code == Refusal.DENIED


@pytest.mark.parametrize("name", ["openai", "vllm"])
async def test_a_wrong_token_is_denied(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        assert isinstance(rig.standin, OpenAiStandIn)
        rig.standin._token = "another"
        with pytest.raises(DriverRefusedError) as refused:
            await rig.again().prepare(LONG_S)
        assert refused.value.answer_code == Refusal.DENIED


# --- readiness -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai", "vllm", "vllm-newer", "reference-server"])
async def test_an_engine_that_talks_rubbish_is_failed_though_it_is_healthy(
    name: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        assert (await engine.probe()).ready
        rig.lie("/canary" if name == "reference-server" else "/v1/completions", Lie.RUBBISH)
        probe = await engine.probe()
        assert (probe.state, probe.ready) == (EngineState.FAILED, False)
        assert "canary" in probe.detail


async def test_rubbish_after_a_resume_is_refused(tmp_path: Path) -> None:
    async with rigged("reference-server", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        rig.lie("/resume", Lie.RUBBISH)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.resume(LONG_S)
        assert refused.value.answer_code == Refusal.WRONG_OUTPUT


async def test_models_alone_make_no_server_ready(tmp_path: Path) -> None:
    async with rigged("openai", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie("/v1/completions", Lie.ERROR)
        assert not (await engine.probe()).ready


async def test_without_a_known_answer_nothing_is_ready(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        probe = await engine.probe()
        assert (probe.state, probe.ready) == (EngineState.ACTIVE, False)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.resume(LONG_S)
        assert refused.value.answer_code == Refusal.UNPREPARED


async def test_what_is_learnt_outlives_the_driver(tmp_path: Path) -> None:
    async with rigged("openai", tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        rig.lie("/v1/completions", Lie.RUBBISH)
        with pytest.raises(DriverRefusedError) as refused:
            await rig.again().prepare(LONG_S)
        assert refused.value.answer_code == Refusal.WRONG_OUTPUT


async def test_a_nonce_that_does_not_hash_as_the_miner_says_is_wrong(tmp_path: Path) -> None:
    async with rigged("reference-miner", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        receipt = await engine.resume(LONG_S)
        assert receipt.evidence == f"nonce {GENESIS_NONCE} hashes as it says"
        assert await engine.canary("any", LONG_S) == GENESIS_HASH
        rig.lie("/resume", Lie.RUBBISH)
        for act in (engine.resume(LONG_S), engine.canary("any", LONG_S)):
            with pytest.raises(DriverRefusedError) as refused:
                await act
            assert refused.value.answer_code == Refusal.WRONG_OUTPUT


# --- sleep and wake --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
async def test_a_false_sleep_is_found(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie("/sleep", Lie.FALSE)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.offload(LIE_S)
        assert refused.value.answer_code == Refusal.NO_EFFECT
        assert rig.used_mib is not None
        assert rig.used_mib() == VRAM_MIB


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
async def test_a_sleep_answered_early_is_waited_for(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie("/sleep", Lie.EARLY)
        receipt = await engine.offload(LONG_S)
        assert rig.used_mib is not None
        assert receipt.freed_mib == VRAM_MIB - rig.used_mib()
        assert rig.used_mib() < VRAM_MIB / 2


@pytest.mark.parametrize("name", ["vllm", "reference-server"])
async def test_a_sleep_that_keeps_memory_is_found(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie(rig.acts["offload"], Lie.KEEPS_MEMORY)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.offload(LIE_S)
        assert refused.value.answer_code == Refusal.NO_EFFECT
        assert "MiB" in refused.value.detail or "bytes" in refused.value.detail


async def test_a_sleep_without_a_memory_port_says_that_it_was_not_measured(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        ports = engine._ports  # type: ignore[attr-defined]
        blind = VllmEngine(engine.spec, EnginePorts(clock=ports.clock, memory=UnknownMemory()))
        await blind.prepare(LONG_S)
        receipt = await blind.offload(LONG_S)
        assert (receipt.idle_ns, receipt.freed_mib) == (None, None)
        assert "not measured" in receipt.evidence


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("vllm", Lie.FALSE),
        *(
            (name, lie)
            for name in ("vllm", "vllm-newer")
            for lie in (Lie.HTML, Lie.OUT_OF_MEMORY, Lie.ERROR)
        ),
    ],
)
async def test_a_wake_up_that_fails_is_named_and_the_engine_asleep_is_never_asked(
    name: str, lie: Lie, tmp_path: Path
) -> None:
    wanted = {
        Lie.FALSE: Refusal.NO_EFFECT,
        Lie.HTML: Refusal.NOT_API,
        Lie.OUT_OF_MEMORY: Refusal.OUT_OF_MEMORY,
        Lie.ERROR: Refusal.ENGINE_ERROR,
    }
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        rig.lie("/wake_up", lie)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.resume(LIE_S if lie is Lie.FALSE else LONG_S)
        assert refused.value.answer_code == wanted[lie]
        # a request would have ended it (vllm#14311): it lives, asleep, and wakes when asked again;
        # of one that said yes nobody knows what memory it took
        state = EngineState.WARM if lie is Lie.FALSE else EngineState.OFFLOADED
        assert (await engine.probe()).state is state
        rig.lie("/wake_up", None)
        await engine.resume(LONG_S)
        assert (await engine.probe()).ready


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
async def test_a_wake_up_answered_early_is_waited_for(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        rig.lie("/wake_up", Lie.EARLY)
        await engine.resume(LONG_S)
        rig.lie("/wake_up", None)
        assert (await engine.probe()).ready


async def test_a_canary_of_an_engine_asleep_is_refused_and_not_sent(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.canary("hello", LONG_S)
        assert refused.value.answer_code == Refusal.BUSY
        assert (await engine.probe()).live


async def test_a_request_to_an_engine_asleep_crashes_the_stand_in(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        assert isinstance(rig.standin, VllmStandIn)
        rig.standin.go.set()
        with pytest.raises(DriverUnavailableError):
            await engine._verify(_deadline(), learn=False)  # type: ignore[attr-defined]
        assert (await engine.probe()).state is EngineState.ABSENT


def _deadline() -> object:
    from edge_agent.workloads.engines.evidence import Deadline

    return Deadline("test", LONG_S)


async def test_level_two_reads_its_weights_again_before_it_answers(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        deep = VllmEngine(rig.again().spec, rig.again()._ports, levels=(2,))  # type: ignore[attr-defined]
        await deep.prepare(LONG_S)
        await deep.offload(LONG_S)
        assert rig.server is not None
        rig.server.requests.clear()
        await deep.resume(LONG_S)
        assert "POST /collective_rpc" in rig.server.requests
        assert "POST /reset_prefix_cache" in rig.server.requests
        assert (await deep.probe()).ready


async def test_rubbish_after_level_two_without_our_record_is_healed_once(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        assert isinstance(rig.standin, VllmStandIn)
        await rig.standin._sleep(2, "abort", None)  # by somebody else
        await engine.resume(LONG_S)
        assert (await engine.probe()).ready


async def test_what_a_deep_sleep_left_behind_is_never_learnt(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        assert isinstance(rig.standin, VllmStandIn)
        await rig.standin._sleep(2, "abort", None)  # by somebody else, before we knew it
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        assert await engine.canary("canary", LONG_S) == right_answer("tiny", "canary", 8)


@pytest.mark.parametrize("name", ["vllm", "vllm-newer"])
async def test_a_sleep_that_was_only_written_down_is_done_when_asked_again(
    name: str, tmp_path: Path
) -> None:
    async with rigged(name, tmp_path) as rig:
        await rig.again().prepare(LONG_S)
        # the host died between the record and the act
        records = RecordFile(tmp_path, name)
        record = msgspec.structs.replace(records.read(), asleep_level=1, asleep_from_mib=VRAM_MIB)
        records.write(record)
        receipt = await rig.again().offload(LONG_S)
        assert rig.used_mib is not None
        assert receipt.freed_mib == VRAM_MIB - rig.used_mib()
        assert rig.used_mib() < VRAM_MIB / 2


@pytest.mark.parametrize("levels", [(1,), (2,)])
async def test_rubbish_that_stays_is_refused(levels: tuple[int, ...], tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = VllmEngine(rig.again().spec, rig.again()._ports, levels=levels)  # type: ignore[attr-defined]
        await engine.prepare(LONG_S)
        await engine.offload(LONG_S)
        rig.lie("/wake_up", Lie.RUBBISH)
        rig.lie("/collective_rpc", Lie.FALSE)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.resume(LONG_S)
        assert refused.value.answer_code == Refusal.WRONG_OUTPUT


async def test_short_host_memory_falls_back_to_level_two(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        rig.lie("/sleep", Lie.OUT_OF_MEMORY)  # the stand-in's level 1 alone needs host memory
        receipt = await engine.offload(LONG_S)
        assert receipt.idle_ns is not None
        assert isinstance(rig.standin, VllmStandIn)
        assert rig.standin.level == 2
        rig.lie("/sleep", None)
        await rig.again().resume(LONG_S)
        assert (await engine.probe()).ready


async def test_without_development_mode_nothing_is_switched(tmp_path: Path) -> None:
    async with rigged("vllm", tmp_path) as rig:
        assert isinstance(rig.standin, VllmStandIn)
        rig.standin._version = VllmVersion(dev=False)
        engine = rig.again()
        with pytest.raises(DriverRefusedError) as refused:
            await engine.prepare(LONG_S)
        assert refused.value.answer_code == Refusal.UNSUPPORTED
        assert (await engine.probe()).state is EngineState.FAILED


async def test_counters_of_vllm_that_are_no_numbers_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged("vllm", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)
        text = b"vllm:num_requests_running 1e999\nvllm:prompt_tokens_total ..\n"
        text += b'vllm:generation_tokens_total{a="b"} NaN\nvllm:request_success_total 3.0\n'
        monkeypatch.setattr(rig.standin, "_metrics", lambda: Reply(200, text, "text/plain"))
        assert await engine.sample() == TokenSample(requests=3)
        receipt = await engine.pause(PauseMode.KEEP, LONG_S)
        assert (receipt.inflight_left, receipt.evidence) == (None, "is_paused says so")


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_with_too_much_to_do_gave_no_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async with rigged("openai", tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        await engine.resume(LONG_S)

        async def busy(*_: object) -> Reply:
            return Reply(status, b"{}")

        monkeypatch.setattr(rig.standin, "_completion", busy)
        probe = await engine.probe()
        assert (probe.ready, probe.live) == (False, False)
