"""The port between the node and whatever serves work on its GPUs.

The driver's host owns gate and meter: both outlive the node's process. Every act is idempotent, so
that an act whose answer was lost may be asked for again. An instance's gate opens once and shuts
once; serving again needs a new instance.

Every method raises ``DriverRefusedError`` (the act did not happen) or ``DriverUnavailableError``
(whether it happened is unknown).
"""

from typing import Protocol

from msgspec import Struct

from protocol.node import GpuFence, LeaseKeys, PrepareStage
from protocol.resource import Activity


class HostGpu(Struct, frozen=True, kw_only=True):
    """One GPU as the workload host names it."""

    gpu: str
    model: str
    vram_mib: int | None = None


class HostInfo(Struct, frozen=True, kw_only=True):
    """Identity of the workload host; ``process_id`` is new at each of its starts.

    Args:
        public_url: base of the addresses under which customers reach its proxy; None: unknown.
    """

    host_id: str
    process_id: str
    boot_id: str
    gpus: tuple[HostGpu, ...]
    public_url: str | None = None


class HostSample(Struct, frozen=True, kw_only=True):
    """Facts of one GPU; None is unknown.

    Args:
        held: it takes no new work. reason: why it is not healthy, or held, in words.
        fence: what the host remembers of it until it is released.
    """

    gpu: str
    power_w: float | None = None
    temp_c: float | None = None
    utilisation: float | None = None
    memory_used_mib: float | None = None
    hashrate_mhs: float | None = None
    mining: bool | None = None
    healthy: bool = True
    held: bool = False
    reason: str = ""
    fence: GpuFence | None = None


class InstanceSpec(Struct, frozen=True, kw_only=True):
    """What to prepare: the instance's name, and when it is complete by itself."""

    instance_id: str
    lease_id: str
    attempt: int
    run_s: int | None = None


class HostCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One act of a GPU as its host is asked for it; which fields are set depends on ``op``."""

    op: str
    gpu: str = ""
    instance_id: str | None = None
    lease_id: str | None = None
    attempt: int | None = None
    run_s: int | None = None
    prompt: str | None = None
    on: bool | None = None
    open: bool | None = None


class MeterMark(Struct, frozen=True, array_like=True):
    """Counters at the instant where the host's wall clock passed a UTC minute."""

    epoch_minute: int
    at_ns: int
    served_ns: int
    energy_mj: int


class Meter(Struct, frozen=True, kw_only=True):
    """Counters of one instance at the page's ``now_ns``; instants are CLOCK_BOOTTIME.

    ``reason``: why its gate shut with nobody asking, in words; empty: it did not.
    """

    gpu: str
    instance_id: str
    lease_id: str
    attempt: int
    open: bool
    completed: bool
    opened_ns: int | None
    closed_ns: int | None
    served_ns: int
    energy_mj: int
    marks: tuple[MeterMark, ...] = ()
    reason: str = ""


class MeterPage(Struct, frozen=True, kw_only=True):
    """Every meter of the host at one instant; ``wall_anchor_ns`` is wall minus boottime."""

    process_id: str
    now_ns: int
    wall_anchor_ns: int
    meters: tuple[Meter, ...]


class GateState(Struct, frozen=True, kw_only=True):
    """The gate after an act, and the counters at the instant ``at_ns`` of that act."""

    at_ns: int
    served_ns: int
    energy_mj: int
    open: bool


class CanaryOutput(Struct, frozen=True, kw_only=True):
    """What an instance said first, and what it had to say.

    Args:
        expected_sha256: hex digest of the right output, where the host knows it of a real engine;
            None: the output must be the hex sha256 of ``prompt`` + model, as of a simulated one.
    """

    output: str
    expected_sha256: str | None = None


class Moved(Struct, frozen=True, kw_only=True):
    """How an act brought an engine onto a GPU or off it; empty and 0: not told, or nothing moved.

    Args:
        strategy: such as ``resident-gate``. moved_mib: copied between GPU and host memory.
    """

    strategy: str = ""
    moved_mib: int = 0


class Mined(Struct, frozen=True, kw_only=True):
    """A miner after an act.

    Args:
        hashes: its counter, which stands still when it is stopped.
        saved: what became of what it was at when it was ended, as ``kept`` or ``used``; empty: it
            was not ended, or had nothing to save.
    """

    hashes: int
    saved: str = ""


class Wish(Struct, frozen=True, kw_only=True):
    """An engine to hold ready on a GPU beside what works there; see ``protocol.node.Prepare``.

    Args:
        begin: False while a switch of the GPU is under way: what is ready stays, nothing begins.
        anew: False: it was ready once; where it no longer is nothing begins, as its room is gone.
    """

    gpu: str
    enters: Activity
    probability: float
    within_s: float
    earns_usd_per_h: float = 0.0
    energy_usd_per_mwh: float = 0.0
    draw_w: float = 0.0
    why: str = ""
    begin: bool = True
    anew: bool = True


class Ready(Struct, frozen=True, kw_only=True):
    """What became of a wish."""

    gpu: str
    enters: Activity
    stage: PrepareStage
    code: str = ""
    detail: str = ""


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a driver can do.

    Args:
        strategies: ways to switch, cheapest first, e.g. ``resident_gate``.
        per_gpu_pause: the miner can be paused on one GPU alone.
        survives_node: gate and meter live on when the node's process dies.
    """

    strategies: tuple[str, ...]
    per_gpu_pause: bool
    survives_node: bool


class Order(Protocol):
    """Acts of one GPU that will be asked for next, of which the host may begin each once it can.

    Each begins when the one before was done, and its answer is given to whoever asks for it. Any
    other act of the GPU ends the order, and so does an act that is refused: what was not begun then
    begins when it is asked for. A driver may begin nothing ahead.
    """

    def add(self, calls: tuple[HostCall, ...]) -> None:
        """Add acts to the end; nothing once the order has ended."""
        ...

    def end(self) -> None:
        """Have no more of it begun; the act that is under way goes to its end."""
        ...


class WorkloadDriver(Protocol):
    """One host of served work and mining on GPUs."""

    async def run(self) -> None:
        """Keep the connection to the host until cancelled."""
        ...

    def capabilities(self) -> Capabilities:
        """Give what this driver can do."""
        ...

    def info(self) -> HostInfo | None:
        """Give what the host said of itself when last connected; None when it is away."""
        ...

    def order(self, gpu: str) -> Order:
        """Begin to ask for acts of a GPU ahead; an order that is there already ends."""
        ...

    async def sample(self) -> tuple[HostSample, ...]:
        """Read the facts of every GPU."""
        ...

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        """Start or stop the miner."""
        ...

    async def prepare(self, gpu: str, spec: InstanceSpec) -> None:
        """Make the instance exist, with its gate shut."""
        ...

    async def activate(self, gpu: str, instance_id: str) -> Moved:
        """Make the instance resident and ready."""
        ...

    async def canary(self, gpu: str, instance_id: str, prompt: str) -> CanaryOutput:
        """Give the instance's output for ``prompt``, or for a fixed question of the host."""
        ...

    async def gate(self, gpu: str, instance_id: str, *, is_open: bool) -> GateState:
        """Open or shut the gate; the first act counts."""
        ...

    async def keys(self, table: tuple[LeaseKeys, ...]) -> None:
        """Say who may use what is served: every lease held here, in place of what was said before.

        Args:
            table: a lease that is missing in it is over.
        """
        ...

    async def prewarm(self, wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
        """Say all that is to be held ready, in place of what was said before; gives how it stands.

        Args:
            for_s: after so long without another word all of it is let go.
        """
        ...

    async def release(self, gpu: str) -> None:
        """Have the fence of a GPU released, by an operator's word; refused while it stands."""
        ...

    async def meters(self, since_minute: int | None) -> MeterPage:
        """Read all meters with their marks after ``since_minute`` (epoch minute; None: all)."""
        ...

    async def stop(self, gpu: str, instance_id: str) -> Moved:
        """Shut the gate and remove the instance; its last meter stays readable for 24 h."""
        ...
