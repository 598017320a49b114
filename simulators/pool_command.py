"""The `hcp-sim pool` command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from random import Random

import msgspec

from simulators.errors import SettingError
from simulators.pool import Counts, PoolBook
from simulators.pool_server import PoolFault, PoolServer, parse_fault


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The line that is printed once the pool listens."""

    port: int
    difficulty: float


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `pool` command with its options."""
    parser = commands.add_parser("pool", help="a Stratum V1 pool on loopback")
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--port", type=int, default=0, help="TCP port; 0 = any free one, printed when ready")
    add("--difficulty", type=float, default=1e-4, help="of a share; 1e-4 = 430,000 hashes each")
    add("--extranonce2-bytes", type=int, default=4, help="room that each miner searches")
    add("--job-s", type=float, default=30.0, help="a new job every so many seconds")
    add("--seed", type=int, default=0, help="seed of the blocks")
    add("--fault", default="none", help=f"KIND or KIND:TIMES; kinds: {', '.join(PoolFault)}")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; print a JSON line when ready, and the counts at the end."""
    if not 0 < args.difficulty < 1e18:
        raise SettingError("difficulty", "must be above 0")
    if not 1 <= args.extranonce2_bytes <= 16:
        raise SettingError("extranonce2-bytes", "must be 1..16")
    book = PoolBook(Random(args.seed), args.difficulty, args.extranonce2_bytes)
    server = PoolServer(book, job_s=args.job_s)
    server.set_fault(*parse_fault(args.fault))
    asyncio.run(_serve(server, args.port))
    _say(book.counts)
    return 0


async def _serve(pool: PoolServer, port: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    server = await pool.listen(port)
    with contextlib.suppress(asyncio.CancelledError):  # asked to stop
        _say(Ready(port=server.sockets[0].getsockname()[1], difficulty=pool.book.difficulty))
        await pool.run(server)


def _say(line: Ready | Counts) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)
