"""Whom to kill, when, and for how long: a function of the seed; and carrying it out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import Random

from msgspec import Struct

from simulators.stack import Stack
from tests.e2e.load import Moments

MOMENTS = ("random", "submitted", "cancelled")
# A node must have polled the meters again before its workload host is killed: what is promised
# (at most a second short) is promised of one failure at a time.
SETTLED_S = 3.0


class Kill(Struct, frozen=True, kw_only=True):
    """One SIGKILL.

    Args:
        program: name in the stack. moment: at random, or just after a submit or a cancel.
        after_s: delay from then. down_s: until it is started again.
    """

    program: str
    moment: str
    after_s: float
    down_s: float


def schedule(seed: int, lane: str, targets: Sequence[str], count: int) -> list[Kill]:
    """Draw the kills of one lane, each target equally often, in random order."""
    rng = Random(f"{seed}:{lane}")
    names = [targets[place % len(targets)] for place in range(count)]
    rng.shuffle(names)
    kills = []
    for name in names:
        moment = rng.choice(MOMENTS)
        after_s = rng.uniform(0.2, 2.5) if moment == "random" else rng.uniform(0.0, 0.15)
        kills.append(
            Kill(program=name, moment=moment, after_s=after_s, down_s=rng.uniform(0.0, 2.0))
        )
    return kills


class Death(Struct, frozen=True):
    """A program was killed at an instant of CLOCK_BOOTTIME."""

    program: str
    at_ns: int


async def carry_out(stack: Stack, kills: Sequence[Kill], moments: Moments) -> list[Death]:
    """Kill and start again, one after the other; return what was done."""
    done: list[Death] = []
    for kill in kills:
        if kill.program.startswith("gpu-"):
            await asyncio.sleep(SETTLED_S)
        if kill.moment != "random":
            await moments.wait(kill.moment, 3.0)
        await asyncio.sleep(kill.after_s)
        await stack.programs[kill.program].kill()
        done.append(Death(kill.program, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
        await asyncio.sleep(kill.down_s)
        await stack.start_again(kill.program)
    return done
