"""Serving: which sequences are on the device, when it may compute, and how it is taken away.

All state lives on the event loop; the device works in one thread, one step at a time, at low
weight. The gate is looked at between two steps, so a pause waits for one step and no longer.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edge_agent.reference.changes import Changes
from edge_agent.reference.decoding import CANARY_PROMPT, Canary, Decoding, Wish, ask_canary
from edge_agent.reference.errors import BackendError, RefusedError
from edge_agent.reference.model import Cache, Model, encode
from edge_agent.reference.tickets import (
    ActReply,
    PauseMode,
    Piece,
    ServerState,
    ServingCounts,
    ServingLimits,
    Ticket,
)
from edge_agent.reference.weight import Weight

T = TypeVar("T")

_log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Server:
    """Serves one model.

    Args:
        load: makes the model, in the thread that computes. weight: of that thread. paused: start
            so, loaded and checked.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        limits: ServingLimits,
        *,
        weight: str = "batch",
        paused: bool = False,
    ) -> None:
        self.limits = limits
        self.counts = ServingCounts()
        self.detail = ""
        self.canary_sha256 = ""
        self._load = load
        self._model: Model | None = None
        self._first_state = ServerState.PAUSED if paused else ServerState.ACTIVE
        self._state = ServerState.STARTING
        self._device = ThreadPoolExecutor(1, "device")
        self._device_thread: int | None = None
        self._weight = Weight(weight)
        self._changes = Changes()
        self._acts = asyncio.Lock()
        self._stepping = False
        # Read by the device between two sequences: the rest of a step is left for later.
        self._stop_word = False
        self._running: list[Ticket] = []
        self._waiting: deque[Ticket] = deque()
        self._to_close: list[Cache] = []

    async def run(self) -> None:
        """Load, learn the canary's answer, then decode until cancelled."""
        try:
            await self._start()
            while True:
                self._changes.tell()
                await self._changes.until(lambda: bool(self._to_close) or self._may_step(), None)
                if self._may_step():
                    await self._step()
                else:
                    await self._on_device(lambda: None)  # closes what is to be closed
        finally:
            self._device.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        try:
            self._device_thread = await self._on_device(threading.get_native_id)
            self._model = await self._on_device(self._load)
        except BackendError as exc:
            self._state, self.detail = ServerState.FAILED, str(exc)
            _log.error("model not loaded error=%s", exc)
            return
        self.canary_sha256 = (await self._on_device(self._ask_canary)).logits_sha256
        self._stand(self._first_state)

    def _stand(self, state: ServerState) -> None:
        """Change the state; the device works at low weight, and is brought back at full."""
        self._state, self._stop_word = state, state is not ServerState.ACTIVE
        if self._device_thread is not None:
            if state is ServerState.ACTIVE:
                self._weight.lower(self._device_thread)
            else:
                self._weight.lift(self._device_thread)
        self._changes.tell()

    @property
    def state(self) -> ServerState:
        """Tell where it stands."""
        return self._state

    @property
    def ready(self) -> bool:
        """Tell whether it answers now, and rightly."""
        return self._state is ServerState.ACTIVE and bool(self.canary_sha256)

    @property
    def model(self) -> Model:
        """Give the model, once it is loaded."""
        assert self._model is not None, "nothing asks for a model before it is loaded"
        return self._model

    @property
    def backend(self) -> str:
        """Give what runs the model; empty = not loaded yet."""
        return self._model.name if self._model else ""

    @property
    def device_bytes(self) -> int:
        """Give the device memory in use."""
        return self._model.device_bytes if self._model else 0

    @property
    def mirror_bytes(self) -> int:
        """Give the host memory of the mirror."""
        return self._model.mirror_bytes if self._model else 0

    @property
    def in_flight(self) -> int:
        """Give how many sequences are on the device."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Give how many requests wait for a place."""
        return len(self._waiting)

    async def ask(self, wish: Wish) -> Ticket:
        """Take a request in; returns once it has its place on the device.

        Raises:
            RefusedError: there is no place for it now, or for too long.
        """
        self.counts.requests += 1
        paused = self._state is not ServerState.ACTIVE
        if self._state is ServerState.FAILED:
            raise self._refusal("failed", self.detail)
        if paused and self.limits.refuse_when_paused:
            raise self._refusal("paused", "the model is off its device for now")
        if len(self._waiting) >= self.limits.waiting_max:
            raise self._refusal("busy", f"{self.limits.waiting_max} requests are waiting")
        ticket = Ticket(wish)
        self._waiting.append(ticket)
        self._changes.tell()
        try:
            await self._changes.until(lambda: ticket.placed or ticket.ended, self.limits.hold_s)
        except TimeoutError as exc:
            self.cancel(ticket)
            raise self._refusal("busy", "no place came free in time") from exc
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request whose client has left."""
        ticket.ended = True
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._remove_ended()

    async def pause(self, mode: PauseMode, deadline_s: float) -> ActReply:
        """Stop all work on the device; returns when none is under way.

        Raises:
            RefusedError: with ``wait``, requests were open until the deadline; it goes on then.
        """
        async with self._acts:
            commanded_ns = _boottime_ns()
            await self._started(deadline_s)
            if self._state is ServerState.ACTIVE:
                if mode is PauseMode.WAIT:
                    await self._drain(deadline_s)
                self._state, self._stop_word = ServerState.PAUSED, True
            if mode is PauseMode.ABORT:
                self._abort()
            await self._end_step(deadline_s)
            self._remove_ended()
            return self._reply(commanded_ns)

    async def offload(self, deadline_s: float) -> ActReply:
        """Free the device's memory; what is open is kept in host memory.

        Raises:
            RefusedError: it is not paused, or was not done within the deadline.
        """
        async with self._acts:
            commanded_ns = _boottime_ns()
            if self._state not in {ServerState.PAUSED, ServerState.OFFLOADED}:
                raise RefusedError(409, "state", f"it is {self._state}: pause it first")
            before = self.device_bytes
            # From here on it is not known to be whole until it was brought back.
            self._state = ServerState.OFFLOADED
            await self._in_time(self.model.offload, deadline_s)
            return self._reply(commanded_ns, freed_bytes=before - self.device_bytes)

    async def resume(self, deadline_s: float) -> ActReply:
        """Bring everything back, and go on once the canary gave its right answer.

        Raises:
            RefusedError: it has failed, or its answer is another than before.
        """
        async with self._acts:
            commanded_ns = _boottime_ns()
            await self._started(deadline_s)
            if self._state is ServerState.FAILED:
                raise RefusedError(409, "failed", self.detail)
            if self._state is ServerState.OFFLOADED:
                await self._in_time(self.model.onload, deadline_s)
                self._state = ServerState.PAUSED
            canary = await self._in_time(self._ask_canary, deadline_s)
            self._check(canary)
            seen_ns = _boottime_ns()
            self._stand(ServerState.ACTIVE)
            return self._reply(commanded_ns, seen_ns, logits_sha256=canary.logits_sha256)

    async def canary(self, prompt: str, deadline_s: float) -> Canary:
        """Ask the model itself, ahead of all that wait.

        Raises:
            RefusedError: it is paused, or does not answer within the deadline.
        """
        async with self._acts:
            if self._state is not ServerState.ACTIVE:
                raise RefusedError(
                    503, "paused", f"it is {self._state}", retry_after_s=RETRY_AFTER_S
                )
            canary = await self._in_time(lambda: ask_canary(self.model, prompt), deadline_s)
            if prompt == CANARY_PROMPT:
                self._check(canary)
            return canary

    async def _end_step(self, deadline_s: float) -> None:
        assert self._device_thread is not None, "it has started"
        self._weight.hurry(self._device_thread)
        try:
            await self._until(lambda: not self._stepping, deadline_s, "a step does not end")
        finally:
            self._weight.lift(self._device_thread)

    def _ask_canary(self) -> Canary:
        return ask_canary(self.model)

    def _check(self, canary: Canary) -> None:
        """Hold an answer to the one of the start.

        Raises:
            RefusedError: it differs; nothing is served any more.
        """
        if canary.logits_sha256 != self.canary_sha256:
            self._state, self.detail = ServerState.FAILED, "the canary's logits changed"
            _log.error("server failed detail=%s", self.detail)
            self._abort()
            raise RefusedError(500, "failed", self.detail)

    async def _started(self, deadline_s: float) -> None:
        await self._until(
            lambda: self._state is not ServerState.STARTING, deadline_s, "it is still loading"
        )

    async def _drain(self, deadline_s: float) -> None:
        self._state = ServerState.DRAINING
        try:
            await self._until(lambda: not self._running, deadline_s, "requests are still open")
        except BaseException:
            self._state = ServerState.ACTIVE
            self._changes.tell()
            raise

    def _abort(self) -> None:
        for ticket in (*self._running, *self._waiting):
            if not ticket.ended:
                ticket.ended = True
                ticket.pieces.put_nowait(Piece(aborted=True))
                self.counts.aborted += 1
        self._waiting.clear()
        self._remove_ended()

    def _may_step(self) -> bool:
        if self._state is ServerState.ACTIVE:
            return bool(self._running or self._waiting)
        return self._state is ServerState.DRAINING and bool(self._running)

    async def _step(self) -> None:
        """Let every sequence on the device go one step, and give out what they said."""
        self._give_places()
        going = tuple(self._running)
        self._stepping = True
        try:
            said = await self._on_device(lambda: self._advance(going))
        finally:
            self._stepping = False
            self._changes.tell()
        for ticket, (text, tokens) in zip(going, said, strict=True):
            self.counts.tokens_out += tokens
            finish = ticket.decoding.finish if ticket.decoding else None
            if not ticket.ended and (text or finish):
                ticket.pieces.put_nowait(Piece(text=text, finish=finish))
            if finish and not ticket.ended:
                ticket.ended = True
                self.counts.finished += 1
        self._remove_ended()

    def _give_places(self) -> None:
        open_for_new = self._state is ServerState.ACTIVE
        while open_for_new and self._waiting and len(self._running) < self.limits.running_max:
            ticket = self._waiting.popleft()
            ticket.placed = True
            self.counts.tokens_in += len(encode(ticket.wish.prompt))
            self._running.append(ticket)
        self._changes.tell()

    def _advance(self, tickets: Sequence[Ticket]) -> list[tuple[str, int]]:
        """Work on the device; what a stop word leaves out is done after the pause."""
        said = []
        for ticket in tickets:
            if self._stop_word:
                said.append(("", 0))
                continue
            if ticket.decoding is None:
                ticket.decoding = Decoding(ticket.wish, self.model.new_cache())
            before = ticket.decoding.tokens_out
            text = ticket.decoding.step(self.model)
            said.append((text, ticket.decoding.tokens_out - before))
        return said

    def _remove_ended(self) -> None:
        """Give back the places of those that ended, but for a step that is under way."""
        if self._stepping:
            return
        ended = [ticket for ticket in self._running if ticket.ended]
        self._running = [ticket for ticket in self._running if not ticket.ended]
        self._to_close += [ticket.decoding.cache for ticket in ended if ticket.decoding]
        self._changes.tell()

    async def _on_device(self, work: Callable[[], T]) -> T:
        def do() -> T:
            while self._to_close:
                self._to_close.pop().close()
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._device, do)

    async def _in_time(self, work: Callable[[], T], deadline_s: float) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await self._on_device(work)
        except TimeoutError as exc:
            raise RefusedError(504, "timeout", "the device does not answer") from exc
        except Exception as exc:
            _log.exception("device error")
            raise RefusedError(500, "device", f"{type(exc).__name__}: {exc}"[:200]) from exc

    async def _until(self, holds: Callable[[], bool], deadline_s: float, why: str) -> None:
        try:
            await self._changes.until(holds, deadline_s)
        except TimeoutError as exc:
            raise RefusedError(504, "timeout", why) from exc

    def _refusal(self, code: str, detail: str) -> RefusedError:
        self.counts.refused += 1
        return RefusedError(503, code, detail, retry_after_s=RETRY_AFTER_S)

    def _reply(
        self,
        commanded_ns: int,
        effect_ns: int | None = None,
        *,
        freed_bytes: int = 0,
        logits_sha256: str | None = None,
    ) -> ActReply:
        return ActReply(
            state=self._state,
            commanded_ns=commanded_ns,
            effect_ns=effect_ns or _boottime_ns(),
            in_flight=self.in_flight,
            tokens_out=self.counts.tokens_out,
            device_bytes=self.device_bytes,
            rss_bytes=rss_bytes(),
            freed_bytes=freed_bytes,
            logits_sha256=logits_sha256,
        )


def rss_bytes() -> int:
    """Give the resident memory of this process."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * _PAGE_BYTES


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
