"""The miner's control API, and the program around it."""

import asyncio
import os
import time

from msgspec import Struct

from edge_agent.reference.miner import Miner
from edge_agent.reference.miner_words import MinerState
from edge_agent.reference.web import Request, Route, WebApp
from edge_agent.reference.workers import WorkerProcess

BODY_BYTES_MAX = 4 * 1_024
ACT_S = 10.0


class PoolView(Struct, frozen=True, kw_only=True):
    """The pool as the miner sees it."""

    address: str
    online: bool
    connections: int
    faults: int
    last_fault: str


class WorkerView(Struct, frozen=True, kw_only=True):
    """One worker."""

    pid: int | None
    backend: str | None
    hashes: int


class MinerStatus(Struct, frozen=True, kw_only=True):
    """What ``GET /status`` says; None = unknown."""

    v: int = 1
    state: MinerState
    detail: str
    pid: int
    up_s: float
    backend: str | None
    threads: int
    hashes: int
    hashrate_hs: float | None
    verified_shares: int
    bad_nonces: int
    accepted: int
    rejected: int
    dropped: int
    job_id: str | None
    went_on: bool | None
    pool: PoolView
    workers: tuple[WorkerView, ...]


class MinerApi:
    """Answers for one miner.

    Args:
        stop: set by ``POST /stop``.
    """

    def __init__(self, miner: Miner, stop: asyncio.Event) -> None:
        self._miner = miner
        self._stop = stop
        self._began_s = time.monotonic()

    def app(self, token: str) -> WebApp:
        """Make the application."""
        routes = {
            ("GET", "/health"): Route(act=self._health, open=True),
            ("GET", "/status"): Route(act=self._status),
            ("GET", "/canary"): Route(act=self._canary),
            ("GET", "/snapshot"): Route(act=self._snapshot),
            ("POST", "/pause"): Route(act=self._pause),
            ("POST", "/resume"): Route(act=self._resume),
            ("POST", "/stop"): Route(act=self._end),
        }
        return WebApp(routes, body_bytes_max=BODY_BYTES_MAX, token=token)

    async def _health(self, request: Request) -> object:
        return {"state": self._miner.state}

    async def _status(self, request: Request) -> object:
        return self.status()

    def status(self) -> MinerStatus:
        """Give the miner as it is."""
        miner, workers = self._miner, self._miner.workers
        counts, address = miner.pool.counts, miner.pool.address
        views = tuple(self._view(worker) for worker in workers.all)
        return MinerStatus(
            state=miner.state,
            detail=workers.broken,
            pid=os.getpid(),
            up_s=round(time.monotonic() - self._began_s, 3),
            backend=next((view.backend for view in views if view.backend), None),
            threads=len(views),
            hashes=workers.hashes(),
            hashrate_hs=miner.hashrate_hs(),
            verified_shares=miner.verified_shares,
            bad_nonces=miner.bad_nonces,
            accepted=counts.accepted,
            rejected=counts.rejected,
            dropped=counts.dropped,
            job_id=miner.snapshot().job_id or None,
            went_on=miner.went_on,
            pool=PoolView(
                address=f"{address.host}:{address.port}",
                online=miner.pool.online,
                connections=counts.connections,
                faults=counts.faults,
                last_fault=counts.last_fault,
            ),
            workers=views,
        )

    def _view(self, worker: WorkerProcess) -> WorkerView:
        return WorkerView(
            pid=worker.pid,
            backend=worker.ready.backend if worker.ready else None,
            hashes=self._miner.workers.slots.hashes(worker.index),
        )

    async def _canary(self, request: Request) -> object:
        return self._miner.canary()

    async def _snapshot(self, request: Request) -> object:
        return self._miner.snapshot()

    async def _pause(self, request: Request) -> object:
        return await self._miner.pause(request.deadline_s(ACT_S))

    async def _resume(self, request: Request) -> object:
        return await self._miner.resume(request.deadline_s(ACT_S))

    async def _end(self, request: Request) -> object:
        self._stop.set()
        return {"state": "stopping"}
