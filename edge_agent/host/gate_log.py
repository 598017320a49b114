"""The log of the gates: what was really served, one line per event, never changed afterwards.

A dispute is settled from it. A line is written before anybody is told what it says, by one write
to a file opened for appending, so that killing this process loses none that was told. It is not
synced: the node's own store is, and a power cut ends what was served anyway.
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

SEGMENT_BYTES_MAX = 64 * 1_024 * 1_024
SEGMENTS_MAX = 16
_MODE = 0o640


class GateLine(Struct, frozen=True, kw_only=True):
    """What happened at one gate: ``open``, ``mark`` or ``close``.

    Args:
        energy_measured: False: no counter was read, so ``energy_mj`` says nothing.
    """

    t: str
    process_id: str
    boot_id: str
    gpu: str
    model: str
    instance_id: str
    lease_id: str
    attempt: int
    at_ns: int
    wall_ns: int
    served_ns: int
    energy_mj: int
    energy_measured: bool
    requests: int
    tokens_in: int
    tokens_out: int


class GateLog:
    """Appends lines; a file that is full is set aside under a number, the oldest go first.

    Args:
        path: of the file written to now; its folder exists.
    """

    def __init__(
        self,
        path: Path,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        segments_max: int = SEGMENTS_MAX,
    ) -> None:
        self._path = path
        self._segment_bytes_max = segment_bytes_max
        self._segments_max = segments_max
        self._fd = self._open()
        self._written = os.fstat(self._fd).st_size
        self._mend()

    def write(self, *lines: GateLine) -> None:
        """Append lines as one write.

        Raises:
            OSError: the disk; nothing of it must be told.
        """
        if not lines:
            return
        data = b"".join([msgspec.json.encode(line) + b"\n" for line in lines])
        if self._written + len(data) > self._segment_bytes_max:
            self._set_aside()
        written = os.write(self._fd, data)
        if written != len(data):
            # A torn line would spoil the next one too, which is this one tried again.
            os.ftruncate(self._fd, self._written)
            raise OSError(f"{self._path}: {written} of {len(data)} bytes written")
        self._written += written

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._path, flags, _MODE)

    def _mend(self) -> None:
        """End a line that a power cut tore, so that it spoils no other."""
        with self._path.open("rb") as file:
            file.seek(max(0, self._written - 1))
            if file.read(1) not in {b"", b"\n"}:
                self._written += os.write(self._fd, b"\n")

    def _set_aside(self) -> None:
        aside = self._aside()
        number = aside[-1][0] + 1 if aside else 1
        full = self._path.with_name(f"{self._path.name}.{number}")
        self._path.rename(full)
        try:
            fd = self._open()
        except OSError:
            full.rename(self._path)  # the old file is the one written to still
            raise
        os.close(self._fd)
        self._fd, self._written = fd, 0
        for _, old in aside[: max(0, len(aside) + 2 - self._segments_max)]:
            old.unlink()

    def _aside(self) -> list[tuple[int, Path]]:
        names = self._path.parent.glob(f"{self._path.name}.*")
        return sorted((int(one.suffix[1:]), one) for one in names if one.suffix[1:].isdecimal())
