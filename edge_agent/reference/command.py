"""`hcp-agent reference miner | inference`: the reference workloads as programs."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from edge_agent.reference.errors import OptionError, WorkloadProgramError
from edge_agent.reference.web import TOKEN_VARIABLE, WebApp, WebServer, open_listener

SWITCH_INTERVAL_S = 0.000_5
_EXIT_OK = 0
_EXIT_PROBLEM = 1
_EXIT_USAGE = 2


def main(words: list[str], *, prog: str) -> int:
    """Run one workload until SIGTERM, SIGINT or ``POST /stop``; give the exit code."""
    args = _parser(prog).parse_args(words)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    code = _EXIT_OK
    try:
        asyncio.run(_mine(args) if args.workload == "miner" else _infer(args))
    except* OptionError as group:
        code = _say(prog, group, _EXIT_USAGE)
    except* (WorkloadProgramError, OSError) as group:
        code = _say(prog, group, _EXIT_PROBLEM)
    return code


def _say(prog: str, group: BaseExceptionGroup[BaseException], code: int) -> int:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"{prog}: {error}", file=sys.stderr)
    return code


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Reference workloads: real programs to switch between, and to check.",
        epilog=f"a bearer token is read from the variable {TOKEN_VARIABLE}",
    )
    kinds = parser.add_subparsers(dest="workload", required=True, metavar="WORKLOAD")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--listen", default="127.0.0.1:0", help="HOST:PORT on loopback (0 = free) or unix:PATH"
    )
    common.add_argument("--paused", action="store_true", help="start loaded, checked and paused")
    common.add_argument(
        "--weight", choices=("batch", "idle", "normal"), default="batch", help="of the workload"
    )
    _add_miner(kinds.add_parser("miner", parents=[common], help="double SHA-256, Stratum V1"))
    _add_inference(kinds.add_parser("inference", parents=[common], help="OpenAI-compatible server"))
    return parser


def _add_inference(inference: argparse.ArgumentParser) -> None:
    add = inference.add_argument
    add("--backend", choices=("auto", "numpy", "torch"), default="auto", help="what computes")
    add("--model", default="reference", help="name that requests carry")
    add("--layers", type=int, default=4, help="of the model; its weights are drawn from the seed")
    add("--dim", type=int, default=256, help="width of the model")
    add("--heads", type=int, default=4, help="attention heads")
    add("--context", type=int, default=1_024, help="tokens that a request may have in all")
    add("--seed", type=int, default=0, help="of the weights")
    add("--running-max", type=int, default=8, help="requests that are answered at once")
    add("--waiting-max", type=int, default=64, help="requests that may wait for a place")
    add("--hold-s", type=float, default=60.0, help="longest wait before 503")
    add("--when-paused", choices=("wait", "refuse"), default="wait", help="what requests do then")


def _add_miner(miner: argparse.ArgumentParser) -> None:
    add = miner.add_argument
    add("--pool", required=True, help="stratum+tcp://HOST:PORT")
    add("--user", default="reference.1", help="name of this worker at the pool")
    add("--password", default="x", help="of the user; pools rarely ask for one")
    add(
        "--threads",
        type=int,
        default=1,
        help="worker processes: one for each core, or one for a GPU",
    )
    add("--backend", choices=("auto", "cpu", "cupy"), default="auto", help="what hashes")
    add("--snapshot", default="", help="file with the answer of GET /snapshot of an earlier run")


async def _mine(args: argparse.Namespace) -> None:
    # Only this program needs these: the other one starts without them.
    from edge_agent.reference.miner import Miner
    from edge_agent.reference.miner_api import MinerApi
    from edge_agent.reference.miner_words import read_snapshot
    from edge_agent.reference.stratum_client import parse_pool
    from edge_agent.reference.workers import WorkerOptions

    if not 1 <= args.threads <= 256:
        raise OptionError("threads must be 1..256")
    miner = Miner(
        WorkerOptions(threads=args.threads, backend=args.backend, weight=args.weight),
        parse_pool(args.pool),
        args.user,
        args.password,
        paused=args.paused,
        snapshot=read_snapshot(_read(args.snapshot)) if args.snapshot else None,
    )
    stop = _stop_event()
    app = MinerApi(miner, stop).app(os.environ.get(TOKEN_VARIABLE, ""))
    await _serve(app, args.listen, miner.run, stop)


async def _infer(args: argparse.Namespace) -> None:
    # One thread computes; a library that starts its own would take what it was not given. It must
    # be said before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The thread that computes hands the interpreter over after this long to the one that answers.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    from edge_agent.reference.backends import model_loader
    from edge_agent.reference.inference_api import InferenceApi
    from edge_agent.reference.model import ModelSize
    from edge_agent.reference.serving import Server
    from edge_agent.reference.tickets import ServingLimits

    if not (1 <= args.running_max <= 4_096 and 0 <= args.waiting_max <= 65_536):
        raise OptionError("running-max must be 1..4096, waiting-max 0..65536")
    if not 0 < args.hold_s <= 3_600:
        raise OptionError("hold-s must be within 0..3600")
    size = ModelSize(
        layers=args.layers, dim=args.dim, heads=args.heads, context=args.context, seed=args.seed
    )
    limits = ServingLimits(
        running_max=args.running_max,
        waiting_max=args.waiting_max,
        hold_s=args.hold_s,
        refuse_when_paused=args.when_paused == "refuse",
    )
    server = Server(
        model_loader(args.backend, size), limits, weight=args.weight, paused=args.paused
    )
    stop = _stop_event()
    app = InferenceApi(server, args.model, size, stop).app(os.environ.get(TOKEN_VARIABLE, ""))
    await _serve(app, args.listen, server.run, stop)


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(1 << 20)


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _serve(
    app: WebApp,
    listen: str,
    work: Callable[[], Coroutine[Any, Any, None]],
    stop: asyncio.Event,
) -> None:
    """Serve and work until told to stop; a line says where it serves."""
    listener, shown = open_listener(listen)
    server = WebServer(app)

    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve(sockets=[listener]), name="http")
        working = group.create_task(work(), name="work")
        await server.listening.wait()
        print(json.dumps({"listen": shown, "pid": os.getpid()}), flush=True)
        await stop.wait()
        server.should_exit = True
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
