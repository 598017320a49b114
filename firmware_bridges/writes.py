"""What became of a write: the miner's answer, or its silence, as one `WriteResult`."""

from collections.abc import Callable
from typing import Final

from firmware_bridges.base import WriteResult, WriteState
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.query import Asker, Query
from firmware_bridges.transport import Deadlines

DETAIL_CHARS_MAX: Final = 200


async def send(
    asker: Asker,
    query: Query,
    judge: Callable[[bytes], WriteResult],
    deadlines: Deadlines | None = None,
) -> WriteResult:
    """Send one write and judge what came back.

    Args:
        asker: To the miner.
        query: The write.
        judge: Reads the answer; it raises `BridgeError` where that cannot be understood.
        deadlines: Of this exchange.

    Returns:
        `unknown` where the request may have reached the miner and nothing clear came back.
    """
    try:
        return judge(await asker.ask(query, deadlines))
    except (BridgeAuthError, BridgeRefusedError, BridgeUnsupportedError) as exc:
        return refused(exc.code, exc.detail)
    except BridgeError as exc:
        return unknown(exc.code, exc.detail) if exc.sent else refused(exc.code, exc.detail)


def acknowledged(detail: str = "", code: str = "") -> WriteResult:
    """Give the result of a write that the miner said yes to."""
    return _result(WriteState.ACKNOWLEDGED, code, detail)


def refused(code: str, detail: str) -> WriteResult:
    """Give the result of a write that certainly did not take place."""
    return _result(WriteState.REFUSED, code, detail)


def unknown(code: str, detail: str) -> WriteResult:
    """Give the result of a write that may or may not have taken place."""
    return _result(WriteState.UNKNOWN, code, detail)


def _result(state: WriteState, code: str, detail: str) -> WriteResult:
    return WriteResult(state=state, code=code, detail=detail[:DETAIL_CHARS_MAX])
