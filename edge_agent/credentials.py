"""Secrets by name: files given by systemd (`LoadCredential`), or of a folder in development."""

import os
from pathlib import Path

from protocol.settings import Problem, SettingsError

_SECRET_BYTES_MAX = 64 * 1_024


class Credentials:
    """Reads secrets.

    Args:
        folder: used when systemd gave none; empty: only systemd's.
    """

    def __init__(self, folder: str) -> None:
        """Prefer what systemd gave."""
        given = os.environ.get("CREDENTIALS_DIRECTORY") or folder
        self._folder = Path(given) if given else None

    def path(self, name: str) -> Path:
        """Give the file of a credential.

        Raises:
            SettingsError: there is no folder of credentials, or no such file in it.
        """
        if self._folder is None:
            raise _problem(name, "no credentials: set LoadCredential= or credentials_dir")
        path = self._folder / name
        if not path.is_file():
            raise _problem(name, f"no file {name} among the credentials")
        return path

    def text(self, name: str) -> str:
        """Read a credential as text, without the final newline.

        Raises:
            SettingsError: it is missing or larger than 64 KiB.
        """
        path = self.path(name)
        if path.stat().st_size > _SECRET_BYTES_MAX:
            raise _problem(name, f"larger than {_SECRET_BYTES_MAX} bytes")
        return path.read_text(encoding="utf-8").rstrip("\n")


def _problem(name: str, detail: str) -> SettingsError:
    return SettingsError("credentials", (Problem(path=name, detail=detail),))
