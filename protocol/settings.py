"""TOML text -> frozen Structs: every problem at once, with path, line and a "did you mean".

Pure: the caller reads the file. Unknown keys are refused, because a mistyped limit must not be
silently ignored. Secrets never stand in TOML; a setting names the credential that holds one.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct, structs

T = TypeVar("T", bound=Struct)

_NAME_CHARS_MAX = 256
_HEADER = re.compile(r"^\s*(?P<open>\[\[?)(?P<name>[^\]=]+)\]")
_KEY = re.compile(r"^\s*(?P<name>[A-Za-z0-9_.\"'\s-]+?)\s*=")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_TOML_LINE = re.compile(r"at line ([0-9]+)")

PROBLEMS_MAX = 50


class Problem(Struct, frozen=True, kw_only=True):
    """One thing wrong: where (``limits.power_cap_w``), on which line (None: unknown), and what."""

    path: str
    detail: str
    line: int | None = None

    def __str__(self) -> str:
        """Give one line for a person."""
        where = self.path if self.line is None else f"line {self.line}: {self.path}"
        return f"{where}: {self.detail}"


class SettingsError(Exception):
    """A settings text that cannot be used.

    Args:
        source: file name for the message. problems: all that was found, at least one.
    """

    code = "settings"

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        """Keep the facts as attributes."""
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.source = source
        self.problems = problems


def parse_settings(text: str, kind: type[T], source: str) -> T:
    """Read a settings text into ``kind``.

    Raises:
        SettingsError: with every unknown key, and the first wrong value of each section.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        at = _TOML_LINE.search(str(exc))
        problem = Problem(path="TOML", detail=str(exc), line=None if at is None else int(at[1]))
        raise SettingsError(source, (problem,)) from exc
    problems = [*_unknown_keys(raw, kind, "", _lines(text))]
    if problems:
        raise SettingsError(source, tuple(problems[:PROBLEMS_MAX]))
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, ValueError) as exc:
        detail, _, path = str(exc).partition(" - at `$.")
        path = path.rstrip("`")
        missing = _MISSING.fullmatch(detail)
        if missing is not None:
            path, detail = f"{path}.{missing['name']}".lstrip("."), "is missing"
        path = path or detail.split(" ", maxsplit=1)[0]
        problem = Problem(path=path, detail=detail, line=_line_of(_lines(text), path))
        raise SettingsError(source, (problem,)) from exc


def located(text: str, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Add to problems the lines of the TOML text in which their paths stand, as far as known.

    Returns:
        At most ``PROBLEMS_MAX`` of them.
    """
    lines = _lines(text)
    return tuple(
        problem
        if problem.line is not None
        else structs.replace(problem, line=_line_of(lines, problem.path))
        for problem in islice(problems, PROBLEMS_MAX)
    )


def _unknown_keys(raw: object, kind: Any, path: str, lines: Mapping[str, int]) -> Iterator[Problem]:  # noqa: ANN401 - a type expression is no type
    if isinstance(raw, list):
        for place, item in enumerate(raw):
            yield from _unknown_keys(item, _item_kind(kind), f"{path}[{place}]", lines)
        return
    kind = _struct_kind(kind)
    if not isinstance(raw, dict) or kind is None:
        return
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Problem(path=here, detail=f"unknown key{hint}", line=_line_of(lines, here))
        else:
            yield from _unknown_keys(value, known[key], here, lines)


def _item_kind(kind: Any) -> Any:  # noqa: ANN401 - a type expression is no type
    for candidate in (kind, *get_args(kind)):
        if get_origin(candidate) in {tuple, list}:
            return get_args(candidate)[0]
    return None


def _struct_kind(kind: Any) -> type[Struct] | None:  # noqa: ANN401 - a type expression is no type
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
    return None


def _lines(text: str) -> dict[str, int]:
    """Find the line of each table and key of a TOML text, by its path.

    A table within an array counts from 0, as in ``classes[1].pue``. A key inside an inline table,
    or on the later lines of a long value, has no entry of its own.
    """
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        head = line[:_NAME_CHARS_MAX]
        header, key = _HEADER.match(head), _KEY.match(head)
        if header is not None:
            table = _table_path(header["name"], counts, is_array=header["open"] == "[[")
            found.setdefault(table, number)
        elif key is not None:
            name = re.sub(r"[\s\"']", "", key["name"])
            found.setdefault(f"{table}.{name}" if table else name, number)
    return found


def _table_path(name: str, counts: dict[str, int], *, is_array: bool) -> str:
    """Give the path of a table's header; ``counts`` holds the newest index of each array."""
    path = ""
    parts = [part.strip(" \t\"'") for part in name.split(".")]
    for place, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if is_array and place == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = f"{path}[{counts[path]}]"
    return path


def _line_of(lines: Mapping[str, int], path: str) -> int | None:
    """Give the line of a path, or of the nearest thing around it."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None
