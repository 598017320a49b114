"""Seeds of the whole simulation: invariants, what faults they met, and that they repeat.

`HCP_SEEDS` sets how many seeds are run. With fewer than `SEEDS_FOR_COVERAGE` the share of each kind
of fault is checked on the plans alone, which costs nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.scenario import SPAN_S, draw, fault_kinds
from tests.simulation.seeds import SEEDS, Seeds

ROOT = Path(__file__).parents[2]
SEEDS_PER_TEST = 4
SEEDS_FOR_COVERAGE = 200
KIND_MIN_SHARE = 0.1
FAULTS_MIN = 5
# Of one task on a machine that is busy with other tests.
TASK_TIMEOUT_S = 240
FAULT_KINDS = (
    "loss", "duplication", "reorder", "disconnect", "partition", "one_way_partition", "crash",
    "broker_crash", "wiped_broker", "clock_step", "restored_snapshot", "workload_crash",
    "link_cut", "reboot_agent", "reboot_node", "drain",
)  # fmt: skip


def parts() -> list[tuple[int, int]]:
    """Cut 1..SEEDS into the seeds of each test."""
    return [
        (first, min(first + SEEDS_PER_TEST - 1, SEEDS))
        for first in range(1, SEEDS + 1, SEEDS_PER_TEST)
    ]


@pytest.mark.slow
@pytest.mark.timeout(SEEDS * 10 + 120)
@pytest.mark.parametrize("part", parts(), ids=lambda part: f"{part[0]}-{part[1]}")
def test_every_invariant_holds(part: tuple[int, int], running_seeds: Seeds) -> None:
    outcomes = [running_seeds.outcome(seed) for seed in range(part[0], part[1] + 1)]
    broken = [outcome.text() for outcome in outcomes if outcome.problems]
    assert not broken, "\n".join(broken)


@pytest.mark.slow
@pytest.mark.timeout(SEEDS * 10 + 120)
def test_the_seeds_bring_about_what_they_are_to_test(running_seeds: Seeds) -> None:
    found = [running_seeds.outcome(seed) for seed in range(1, SEEDS + 1)]

    def total(name: str) -> int:
        return sum(outcome.counts.get(name, 0) for outcome in found)

    assert total("usage") > 20 * len(found)
    assert total("switches") > 10 * len(found)
    assert total("drains") > len(found) / 2
    assert total("switches_for_money") > 2 * len(found)
    assert total("mode_changes") > len(found) / 10
    assert total("workloads_completed") > len(found)
    assert total("workloads_cancelled") > len(found)
    assert total("invoice_cents") > 20 * len(found)


def test_each_kind_of_fault_comes_in_a_tenth_of_the_seeds_and_five_in_each() -> None:
    plans = [draw(seed) for seed in range(1, SEEDS_FOR_COVERAGE + 1)]
    for kind in FAULT_KINDS:
        seeds = sum(kind in fault_kinds(plan) for plan in plans)
        assert seeds >= KIND_MIN_SHARE * SEEDS_FOR_COVERAGE, (kind, seeds)
    assert min(len(plan.faults) for plan in plans) >= FAULTS_MIN
    assert SPAN_S >= 30 * 60


@pytest.mark.slow
@pytest.mark.timeout(TASK_TIMEOUT_S)
@pytest.mark.parametrize("seed", [3, 9])
def test_a_seed_repeats_whatever_the_hash_seed(seed: int) -> None:
    digests = []
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith(f"seed {seed} "), done.stderr
        digests.append(done.stdout.split()[2])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 32
