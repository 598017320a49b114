"""Runs the seeds in processes of their own, beside other tests: they take the time that is left."""

import gc
import os
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from tests.simulation.simulate import Outcome, simulate

SEEDS = int(os.environ.get("HCP_SEEDS", "200"))
_PROCESSES_MAX = 2
# A thirtieth of what a test gets that wants the processor too.
_NICE = 15


class Seeds:
    """Seeds 1 to ``SEEDS`` under way; one goes to the process that is free first."""

    def __init__(self) -> None:
        workers = min(_PROCESSES_MAX, os.cpu_count() or 1)
        self._pool = ProcessPoolExecutor(workers, initializer=_step_aside)
        self._futures: dict[int, Future[Outcome]] = {
            seed: self._pool.submit(run_seed, seed) for seed in range(1, SEEDS + 1)
        }

    def outcome(self, seed: int) -> Outcome:
        """Wait for a seed."""
        return self._futures[seed].result()

    def stop(self) -> None:
        """Begin no further seed."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def run_seed(seed: int) -> Outcome:
    """Run a seed (in a process that runs others before and after it)."""
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        return simulate(seed, Path(folder))


def scratch() -> str | None:
    """Name a folder in memory, where there is one: the databases need no disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _step_aside() -> None:
    # What the test program holds at the fork is no garbage: no seed's collection looks at it.
    gc.freeze()
    os.nice(_NICE)
