"""Replay one seed: ``python -m tests.simulation SEED [SEED...]``."""

import sys
import tempfile
import time
from pathlib import Path

from tests.simulation.simulate import simulate


def main() -> int:
    """Run the seeds named on the command line and tell what broke."""
    bad = 0
    for seed in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            outcome = simulate(seed, Path(folder))
            took_s = time.perf_counter() - began
        bad += bool(outcome.problems)
        sys.stdout.write(f"seed {seed} {outcome.digest} {took_s:.2f} s {outcome.counts}\n")
        if outcome.problems:
            sys.stdout.write(f"{outcome.text()}\n")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
