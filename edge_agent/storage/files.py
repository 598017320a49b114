"""A folder of small immutable files: the port, the real one, and one in memory that can fail."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

from msgspec import Struct

_TEMPORARY = ".tmp"


class Space(Struct, frozen=True, kw_only=True):
    """Room on the file system that holds the folder."""

    free_bytes: int
    total_bytes: int


class Files(Protocol):
    """A folder of files that are written once, whole, and then only read or unlinked."""

    def write(self, name: str, body: bytes) -> None:
        """Make the file durable under its name, or leave nothing under that name.

        Raises:
            OSError: errno ENOSPC when full, EIO when the disk fails.
        """
        ...

    def read(self, name: str) -> bytes:
        """Read the whole file; FileNotFoundError when there is none."""
        ...

    def unlink(self, name: str) -> None:
        """Remove the file; one that is gone already is fine."""
        ...

    def names(self) -> list[str]:
        """Give the names of all whole files, sorted."""
        ...

    def space(self) -> Space:
        """Tell the room on the file system."""
        ...


class RealFiles:
    """A folder on disk.

    Args:
        folder: created when missing; half-written files of an earlier run are removed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for leftover in folder.glob(f"*{_TEMPORARY}"):
            leftover.unlink(missing_ok=True)

    def write(self, name: str, body: bytes) -> None:
        """Write beside, sync, rename, and sync the folder, so that the name is durable too."""
        temporary = self._folder / f"{name}{_TEMPORARY}"
        try:
            with temporary.open("wb") as handle:
                handle.write(body)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        self._sync_folder()

    def read(self, name: str) -> bytes:
        """Read the whole file."""
        return (self._folder / name).read_bytes()

    def unlink(self, name: str) -> None:
        """Remove the file; unsynced: a file that comes back after a power cut is removed again."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """List the folder without what is half-written."""
        found = (entry.name for entry in self._folder.iterdir() if entry.is_file())
        return sorted(name for name in found if not name.endswith(_TEMPORARY))

    def space(self) -> Space:
        """Ask the file system."""
        stat = os.statvfs(self._folder)
        return Space(
            free_bytes=stat.f_bavail * stat.f_frsize, total_bytes=stat.f_blocks * stat.f_frsize
        )

    def _sync_folder(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class MemoryFiles:
    """Files in memory with a size limit, for simulation and tests.

    Args:
        total_bytes: of the pretended file system.
    """

    def __init__(self, total_bytes: int = 64 << 30) -> None:
        self.bodies: dict[str, bytes] = {}
        self.total_bytes = total_bytes
        self.fail_with: int | None = None

    def write(self, name: str, body: bytes) -> None:
        """Keep the file, unless it does not fit or a failure was asked for."""
        if self.fail_with is not None:
            raise OSError(self.fail_with, os.strerror(self.fail_with))
        if self.space().free_bytes < len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.bodies[name] = body

    def read(self, name: str) -> bytes:
        """Read the whole file."""
        if name not in self.bodies:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.bodies[name]

    def unlink(self, name: str) -> None:
        """Remove the file."""
        self.bodies.pop(name, None)

    def names(self) -> list[str]:
        """Give the names, sorted."""
        return sorted(self.bodies)

    def space(self) -> Space:
        """Tell what is left of the limit."""
        used = sum(len(body) for body in self.bodies.values())
        return Space(free_bytes=self.total_bytes - used, total_bytes=self.total_bytes)


class Ballast:
    """A file that holds space in reserve, so that a full disk still takes what is money.

    Args:
        path: of the file. size_bytes: of the reserve. free_min_bytes: it is laid down again only
            when this much stays free beside it.
    """

    def __init__(
        self, path: Path, size_bytes: int = 256 << 20, free_min_bytes: int = 2 << 30
    ) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._free_min_bytes = free_min_bytes

    def release(self) -> bool:
        """Give the reserve back to the file system; False when it was gone already."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def restore(self) -> bool:
        """Lay the reserve down when there is room; True when it stands."""
        if self._path.exists():
            return True
        stat = os.statvfs(self._path.parent)
        if stat.f_bavail * stat.f_frsize < self._size_bytes + self._free_min_bytes:
            return False
        temporary = self._path.with_suffix(_TEMPORARY)
        try:
            with temporary.open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, self._size_bytes)
            temporary.rename(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            return False
        return True
