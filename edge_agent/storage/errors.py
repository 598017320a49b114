"""Errors of the agent's storage.

Tree::

    StorageError                  code
    ├── StoreFullError            no space: nothing was changed, the caller keeps its data
    ├── StoreIoError              the disk failed: whether the last commit holds is unknown
    ├── StoreCorruptError         the file is not a sound database of ours
    ├── StoreTooNewError          written by a newer version of this program
    ├── StoreClosedError          used before start or after close
    └── SegmentLostError          a telemetry segment is missing or does not match its digest
"""


class StorageError(Exception):
    """Base of every storage error.

    Args:
        detail: one sentence for a person.
    """

    code = "storage"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{self.code}: {detail}")
        self.detail = detail


class StoreFullError(StorageError, OSError):
    """No space left: nothing of the batch was stored."""

    code = "store_full"


class StoreIoError(StorageError, OSError):
    """The disk failed under a write."""

    code = "store_io"


class StoreCorruptError(StorageError):
    """The file is not a sound database."""

    code = "store_corrupt"


class StoreTooNewError(StorageError):
    """The file has migrations that this program does not know."""

    code = "store_too_new"


class StoreClosedError(StorageError):
    """The store is not open."""

    code = "store_closed"


class SegmentLostError(StorageError):
    """A segment cannot be read back as it was written."""

    code = "segment_lost"
