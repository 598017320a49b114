"""What the simulation needs of the virtual loop beyond its own tests."""

import asyncio
from collections import deque

from simulators.virtual_loop import run


def test_whoever_sleeps_until_an_instant_gets_there_though_timers_fire_early() -> None:
    """Sleep until instants that floats round down, as a message pipe with delays does."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1_023.9)
        due_s = deque(loop.time() + number * 0.000_317_3 for number in range(3_000))
        while due_s:
            wait_s = due_s[0] - loop.time()
            if wait_s <= 0:
                due_s.popleft()
            else:
                await asyncio.sleep(wait_s)
        return loop.time()

    assert run(main()) < 1_025.0
