"""What /proc tells of processes: who lives, since when, in whose group, and with which mark.

Source: proc(5), /proc/PID/stat fields 3 (state), 5 (pgrp), 14, 15 (utime, stime), 22 (starttime).
"""

import os
from typing import Final

from msgspec import Struct

MARK: Final = "HCP_ENGINE"

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_ENVIRON_BYTES_MAX: Final = 256 * 1_024


class Found(Struct, frozen=True):
    """One process that lives; a zombie does not.

    Args:
        start_ticks: With the pid it names one process of this boot.
        cpu_ns: Processor time so far.
    """

    pid: int
    group: int
    start_ticks: int
    cpu_ns: int


def find(pid: int) -> Found | None:
    """Give a process, None when there is no living one of that pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - read hundreds of times a scan
            data = file.read(4_096)
    except OSError:
        return None
    # the name stands in brackets and may hold anything, brackets and blanks too
    fields = data[data.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return Found(
        pid, int(fields[2]), int(fields[19]), (int(fields[11]) + int(fields[12])) * _TICK_NS
    )


def marked(mark: str) -> list[Found]:
    """Give every living process whose environment carries the mark, first started first."""
    wanted = b"\0" + f"{MARK}={mark}".encode() + b"\0"
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above
    carrying = [pid for pid in pids if pid != own and wanted in _environment(pid)]
    found = [process for process in map(find, carrying) if process is not None]
    return sorted(found, key=lambda process: (process.start_ticks, process.pid))


def group_lives(group: int) -> bool:
    """Tell whether anybody, a zombie included, is in a process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            return b"\0" + file.read(_ENVIRON_BYTES_MAX)
    except OSError:  # it ended, or belongs to somebody else
        return b""
