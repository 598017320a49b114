"""Figures: `hcp-agent regret --day` over the journal of a whole day of a full site.

Run: ``./dev bench regret``. The day is 24 of the hours that ``bench.replay`` makes: 17,280
passes, a spike, an order and silent miners in each hour. Journal and regret are made in a
process of their own each, so that the memory told is that of the command alone.
"""

import asyncio
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.decision import ASICS, GPUS, START, build_site
from bench.figure import Figure, at_most
from bench.replay import write_journal
from edge_agent.history.day_walk import walk_day
from edge_agent.history.regret import regret, run_courses
from edge_agent.storage.journal_reader import JournalReader

HOURS = 24
CPU_TARGET_S, MEMORY_TARGET_MIB = 120.0, 500.0


def run(hours: int = HOURS) -> list[Figure]:
    """Measure on a journal made for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.sqlite"
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
        with pool:
            rows, switched = pool.submit(_write, path, hours).result()
            told = pool.submit(_regret, path).result()
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
    walk_s, courses_s, wall_s, peak_mib, usd = told
    conditions = {
        "asics": ASICS,
        "gpus": GPUS,
        "hours": hours,
        "rows": rows,
        "switched": switched,
        "journal_mib": round(size / 2**20, 1),
        "walk_s": round(walk_s, 1),
        "courses_s": round(courses_s, 1),
        "wall_s": round(wall_s, 1),
        "regret_usd": usd,
    }
    return [
        at_most("regret of a day", walk_s + courses_s, "s CPU", CPU_TARGET_S, conditions),
        at_most("regret of a day, peak memory", peak_mib, "MiB", MEMORY_TARGET_MIB, conditions),
    ]


def _write(path: Path, hours: int) -> tuple[int, int]:
    return asyncio.run(write_journal(path, build_site(), hours))


def _regret(path: Path) -> tuple[float, float, float, float, str]:
    began, began_cpu = time.perf_counter(), time.process_time()
    day = walk_day(JournalReader(path), START)
    walked = time.process_time()
    told = regret(day, run_courses(day))
    done = time.process_time()
    wall_s = time.perf_counter() - began
    return walked - began_cpu, done - walked, wall_s, _peak_mib(), str(told.regret_usd)


def _peak_mib() -> float:
    """Give the peak of this process alone; what ``getrusage`` tells includes its parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1_024
    raise RuntimeError("no VmHWM in /proc/self/status")
