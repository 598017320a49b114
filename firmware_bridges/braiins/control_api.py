"""Control of Braiins OS up to 25.05, over the cgminer API: pause, resume, pools.

The program stays up while it is paused; its tuner says so on most releases, and its rate on all.
Source: the vendor's API documents; public fleet tools on the words of the tuner.
"""

from typing import Final

from firmware_bridges.base import WorkMode, WriteResult, WriteState
from firmware_bridges.braiins.decode_api import decode_tunerstatus
from firmware_bridges.braiins.sheets import API_SHEET
from firmware_bridges.cgminer.codec import decode_answers
from firmware_bridges.cgminer.decode import decode_summary
from firmware_bridges.cgminer.writes import judge, read, replace_pools
from firmware_bridges.commands import Command, SetPools, Sleep
from firmware_bridges.document import object_of, read_json
from firmware_bridges.errors import BridgeGarbledError
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
        """Tell `sleep` of a miner whose tuner says that it is paused, `normal` of one that hashes.

        Raises:
            BridgeError: It could not be read.
        """
        told = decode_tunerstatus(await read(self._asker, "tunerstatus", self._address))
        if told.configured_mode is not None:
            return told.configured_mode
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
        def judged(body: bytes) -> WriteResult:
            return judge_switch(body, word, self._address)

        return await send(self._asker, cgminer(word), judged, deadlines)


def judge_switch(body: bytes, word: str, address: str) -> WriteResult:
    """Judge the answer to `pause` or `resume`: `PAUSE: [true]`, or a STATUS that says no.

    Raises:
        BridgeGarbledError: It cannot be understood.
    """
    if object_of(read_json(body, address, word)).get(word.upper()) == _DONE:
        return acknowledged(word)
    result = judge(decode_answers(body, (word,), address)[0])
    if result.state is WriteState.REFUSED:
        return result
    return unknown(BridgeGarbledError.code, f"{word}: the answer does not say that it was done")
