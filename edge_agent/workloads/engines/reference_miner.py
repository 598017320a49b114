"""Our own miner: it proves a nonce when it is resumed, and the proof is hashed again here."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Receipt,
)
from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.api import ApiEngine
from edge_agent.workloads.engines.base import PROBE_S, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, until, within
from edge_agent.workloads.engines.reference import (
    capabilities_of,
    live_probe,
    refuse_unready,
    state_of,
    timeout_of,
)
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

HEADER_BYTES: Final = 80
SNAPSHOT_BYTES_MAX: Final = 64 * 1_024

# It may hash, and the pool gave no job.
_WAITING: Final = "waiting"


class MinerStatus(Struct, frozen=True):
    """Answer of the miner's /status."""

    state: str
    hashes: int
    detail: str = ""
    hashrate_hs: float | None = None
    accepted: int | None = None
    rejected: int | None = None
    verified_shares: int | None = None
    went_on: bool | None = None


class Proof(Struct, frozen=True):
    """A header without its nonce, a nonce, and their hash as it is written."""

    prefix: bytes
    nonce: int
    hash: str


class MinerState(Struct, frozen=True):
    """Answer of /snapshot, as far as it is read."""

    job_id: str


class MinerReply(Struct, frozen=True):
    """Answer of the miner's acts."""

    state: str
    hashes: int | None = None
    evidence: Proof | None = None


class ReferenceMiner(ApiEngine):
    """Driver of the reference miner.

    Args:
        spec: The engine. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        # The count at which it was last seen to stand still, or as it was found.
        self._stood: int | None = None
        self._state: Path | None = None
        # Whether it was started with a state, and whether it says that it went on there.
        self._restored = False
        self._went_on: bool | None = None

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do; a program of somebody else is never ended, so nothing is lost."""
        ours = self._program.ours
        able = capabilities_of(self._spec.vram_mib or None, ours=ours, releases=ours)
        return structs.replace(able, keeps_state=ours)

    async def _probe(self) -> Probe:
        """Ask where it stands; ready = it hashes."""
        try:
            async with within("probe", PROBE_S) as deadline:
                status = await self._status(deadline)
                state = state_of(status.state)
        except WorkloadError as exc:
            return await self._silent(exc)
        ready = state is EngineState.ACTIVE and status.state != _WAITING
        return live_probe(state, ready=ready, detail=status.detail or status.state)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            await self._api.act(f"/pause?{timeout_of(deadline)}", deadline)
            await self._idle(deadline)
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it; a miner has no requests, so each mode is the same."""
        self._restored = False
        async with within("pause", deadline_s) as deadline:
            path = f"/pause?{timeout_of(deadline)}"
            told = (await self._api.post(path, None, MinerReply, deadline)).hashes
            acked_ns = self._now_ns()
            hashes = await self._idle(deadline, told)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=f"paused, hash counter stands at {hashes}",
                inflight_left=0,
                hashes=hashes,
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its memory by ending it: it has next to none."""
        async with within("offload", deadline_s) as deadline:
            return await self._park(deadline)

    async def resume(self, deadline_s: float) -> Receipt:
        """Let it work again; a nonce that hashes as it says is its first sign of work."""
        async with within("resume", deadline_s) as deadline:
            if self._stood is None:
                await self._start(deadline, quick=True)
            proven = await self._ordered(self._resumed, deadline)
            acked_ns = self._now_ns()
            hashes = await self._works(deadline)
            evidence = f"nonce {proven.nonce} hashes as it says" if proven else "it hashes"
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=evidence,
                hashes=hashes,
                went_on=self._went_on if self._restored else None,
            )

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Have it prove a nonce of now: a resume of a miner at work changes nothing else."""
        async with within("canary", deadline_s) as deadline:
            status = await self._status(deadline)
            if state_of(status.state) is not EngineState.ACTIVE:
                raise DriverRefusedError(Refusal.BUSY, f"it is {status.state}")
            proven = await self._resumed(deadline)
            if proven is None:
                raise DriverRefusedError(Refusal.WRONG_OUTPUT, "it proves no nonce")
            return proven.hash

    async def snapshot(self, deadline_s: float) -> bytes:
        """Give its job and nonce ranges, after a pause: a nonce tried later would be tried twice.

        One that does not pause is asked all the same: what it does until its end is little.
        """
        if not self._program.ours:
            raise DriverRefusedError(Refusal.NOT_OURS, "somebody else ends it, or does not")
        async with within("snapshot", deadline_s) as deadline:
            half = Deadline(deadline.act, deadline.left_s() / 2)
            with suppress(WorkloadError):
                await self._api.act(f"/pause?{timeout_of(half)}", half)
            body = (await self._api.ask("GET", "/snapshot", None, deadline)).body
        try:
            told = msgspec.json.decode(body[: SNAPSHOT_BYTES_MAX + 1], type=MinerState)
        except msgspec.MsgspecError as exc:
            raise DriverRefusedError(Refusal.NOT_API, f"/snapshot: {exc}") from exc
        return body if told.job_id else b""

    def restore(self, state: Path) -> None:
        """Have it begin where its last run was."""
        if not self._program.ours:
            raise DriverRefusedError(Refusal.NOT_OURS, "somebody else starts it")
        self._state = state

    async def sample(self) -> HashSample:
        """Read its counters."""
        async with within("sample", PROBE_S) as deadline:
            status = await self._status(deadline)
        return HashSample(
            hashes=status.hashes,
            hashrate_hs=status.hashrate_hs,
            accepted=status.accepted,
            rejected=status.rejected,
        )

    async def _greet(self, deadline: Deadline) -> None:
        status = await self._status(deadline)
        refuse_unready(status.state, status.detail)
        self._stood = status.hashes

    async def _status(self, deadline: Deadline) -> MinerStatus:
        status = await self._api.get("/status", MinerStatus, deadline)
        self._went_on = status.went_on
        return status

    async def _run(self, deadline: Deadline) -> None:
        state, self._state = self._state, None
        more = () if state is None else ("--snapshot", str(state))
        with engine_acts():
            is_new = await self._program.start(deadline.left_s(), more)
        if is_new:
            self._restored = state is not None

    async def _resumed(self, deadline: Deadline) -> Proof | None:
        """Order a resume, and check the nonce that it proves."""
        path = f"/resume?{timeout_of(deadline)}"
        proof = (await self._api.post(path, None, MinerReply, deadline)).evidence
        if proof is not None and not _hashes_so(proof):
            detail = f"nonce {proof.nonce} does not hash to {proof.hash[:64]!r}"
            raise DriverRefusedError(Refusal.WRONG_OUTPUT, detail)
        return proof

    async def _idle(self, deadline: Deadline, told: int | None = None) -> int:
        """Wait until it is paused and its counter the same twice; give the counter.

        Args:
            deadline: Of the act. told: at which count it said that it stands still.
        """
        last = -1 if told is None else told

        async def lacking() -> str:
            nonlocal last
            status = await self._status(deadline)
            still, last = status.hashes == last, status.hashes
            if state_of(status.state) is not EngineState.WARM:
                return f"it answered yes, and is {status.state}"
            return "" if still else "it says that it is paused, and hashes on"

        await until(lacking, deadline)
        self._stood = last
        return last

    async def _works(self, deadline: Deadline) -> int:
        """Wait until it has hashed more than when it stood still; give the counter."""
        before, now = self._stood or 0, 0

        async def lacking() -> str:
            nonlocal before, now
            status = await self._status(deadline)
            before, now = min(before, status.hashes), status.hashes  # a new process counts anew
            if state_of(status.state) is not EngineState.ACTIVE:
                return f"it answered yes, and is {status.state}"
            return "" if now > before else "it answered yes, and hashes nothing"

        if await lacking():
            with engine_acts():  # its first batch is on its way
                await until(lacking, deadline)
        return now


def _hashes_so(proof: Proof) -> bool:
    """Hash a header with hashlib. Source: Bitcoin protocol documentation, "Block Headers"."""
    if not 0 <= proof.nonce < 1 << 32:
        return False
    header = proof.prefix + proof.nonce.to_bytes(4, "little")
    digest = hashlib.sha256(hashlib.sha256(header).digest()).digest()
    return len(header) == HEADER_BYTES and digest[::-1].hex() == proof.hash
