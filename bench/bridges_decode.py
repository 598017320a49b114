"""`bridges-decode`: how many answers of a miner one core turns into readings.

The answers are those of the simulator, which shares no code with the bridges: an S21's `summary`
and `stats`, from bytes to a merged, checked reading. Time is CPU time of this process.
"""

import time

from bench.figure import Figure, at_least
from firmware_bridges.base import Partial
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.query import cgminer
from firmware_bridges.recognise import decode_query, read_partials
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import models_by_name

ROUNDS = 20_000
MINERS = 32
SUMMARIES_MIN = 30_000.0
# Twice what the poller needs of it.
STATS_MIN = 6_000.0
ADDRESS = "127.0.0.1"


def run() -> list[Figure]:
    """Decode summaries (the promise) and stats (what a fast reading of stock firmware needs)."""
    spec = FleetSpec(count=MINERS, models=models_by_name("s21"))
    fleet = Fleet(spec, now_ns=time.monotonic_ns, wall_s=time.time)
    return [
        _measure(fleet, "summary", SUMMARIES_MIN),
        _measure(fleet, "stats", STATS_MIN),
    ]


def _measure(fleet: Fleet, command: str, least: float) -> Figure:
    family, query = FAMILY_OF["antminer-stock"], cgminer(command)
    bodies = [fleet.cgminer(index, query.payload).payload for index in range(MINERS)]
    began = time.process_time()
    for number in range(ROUNDS):
        parts = decode_query(family, query, bodies[number % MINERS], ADDRESS)
        partials = [part for _, part in parts if isinstance(part, Partial)]
        reading = read_partials(family, ADDRESS, partials, [])
        assert reading.is_mining, "the simulator's miners are awake"
    spent_s = time.process_time() - began
    conditions = {
        "answers": ROUNDS,
        "miners": MINERS,
        "bytes": len(bodies[0]),
        "from": "bytes to a merged and checked reading",
        "time": "CPU",
    }
    return at_least(f"bridges-decode {command}", ROUNDS / spent_s, "readings/s", least, conditions)
