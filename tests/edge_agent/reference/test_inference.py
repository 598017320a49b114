"""The inference server as a process of its own, over real sockets."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.edge_agent.reference.programs import (
    LIMIT_S,
    Programs,
    Workload,
    kill,
    may_raise_weight,
    wait_for,
)

# With this seed the greedy answer goes on and on, as a stream that is to be interrupted must.
TINY = ("--layers", "2", "--dim", "64", "--heads", "2", "--context", "4096", "--seed", "1")
LONG = 4_000
GREEDY = {"temperature": 0, "prompt": "hello"}


def active(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "active")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    """Give a server for tests that leave it as it was."""
    programs = Programs(tmp_path_factory.mktemp("inference"))
    server = programs.inference(*TINY)
    server.wait(active)
    yield server
    programs.end()


class Stream:
    """A client that reads a stream in its own thread."""

    def __init__(self, server: Workload, **body: object) -> None:
        self.events: list[dict[str, Any]] = []
        self.done = False
        self.status = 0
        self._url = f"{server.listen}/v1/completions"
        self._body = GREEDY | {"stream": True} | body
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with (
            httpx.Client(timeout=LIMIT_S) as client,
            client.stream("POST", self._url, json=self._body) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line:
                    self.events.append(json.loads(line.removeprefix("data: ")))

    def text(self) -> str:
        return "".join(event["choices"][0]["text"] for event in self.events if "choices" in event)

    def wait_begun(self) -> None:
        wait_for(lambda: len(self.events), lambda count: count >= 3)

    def join(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def test_models_health_and_the_canary(shared: Workload) -> None:
    assert shared.get("/health") == {"status": "ok"}
    assert [model["id"] for model in shared.get("/v1/models")["data"]] == ["reference"]
    canary, again = shared.get("/canary"), shared.get("/canary")
    other = shared.get("/canary?prompt=another")
    assert canary == again
    assert canary["logits_sha256"] == shared.status()["canary_sha256"]
    assert other["logits_sha256"] != canary["logits_sha256"]
    completion = shared.post(
        "/v1/completions", prompt="canary", temperature=0, max_tokens=4, logits_sha256=True
    )
    assert completion["logits_sha256"] == canary["logits_sha256"]
    assert completion["choices"][0]["text"] == canary["text"]


def test_greedy_answers_are_equal_streamed_or_whole(shared: Workload) -> None:
    before = shared.status()
    whole = [shared.post("/v1/completions", **GREEDY, max_tokens=24) for _ in range(2)]
    stream = Stream(shared, max_tokens=24, stream_options={"include_usage": True})
    stream.join()
    after = shared.status()
    texts = {answer["choices"][0]["text"] for answer in whole}
    *pieces, last = stream.events
    assert {"".join(piece["choices"][0]["text"] for piece in pieces)} == texts
    assert stream.done
    usage = whole[0]["usage"]
    assert usage == last["usage"] == whole[1]["usage"]
    assert usage["prompt_tokens"] == len("hello") + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert after["tokens_out"] - before["tokens_out"] == 3 * usage["completion_tokens"]
    assert after["tokens_in"] - before["tokens_in"] == 3 * usage["prompt_tokens"]
    assert after["requests"] - before["requests"] == after["finished"] - before["finished"] == 3


def test_a_chat_is_answered_streamed_or_whole(shared: Workload) -> None:
    ask = {
        "model": "reference",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "temperature": 0,
        "max_tokens": 12,
        "user": "a field that is not known",
    }
    whole = shared.post("/v1/chat/completions", **ask)
    message = whole["choices"][0]["message"]
    assert (whole["object"], message["role"]) == ("chat.completion", "assistant")
    answer = shared.client.post("/v1/chat/completions", json=ask | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert (lines[-1], deltas[0]["role"]) == ("[DONE]", "assistant")
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request_error"),
        (b"[" * 100_000, 400, "invalid_request_error"),
        (b"\xff\xfe", 400, "invalid_request_error"),
        (b"x" * 300_000, 413, "too_large"),
        (b"{}", 400, "invalid_request_error"),
        (b'{"prompt": 5}', 400, "invalid_request_error"),
        (b'{"prompt": ["a", "b"]}', 400, "invalid_request_error"),
        (b'{"prompt": "a", "model": "gpt"}', 404, "model_not_found"),
        (b'{"prompt": "a", "n": 2}', 400, "unsupported"),
        (b'{"prompt": "a", "top_p": 0.5}', 400, "unsupported"),
        (b'{"prompt": "a", "temperature": -1}', 400, "invalid_request_error"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "context_length_exceeded"),
        (b'{"prompt": "a", "max_tokens": 99999999999}', 400, "context_length_exceeded"),
        (b'{"prompt": "' + b"a" * 5_000 + b'"}', 400, "context_length_exceeded"),
        (b'{"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}', 400, "invalid_request_error"),
        (b'{"prompt": "a", "stop": ""}', 400, "invalid_request_error"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_why(
    shared: Workload, body: bytes, status: int, code: str
) -> None:
    answer = shared.client.post("/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert active(shared.status())


@pytest.mark.parametrize(
    "messages", [[], None, [{"role": "u", "content": [{"type": "image"}]}], [{"content": "x"}]]
)
def test_a_chat_that_is_none_is_refused(shared: Workload, messages: object) -> None:
    answer = shared.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400


def test_a_client_that_leaves_gives_its_place_back(shared: Workload) -> None:
    with (
        httpx.Client(timeout=LIMIT_S) as client,
        client.stream(
            "POST",
            f"{shared.listen}/v1/completions",
            json=GREEDY | {"stream": True, "max_tokens": LONG},
        ) as answer,
    ):
        lines = answer.iter_lines()  # kept: one that is let go ends the request
        next(lines)
        assert shared.status()["in_flight"] == 1
    status = shared.wait(lambda status: status["in_flight"] == 0)
    # Its cache is given back as well: what is left are the weights.
    shared.wait(lambda status: status["device_bytes"] == status["mirror_bytes"])
    assert status["finished"] + status["aborted"] < status["requests"]


def test_an_open_stream_stalls_and_goes_on_as_if_nothing_had_been(programs: Programs) -> None:
    server = programs.inference(*TINY)
    server.wait(active)
    expected = server.post("/v1/completions", **GREEDY, max_tokens=1_500)["choices"][0]["text"]
    canary = server.get("/canary")
    stream = Stream(server, max_tokens=1_500)
    stream.wait_begun()
    for round_ in range(3):
        paused = server.post("/pause")
        # Nothing to wait for: a step after the answer would show in one of these.
        counts = {server.status()["tokens_out"] for _ in range(5)} | {paused["tokens_out"]}
        assert (paused["state"], paused["in_flight"], len(counts)) == ("paused", 1, 1)
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/canary").status_code == 503
        if round_:
            gone = server.post("/offload")
            assert (gone["state"], gone["device_bytes"]) == ("offloaded", 0)
            assert gone["freed_bytes"] == paused["device_bytes"] > 0
        resumed = server.post("/resume")
        assert resumed["logits_sha256"] == canary["logits_sha256"]
        assert (resumed["state"], resumed["in_flight"]) == ("active", 1)
    stream.join()
    assert stream.done
    assert stream.text() == expected
    assert server.get("/canary") == canary


def test_an_offload_gives_memory_back_to_the_system(programs: Programs) -> None:
    server = programs.inference("--layers", "4", "--dim", "512", "--heads", "8", "--paused")
    server.wait(lambda status: status["state"] == "paused")
    assert server.client.post("/resume").status_code == 200
    assert server.client.post("/offload").status_code == 409  # it is at work
    server.post("/pause")
    before = server.status()
    gone = server.post("/offload")
    assert gone["freed_bytes"] == before["device_bytes"] == before["mirror_bytes"] > 40e6
    assert before["rss_bytes"] - gone["rss_bytes"] > 0.9 * gone["freed_bytes"]
    assert server.post("/offload")["freed_bytes"] == 0
    assert server.post("/resume")["device_bytes"] == before["device_bytes"]


def test_abort_ends_streams_with_an_error_event(programs: Programs) -> None:
    server = programs.inference(*TINY, "--running-max", "1")
    server.wait(active)
    stream = Stream(server, max_tokens=LONG)
    stream.wait_begun()
    waiting = Stream(server, max_tokens=5)
    server.wait(lambda status: status["waiting"] == 1)
    paused = server.post("/pause?mode=abort")
    assert (paused["in_flight"], paused["state"]) == (0, "paused")
    for one in (stream, waiting):
        one.join()
        assert one.events[-1]["error"]["code"] == "aborted"
        assert not one.done
    assert server.status()["aborted"] == 2


def test_wait_lets_streams_end_first_or_changes_nothing(programs: Programs) -> None:
    server = programs.inference(*TINY)
    server.wait(active)
    stream = Stream(server, max_tokens=1_000)
    stream.wait_begun()
    answer = server.client.post("/pause?mode=wait&timeout_s=0.001")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert active(server.status())
    paused = server.post("/pause?mode=wait")
    assert (paused["state"], paused["in_flight"]) == ("paused", 0)
    stream.join()
    assert stream.done


def test_requests_while_paused_wait_or_are_told_to_come_again(programs: Programs) -> None:
    server = programs.inference(*TINY, "--waiting-max", "1")
    server.wait(active)
    server.post("/pause")
    held = Stream(server, max_tokens=3)
    server.wait(lambda status: status["waiting"] == 1)
    too_many = server.client.post("/v1/completions", json=GREEDY)
    assert (too_many.status_code, too_many.headers["retry-after"]) == (503, "1")
    server.post("/resume")
    held.join()
    assert held.done
    other = programs.inference(*TINY, "--when-paused", "refuse", "--paused")
    other.wait(lambda status: status["state"] == "paused")
    refused = other.client.post("/v1/completions", json=GREEDY)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    other.post("/resume")
    assert other.client.post("/v1/completions", json=GREEDY).status_code == 200


def test_a_held_request_is_not_held_for_ever(programs: Programs) -> None:
    server = programs.inference(*TINY, "--hold-s", "0.05", "--paused")
    server.wait(lambda status: status["state"] == "paused")
    answer = server.client.post("/v1/completions", json=GREEDY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert server.status()["waiting"] == 0


def test_a_killed_server_comes_back_with_the_same_answer(programs: Programs) -> None:
    server = programs.inference(*TINY)
    sha = server.wait(active)["canary_sha256"]
    stream = Stream(server, max_tokens=LONG)
    stream.wait_begun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)  # its reader loses the connection
        kill(server.process.pid)
        stream.join()
    assert not stream.done
    again = programs.inference(*TINY)
    assert again.wait(active)["canary_sha256"] == sha


def test_a_backend_that_is_not_there_is_a_clear_failure(programs: Programs) -> None:
    server = programs.inference("--backend", "torch")
    status = server.wait(lambda status: status["state"] != "starting")
    if status["state"] == "active":
        pytest.skip("PyTorch and a GPU are here")
    assert status["state"] == "failed"
    assert "PyTorch" in status["detail"]
    assert server.client.post("/v1/completions", json=GREEDY).status_code == 503
    assert server.client.post("/resume").status_code == 409


def test_the_thread_that_computes_runs_at_low_weight(programs: Programs) -> None:
    server = programs.workload("inference", *TINY)
    server.wait(active)
    threads = [int(path.name) for path in Path(f"/proc/{server.process.pid}/task").iterdir()]
    low = [one for one in threads if os.getpriority(os.PRIO_PROCESS, one) == 19]
    assert len(low) == 1
    assert os.sched_getscheduler(low[0]) == os.SCHED_BATCH
    assert server.process.pid not in low  # the one that answers is not held up
    server.post("/pause")
    allowed = may_raise_weight()
    assert os.sched_getscheduler(low[0]) == (os.SCHED_OTHER if allowed else os.SCHED_BATCH)


def test_stop_ends_it(programs: Programs) -> None:
    server = programs.inference(*TINY)
    server.wait(active)
    assert server.post("/stop") == {"state": "stopping"}
    assert server.process.wait(10) == 0
