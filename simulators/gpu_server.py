"""`hcp-sim gpu`: the wire of a simulated GPU host, one JSON object per line on a Unix socket.

Requests of one connection run concurrently and are answered as they finish, each with its `id`. The
truth file is written by this process alone and read by nobody but a test or the demo's auditor.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from simulators.gpu_host import GpuError, GpuHost, TruthLine
from simulators.gpu_orders import ACTS, OrderBook
from simulators.gpu_ready import Wish

LINE_BYTES_MAX = 64 * 1_024
_TRUTH_PERIOD_S = 0.2
# What one act takes on a host whose work is resident, in milliseconds; see `--op-ms`.
_RELATIVE_COST = {
    "mine": 1.0,
    "prepare": 1.5,
    "activate": 1.0,
    "canary": 1.0,
    "gate": 0.1,
    "stop": 1.0,
}


class Request(Struct, kw_only=True, frozen=True):
    """One line of a client; which fields are needed depends on `op`."""

    id: int
    op: str
    gpu: str = ""
    instance_id: str = ""
    lease_id: str = ""
    attempt: int = 0
    run_s: int | None = None
    prompt: str = ""
    on: bool | None = None
    open: bool | None = None
    since_minute: int | None = None
    kind: str = ""
    value: float = 0.0
    text: str = ""
    wishes: tuple[Wish, ...] | None = None
    for_s: float | None = None
    acts: tuple[dict[str, Any], ...] | None = None
    after: int | None = None


class _Faults:
    def __init__(self) -> None:
        self.slow_s: dict[str, float] = {}
        self.fail_next: dict[str, int] = {}
        self.hang: set[str] = set()


class GpuServer:
    """Serves one host.

    Args:
        host: the devices. rng: seeded; spreads the time that acts take by a fifth.
        op_ms: typical milliseconds of one act.
    """

    def __init__(self, host: GpuHost, rng: Random, op_ms: float) -> None:
        self._host = host
        self._rng = rng
        self._op_ms = op_ms
        self._faults = _Faults()
        self._decoder = msgspec.json.Decoder(Request)
        self._orders = OrderBook()

    async def run(self, socket_path: Path, ready: Callable[[], None]) -> None:
        """Serve until cancelled; the socket file must not exist."""
        server = await asyncio.start_unix_server(
            self._serve, path=str(socket_path), limit=LINE_BYTES_MAX
        )
        async with server, asyncio.TaskGroup() as group:
            group.create_task(self._write_truth(), name="truth")
            ready()
            await server.serve_forever()

    async def _write_truth(self) -> None:
        while True:
            await asyncio.sleep(_TRUTH_PERIOD_S)
            self._host.mark_truth()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while line := await reader.readline():
                    group.create_task(self._answer(line, reader, writer), name="gpu-request")
        except* (ValueError, ConnectionError):
            # A line beyond the limit or a peer that left: this connection ends, the host goes on.
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def tell(answer: dict[str, Any]) -> bool:
            try:
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
            except ConnectionError:
                return False  # the peer has left: the reader of the connection sees it and ends
            return not reader.at_eof()

        try:
            request = self._decoder.decode(line)
            acts = tuple(msgspec.convert(one, Request) for one in request.acts or ())
        except msgspec.MsgspecError as exc:
            await tell({"id": None, "error": "bad_request", "detail": str(exc)})
            return
        if request.op in ACTS:
            self._orders.interrupt(request.gpu)
        if request.op != "order":
            await tell({"id": request.id} | await self._act(request))
        elif any(one.gpu != request.gpu or one.op not in ACTS for one in acts):
            await tell({"id": request.id, "error": "bad_request", "detail": "no such act"})
        else:
            line_up = self._orders.enter(request.gpu, writer, request.id, request.after)
            await self._orders.carry_out(line_up, request.gpu, acts, self._act, tell)
            await tell({"id": request.id})

    async def _act(self, request: Request) -> dict[str, Any]:
        try:
            await self._take_time(request)
            return self._perform(request)
        except GpuError as exc:
            return {"error": exc.answer_code, "detail": exc.detail}

    async def _take_time(self, request: Request) -> None:
        relative = _RELATIVE_COST.get(request.op)
        if relative is None:
            return
        if request.gpu in self._faults.hang:
            await asyncio.Event().wait()
        seconds = relative * self._op_ms / 1_000 * self._rng.uniform(0.9, 1.1)
        if request.op == "prepare":
            seconds += self._host.start_s(request.gpu)
        await asyncio.sleep(seconds + self._faults.slow_s.get(request.gpu, 0.0))
        left = self._faults.fail_next.get(request.gpu, 0)
        if left:
            self._faults.fail_next[request.gpu] = left - 1
            raise GpuError("bad_request", "asked to fail")

    def _perform(self, request: Request) -> dict[str, Any]:
        host = self._host
        match request.op:
            case "hello":
                return {
                    "host_id": host.host_id,
                    "process_id": host.process_id,
                    "boot_id": host.boot_id(),
                    "gpus": [{"gpu": name, "model": model} for name, model in host.gpus()],
                }
            case "sample":
                return {"gpus": host.sample()}
            case "meters":
                views = host.meters(request.since_minute)
                # Nobody is ever told more than the truth file holds, whenever the kill comes.
                host.mark_truth()
                return {
                    "now_ns": host.now_ns(),
                    "wall_anchor_ns": host.anchor_ns,
                    "meters": views,
                }
            case "keys":
                return {}  # nobody is served here
            case "prewarm" if request.wishes is not None and request.for_s is not None:
                return {"ready": host.prewarm(request.wishes, request.for_s)}
            case "release":
                host.release(request.gpu)
                return {}
            case "fault":
                self._set_fault(request)
                return {}
            case _:
                return self._perform_on_gpu(request)

    def _perform_on_gpu(self, request: Request) -> dict[str, Any]:
        host = self._host
        match request.op:
            case "mine" if request.on is not None:
                return {"hashes": host.mine(request.gpu, on=request.on)}
            case "prepare":
                host.prepare(
                    request.gpu,
                    request.instance_id,
                    request.lease_id,
                    request.attempt,
                    request.run_s,
                )
                return {}
            case "activate":
                host.activate(request.gpu, request.instance_id)
                return {}
            case "canary":
                return {"output": host.canary(request.gpu, request.instance_id, request.prompt)}
            case "gate" if request.open is not None:
                view = host.gate(request.gpu, request.instance_id, is_open=request.open)
            case "stop":
                view = host.stop(request.gpu, request.instance_id)
            case _:
                raise GpuError("bad_request", f"op {request.op!r} or a field of it")
        at_ns = (view.opened_ns if view.open else view.closed_ns) or host.now_ns()
        return {
            "at_ns": at_ns,
            "served_ns": view.served_ns,
            "energy_mj": view.energy_mj,
            "open": view.open,
            "wall_anchor_ns": host.anchor_ns,
        }

    def _set_fault(self, request: Request) -> None:
        match request.kind:
            case "lost":
                self._host.lose(request.gpu, lost=bool(request.value))
            case "fence":
                self._host.fence(request.gpu, int(request.value), request.text)
            case "fail_ready":
                self._host.ready.fail_next(request.gpu, int(request.value))
            case "slow_ms":
                self._faults.slow_s[request.gpu] = request.value / 1_000
            case "fail_next":
                self._faults.fail_next[request.gpu] = int(request.value)
            case "hang" if request.value:
                self._faults.hang.add(request.gpu)
            case "hang":
                self._faults.hang.discard(request.gpu)
            case _:
                raise GpuError("bad_request", f"fault {request.kind!r}")


class TruthFile:
    """Append-only truth: one unbuffered write per line, so that a kill loses none that was told."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, line: TruthLine) -> None:
        """Write one line."""
        os.write(self._fd, msgspec.json.encode(line) + b"\n")
