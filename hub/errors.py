"""Errors of the hub.

Tree::

    HubError                     code
    ├── ConfigError              a config file or an option cannot be used
    ├── StoreError               the store cannot do it
    │   ├── StoreBusyError       too much waits already, or another process holds the store
    │   ├── StoreClosedError     the store has been closed
    │   ├── ReadTooLongError     a report took longer than it may
    │   └── MigrationError       the schema on disk is not one that this version can use
    ├── IllegalTransitionError   a workload cannot go from that state to this one
    ├── NotFoundError            no such row, or not one that the asker may see
    ├── InvoiceError             a period cannot be closed as asked
    └── MetricsError             the telemetry store cannot do it; the edge will send again
"""


class HubError(Exception):
    """Base of every error raised by this package.

    Args:
        code: stable machine-readable code, e.g. ``store_busy``.
        detail: one sentence for a person.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class ConfigError(HubError):
    """A config file or an option cannot be used; the detail names path, line and field."""


class StoreError(HubError):
    """The store cannot do what was asked; nothing of it was kept."""


class StoreBusyError(StoreError):
    """Too many writes wait already, or another process holds the store; ask again later."""


class StoreClosedError(StoreError):
    """The store has been closed; a write that got this was not made."""


class ReadTooLongError(StoreError):
    """A report took longer than it may; it was given up."""


class MigrationError(StoreError):
    """The schema on disk is newer than this program, or was made by an edited migration."""


class IllegalTransitionError(HubError):
    """A workload cannot go from that state to this one."""


class NotFoundError(HubError):
    """No such row, or not one that the asker may see."""


class InvoiceError(HubError):
    """A period cannot be closed as asked."""


class MetricsError(HubError):
    """The telemetry store cannot do what was asked; nothing of it was kept."""
