"""The stand-ins of engines: what the real ones do, and what is told of their lies.

Sources: vLLM docs/features/sleep_mode.md and its development routers; xmrig src/base/api/Httpd.cpp
and src/core/Miner.cpp; a real XMRig 6.26.0 as measured (idle 1 to 124 ms after its answer).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from simulators.engine_lies import Lie, parse_lie
from simulators.engine_openai import OpenAiStandIn, right_answer
from simulators.engine_server import EngineDiedError, Reply, StandIn
from simulators.engine_vllm import CONTEXT_MIB, EARLY_S, VllmStandIn, VllmVersion
from simulators.engine_xmrig import WINDOW_S, XmrigStandIn
from simulators.errors import SettingError
from simulators.http_wire import HttpRequest
from simulators.main import main

VRAM_MIB = 14_000


async def _ask(
    engine: StandIn,
    method: str,
    url: str,
    body: object = None,
    *,
    authorization: str = "",
    content_type: str = "application/json",
) -> Reply:
    path, _, query = url.partition("?")
    request = HttpRequest(
        method=method,
        path=path,
        authorization=authorization,
        keep_alive=False,
        body=b"" if body is None else msgspec.json.encode(body),
        query=query,
        content_type=content_type,
    )
    return await engine.answer(request, engine.lies.about(path))


async def _json(engine: StandIn, method: str, url: str, body: object = None) -> dict[str, Any]:
    reply = await _ask(engine, method, url, body)
    assert reply.status == 200
    return msgspec.json.decode(reply.body, type=dict[str, Any])


async def _text(engine: StandIn, prompt: str = "hello", tokens: int = 4) -> str:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens}
    document = await _json(engine, "POST", "/v1/completions", body)
    text: str = document["choices"][0]["text"]
    return text


async def test_models_are_told_before_it_is_healthy() -> None:
    engine = OpenAiStandIn(loads=1)
    assert (await _json(engine, "GET", "/v1/models"))["data"][0]["id"] == "tiny"
    assert (await _ask(engine, "GET", "/health")).status == 503
    assert (await _ask(engine, "GET", "/health")).status == 200


async def test_a_prompt_has_one_answer_and_another_model_another() -> None:
    engine = OpenAiStandIn()
    assert await _text(engine) == await _text(engine) == right_answer("tiny", "hello", 4)
    assert right_answer("other", "hello", 8) != right_answer("tiny", "hello", 8)
    refused = await _ask(engine, "POST", "/v1/completions", {"model": "none"})
    assert refused.status == 404


async def test_sleep_answers_nothing_frees_memory_and_wakes_by_tags() -> None:
    engine = VllmStandIn(vram_mib=VRAM_MIB)
    assert engine.used_mib() == VRAM_MIB
    assert await _ask(engine, "POST", "/sleep?level=1") == Reply(200, b"")
    assert engine.used_mib() == CONTEXT_MIB
    # what needs no weights goes on: /health and /v1/models are no signs of readiness
    assert (await _ask(engine, "GET", "/health")).status == 200
    assert (await _ask(engine, "GET", "/v1/models")).status == 200
    await _ask(engine, "POST", "/wake_up?tags=weights")
    assert (await _json(engine, "GET", "/is_sleeping"))["is_sleeping"]
    assert CONTEXT_MIB < engine.used_mib() < VRAM_MIB
    await _ask(engine, "POST", "/wake_up?tags=kv_cache")
    assert not (await _json(engine, "GET", "/is_sleeping"))["is_sleeping"]
    assert engine.used_mib() == VRAM_MIB
    assert await _text(engine) == right_answer("tiny", "hello", 4)


async def test_level_two_talks_rubbish_until_its_weights_are_read_again() -> None:
    engine = VllmStandIn()
    await _ask(engine, "POST", "/sleep?level=2")
    await _ask(engine, "POST", "/wake_up")
    assert await _text(engine, tokens=8) != right_answer("tiny", "hello", 8)
    await _ask(engine, "POST", "/collective_rpc", {"method": "reload_weights"})
    assert await _text(engine, tokens=8) == right_answer("tiny", "hello", 8)


async def test_a_request_asleep_ends_it() -> None:
    engine = VllmStandIn()
    await _ask(engine, "POST", "/sleep?level=1")
    engine.go.set()
    with pytest.raises(EngineDiedError):
        await _text(engine)
    engine.die()
    assert engine.used_mib() == 0


@pytest.mark.parametrize("newest", [False, True])
async def test_the_newest_call_a_paused_engine_asleep(newest: bool) -> None:  # noqa: FBT001
    engine = VllmStandIn(version=VllmVersion(paused_sleeps=newest))
    await _ask(engine, "POST", "/pause?mode=keep")
    assert (await _json(engine, "GET", "/is_paused"))["is_paused"]
    assert (await _json(engine, "GET", "/is_sleeping"))["is_sleeping"] is newest
    assert engine.used_mib() == VRAM_MIB


async def test_pause_keeps_waits_or_aborts() -> None:
    engine = VllmStandIn(token_s=0.005)
    async with asyncio.TaskGroup() as group:
        kept = group.create_task(_text(engine, tokens=20), name="kept")
        while not engine.running:  # noqa: ASYNC110 - the stand-in has no event for it
            await asyncio.sleep(0)
        await _ask(engine, "POST", "/pause?mode=keep")
        assert engine.running == 1
        await _ask(engine, "POST", "/resume")
    assert kept.result() == right_answer("tiny", "hello", 20)
    async with asyncio.TaskGroup() as group:
        waited = group.create_task(_text(engine, tokens=20), name="waited")
        while not engine.running:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await _ask(engine, "POST", "/pause?mode=wait")
        assert engine.running == 0
        await _ask(engine, "POST", "/resume")
    assert waited.result() == right_answer("tiny", "hello", 20)
    async with asyncio.TaskGroup() as group:
        aborted = group.create_task(_text(engine, tokens=20), name="aborted")
        while not engine.running:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await _ask(engine, "POST", "/pause?mode=abort")
        await _ask(engine, "POST", "/resume")
    assert len(aborted.result().split()) < 20
    assert (await _ask(engine, "POST", "/pause?mode=other")).status == 400


async def test_lies_about_sleep() -> None:
    engine = VllmStandIn(vram_mib=VRAM_MIB)
    engine.lies.tell("/sleep", Lie.FALSE)
    assert (await _ask(engine, "POST", "/sleep?level=1")).status == 200
    assert (engine.sleeping, engine.used_mib()) == (False, VRAM_MIB)
    engine.lies.tell("/sleep", Lie.EARLY)
    await _ask(engine, "POST", "/sleep?level=1")
    assert (engine.sleeping, engine.used_mib()) == (True, VRAM_MIB)
    async with asyncio.timeout(100 * EARLY_S):
        while engine.used_mib() > CONTEXT_MIB:  # noqa: ASYNC110 - the truth has no event
            await asyncio.sleep(EARLY_S / 10)
    await _ask(engine, "POST", "/wake_up")
    engine.lies.tell("/sleep", Lie.KEEPS_MEMORY)
    await _ask(engine, "POST", "/sleep?level=1")
    assert engine.used_mib() == CONTEXT_MIB + (VRAM_MIB - CONTEXT_MIB) // 2
    engine.lies.tell("/wake_up", Lie.OUT_OF_MEMORY)
    refused = await _ask(engine, "POST", "/wake_up")
    assert refused.status == 500
    assert b"out of memory" in refused.body
    engine.lies.tell("/wake_up", None)
    assert (await _ask(engine, "POST", "/wake_up")).status == 200


# --- XMRig -----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.s = 1_000.0

    def now_s(self) -> float:
        return self.s


async def _rpc(engine: XmrigStandIn, method: str) -> dict[str, Any]:
    return await _json(engine, "POST", "/json_rpc", {"jsonrpc": "2.0", "id": 1, "method": method})


async def test_xmrig_answers_a_pause_and_ends_its_hash_later() -> None:
    clock = Clock()
    engine = XmrigStandIn(hash_s=0.085, now_s=clock.now_s)
    clock.s += 0.085 * 10.5
    assert engine.done() == 10
    assert (await _rpc(engine, "pause"))["result"] == {"status": "OK"}
    assert (await _json(engine, "GET", "/2/summary"))["paused"]
    assert engine.done() == 10
    clock.s += 0.05  # half a hash later the one under way is done, and then nothing comes
    assert engine.done() == 11
    clock.s += 5
    assert engine.done() == 11
    # its rate is an average over 10 s: it goes on long after
    assert (await _json(engine, "GET", "/2/summary"))["hashrate"]["total"][0] is not None
    clock.s += WINDOW_S
    assert (await _json(engine, "GET", "/2/summary"))["hashrate"]["total"][0] is None
    await _rpc(engine, "resume")
    clock.s += 0.085 * 3.5
    assert engine.done() == 14


async def test_xmrig_that_lies_hashes_on() -> None:
    clock = Clock()
    engine = XmrigStandIn(hash_s=0.1, now_s=clock.now_s)
    engine.lies.tell("/json_rpc", Lie.WORKS_ON)
    await _rpc(engine, "pause")
    clock.s += 10.05
    assert (await _json(engine, "GET", "/2/summary"))["paused"]
    assert engine.done() == 100


async def test_xmrig_knows_who_asks_and_what_for() -> None:
    engine = XmrigStandIn(token="right")
    call = {"jsonrpc": "2.0", "id": 1, "method": "pause"}
    # reading needs the token too
    assert (await _ask(engine, "GET", "/2/summary")).status == 401
    assert (await _ask(engine, "GET", "/2/summary", authorization="Bearer wrong")).status == 403
    right = "Bearer right"
    assert (await _ask(engine, "GET", "/2/summary", authorization=right)).status == 200
    plain = await _ask(
        engine, "POST", "/json_rpc", call, authorization=right, content_type="text/plain"
    )
    assert plain.status == 415
    read_only = XmrigStandIn(token="right", restricted=True)
    refused = await _ask(read_only, "POST", "/json_rpc", call, authorization=right)
    assert refused.status == 403
    assert (await _rpc(XmrigStandIn(), "dance"))["error"]["code"] == -32601


# --- the command -----------------------------------------------------------------------------


def test_a_lie_is_read_or_refused() -> None:
    assert parse_lie("/sleep=early") == ("/sleep", Lie.EARLY)
    with pytest.raises(SettingError, match="white"):
        parse_lie("/sleep=white")


def test_the_command_names_a_lie_that_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["engine", "xmrig", "--lie", "/2/summary=white"]) == 2
    assert "white" in capsys.readouterr().err
