"""`hcp-agent gpu-control --config FILE`: the privileged helper as a program."""

import argparse
import asyncio
import logging
import pwd
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.control.bounds import ControlConfig, control_config_from_toml
from firmware_bridges.nvml.control.cards import Cards
from firmware_bridges.nvml.control.messages import Applied
from firmware_bridges.nvml.control.server import ControlServer, end_now
from firmware_bridges.nvml.errors import NvmlGoneError
from firmware_bridges.nvml.library import Nvml
from protocol.settings import Problem, SettingsError

logger = logging.getLogger(__name__)

EXIT_USAGE: Final = 2
EXIT_GONE: Final = 3
EXIT_STUCK: Final = 4


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
    try:
        nvml.open()
        for setting, answer in cards.reassert():
            level = logging.INFO if isinstance(answer, Applied) else logging.ERROR
            logger.log(level, "at start %s: %s", setting, answer)
    except NvmlGoneError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - no driver: nothing of ours to trace
        return EXIT_GONE
    reason = asyncio.run(_until_signal(cards, config, uids))
    if reason:
        logger.error("ends: %s", reason)
    return EXIT_STUCK if reason else 0


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
