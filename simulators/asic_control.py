"""The control socket of a simulated fleet: faults in, ground truth out.

One JSON message per line on a Unix socket, one line back: `{"do":"truth"}`,
`{"do":"fault","kind":"hung","miners":[0],"for_s":10}`, `{"do":"clear","miners":[0]}`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from simulators.asic_faults import FaultKind
from simulators.asic_fleet import Fleet, Truth
from simulators.errors import SettingError

LINE_BYTES_MAX = 1 << 20


class SetFault(msgspec.Struct, frozen=True, tag_field="do", tag="fault"):
    """Give some miners a fault, for some seconds or till it is cleared."""

    kind: FaultKind
    miners: tuple[int, ...]
    for_s: float | None = None


class ClearFault(msgspec.Struct, frozen=True, tag_field="do", tag="clear"):
    """End the faults of some miners."""

    miners: tuple[int, ...]


class AskTruth(msgspec.Struct, frozen=True, tag_field="do", tag="truth"):
    """Ask what every miner has really done."""


class ControlAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a control message; `error` says what was wrong with it."""

    ok: bool
    error: str | None = None
    truth: list[Truth] | None = None


def obey(fleet: Fleet, line: bytes) -> ControlAnswer:
    """Carry out one control message."""
    try:
        message = msgspec.json.decode(line, type=SetFault | ClearFault | AskTruth)
        if isinstance(message, SetFault):
            fleet.inject(message.kind, message.miners, for_s=message.for_s)
        elif isinstance(message, ClearFault):
            fleet.clear(message.miners)
        else:
            return ControlAnswer(ok=True, truth=fleet.truth())
    except (msgspec.DecodeError, SettingError) as error:
        return ControlAnswer(ok=False, error=str(error))
    return ControlAnswer(ok=True)


@contextlib.asynccontextmanager
async def serve_control(fleet: Fleet, path: Path | None) -> AsyncIterator[None]:
    """Listen on a Unix socket until the block ends; no path, no socket."""
    if path is None:
        yield
        return

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A line above the limit ends the talk: whoever sends it is no client of ours.
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(msgspec.json.encode(obey(fleet, line)) + b"\n")
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(talk, path, limit=LINE_BYTES_MAX):
        yield
