"""The miner: gives ranges to its workers, checks what they find, and stops and goes on when told.

An act is answered when its effect was seen: a pause when every worker said at which count it
stands still (or its process is gone), a resume when the first nonces were held to hashlib, there
and here. What a worker says it found is hashed again before it goes to the pool.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from edge_agent.reference.changes import Changes
from edge_agent.reference.errors import RefusedError
from edge_agent.reference.header import NONCES, header_hash, meets
from edge_agent.reference.miner_words import (
    ActReply,
    Evidence,
    MinerState,
    NonceRange,
    Snapshot,
)
from edge_agent.reference.stratum import Job, Session, Share, job_prefix
from edge_agent.reference.stratum_client import PoolAddress, PoolClient
from edge_agent.reference.worker_wire import (
    Assign,
    Broken,
    Exhausted,
    Found,
    Idle,
    Pause,
    Proven,
    Ready,
    Resume,
    ToMiner,
)
from edge_agent.reference.workers import WorkerOptions, Workers

_log = logging.getLogger(__name__)

ASSIGNMENTS_MAX = 64
OFFLINE_WORK_S = 60.0
RATE_SPAN_S = 10


class _Assignment(Struct, frozen=True):
    job: Job
    session: Session
    start: NonceRange
    prefix: bytes
    target: int


class Miner:
    """One miner.

    Args:
        paused: start paused, loaded and checked. snapshot: of an earlier run.

    Attributes:
        went_on: the snapshot was of the first job that the pool gave; None: there is none, or no
            job yet.
    """

    def __init__(
        self,
        options: WorkerOptions,
        pool: PoolAddress,
        user: str,
        password: str,
        *,
        paused: bool = False,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._options = options
        self._old = snapshot
        self.went_on: bool | None = None
        session_id = snapshot.session_id if snapshot else ""
        self.pool = PoolClient(pool, user, password, self._on_job, session_id=session_id)
        self.workers = Workers(options, self._hear, self._gone)
        self.verified_shares = 0
        self.bad_nonces = 0
        self._wants_mining = not paused
        self._changes = Changes()
        self._acts = asyncio.Lock()
        self._epoch = 0
        self._idle: dict[int, Idle] = {}
        self._evidence: Evidence | None = None
        self._current: tuple[Job, Session, int] | None = None
        self._next_extranonce2 = 0
        self._starts: dict[int, NonceRange] = {}
        self._generation = 0
        self._assignments: dict[int, _Assignment] = {}  # in the order in which they were given
        self._searching: dict[int, int] = {}
        self._rates: deque[tuple[float, int]] = deque(maxlen=RATE_SPAN_S + 1)

    async def run(self) -> None:
        """Mine until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.workers.run(), name="workers")
            group.create_task(self.pool.run(), name="pool")
            group.create_task(self._watch(), name="watch")

    @property
    def state(self) -> MinerState:
        """Tell where it stands."""
        if self.workers.broken:
            return MinerState.FAILED
        if not any(worker.ready for worker in self.workers.all):
            return MinerState.STARTING
        if not self._wants_mining:
            return MinerState.PAUSED if self._all_idle() else MinerState.PAUSING
        return MinerState.MINING if self._searching else MinerState.WAITING

    def hashrate_hs(self) -> float | None:
        """Give the mean of the last seconds; None = too early to say."""
        if len(self._rates) < 2:
            return None
        (began, before), (ended, after) = self._rates[0], self._rates[-1]
        return (after - before) / (ended - began)

    async def pause(self, deadline_s: float) -> ActReply:
        """Stop all work; returns when none is under way.

        Raises:
            RefusedError: a worker did not answer within the deadline.
        """
        async with self._acts:
            commanded_ns = _boottime_ns()
            self._wants_mining = False
            self._order()
            # Only now: one that went before everything else and was not told would not stop.
            self.workers.hurry()
            try:
                await self._until(self._all_idle, deadline_s, lambda: "a worker does not stop")
            finally:
                self.workers.lift()
            stood_ns = [idle.at_ns for idle in self._idle.values()]
            return self._reply(commanded_ns, max(stood_ns, default=_boottime_ns()), None)

    async def resume(self, deadline_s: float) -> ActReply:
        """Go on; returns when the first nonces were verified.

        Raises:
            RefusedError: it is broken, or there was no job or no answer within the deadline.
        """
        async with self._acts:
            if self.workers.broken:
                raise RefusedError(409, "failed", self.workers.broken)
            commanded_ns = _boottime_ns()
            self._wants_mining, self._evidence = True, None
            self._order()
            await self._until(lambda: self._evidence is not None, deadline_s, self._why_idle)
            evidence = self.canary()
            return self._reply(commanded_ns, evidence.at_ns, evidence)

    def canary(self) -> Evidence:
        """Give the verified work with which it last began.

        Raises:
            RefusedError: it is not at work.
        """
        if self._evidence is None or self.state is not MinerState.MINING:
            raise RefusedError(503, "not_ready", f"it is {self.state}", retry_after_s=1)
        return self._evidence

    def snapshot(self) -> Snapshot:
        """Give job and nonce ranges."""
        if self._current is None:
            return self._old or Snapshot()
        job, session, _ = self._current
        ranges = tuple(
            self._progress(index, generation)
            for index, generation in sorted(self._searching.items())
        )
        return Snapshot(
            job_id=job.job_id,
            previous=job.previous,
            extranonce1=session.extranonce1,
            session_id=session.session_id,
            next_extranonce2=self._next_extranonce2,
            ranges=ranges,
        )

    def _progress(self, index: int, generation: int) -> NonceRange:
        start, slots = self._assignments[generation].start, self.workers.slots
        if slots.generation(index) != generation:  # it has not taken it up yet
            return start
        return NonceRange(extranonce2=start.extranonce2, next_nonce=slots.next_nonce(index))

    def _why_idle(self) -> str:
        return "no first verified nonces" if self._searching else "the pool gave no job"

    async def _until(
        self, holds: Callable[[], bool], deadline_s: float, why: Callable[[], str]
    ) -> None:
        try:
            await self._changes.until(holds, deadline_s)
        except TimeoutError as exc:
            raise RefusedError(504, "timeout", why()) from exc

    def _reply(self, commanded_ns: int, effect_ns: int, evidence: Evidence | None) -> ActReply:
        return ActReply(
            state=self.state,
            commanded_ns=commanded_ns,
            effect_ns=effect_ns,
            hashes=self.workers.hashes(),
            evidence=evidence,
        )

    def _order(self) -> None:
        """Tell all workers what is wanted now."""
        self._epoch += 1
        self._idle.clear()
        order = Resume if self._wants_mining else Pause
        for worker in self.workers.all:
            worker.tell(order(epoch=self._epoch))

    def _all_idle(self) -> bool:
        return all(
            not worker.alive or worker.ready is None or worker.index in self._idle
            for worker in self.workers.all
        )

    def _evidence_of(self, proven: Proven) -> Evidence | None:
        """Hash again what a worker gave as its lowest after a resume."""
        assignment = self._assignments.get(proven.generation)
        if assignment is None:
            return None
        digest = header_hash(assignment.prefix, proven.best)
        return Evidence(
            prefix=assignment.prefix,
            nonce=proven.best,
            hash=digest[::-1].hex(),
            checked=proven.checked,
            at_ns=proven.at_ns,
        )

    def _hear(self, index: int, message: ToMiner) -> None:
        match message:
            case Ready():
                _log.info("worker ready index=%d backend=%s", index, message.backend)
                self._assign(index)
                order = Resume if self._wants_mining else Pause
                self.workers.all[index].tell(order(epoch=self._epoch))
            case Idle() if message.epoch == self._epoch:
                self._idle[index] = message
            case Proven() if message.epoch == self._epoch:
                self._evidence = self._evidence or self._evidence_of(message)
            case Found():
                self._check(message)
            case Exhausted() if self._searching.get(index) == message.generation:
                self._assign(index)
            case Broken():
                self._fail(message.reason)
            case _:
                pass  # of an order or a range that has been replaced
        self._changes.tell()

    def _gone(self, index: int) -> None:
        self._searching.pop(index, None)
        self._changes.tell()

    def _check(self, found: Found) -> None:
        assignment = self._assignments.get(found.generation)
        if assignment is None:
            return
        if not meets(header_hash(assignment.prefix, found.nonce), assignment.target):
            self.bad_nonces += 1
            self._fail(f"nonce {found.nonce:08x} does not meet the target")
            return
        self.verified_shares += 1
        self.pool.submit(
            Share(
                job=assignment.job,
                session=assignment.session,
                extranonce2=assignment.start.extranonce2,
                nonce=found.nonce,
            )
        )

    def _fail(self, reason: str) -> None:
        """Stop for good: a miner that hashes wrongly only burns energy."""
        _log.error("miner failed reason=%s", reason)
        self.workers.broken = reason
        self._wants_mining = False
        self._order()

    def _on_job(self, job: Job, session: Session, target: int) -> None:
        """Search another job; the same one in the same session, told again, goes on."""
        before, self._current = self._current, (job, session, target)
        if before is not None and _same_search(before, self._current):
            return
        old, self._old = self._old, None
        self._next_extranonce2, self._starts = 0, {}
        if old is not None:
            self._go_on(old, job, session)
        for worker in self.workers.all:
            self._assign(worker.index)
        self._changes.tell()

    def _go_on(self, old: Snapshot, job: Job, session: Session) -> None:
        """Begin where an earlier run was, if the pool still gives the same search space."""
        same = (job.job_id, job.previous, session.extranonce1)
        self.went_on = (old.job_id, old.previous, old.extranonce1) == same
        if self.went_on:
            self._next_extranonce2 = old.next_extranonce2
            self._starts = dict(enumerate(old.ranges))

    def _assign(self, index: int) -> None:
        """Give a worker the next part of the search space; there may be none left, or no job."""
        self._searching.pop(index, None)
        if self._current is None or self.workers.all[index].ready is None:
            return
        job, session, target = self._current
        start = self._starts.pop(index, None) or self._next_range(session.extranonce2_bytes)
        if start is None:
            return
        self._generation += 1
        prefix = job_prefix(job, session, start.extranonce2)
        self._assignments[self._generation] = _Assignment(job, session, start, prefix, target)
        self._searching[index] = self._generation
        self._forget_old()
        self.workers.all[index].tell(
            Assign(
                generation=self._generation,
                prefix=prefix,
                target=target.to_bytes(32, "big"),
                first=start.next_nonce,
                end=NONCES,
            )
        )

    def _forget_old(self) -> None:
        """Forget ranges whose late finds are not worth keeping, but none that is searched."""
        used = set(self._searching.values())
        for generation in list(self._assignments)[:-ASSIGNMENTS_MAX]:
            if generation not in used:
                del self._assignments[generation]

    def _next_range(self, size: int) -> NonceRange | None:
        if self._next_extranonce2 >= 1 << 8 * size:
            return None
        extranonce2 = self._next_extranonce2.to_bytes(size, "big")
        self._next_extranonce2 += 1
        return NonceRange(extranonce2=extranonce2, next_nonce=0)

    async def _watch(self) -> None:
        """Keep the rate, and end work for a pool that has long been gone."""
        while True:
            self._rates.append((time.monotonic(), self.workers.hashes()))
            gone_s = time.monotonic() - self.pool.offline_since_s
            if self._searching and not self.pool.online and gone_s > OFFLINE_WORK_S:
                self._drop_work()
            await asyncio.sleep(1.0)

    def _drop_work(self) -> None:
        self._current = None
        for worker in self.workers.all:
            self._searching.pop(worker.index, None)
            worker.tell(Assign(generation=0, prefix=bytes(76), target=bytes(32), first=0, end=0))


def _same_search(one: tuple[Job, Session, int], other: tuple[Job, Session, int]) -> bool:
    """Tell whether two jobs make the same headers and want the same of them."""
    return (one[0], one[1].extranonce1, one[1].extranonce2_bytes, one[2]) == (
        other[0],
        other[1].extranonce1,
        other[1].extranonce2_bytes,
        other[2],
    )


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
