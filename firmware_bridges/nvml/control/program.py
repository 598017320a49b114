"""`hcp-agent gpu-control --config FILE`: the privileged helper as a program."""

import argparse
import asyncio
import logging
import pwd
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.control.bounds import ControlConfig, control_config_from_toml
from firmware_bridges.nvml.control.cards import Cards
from firmware_bridges.nvml.control.messages import Applied
from firmware_bridges.nvml.control.server import ControlServer, end_now
from firmware_bridges.nvml.errors import NvmlError
from firmware_bridges.nvml.library import Nvml
from protocol.settings import Problem, SettingsError

logger = logging.getLogger(__name__)

EXIT_USAGE: Final = 2
EXIT_GONE: Final = 3
EXIT_STUCK: Final = 4
# What the start may take, in limits of a call: without persistence each card is only then set up.
START_CALLS: Final = 20


def main(argv: list[str] | None = None, prog: str = "gpu-control") -> int:
    """Run the helper until it is told to stop; give the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Sets power limits and clocks of GPUs.")
    parser.add_argument("--config", required=True, type=Path, help="TOML file with the bounds")
    path: Path = parser.parse_args(argv).config
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    try:
        config = control_config_from_toml(_text_of(path), str(path))
        uids = uids_of(config)
    except SettingsError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - the operator's mistake, told in full
        return EXIT_USAGE
    code = _serve(config, uids)
    # a plain exit would wait for a thread that may hang
    end_now(code)
    return code


def uids_of(config: ControlConfig) -> frozenset[int]:
    """Give the numbers of the users who may ask.

    Raises:
        SettingsError: there is no such user.
    """
    return frozenset(_uids(config.users))


def _uids(users: Iterable[str]) -> Iterable[int]:
    for user in users:
        if user.isdecimal():
            yield int(user)
            continue
        try:
            yield pwd.getpwnam(user).pw_uid
        except KeyError as exc:
            raise SettingsError("users", (Problem(path="users", detail=f"no {user}"),)) from exc


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), (Problem(path="file", detail=str(exc)),)) from exc


def _serve(config: ControlConfig, uids: frozenset[int]) -> int:
    nvml = Nvml(boottime_ns)
    cards = Cards(nvml, config)
    code = _started(nvml, cards, START_CALLS * config.call_s)
    if code:
        return code
    reason = asyncio.run(_until_signal(cards, config, uids))
    if reason:
        logger.error("ends: %s", reason)
    return EXIT_STUCK if reason else 0


def _started(nvml: Nvml, cards: Cards, limit_s: float) -> int:
    """Open the driver and set what the file says; 0, or the exit code where that does not work."""
    codes: list[int] = []
    # a call may hang here as well, and a process in a hang is one that its unit takes for well
    thread = threading.Thread(
        target=lambda: codes.append(_start(nvml, cards)), name="nvml-start", daemon=True
    )
    thread.start()
    thread.join(limit_s)
    if codes:
        return codes[0]
    call = nvml.under_way
    logger.error("not started in %g s: %s hangs", limit_s, call[0] if call else "nothing")
    return EXIT_STUCK


def _start(nvml: Nvml, cards: Cards) -> int:
    try:
        nvml.open()
        for setting, answer in cards.reassert():
            level = logging.INFO if isinstance(answer, Applied) else logging.ERROR
            logger.log(level, "at start %s: %s", setting, answer)
    except NvmlError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - no driver: nothing of ours to trace
        return EXIT_GONE
    return 0


async def _until_signal(cards: Cards, config: ControlConfig, uids: frozenset[int]) -> str:
    """Serve until SIGTERM or SIGINT (no reason), or until the server cannot go on."""
    server = ControlServer(cards.apply, uids, config.call_s)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    path = Path(config.socket)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(
            server.run(path, lambda: logger.info("listening on %s", path)), name="control-server"
        )
        stopping = group.create_task(stop.wait(), name="control-stop")
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        reason = serving.result() if serving.done() else ""
        serving.cancel()
    return reason


if __name__ == "__main__":
    sys.exit(main())
