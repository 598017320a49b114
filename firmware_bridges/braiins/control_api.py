"""Control of Braiins OS up to 25.05, over the cgminer API: pause, resume, pools.

The program stays up while it is paused, and nothing on this wire says that it was told to pause:
what it does is read off its rate. Source: the vendor's API documents.
"""

from typing import Final

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.braiins.sheets import API_SHEET
from firmware_bridges.cgminer.codec import decode_answers
from firmware_bridges.cgminer.decode import decode_summary
from firmware_bridges.cgminer.writes import judge, read, replace_pools
from firmware_bridges.commands import Command, SetPools, Sleep
from firmware_bridges.document import object_of, read_json
from firmware_bridges.errors import BridgeError, BridgeGarbledError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import cgminer
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, deadlines_for, send, unknown

_DONE: Final = [True]


class BraiinsApiControl:
    """The writes of one miner.

    Args:
        context: What it is made of.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address

    async def mode(self) -> WorkMode | None:
        """Tell `normal` of a miner that hashes; `None` otherwise, because this wire has no word.

        Raises:
            BridgeError: It could not be read.
        """
        rate_ths = decode_summary(await read(self._asker, "summary", self._address)).hashrate_ths
        return WorkMode.NORMAL if rate_ths else None

    async def write(self, command: Command) -> WriteResult:
        """Send one command.

        Raises:
            BridgeUnsupportedError: This wire has no such command; nothing was sent.
            BridgeError: The pools could not be read first; nothing was written.
        """
        deadlines = deadlines_for(API_SHEET, command, self._address)
        if isinstance(command, SetPools):
            return await replace_pools(self._asker, command.pools, self._address, deadlines)
        # The sheet has no other rows.
        return await self._switch("pause" if isinstance(command, Sleep) else "resume", deadlines)

    async def _switch(self, word: str, deadlines: Deadlines) -> WriteResult:
        body = await send(self._asker, cgminer(word), deadlines)
        if isinstance(body, WriteResult):
            return body
        return judge_switch(body, word, self._address)


def judge_switch(body: bytes, word: str, address: str) -> WriteResult:
    """Judge the answer to `pause` or `resume`: `PAUSE: [true]`, or a STATUS that says no."""
    try:
        document = read_json(body, address, word)
        if object_of(document).get(word.upper()) == _DONE:
            return acknowledged("", word)
        (answer,) = decode_answers(body, (word,), address)
    except BridgeError as exc:
        return unknown(exc.code, exc.detail)
    result = judge(answer)
    if result == acknowledged(result.code, result.detail):
        return unknown(BridgeGarbledError.code, f"{word}: the answer does not say that it was done")
    return result
