"""Servers of OpenAI's API as others write them, byte by byte; shares nothing with the stand-ins.

Sources: vLLM vllm/entrypoints (error documents, /health), llama.cpp tools/server (503 while it
loads, any name of a model answered), Ollama docs/openai.md (no /health, names with tags), LM
Studio's answer to an unknown path, RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import Engine, EngineSpec, EngineState
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.catalogue import EngineKind, engine_of
from edge_agent.workloads.engines.process import group_for
from edge_agent.workloads.errors import DriverRefusedError, Refusal

LONG_S = 5.0
Routes = dict[str, bytes]


def _reply(body: object, status: int = 200) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return f"{head}\r\n\r\n".encode() + data


def _models(*names: str) -> bytes:
    return _reply({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def _completion(text: str = " Paris", model: str = "m") -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
    return _reply({"object": "text_completion", "model": model, "choices": [choice]})


@asynccontextmanager
async def _serving(routes: Routes) -> AsyncIterator[int]:
    """Answer each path by its bytes, and 404 to others."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.lower().split("\r\n")
                lengths = [line.split(":")[1] for line in lines if line.startswith("content-len")]
                await reader.readexactly(int(lengths[0]) if lengths else 0)
                path = first.split(" ")[1].partition("?")[0]
                writer.write(routes.get(path, _reply({"detail": "Not Found"}, 404)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _spec(port: int, **fields: object) -> EngineSpec:
    base: dict[str, object] = {"engine_id": "e", "gpu": "gpu0", "model": "m"}
    return EngineSpec(**(base | {"url": f"http://127.0.0.1:{port}"} | fields))  # type: ignore[arg-type]


def _engine(port: int, kind: EngineKind = EngineKind.OPENAI, **fields: object) -> Engine:
    return engine_of(kind, _spec(port, **fields), EnginePorts(clock=SystemClock()))


HEALTHY = {"/health": _reply(b""), "/v1/models": _models("m"), "/v1/completions": _completion()}
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
_CHUNKS = b'1f\r\n{"choices":[{"text":" Paris"}]}\r\n0\r\n\r\n'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + _CHUNKS
WORKING: dict[str, Routes] = {
    "vllm": HEALTHY,
    "llama.cpp": HEALTHY | {"/health": _reply({"status": "ok"})},
    "ollama": {"/v1/models": _models("z:7b", "m:latest"), "/v1/completions": _completion()},
    "lm-studio": HEALTHY | {"/health": _reply({"error": "Unexpected endpoint (GET /health)"})},
    "no-list-of-models": {"/health": _reply(b""), "/v1/completions": _completion()},
    "no-content": HEALTHY | {"/health": NO_CONTENT},
    "chunks": HEALTHY | {"/v1/completions": CHUNKED},
}


@pytest.mark.parametrize("name", WORKING)
async def test_servers_of_the_api_are_prepared_and_ready(name: str) -> None:
    async with _serving(WORKING[name]) as port:
        engine = _engine(port)
        assert (await engine.prepare(LONG_S)).ready
        await engine.resume(LONG_S)
        probe = await engine.probe()
        assert (probe.state, probe.ready) == (EngineState.ACTIVE, True)


_ERROR = {"object": "error", "message": "the model is gone", "type": "x", "code": 400}
_NO_MODEL = {"error": {"message": "The model `m` does not exist.", "code": 404}}
_LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
_OTHER = {"/v1/models": _models("other"), "/v1/completions": _completion(model="other")}
BROKEN: dict[str, tuple[Routes, Refusal, str]] = {
    "another-model": (HEALTHY | _OTHER, Refusal.WRONG_MODEL, "it serves other"),
    "no-model": (HEALTHY | {"/v1/models": _models()}, Refusal.WRONG_MODEL, "it serves none"),
    "model-404": (
        HEALTHY | {"/v1/completions": _reply(_NO_MODEL, 404)},
        Refusal.UNSUPPORTED,
        "does not exist",
    ),
    "error-200": (HEALTHY | {"/v1/completions": _reply(_ERROR)}, Refusal.NOT_API, "model is gone"),
    "empty-object": (HEALTHY | {"/v1/completions": _reply({})}, Refusal.NOT_API, "choices"),
    "empty-text": (HEALTHY | {"/v1/completions": _completion("")}, Refusal.WRONG_OUTPUT, "token"),
    "loading": (HEALTHY | {"/v1/completions": _reply(_LOADING, 503)}, Refusal.BUSY, "Loading"),
    "byte-order-mark": (
        HEALTHY | {"/v1/completions": _reply(b'\xef\xbb\xbf{"choices":[{"text":"a"}]}')},
        Refusal.NOT_API,
        "malformed",
    ),
    "nothing-of-it": ({}, Refusal.UNSUPPORTED, "GET /v1/models: HTTP 404"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_wrong_is_refused_in_the_servers_own_words(name: str) -> None:
    routes, code, words = BROKEN[name]
    async with _serving(routes) as port:
        engine = _engine(port)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.prepare(LONG_S)
        assert refused.value.answer_code == code
        assert words in refused.value.detail
        assert not (await engine.probe()).ready


async def test_a_model_is_not_asked_for_again_once_its_answer_is_known() -> None:
    async with _serving(HEALTHY | _OTHER | {"/v1/models": _reply({}, 500)}) as port:
        digest = "1" * 64
        engine = _engine(port, canary_sha256=digest)
        with pytest.raises(DriverRefusedError) as refused:
            await engine.prepare(LONG_S)
        assert refused.value.answer_code == Refusal.WRONG_OUTPUT


async def test_a_base_address_that_ends_in_v1_is_told_apart() -> None:
    async with _serving(HEALTHY) as port:
        with pytest.raises(DriverRefusedError) as refused:
            await _engine(port, url=f"http://127.0.0.1:{port}/v1").prepare(LONG_S)
        assert "/v1/v1/models" in refused.value.detail


@pytest.mark.parametrize("kind", [EngineKind.OPENAI, EngineKind.VLLM, EngineKind.XMRIG])
async def test_an_address_that_somebody_else_has_is_never_taken_for_ours(
    kind: EngineKind, tmp_path: Path
) -> None:
    routes = HEALTHY | {
        "/is_sleeping": _reply({"is_sleeping": False}),
        "/is_paused": _reply({"is_paused": False}),
        "/pause": _reply({"status": "paused"}),
        "/2/summary": _reply({"paused": False, "hashrate": {"total": [9.0, None, None]}}),
        "/json_rpc": _reply({"jsonrpc": "2.0", "id": 1, "result": {"status": "OK"}}),
    }
    async with _serving(routes) as port:
        clock = SystemClock()
        spec = _spec(port, argv=("sleep", "60"))
        program = group_for(spec, folder=tmp_path, boot_id=clock.boot_id())
        engine = engine_of(kind, spec, EnginePorts(clock=clock, program=program))
        for act in (engine.prepare(LONG_S), engine.resume(LONG_S)):
            with pytest.raises(DriverRefusedError) as refused:
                await act
            assert refused.value.answer_code == Refusal.START_FAILED
            assert f"127.0.0.1:{port} is taken" in refused.value.detail
        probe = await engine.probe()
        assert (probe.state, probe.live, probe.ready) == (EngineState.ABSENT, False, False)
        assert "somebody else answers" in probe.detail
        assert (await program.look()).alive is False
