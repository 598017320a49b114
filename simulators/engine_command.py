"""The `hcp-sim engine` command: stand-ins of other people's engines, with their known lies."""

from __future__ import annotations

import argparse
import asyncio
import signal

import msgspec
from msgspec import Struct

from simulators.engine_lies import parse_lie
from simulators.engine_openai import OpenAiStandIn
from simulators.engine_server import EngineServer, StandIn
from simulators.engine_vllm import VllmStandIn
from simulators.engine_xmrig import HASH_S, XmrigStandIn

KINDS = ("openai", "vllm", "xmrig")


class Ready(Struct, frozen=True, kw_only=True):
    """The line that says that the engine serves."""

    kind: str
    port: int


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to `hcp-sim`."""
    parser = commands.add_parser("engine", help="a stand-in of somebody else's engine")
    add = parser.add_argument
    add("kind", choices=KINDS, help="whose API it speaks")
    add("--port", type=int, default=0, help="TCP port on loopback; 0 takes a free one")
    add("--token", default="", help="bearer token that its API asks for")
    add("--model", default="tiny", help="name of the model (openai, vllm)")
    add("--token-ms", type=float, default=0.0, help="milliseconds of a token (openai, vllm)")
    add("--vram-mib", type=int, default=14_000, help="GPU memory that it claims (vllm)")
    add("--hash-ms", type=float, default=HASH_S * 1_000, help="milliseconds of a hash (xmrig)")
    add("--loads", type=int, default=0, help="answers of 503 before it is ready (openai, vllm)")
    add(
        "--lie",
        action="append",
        default=[],
        metavar="PATH=LIE",
        help="lie about a path, such as /sleep=early; * stands for all",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the engine until SIGINT or SIGTERM, or until it dies of a lie; return the exit code."""
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    engine = _engine(options)
    for text in options.lie:
        engine.lies.tell(*parse_lie(text))
    server = EngineServer(engine)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        server.died.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    async with server.serving(options.port) as port:
        print(msgspec.json.encode(Ready(kind=options.kind, port=port)).decode(), flush=True)
        await server.died.wait()
    return 0 if stopped else 1


def _engine(options: argparse.Namespace) -> StandIn:
    if options.kind == "xmrig":
        return XmrigStandIn(token=options.token, hash_s=options.hash_ms / 1_000)
    token_s = options.token_ms / 1_000
    if options.kind == "openai":
        return OpenAiStandIn(
            options.model, token=options.token, token_s=token_s, loads=options.loads
        )
    return VllmStandIn(
        options.model,
        token=options.token,
        token_s=token_s,
        loads=options.loads,
        vram_mib=options.vram_mib,
    )
