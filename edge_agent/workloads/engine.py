"""The port between a workload host and one engine: a miner, or a server of work, on one GPU.

The host owns gate, meter and proxy; an engine is what lies behind them and what a strategy moves
out of the way. An answer is not evidence: ``Receipt.idle_ns`` and ``Receipt.evidence`` say what
was seen beyond the answer, and a driver that saw nothing says so by None.

Every act is idempotent, and has a deadline; past it the act's outcome is unknown and
``DriverUnavailableError`` is raised. ``DriverRefusedError`` says that it did not happen.
"""

from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class EngineState(StrEnum):
    """Where an engine stands."""

    ABSENT = "absent"
    STARTING = "starting"
    WARM = "warm"
    ACTIVE = "active"
    DRAINING = "draining"
    OFFLOADED = "offloaded"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"


class Strategy(StrEnum):
    """A way to take an engine off its GPU and to bring it back."""

    RESIDENT_GATE = "resident-gate"
    EXTERNAL_API = "external-api"
    PINNED_SWAP = "pinned-swap"
    CUDA_CHECKPOINT = "cuda-checkpoint"
    RESTART = "restart"


class PauseMode(StrEnum):
    """What becomes of work that is under way: kept for later, waited for, or dropped."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


class EngineSpec(Struct, frozen=True, kw_only=True):
    """One engine as the host's config or a lease names it.

    Args:
        engine_id: Stable name on this host; processes are re-adopted by it.
        gpu: The host's name of the GPU. gpu_uuid: what the process may see of the machine.
        argv: Program to start; empty = it is run by somebody else, at ``url``.
        environment: Added to a minimal environment of the process.
        url: Base address of its API on this machine, such as ``http://127.0.0.1:8000``.
        token: Of its API; empty = none.
        model: Name that requests carry; empty = whatever it serves.
        vram_mib: Its claim while active. mirror_mib: host memory it needs while off the GPU.
        canary_prompt: Fixed question. canary_sha256: digest of the right answer; empty = learnt
            from the first answer after ``prepare``.
        start_s: Longest time from start to ready.
    """

    engine_id: str
    gpu: str
    gpu_uuid: str = ""
    argv: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    url: str = ""
    token: str = ""
    model: str = ""
    vram_mib: int = 0
    mirror_mib: int = 0
    canary_prompt: str = "canary"
    canary_sha256: str = ""
    start_s: float = 120.0


class EngineCapabilities(Struct, frozen=True, kw_only=True):
    """What an engine can do.

    Args:
        strategies: Ways to switch it, cheapest first.
        resident_mib: GPU memory it keeps while paused; None = unknown.
        mirror_mib: Host memory it needs while offloaded.
        releases_memory: ``offload`` frees GPU memory.
        per_gpu_pause: It can be paused on one GPU alone.
        survives_agent: It lives on when agent, node or host die.
        keeps_state: ``snapshot`` gives what it was at, and ``restore`` has it go on there.
    """

    strategies: tuple[Strategy, ...]
    resident_mib: int | None = None
    mirror_mib: int | None = None
    releases_memory: bool = False
    per_gpu_pause: bool = True
    survives_agent: bool = False
    keeps_state: bool = False


class Probe(Struct, frozen=True, kw_only=True):
    """What was found when asking: started, alive, and able to give a right answer now."""

    state: EngineState
    started: bool
    live: bool
    ready: bool
    detail: str = ""


class Receipt(Struct, frozen=True, kw_only=True):
    """Proof of an act; instants are CLOCK_BOOTTIME.

    Args:
        acked_ns: When it was answered. idle_ns: when evidence showed the effect; None = none seen.
        evidence: What showed it, such as ``hash counter stood still for 50 ms``.
        freed_mib: GPU memory that came free; None = not measured.
        moved_mib: Copied between GPU and host memory by this act; 0 = dropped or left in place.
        inflight_left: Requests that were still under way; None = it does not tell.
        hashes: Of a miner, its counter at the evidence; None = none was read.
        went_on: Of a resume, from the state that it was started with; None = it was given none.
    """

    acked_ns: int
    idle_ns: int | None = None
    evidence: str = ""
    freed_mib: int | None = None
    moved_mib: int = 0
    inflight_left: int | None = None
    hashes: int | None = None
    went_on: bool | None = None


class HashSample(Struct, frozen=True, kw_only=True):
    """What a miner did since its start; None is unknown.

    Args:
        hashes: A counter that grows while it works and stands still while it does not: its hashes,
            or what comes closest to them where it does not count those.
    """

    hashes: int | None = None
    hashrate_hs: float | None = None
    accepted: int | None = None
    rejected: int | None = None


class TokenSample(Struct, frozen=True, kw_only=True):
    """What a server did since its start; None is unknown."""

    requests: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    in_flight: int | None = None


class Engine(Protocol):
    """One miner or one server of work."""

    @property
    def spec(self) -> EngineSpec:
        """Give what it was made of."""
        ...

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do."""
        ...

    async def probe(self) -> Probe:
        """Ask where it stands; raises nothing of the world: silence is ``live=False``."""
        ...

    async def prepare(self, deadline_s: float) -> Probe:
        """Bring it from cold, or adopt what already runs, to warm: loaded, warmed up, paused."""
        ...

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Stop work on the GPU; memory stays."""
        ...

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its GPU memory, as far as its capabilities say; it must be paused."""
        ...

    async def resume(self, deadline_s: float) -> Receipt:
        """Bring it back to work from paused or offloaded; ``idle_ns`` is its first sign of work."""
        ...

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Give its output for a prompt; of a miner, proof of verified work."""
        ...

    async def snapshot(self, deadline_s: float) -> bytes:
        """Give what is worth keeping over its end, such as job and nonce range; may be empty.

        Its program is about to be ended: what would make it untrue, such as more work, stops.
        Refused where ``keeps_state`` is false.
        """
        ...

    def restore(self, state: Path) -> None:
        """Have its program begin with a snapshot, in a file, when it is started next.

        A program that runs by then is left as it is. Refused where ``keeps_state`` is false.
        """
        ...

    async def sample(self) -> HashSample | TokenSample:
        """Read its counters."""
        ...

    async def stop(self, grace_s: float) -> None:
        """End it: asked first, killed after the grace."""
        ...

    async def kill(self) -> None:
        """End it and everything it started, at once."""
        ...
