"""The output of a program: a file that is cut when it grows, whoever writes to it."""

import contextlib
import os
from pathlib import Path
from typing import Final

OUTPUT_BYTES_MAX: Final = 4 * 1_024 * 1_024
KEPT_BYTES: Final = 256 * 1_024
_TAIL_BYTES: Final = 2_000
_TAIL_CHARS_MAX: Final = 300


class Output:
    """The output of one engine.

    The program appends, so that it goes on at the start when the file is cut under it; the end of
    what is cut away is kept beside it. It is cut when somebody looks, which the host does each
    second.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the file, readable to its owner only: programs print what they should not."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))

    def cut(self) -> None:
        """Cut it when it has grown over its bound."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > OUTPUT_BYTES_MAX:
                self.path.with_suffix(".old").write_bytes(self._end(KEPT_BYTES))
                os.truncate(self.path, 0)

    def last_words(self) -> str:
        """Give the end of what it said, on one line; empty when it said nothing."""
        try:
            text = self._end(_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
        printable = "".join(char if char.isprintable() else " " for char in text)
        return " ".join(printable.split())[-_TAIL_CHARS_MAX:]

    def _end(self, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size)
