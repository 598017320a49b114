"""What `gpu-switch` measures: strategies, sizes, counts, and the figures that they owe."""

from msgspec import Struct

from bench.gpu.cuda_shapes import LLAMA_7B
from bench.gpu.workload import Options

# 9 layers are 4 GB of weights, 32 are 13.5 GB.
SMALL, LARGE = 9, 32
TAX_LIMIT = 0.995
# Two contexts, the workspace of cuBLAS, what a graph keeps, the miner's buffers.
OVERHEAD_BYTES = 3 << 30
HOST_SPARE_BYTES = 4 << 30


class Target(Struct, frozen=True, kw_only=True):
    """One figure of a plan: a quantile of a phase of one way."""

    way: str
    share: float
    limit_ms: float
    phase: str = "total_ms"


class Plan(Struct, frozen=True, kw_only=True):
    """A strategy, with what it is measured on; ``count`` switches each way.

    Args:
        stop_word: the miner's kernel polls it, and its launches are long.
        expected_s: what it takes about, its workloads' start included; a guess that bounds its part
            of a budget and judges nothing.
    """

    name: str
    strategy: str
    count: int
    expected_s: float
    targets: tuple[Target, ...]
    layers: int = LARGE
    mode: str = "graph"
    stop_word: bool = False

    @property
    def model(self) -> Options:
        """Give how the model is made."""
        mirror = self.strategy == "pinned-swap"
        return Options(layers=self.layers, mode=self.mode, mirror=mirror)

    @property
    def miner(self) -> Options:
        """Give how the miner is made."""
        return Options(launch_ms=20.0 if self.stop_word else 2.0, stop_word=self.stop_word)

    @property
    def device_bytes(self) -> int:
        """Give what must be free on the card."""
        return (
            2 * LLAMA_7B.weight_count(self.layers) + LLAMA_7B.kv_bytes(self.layers) + OVERHEAD_BYTES
        )

    @property
    def host_bytes(self) -> int:
        """Give what must be free in the host: a mirror is rounded up, a checkpoint is a copy."""
        weights = 2 * LLAMA_7B.weight_count(self.layers)
        if self.strategy == "pinned-swap":
            return (1 << (weights - 1).bit_length()) + HOST_SPARE_BYTES
        return HOST_SPARE_BYTES + (weights if self.strategy == "cuda-checkpoint" else 0)


class Tax(Struct, frozen=True, kw_only=True):
    """What a paused neighbour costs the side that works.

    Args:
        plan: how both are made. rounds: alone, between two windows beside.
    """

    plan: Plan
    window_s: float = 3.0
    rounds: int = 3
    name: str = "tax"
    expected_s: float = 140.0


def _both(p50_in: float, p99_in: float, p50_out: float, p99_out: float) -> tuple[Target, ...]:
    return (
        Target(way="in", share=0.50, limit_ms=p50_in),
        Target(way="in", share=0.99, limit_ms=p99_in),
        Target(way="out", share=0.50, limit_ms=p50_out),
        Target(way="out", share=0.99, limit_ms=p99_out),
    )


def _phase(way: str, phase: str, p50: float, p99: float) -> tuple[Target, ...]:
    return (
        Target(way=way, share=0.50, limit_ms=p50, phase=phase),
        Target(way=way, share=0.99, limit_ms=p99, phase=phase),
    )


_PAUSE = _phase("in", "pause_ms", 0.5, 2.0)
_CP_SMALL = _phase("in", "activate_ms", 450, 700) + _phase("out", "save_ms", 450, 700)
_CP_LARGE = _phase("in", "activate_ms", 1_000, 1_500) + _phase("out", "save_ms", 1_000, 1_500)
GRAPH = Plan(
    name="resident graph",
    strategy="resident-gate",
    count=300,
    expected_s=35,
    targets=_both(12, 25, 10, 30),
)
# In the order of what matters: a budget that is used up leaves out the last. By what is expected,
# ten minutes hold all as far as the checkpoint of 14 GB.
PLANS: tuple[Plan | Tax, ...] = (
    GRAPH,
    Plan(
        name="resident eager",
        strategy="resident-gate",
        count=300,
        expected_s=45,
        mode="eager",
        targets=_both(35, 60, 10, 30),
    ),
    Plan(
        name="swap 14 GB",
        strategy="pinned-swap",
        count=300,
        expected_s=155,
        targets=_both(275, 350, 15, 50),
    ),
    Tax(plan=GRAPH),
    Plan(
        name="checkpoint 14 GB",
        strategy="cuda-checkpoint",
        count=30,
        expected_s=120,
        targets=_CP_LARGE,
    ),
    Plan(
        name="resident stop word",
        strategy="resident-gate",
        count=300,
        expected_s=40,
        stop_word=True,
        targets=_PAUSE,
    ),
    Plan(
        name="swap 4 GB",
        strategy="pinned-swap",
        count=300,
        expected_s=70,
        layers=SMALL,
        targets=_both(95, 130, 15, 50),
    ),
    Plan(
        name="checkpoint 4 GB",
        strategy="cuda-checkpoint",
        count=30,
        expected_s=60,
        layers=SMALL,
        targets=_CP_SMALL,
    ),
    Plan(name="restart 14 GB", strategy="restart", count=10, expected_s=150, targets=()),
)
