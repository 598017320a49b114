"""Errors of the bridges.

Tree::

    BridgeError                      code, address, detail, sent
    ├── BridgeTimeoutError           the device did not connect or answer in time
    ├── BridgeUnreachableError       no route, or the connection broke
    ├── BridgeRefusedError           the device was reached and said no
    ├── BridgeAuthError              it wants other credentials, or more rights
    ├── BridgeUnsupportedError       it does not know the command
    └── BridgeGarbledError           what it sent cannot be understood, or is over a limit
"""

from typing import ClassVar


class BridgeError(Exception):
    """A device could not be read or written; the caller decides what follows.

    Args:
        address: The device's host and port, `host:port`.
        detail: What happened, for a person.
        sent: True when the whole request may have reached the device, so that a write is of
            unknown outcome; False when it certainly did not.
    """

    code: ClassVar[str] = "bridge.error"

    def __init__(self, address: str, detail: str, *, sent: bool = False) -> None:
        super().__init__(f"{address}: {detail} [{self.code}]")
        self.address = address
        self.detail = detail
        self.sent = sent

    @property
    def is_silence(self) -> bool:
        """Tell a wire that does not answer from one that answers badly."""
        if isinstance(self, BridgeTimeoutError | BridgeUnreachableError):
            return True
        return isinstance(self, BridgeRefusedError) and not self.sent


class BridgeTimeoutError(BridgeError):
    """The device did not connect or did not answer in time."""

    code: ClassVar[str] = "bridge.timeout"


class BridgeUnreachableError(BridgeError):
    """No route to the device, or the connection broke."""

    code: ClassVar[str] = "bridge.unreachable"


class BridgeRefusedError(BridgeError):
    """The device was reached and refused the connection or the command."""

    code: ClassVar[str] = "bridge.refused"


class BridgeAuthError(BridgeError):
    """The device rejects the credentials or the rights of this client."""

    code: ClassVar[str] = "bridge.auth"


class BridgeUnsupportedError(BridgeError):
    """The firmware does not know the command."""

    code: ClassVar[str] = "bridge.unsupported"


class BridgeGarbledError(BridgeError):
    """The answer cannot be understood, even after every repair, or it is over a limit."""

    code: ClassVar[str] = "bridge.garbled"
