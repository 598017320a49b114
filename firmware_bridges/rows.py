"""Reading values out of a miner's JSON objects, with plausibility limits.

A row is a JSON object whose keys the firmware chose; rows live only between a codec and the
decoder that reads them. Numbers come as numbers or as strings; what is outside its limits is not
taken, and its name is kept for the reading's `rejected`.
"""

import math
import re
from collections.abc import Mapping
from typing import Final

Row = Mapping[str, object]

TEXT_CHARS_MAX: Final = 256
HASHRATE_THS_MAX: Final = 10_000.0
POWER_W_MAX: Final = 100_000.0
TEMP_C_MAX: Final = 200.0
FAN_RPM_MAX: Final = 50_000
UPTIME_S_MAX: Final = 10 * 366 * 86_400

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")
# A number, perhaps its unit and a remark: "203007.01", "3250 W", "58.94W", "456.78 (AB)"; not
# "1.2.3".
_NUMBER: Final = re.compile(
    r"\s*([-+]?\d{1,30}(?:\.\d{0,30})?(?:[eE][-+]?\d{1,3})?)\s*[A-Za-z/%]{0,8}\s*(?:\([A-Za-z]{0,8}\)\s*)?\Z"
)


class RowReader:
    """Reads one row and notes which of its values were implausible.

    Args:
        row: The JSON object.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self._rejected: list[str] = []

    @property
    def rejected(self) -> tuple[str, ...]:
        """Names of the values that were not taken."""
        return tuple(self._rejected)

    def number(self, key: str, *, low: float, high: float) -> float | None:
        """Read a number within [low, high], else `None`; a wrong one is noted."""
        raw = self.row.get(key)
        if raw is None or raw == "":
            return None
        value = as_float(raw)
        if value is None or not low <= value <= high:
            self._rejected.append(key)
            return None
        return value

    def whole(self, key: str, *, low: int, high: int) -> int | None:
        """Read a whole number within [low, high]."""
        value = self.number(key, low=low, high=high)
        return None if value is None else int(value)

    def text(self, key: str) -> str | None:
        """Read a text, trimmed and without control characters."""
        return as_text(self.row.get(key))


def first_text(reader: RowReader, *keys: str, truncated: bool) -> str | None:
    """Read the first of several texts that name one thing, the best name first.

    Args:
        reader: The row.
        keys: Their names.
        truncated: The row may have lost members: then only the best name counts.
    """
    texts = (reader.text(key) for key in (keys[:1] if truncated else keys))
    return next((text for text in texts if text is not None), None)


def as_float(value: object) -> float | None:
    """Read a finite number from a number, or from a text of one and its unit ("3250 W")."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        match = _NUMBER.match(value)
        if match is None:
            return None
        value = float(match.group(1))
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_text(value: object) -> str | None:
    """Read a text of 1 to 256 characters; control characters become one space each run."""
    if not isinstance(value, str):
        return None
    text = _CONTROL.sub(" ", value).strip()
    return text[:TEXT_CHARS_MAX] or None


def rows_of(value: object) -> tuple[Row, ...]:
    """Take the objects out of a section, which may be one object or a list of them."""
    if isinstance(value, dict):
        return (value,)
    if isinstance(value, list):
        return tuple(item for item in value if isinstance(item, dict))
    return ()
