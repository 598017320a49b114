"""The unprivileged side: asks the helper for one setting and knows what the answer means."""

import asyncio
from pathlib import Path
from typing import Final

from firmware_bridges.nvml.control.messages import (
    ANSWER,
    MESSAGE_BYTES_MAX,
    PREFIX_BYTES,
    Answer,
    Applied,
    Refused,
    Setting,
    pack,
)
from firmware_bridges.nvml.errors import ControlRefusedError, ControlUnknownError
from protocol.errors import DecodeError

CONNECT_S: Final = 2.0
# Longer than the helper's own limit on a call, which it answers with.
ANSWER_S: Final = 20.0


class ControlClient:
    """Asks the helper; one connection per setting."""

    def __init__(self, path: Path, *, answer_s: float = ANSWER_S) -> None:
        self._path = path
        self._answer_s = answer_s

    async def apply(self, setting: Setting) -> None:
        """Have one setting carried out.

        Raises:
            ControlRefusedError: it was not, for the reason in it; also when no helper listens.
            ControlUnknownError: whether it was is unknown.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._path)
        except (OSError, TimeoutError) as exc:
            raise ControlRefusedError("away", f"{self._path}: {exc}") from exc
        try:
            async with asyncio.timeout(self._answer_s):
                writer.write(pack(setting))
                answer = await _answer(reader)
        except (OSError, TimeoutError, EOFError, DecodeError) as exc:
            raise ControlUnknownError("no_answer", str(exc) or type(exc).__name__) from exc
        finally:
            writer.close()
        match answer:
            case Applied():
                return
            case Refused():
                raise ControlRefusedError(answer.reason, answer.detail)
            case _:
                raise ControlUnknownError("unconfirmed", answer.detail)


async def _answer(reader: asyncio.StreamReader) -> Answer:
    size = int.from_bytes(await reader.readexactly(PREFIX_BYTES), "big")
    if size > MESSAGE_BYTES_MAX:
        raise DecodeError("too_large", f"{size} bytes, at most {MESSAGE_BYTES_MAX}")
    return ANSWER.decode(await reader.readexactly(size))
