"""A port at which a connection is never answered: not refused, not accepted.

A listener on all addresses cannot do that for one of them. Here a socket of its own listens with a
backlog that is full already, so that the kernel drops every further attempt without a word.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

BACKLOG_FILL = 8


@contextlib.contextmanager
def silent_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Hold such a port until the block ends.

    Args:
        host: A loopback address.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(BACKLOG_FILL):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.0)
            filler.connect_ex((host, port))
        yield port
