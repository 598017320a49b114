"""`hcp-sim market`: a seeded market, or real prices replayed, as a small server on loopback."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from protocol.market import MarketTick
from simulators.errors import SettingError
from simulators.http_wire import HttpRefused, response, take_request
from simulators.market import MarketSimulator
from simulators.market_replay import MarketReplay

CONNECTIONS_MAX = 256
IDLE_S = 30.0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The line that says that the market serves."""

    port: int
    seed: int
    factor: float


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to `hcp-sim`."""
    parser = commands.add_parser("market", help="energy, bitcoin and GPU prices: GET /tick")
    add = parser.add_argument
    add("--port", type=int, default=4080, help="port on 127.0.0.1; 0 takes a free one")
    add("--seed", type=int, default=0, help="seed of every figure")
    add(
        "--factor",
        type=float,
        default=1.0,
        help="market seconds per real second (900: 15 min = 1 s)",
    )
    add("--from", dest="start", default="2024-01-01T00:00:00Z", help="the market's time at start")
    add("--csv", type=Path, help="replay the price files of this directory instead")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve the market until SIGINT or SIGTERM; return the exit code."""
    try:
        start = datetime.fromisoformat(options.start).astimezone(UTC)
    except ValueError as error:
        raise SettingError("from", f"{options.start!r} is not an ISO 8601 time") from error
    asyncio.run(_serve(_market(options, start), options))
    return 0


def _market(options: argparse.Namespace, start: datetime) -> MarketSimulator | MarketReplay:
    now = datetime.now(UTC)
    if options.csv is not None:
        return MarketReplay(options.csv, started_at=now, market_start=start, factor=options.factor)
    return MarketSimulator(options.seed, started_at=now, market_start=start, factor=options.factor)


async def _serve(market: MarketSimulator | MarketReplay, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = await listen(lambda: market.tick_at(datetime.now(UTC)), options.port)
    async with server:
        port = server.sockets[0].getsockname()[1]
        ready = Ready(port=port, seed=options.seed, factor=options.factor)
        print(msgspec.json.encode(ready).decode(), flush=True)
        await stop.wait()


async def listen(current: Callable[[], MarketTick], port: int) -> asyncio.Server:
    """Serve `GET /tick` on 127.0.0.1; port 0 takes a free one."""
    talks = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal talks
        if talks >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        talks += 1
        try:
            async with asyncio.timeout(IDLE_S):
                await _answer(current, reader, writer)
        except (ConnectionError, TimeoutError):
            writer.transport.abort()
        finally:
            talks -= 1
            writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", port)


async def _answer(
    current: Callable[[], MarketTick], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one request; the connection ends with it."""
    buffer = bytearray()
    while (request := take_request(buffer)) is None:
        data = await reader.read(4096)
        if not data:
            return
        buffer += data
    if isinstance(request, HttpRefused):
        reply = response(request.status, b"", keep_alive=False)
    elif (request.method, request.path) == ("GET", "/tick"):
        reply = response(200, msgspec.json.encode(current()), keep_alive=False)
    else:
        reply = response(404, b"", keep_alive=False)
    writer.write(reply)
    await writer.drain()
