"""Writes of MaraFW: the whole configuration is read, changed at one place, and posted back.

Sleep is a work mode (`Sleep`) beside `Auto`, `Fixed` and `Stock`; the mode to wake into is the last
other one in the log of configurations, so that resuming restores what the owner had chosen.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.commands import (
    Command,
    Locate,
    PoolTarget,
    Reboot,
    RestartMining,
    SetPools,
    SetPowerLimit,
    Sleep,
    Wake,
)
from firmware_bridges.document import object_of, read_json
from firmware_bridges.errors import BridgeError, BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.mara.decode import mode_of
from firmware_bridges.paths import dig, object_at
from firmware_bridges.query import page, submit
from firmware_bridges.rows import as_text
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, refused, send

V1: Final = "/kaonsu/v1/"
SELECTOR: Final = "work-mode-selector"
SLEEP: Final = "Sleep"
WAKE_DEFAULT: Final = "Auto"
MODES: Final = ("Auto", "Fixed", "Stock")
DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=15.0)
CODE_REFUSED: Final = "mara.refused"
HISTORY: Final = "log?type=miner_config_history"
NODES_MAX: Final = 20_000


class MaraControl:
    """Commands one machine.

    Args:
        context: To the machine.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address

    async def mode(self) -> WorkMode | None:
        """Read the selected mode.

        Raises:
            BridgeError: It could not be read.
        """
        return mode_of(as_text(dig(await self._configuration(), "mode", SELECTOR)))

    async def write(self, command: Command) -> WriteResult:
        """Send one command; see `MinerControl`."""
        match command:
            case Sleep():
                return await self._configure("mode", {SELECTOR: SLEEP})
            case Wake(mode=None | WorkMode.NORMAL):
                return await self._configure("mode", {SELECTOR: await self._former_mode()})
            case SetPowerLimit(power_w=power_w):
                return await self._limit(power_w)
            case SetPools(pools=pools):
                return await self._post("pools", [_pool(pool) for pool in pools])
            case Locate(on=on):
                return await self._post("locate_miner", {"blinking": on})
            case Reboot():
                return await self._post("maintenance", {"type": "reboot"})
            case RestartMining():
                return await self._post("maintenance", {"type": "reload"})
        raise BridgeUnsupportedError(self._address, f"{type(command).__name__}: not on MaraFW")

    async def _configuration(self) -> Mapping[str, object]:
        """Read the configuration; only an intact one may be written back.

        Raises:
            BridgeError: It could not be read, or is no whole object.
        """
        document = read_json(await self._asker.ask(page(V1 + "miner_config")), self._address)
        value = object_of(document)
        if not value or document.truncated or not isinstance(value.get("mode"), dict):
            raise BridgeGarbledError(self._address, "miner_config: no whole configuration")
        return value

    async def _configure(self, member: str, changes: Mapping[str, object]) -> WriteResult:
        whole = await self._configuration()
        changed = {**whole, member: {**object_at(whole, member), **changes}}
        return await self._post("miner_config", changed)

    async def _limit(self, power_w: int) -> WriteResult:
        whole = await self._configuration()
        target = {**object_at(whole, "mode", "concorde"), "power-target": power_w}
        mode = {**object_at(whole, "mode"), "concorde": target}
        return await self._post("miner_config", {**whole, "mode": mode})

    async def _former_mode(self) -> str:
        """Give the last mode that was no sleep; a log that cannot be read costs the choice only."""
        try:
            document = read_json(await self._asker.ask(page(V1 + HISTORY)), self._address)
        except BridgeError:
            return WAKE_DEFAULT
        found = [mode for mode in _selectors(document.value) if mode in MODES]
        return found[-1] if found else WAKE_DEFAULT

    async def _post(self, name: str, body: object) -> WriteResult:
        query = submit(V1 + name, msgspec.json.encode(body))
        return await send(self._asker, query, self._judge, DEADLINES)

    def _judge(self, body: bytes) -> WriteResult:
        value = read_json(body, self._address).value
        error = dig(value, "error")
        if error is False:
            return acknowledged()
        if error is True or isinstance(error, str):
            detail = as_text(dig(value, "error_description")) or as_text(error) or "no reason given"
            return refused(CODE_REFUSED, detail)
        raise BridgeGarbledError(self._address, "the answer names no result", sent=True)


def _pool(pool: PoolTarget) -> dict[str, str]:
    return {"url": pool.url, "user": pool.user, "pass": pool.password}


def _selectors(value: object) -> Iterator[str]:
    """Find every mode in a log of configurations, oldest first, however deep they stand."""
    stack, left = [value], NODES_MAX
    while stack and left > 0:
        node, left = stack.pop(), left - 1
        if isinstance(node, Mapping):
            mode = as_text(node.get(SELECTOR))
            if mode is not None:
                yield mode
            stack.extend(reversed(list(node.values())))
        elif isinstance(node, list):
            stack.extend(reversed(node))
