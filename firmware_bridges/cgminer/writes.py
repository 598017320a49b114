"""Writes over the cgminer API: one command and its judgement, and the replacement of all pools.

Source: API-README and api.c of cgminer 4.11.1.
"""

from collections.abc import Sequence
from typing import Final

from firmware_bridges.base import WriteResult, WriteState
from firmware_bridges.cgminer.codec import Answer, Severity, decode_answers, raise_for_status
from firmware_bridges.commands import PoolTarget
from firmware_bridges.errors import BridgeError, BridgeGarbledError
from firmware_bridges.query import Asker, cgminer
from firmware_bridges.rows import RowReader
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, refused, send, unknown

_POOL_ID_MAX: Final = 10_000
_SAID_YES: Final = frozenset({Severity.SUCCESS, Severity.INFO})
_SAID_NO: Final = frozenset({Severity.ERROR, Severity.FATAL})


async def read(
    asker: Asker, command: str, address: str, deadlines: Deadlines | None = None
) -> Answer:
    """Ask for something that a write needs to know first.

    Raises:
        BridgeError: It did not answer, or it refused.
    """
    body = await asker.ask(cgminer(command), deadlines)
    (answer,) = decode_answers(body, (command,), address)
    raise_for_status(answer, address)
    return answer


async def write(
    asker: Asker, command: str, parameter: str | None, address: str, deadlines: Deadlines
) -> WriteResult:
    """Send one command that changes something, and judge what was said to it."""

    def judged(body: bytes) -> WriteResult:
        return judge(decode_answers(body, (command,), address)[0])

    return await send(asker, cgminer(command, parameter=parameter), judged, deadlines)


def judge(answer: Answer) -> WriteResult:
    """Judge the STATUS of an answer to a write; without a clear one the outcome is unknown."""
    for status in answer.status:
        code = "" if status.code is None else str(status.code)
        detail = status.message or status.description or ""
        if status.severity in _SAID_NO:
            return refused(code, detail)
        if status.severity in _SAID_YES:
            return acknowledged(detail, code)
    return unknown(BridgeGarbledError.code, f"{answer.command}: the answer has no clear status")


async def replace_pools(
    asker: Asker, pools: Sequence[PoolTarget], address: str, deadlines: Deadlines
) -> WriteResult:
    """Add the new pools, switch to the first of them, and remove the old ones.

    The old ones go last and the highest number first: so a miner is never without a pool, and the
    numbers still to be removed stay valid where those above are renumbered.

    Raises:
        BridgeError: The pools could not be read first; nothing was written.
    """
    if not pools:
        return refused("bridge.no_pools", "a miner needs at least one pool")
    old = _pool_ids(await read(asker, "pools", address))
    for pool in pools:
        parameter = ",".join(_escaped(text) for text in (pool.url, pool.user, pool.password))
        result = await write(asker, "addpool", parameter, address, deadlines)
        if result.state is not WriteState.ACKNOWLEDGED:
            return result
    try:
        now = _pool_ids(await read(asker, "pools", address))
    except BridgeError as exc:
        return unknown(exc.code, f"pools were added and could not be read: {exc.detail}")
    new = [number for number in now if number not in old]
    if not new:
        return unknown("bridge.no_effect", "pools were added and are not in the list")
    steps = [("switchpool", new[0]), *(("removepool", number) for number in sorted(old)[::-1])]
    for command, number in steps:
        result = await write(asker, command, str(number), address, deadlines)
        if result.state is not WriteState.ACKNOWLEDGED:
            return result
    return acknowledged(f"{len(new)} pools set, {len(old)} removed", result.code)


def _pool_ids(answer: Answer) -> list[int]:
    numbers = (
        RowReader(row).whole("POOL", low=0, high=_POOL_ID_MAX)
        for row in answer.section("POOLS") or ()
    )
    return [number for number in numbers if number is not None]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")
