"""Errors of the wire.

Tree::

    ProtocolError            code, field
    ├── DecodeError          bytes from a peer that cannot be read (their fault)
    └── EncodeError          a value of ours that must not go on the wire (our fault)
"""


class ProtocolError(Exception):
    """Base of every error raised by this package.

    Args:
        code: stable machine-readable code, e.g. ``too_large``.
        detail: one sentence for a person.
        field: path of the offending field, or None when the whole message is meant.
    """

    def __init__(self, code: str, detail: str, field: str | None = None) -> None:
        """Keep the facts as attributes."""
        super().__init__(f"{code}: {detail}" if field is None else f"{code}: {field}: {detail}")
        self.code = code
        self.detail = detail
        self.field = field


class DecodeError(ProtocolError):
    """Bytes from a peer that cannot be read; the peer is at fault, the loop goes on."""


class EncodeError(ProtocolError):
    """A value of ours that must not go on the wire; a programming error."""
