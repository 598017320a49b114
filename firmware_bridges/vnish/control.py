"""Writes of VNish: POST to REST with a token; what answers is `success`, or the state that is set.

A power limit is a preset: their names are watts, and the dearest one within the limit is taken. An
untuned preset is tuned first, so the effect may take long.
"""

from collections.abc import Iterable
from typing import Final

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.document import read_json
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.paths import dig
from firmware_bridges.query import Query, page, submit
from firmware_bridges.rows import as_text, rows_of
from firmware_bridges.transport import Deadlines
from firmware_bridges.vnish.decode import decode_summary_page
from firmware_bridges.writes import acknowledged, refused, send

V1: Final = "/api/v1/"
THROTTLE_MIN: Final = 20
DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=10.0)
CODE_REFUSED: Final = "vnish.refused"


class VnishControl:
    """Commands one machine.

    Args:
        context: To the machine.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address

    async def mode(self) -> WorkMode | None:
        """Read what it was told.

        Raises:
            BridgeError: It could not be read.
        """
        key = V1 + "summary"
        body = await self._asker.ask(page(key))
        return decode_summary_page(read_json(body, self._address, key)).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command; see `MinerControl`."""
        if isinstance(command, SetPowerLimit):
            preset = await self._preset_within(command.power_w)
            if preset is None:
                return refused(CODE_REFUSED, f"no preset of {command.power_w} W or less")
            body: dict[str, object] = {"miner": {"overclock": {"preset": preset}}}
            return await self._send(submit(V1 + "settings", body))
        return await self._send(self._query(command))

    def _query(self, command: Command) -> Query:
        match command:
            case Sleep():
                return submit(V1 + "mining/stop", None)
            case Wake(mode=None | WorkMode.NORMAL):
                return submit(V1 + "mining/start", None)
            case RestartMining():
                return submit(V1 + "mining/restart", None)
            case Reboot():
                return submit(V1 + "system/reboot", {"after": 0})
            case Locate(on=on):
                return submit(V1 + "find-miner", {"on": on})
            case SetPowerPercent(percent=percent) if percent >= THROTTLE_MIN:
                return submit(V1 + "mining/throttle", {"percent": percent})
            case SetPools(pools=pools):
                rows = [
                    {"url": pool.url, "user": pool.user, "pass": pool.password, "order": place}
                    for place, pool in enumerate(pools)
                ]
                return submit(V1 + "settings", {"miner": {"pools": rows}})
        raise BridgeUnsupportedError(self._address, f"{type(command).__name__}: not on VNish")

    async def _preset_within(self, limit_w: int) -> str | None:
        """Give the dearest preset whose name is no more watts than the limit.

        Raises:
            BridgeError: The presets could not be read.
        """
        key = V1 + "autotune/presets"
        document = read_json(await self._asker.ask(page(key)), self._address, key)
        return dearest_within(
            (as_text(row.get("name")) for row in rows_of(document.value)), limit_w
        )

    async def _send(self, query: Query) -> WriteResult:
        return await send(self._asker, query, self._judge, DEADLINES)

    def _judge(self, body: bytes) -> WriteResult:
        if not body.strip():
            return acknowledged()
        value = read_json(body, self._address).value
        error = as_text(dig(value, "err")) or as_text(dig(value, "error"))
        if error is not None or dig(value, "success") is False:
            return refused(CODE_REFUSED, error or "no reason given")
        if not isinstance(value, dict):
            raise BridgeGarbledError(self._address, "the answer names no result", sent=True)
        return acknowledged("restart required" if value.get("restart_required") is True else "")


def dearest_within(names: Iterable[str | None], limit_w: int) -> str | None:
    """Choose the preset of most watts that the limit allows; others have names without digits."""
    watts = [int(name) for name in names if name is not None and name.isascii() and name.isdigit()]
    allowed = [power_w for power_w in watts if power_w <= limit_w]
    return str(max(allowed)) if allowed else None
