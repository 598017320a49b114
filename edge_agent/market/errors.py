"""Errors of the market feeds.

Tree::

    MarketError          code, field
    ├── SeriesError      a file that cannot be used: named with its line
    └── FeedError        a source that did not answer, or answered nonsense
"""


class MarketError(Exception):
    """Base of the errors of the feeds.

    Args:
        code: stable machine-readable code. detail: one sentence. field: file, line or key.
    """

    def __init__(self, code: str, detail: str, field: str = "") -> None:
        """Keep the facts as attributes."""
        super().__init__(f"{code}: {field}: {detail}" if field else f"{code}: {detail}")
        self.code = code
        self.field = field


class SeriesError(MarketError):
    """A file of prices that cannot be used."""


class FeedError(MarketError):
    """A live source that did not answer, or answered nonsense; the old value ages on."""
