"""The programs behind the command line: ``run``, ``node``, ``host`` and ``config check``."""

import argparse
import asyncio
import fcntl
import json
import logging
import random
import secrets
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any

import uvloop

from edge_agent.backtest.command import run_backtest
from edge_agent.clock import SystemClock
from edge_agent.config import AgentConfig, build_site, check_links, read_config
from edge_agent.main import AgentProgram
from edge_agent.market.errors import MarketError
from edge_agent.node.config import load_node_config
from edge_agent.node.errors import NodeError
from edge_agent.node.main import run_node
from edge_agent.process_limits import limit_heaps
from edge_agent.storage.errors import StorageError
from protocol.settings import SettingsError

_EXIT_OK = 0
_EXIT_PROBLEM = 1
_EXIT_USAGE = 2


def run_program(args: argparse.Namespace) -> int:
    """Run one program; give the exit code."""
    try:
        if args.command == "config":
            return _check(args)
        if args.command == "backtest":
            return run_backtest(args)
        _log_to_stdout()
        if args.command == "node":
            _run(run_node(load_node_config(Path(args.config))))
        elif args.command == "host":
            _run_host(Path(args.config))
        else:
            config = read_config(Path(args.config))
            check_links(config, args.config)
            _run_agent(config)
    except (SettingsError, NodeError) as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    except (StorageError, MarketError, OSError) as exc:
        print(f"hcp-agent: {exc}", file=sys.stderr)
        return _EXIT_PROBLEM
    return _EXIT_OK


def _check(args: argparse.Namespace) -> int:
    try:
        config = read_config(Path(args.file))
        check_links(config, args.file)
        site = build_site(config)
    except SettingsError as exc:
        if args.json:
            problems = [
                {"path": row.path, "line": row.line, "detail": row.detail} for row in exc.problems
            ]
            print(json.dumps({"v": 1, "ok": False, "problems": problems}))
        else:
            print(exc)
        return _EXIT_PROBLEM
    count = len(site.devices)
    if args.json:
        print(json.dumps({"v": 1, "ok": True, "site_id": site.site_id, "devices": count}))
    else:
        print(f"{args.file}: ok, site {site.site_id}, {count} devices")
    return _EXIT_OK


def _run_agent(config: AgentConfig) -> None:
    data = Path(config.data_dir)
    data.mkdir(mode=0o750, parents=True, exist_ok=True)
    Path(config.run_dir).mkdir(mode=0o755, parents=True, exist_ok=True)
    with _only_one(data / "lock"):
        jitter = random.Random(secrets.token_bytes(16))
        _run(_until_signal(AgentProgram(config, SystemClock(), jitter)))


def _run_host(path: Path) -> None:
    # Its HTTP server would be weight that agent and node carry for nothing.
    from edge_agent.host.config import load_host_config
    from edge_agent.host.engines import engine_factory, make_sensors, memory_of
    from edge_agent.host.main import run_host

    config = load_host_config(path)
    sensors = make_sensors(config)
    _run(run_host(config, engine_factory(config, memory_of(sensors)), sensors))


async def _until_signal(program: AgentProgram) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await program.run(stop)


def _only_one(path: Path) -> IO[str]:
    """Hold the data directory: two agents on one store would both own it.

    Raises:
        BlockingIOError: another agent holds it.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.close()
        raise BlockingIOError(f"another agent holds {path.parent}") from exc
    return lock


def _run(main: Coroutine[Any, Any, None]) -> None:
    limit_heaps()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _log_to_stdout() -> None:
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
