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
