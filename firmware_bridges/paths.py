"""Walking into nested JSON values without trusting their shape. Pure."""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.rows import Row, RowReader, rows_of

_EMPTY: Final[Row] = {}


def dig(value: object, *keys: str) -> object:
    """Give the value at a path of object members; `None` where the path ends early."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def object_at(value: object, *keys: str) -> Row:
    """Give the object at a path; an empty one where there is none."""
    found = dig(value, *keys)
    return found if isinstance(found, Mapping) else _EMPTY


def rows_at(value: object, *keys: str) -> tuple[Row, ...]:
    """Give the objects of the list (or the one object) at a path."""
    return rows_of(dig(value, *keys))


def reader_at(value: object, *keys: str) -> RowReader:
    """Give a reader of the object at a path."""
    return RowReader(object_at(value, *keys))


def flag_at(value: object, *keys: str) -> bool | None:
    """Give the truth value at a path; `None` where it is something else."""
    found = dig(value, *keys)
    return found if isinstance(found, bool) else None
