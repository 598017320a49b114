"""TOML text -> frozen Structs: every problem at once, with path, line and a "did you mean".

Pure: the caller reads the file. Unknown keys are refused, because a mistyped limit must not be
silently ignored. Secrets never stand in TOML; a setting names the credential that holds one.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

T = TypeVar("T", bound=Struct)

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
        raise SettingsError(source, (Problem(path="TOML", detail=str(exc)),)) from exc
    problems = [*_unknown_keys(raw, kind, "", text)]
    if problems:
        raise SettingsError(source, tuple(problems[:PROBLEMS_MAX]))
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, ValueError) as exc:
        detail, _, path = str(exc).partition(" - at `$.")
        path = path.rstrip("`") or detail.split(" ", maxsplit=1)[0]
        problem = Problem(path=path, detail=detail, line=_line_of(text, path.split(".")[-1]))
        raise SettingsError(source, (problem,)) from exc


def _unknown_keys(raw: object, kind: Any, path: str, text: str) -> Iterator[Problem]:  # noqa: ANN401 - a type expression is no type
    if isinstance(raw, list):
        for place, item in enumerate(raw):
            yield from _unknown_keys(item, _item_kind(kind), f"{path}[{place}]", text)
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
            yield Problem(path=here, detail=f"unknown key{hint}", line=_line_of(text, key))
        else:
            yield from _unknown_keys(value, known[key], here, text)


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


def _line_of(text: str, key: str) -> int | None:
    name = re.escape(re.sub(r"\[.*", "", key))
    pattern = re.compile(rf'^\s*(?:\[+\s*(?:.*\.)?)?"?{name}"?\s*(?:=|\]|\.)')
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return number
    return None
