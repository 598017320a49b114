"""What a driver must still know of its engine after a restart of agent, node or host.

No fsync: a record serves within one boot, and what a process wrote outlives its death. After a
crash of the machine the engine is gone as well, and the record names another boot.
"""

import os
import re
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RECORD_BYTES_MAX: Final = 64 * 1_024


def checked_name(engine_id: str) -> str:
    """Give an engine's id where it may name a file.

    Raises:
        ValueError: It is no plain name.
    """
    if _NAME.fullmatch(engine_id) is None:
        raise ValueError(f"engine_id: {engine_id!r} is no plain name")
    return engine_id


class EngineRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine.

    Args:
        boot_id: Of the boot in which it was started.
        pid: Of its first process, 0 = not started; it leads its own session.
        start_ticks: When that process started (/proc/PID/stat, field 22): pids are used again.
        canary_sha256: Of the right answer, as learnt.
        parked: It was ended to free its GPU, and starts again when it is resumed.
        asleep_level: How deep it is put to sleep; 0 = awake. asleep_from_mib: memory used before.
        slept: It was seen to sleep: its memory came free, where that can be measured.
    """

    boot_id: str = ""
    pid: int = 0
    start_ticks: int = 0
    canary_sha256: str = ""
    parked: bool = False
    asleep_level: int = 0
    asleep_from_mib: int | None = None
    slept: bool = False


class Records(Protocol):
    """The record of one engine."""

    def read(self) -> EngineRecord:
        """Give it; an empty one when there is none that can be read."""
        ...

    def write(self, record: EngineRecord) -> None:
        """Replace it."""
        ...


class RecordFile:
    """A record in a file of its own.

    Args:
        folder: Of the records; made when missing.
        engine_id: Names the file.

    Raises:
        ValueError: The name is none for a file.
    """

    def __init__(self, folder: Path, engine_id: str) -> None:
        self._path = folder / f"{checked_name(engine_id)}.json"

    def read(self) -> EngineRecord:
        """Give the record; a damaged file counts as none: the program is found by its mark."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_RECORD_BYTES_MAX), type=EngineRecord)
        except (OSError, msgspec.MsgspecError):
            return EngineRecord()

    def write(self, record: EngineRecord) -> None:
        """Replace the record at once, or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(record))
        os.replace(fresh, self._path)  # noqa: PTH105 - the one rename that replaces


class MemoryRecords:
    """A record in memory: for tests, and for engines whose state is told by themselves."""

    def __init__(self) -> None:
        self._record = EngineRecord()

    def read(self) -> EngineRecord:
        """Give it."""
        return self._record

    def write(self, record: EngineRecord) -> None:
        """Replace it."""
        self._record = record
