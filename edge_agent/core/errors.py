"""Errors of the agent's core.

Tree::

    CoreError                code
    ├── SiteError            a site description that cannot be run (the operator's fault)
    ├── JournalError         stored bytes that cannot be read back
    └── ActError             an operator's act that cannot be done
"""


class CoreError(Exception):
    """Base of the core's errors.

    Args:
        code: stable machine-readable code.
        detail: one sentence for a person.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class SiteError(CoreError):
    """A site description that cannot be run; names the field."""


class JournalError(CoreError):
    """Stored bytes that cannot be read back."""


class ActError(CoreError):
    """An operator's act that cannot be done, e.g. an unknown device."""
