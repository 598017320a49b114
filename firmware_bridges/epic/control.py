"""Writes of ePIC UMC: each is a POST of one parameter with the password in its body.

The target of tuning is in watts with the algorithm `Power` and in TH/s with the others, so a power
limit changes the algorithm. Source: the vendor's API documents of 1.22.5 and 1.30.0.
"""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetPools,
    SetPowerLimit,
    Sleep,
    Wake,
)
from firmware_bridges.document import read_json
from firmware_bridges.epic.decode import decode_summary
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.paths import dig
from firmware_bridges.query import page, submit
from firmware_bridges.rows import as_text
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, refused, send

FACTORY_PASSWORD: Final = "letmein"  # noqa: S105 - the maker's published default
DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=10.0)
CODE_REFUSED: Final = "epic.refused"


class EpicControl:
    """Commands one machine.

    Args:
        context: To the machine; its credentials give the password alone.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address
        given = context.credentials
        self._password = FACTORY_PASSWORD if given is None else given.password

    async def mode(self) -> WorkMode | None:
        """Read what it was told; idling is sleep.

        Raises:
            BridgeError: It could not be read.
        """
        body = await self._asker.ask(page("/summary"))
        return decode_summary(read_json(body, self._address, "/summary")).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command; see `MinerControl`."""
        path, parameter = self._request(command)
        query = submit(path, {"param": parameter, "password": self._password})
        return await send(self._asker, query, self._judge, DEADLINES)

    def _request(self, command: Command) -> tuple[str, object]:
        match command:
            case Sleep():
                return "/miner", "Stop"
            case Wake(mode=None | WorkMode.NORMAL):
                return "/miner", "Autostart"
            case RestartMining():
                return "/softreboot", None
            case Reboot():
                # The parameter is a delay in seconds.
                return "/reboot", 0
            case Locate(on=on):
                return "/identify", on
            case SetPowerLimit(power_w=power_w):
                return "/perpetualtune/algo", {"algo": "Power", "target": power_w}
            case SetPools(pools=pools):
                return "/coin", {
                    "coin": "BTC",
                    "stratum_configs": [
                        {"pool": pool.url, "login": pool.user, "password": pool.password}
                        for pool in pools
                    ],
                    "unique_id": False,
                }
        raise BridgeUnsupportedError(self._address, f"{type(command).__name__}: not on ePIC")

    def _judge(self, body: bytes) -> WriteResult:
        value = read_json(body, self._address).value
        result = dig(value, "result")
        if result is True:
            return acknowledged()
        if result is False:
            return refused(CODE_REFUSED, _reason(dig(value, "error")))
        raise BridgeGarbledError(self._address, "the answer names no result", sent=True)


def _reason(error: object) -> str:
    if isinstance(error, Mapping):
        return ", ".join(f"{name}: {value}" for name, value in error.items())
    return as_text(error) or "no reason given"
