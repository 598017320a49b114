"""What /proc tells of processes: who lives, since when, in whose group, and with which mark.

Source: proc(5), /proc/PID/stat fields 3 (state), 5 (pgrp), 14, 15 (utime, stime), 22 (starttime).
"""

import os
import signal
import time
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

    def age_s(self) -> float:
        """Give how long it has lived: ticks count from boot, as CLOCK_BOOTTIME does."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return max(0.0, (now_ns - self.start_ticks * _TICK_NS) / 1e9)


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


def family(mark: str, leader: Found | None) -> list[Found]:
    """Give every living process that carries the mark or is in the leader's group, oldest first.

    The group counts only while its leader lives: after that its number may be another's.
    """
    wanted = b"\0" + f"{MARK}={mark}".encode() + b"\0"
    own = os.getpid()
    kin = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - hundreds of entries
        if not name.isdigit() or int(name) == own:
            continue
        process = find(int(name))
        if process is None:
            continue
        in_group = leader is not None and process.group == leader.pid
        if in_group or wanted in _environment(process.pid):
            kin.append(process)
    return sorted(kin, key=lambda process: (process.start_ticks, process.pid))


def lives(process: Found) -> bool:
    """Tell whether that very process lives, and not another one of its pid."""
    now = find(process.pid)
    return now is not None and now.start_ticks == process.start_ticks


def send(process: Found, number: signal.Signals) -> None:
    """Signal that very process; nothing happens when it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # the handle holds this pid's owner: what lives now is what the signal reaches
        if lives(process):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it ended in between
        return
    finally:
        os.close(handle)


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            return b"\0" + file.read(_ENVIRON_BYTES_MAX)
    except OSError:  # it ended, or belongs to somebody else
        return b""
