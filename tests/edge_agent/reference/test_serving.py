"""The server's acts against a model that may go wrong."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from edge_agent.reference.decoding import Wish
from edge_agent.reference.errors import BackendError, RefusedError
from edge_agent.reference.model import VOCABULARY, Logits, Model
from edge_agent.reference.serving import Server
from edge_agent.reference.tickets import PauseMode, ServerState, ServingLimits


class OneCache:
    length = 0
    closed = False

    def close(self) -> None:
        self.closed = True


class BrittleModel:
    """Says what it was told to say; loses its mind, or its time, when asked to."""

    name = "brittle"
    mirror_bytes = 10

    def __init__(self) -> None:
        self.device_bytes = 10
        self.bias = 0.0
        self.caches: list[OneCache] = []
        self.onload_waits: threading.Event | None = None
        self.onload_fails = 0

    def new_cache(self) -> OneCache:
        self.caches.append(OneCache())
        return self.caches[-1]

    def forward(self, cache: OneCache, tokens: Sequence[int]) -> Logits:
        logits = np.full(VOCABULARY, self.bias, dtype=np.float32)
        logits[65] += 1
        return logits

    def offload(self) -> None:
        self.device_bytes = 0

    def onload(self) -> None:
        if self.onload_waits is not None:
            self.onload_waits.wait(10)
        if self.onload_fails:
            self.onload_fails -= 1
            raise MemoryError("the neighbour has it")
        self.device_bytes = 10


@asynccontextmanager
async def serving(load: Callable[[], Model], running_max: int = 8) -> AsyncIterator[Server]:
    server = Server(load, ServingLimits(running_max=running_max), weight="normal")
    task = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(10):
            await server._started(10)
            yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_model_that_came_back_another_serves_nobody() -> None:
    model = BrittleModel()
    async with serving(lambda: model) as server:
        ticket = await server.ask(Wish(prompt="a", max_tokens=10_000))
        await server.pause(PauseMode.KEEP, 5)
        await server.offload(5)
        model.bias = 1e-6  # one last bit of the logits
        with pytest.raises(RefusedError, match="logits changed") as caught:
            await server.resume(5)
        assert (caught.value.status, server.state) == (500, ServerState.FAILED)
        while not (piece := ticket.pieces.get_nowait()).aborted:
            assert piece.text == "A" * len(piece.text)
        with pytest.raises(RefusedError, match="logits changed"):
            await server.ask(Wish(prompt="a", max_tokens=1))
        with pytest.raises(RefusedError) as caught:
            await server.resume(5)
        assert caught.value.status == 409


async def test_a_canary_that_changes_while_it_serves_is_found_out() -> None:
    model = BrittleModel()
    async with serving(lambda: model) as server:
        assert (await server.canary("canary", 5)).text == "AAAA"
        model.bias = -1e-6
        assert (await server.canary("another", 5)).text == "AAAA"  # nothing to hold it to
        with pytest.raises(RefusedError):
            await server.canary("canary", 5)
        assert server.state is ServerState.FAILED


async def test_an_onload_that_hangs_is_told_and_may_be_tried_again() -> None:
    model = BrittleModel()
    model.onload_waits = threading.Event()
    async with serving(lambda: model) as server:
        await server.pause(PauseMode.KEEP, 5)
        await server.offload(5)
        with pytest.raises(RefusedError, match="does not answer") as caught:
            await server.resume(0.01)
        assert (caught.value.status, server.state) == (504, ServerState.OFFLOADED)
        model.onload_waits.set()
        assert (await server.resume(5)).state is ServerState.ACTIVE


async def test_a_device_without_room_says_so_and_may_be_tried_again() -> None:
    model = BrittleModel()
    model.onload_fails = 1
    async with serving(lambda: model) as server:
        await server.pause(PauseMode.KEEP, 5)
        await server.offload(5)
        with pytest.raises(RefusedError, match="MemoryError: the neighbour has it") as caught:
            await server.resume(5)
        assert (caught.value.status, caught.value.answer_code) == (500, "device")
        assert server.state is ServerState.OFFLOADED
        assert (await server.resume(5)).device_bytes == 10


async def test_a_model_that_does_not_load_is_a_clear_failure() -> None:
    def load() -> Model:
        raise BackendError("no device")

    async with serving(load) as server:
        assert (server.state, server.detail, server.device_bytes) == ("failed", "no device", 0)
        with pytest.raises(RefusedError, match="no device"):
            await server.resume(5)


async def test_every_cache_is_closed_when_its_request_has_ended() -> None:
    model = BrittleModel()
    async with serving(lambda: model, running_max=2) as server:
        done = await server.ask(Wish(prompt="a", max_tokens=3))
        left = await server.ask(Wish(prompt="b", max_tokens=100_000))
        while not (await done.pieces.get()).finish:
            pass
        server.cancel(left)
        await server._changes.until(
            lambda: server.in_flight == 0 and all(cache.closed for cache in model.caches), 5
        )
        assert len(model.caches) == 3  # the canary's was the first
        assert server.counts.finished == 1
