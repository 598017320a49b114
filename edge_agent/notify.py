"""sd_notify without a library: the protocol is one datagram."""

import os
import socket


def sd_notify(message: str) -> bool:
    """Tell systemd, e.g. ``READY=1`` or ``WATCHDOG=1``; False when not started by it.

    Source: sd_notify(3), systemd 252.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(message.encode())
    return True


def watchdog_period_s() -> float | None:
    """Give half the watchdog's limit in seconds, or None when there is no watchdog for us."""
    limit_us, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not limit_us or (pid and int(pid) != os.getpid()):
        return None
    return int(limit_us) / 2e6


class Pulse:
    """Tells whether decisions are still being made: a stuck one must not be hidden by a free timer.

    Args:
        now_ns: boottime of the start. tick_s: period of the decision.
    """

    def __init__(self, now_ns: int, tick_s: float) -> None:
        """Count from the start, so that the first pass has its time."""
        self._limit_ns = int(2 * tick_s * 1e9)
        self._passes = 0
        self._moved_ns = now_ns

    def alive(self, passes: int, now_ns: int) -> bool:
        """Give False when no pass was made for two ticks."""
        if passes != self._passes:
            self._passes, self._moved_ns = passes, now_ns
        return now_ns - self._moved_ns <= self._limit_ns
