"""Requests and answers of the cgminer API as values; no I/O.

A request is one JSON object, or the text `command|parameter`. An answer is one JSON object, or
text sections split by `|`, closed by a NUL. Answers are read strictly first and repaired only when
that fails. Source: API-README and api.c of cgminer 4.11.1, recorded answers of 17 firmwares.
"""

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from firmware_bridges.document import (
    ANSWER_BYTES_MAX,
    REPAIR_BYTES_MAX,
    Document,
    characters,
    object_of,
    read_json,
)
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.rows import Row, as_float, as_text, rows_of

# The real server does one recv of TMPBUFSIZ / 2 - 1 bytes: what is longer is cut without a word.
REQUEST_BYTES_MAX: Final = 4_095

_COMMAND: Final = re.compile(r"[A-Za-z0-9_.]{1,64}\Z")
# A text section is named after its first item, which in lists counts the row.
_TEXT_SECTIONS: Final = {"POOL": "POOLS", "ASC": "DEVS", "PGA": "DEVS", "GPU": "DEVS"}
_TEXT_SPLIT: Final = {mark: re.compile(rf"(?<!\\)(?:\\\\)*\{mark}") for mark in "|,="}
_TEXT_UNESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_CODE_INVALID_COMMAND: Final = 14
_CODE_ACCESS_DENIED: Final = 45
_CODES_BAD_REQUEST: Final = frozenset({23, 24})


class Severity(StrEnum):
    """The letter of a STATUS."""

    WARNING = "W"
    INFO = "I"
    SUCCESS = "S"
    ERROR = "E"
    FATAL = "F"


_SEVERITIES: Final = {severity.value: severity for severity in Severity}


class Status(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One STATUS entry; `severity` is `None` where the firmware sent no known letter."""

    severity: Severity | None
    code: int | None
    message: str | None
    description: str | None


class Section(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One named list of rows, such as SUMMARY or POOLS."""

    name: str
    rows: tuple[Row, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to one command.

    Args:
        command: The command that was asked.
        status: STATUS entries.
        sections: Everything else that is a list or an object.
        repairs: Repairs that were needed to read it.
        truncated: It was cut: what is missing from it means nothing.
    """

    command: str
    status: tuple[Status, ...] = ()
    sections: tuple[Section, ...] = ()
    repairs: tuple[str, ...] = ()
    truncated: bool = False

    def section(self, name: str) -> tuple[Row, ...] | None:
        """Give the rows of one section; `None` when the answer has no such section."""
        for section in self.sections:
            if section.name == name:
                return section.rows
        return None


def encode_request(
    commands: Sequence[str], parameter: str | None = None, *, new_api: bool = False
) -> bytes:
    """Encode one request; several commands are joined with `+` and then carry no parameter.

    Args:
        commands: Command names.
        parameter: Its parameter.
        new_api: Ask a Bitmain build for the answer in the shape of its web pages.

    Raises:
        ValueError: No command, a name with other characters, a parameter with several commands, or
            more than 4,095 bytes.
    """
    if not commands or any(_COMMAND.match(name) is None for name in commands):
        raise ValueError(f"command: {list(commands)!r} is no list of command names")
    if parameter is not None and len(commands) > 1:
        raise ValueError("parameter: joined commands ignore it")
    body: dict[str, str | bool] = {"command": "+".join(commands)}
    if parameter is not None:
        body["parameter"] = parameter
    if new_api:
        body["new_api"] = True
    return _sized(json.dumps(body, separators=(",", ":")).encode())


def _sized(request: bytes) -> bytes:
    if len(request) > REQUEST_BYTES_MAX:
        raise ValueError(f"request: {len(request)} bytes, the miner reads {REQUEST_BYTES_MAX}")
    return request


def decode_answers(data: bytes, commands: Sequence[str], address: str) -> tuple[Answer, ...]:
    """Decode what a miner sent, one answer for each command.

    Args:
        data: Everything received, with or without its closing NUL.
        commands: The commands of the request; more than one = a joined request.
        address: For the error.

    Raises:
        BridgeGarbledError: Nothing in it can be understood, or it is over a limit.
    """
    if len(data) > ANSWER_BYTES_MAX:
        raise BridgeGarbledError(address, f"{len(data)} bytes, limit {ANSWER_BYTES_MAX}")
    body = data.rstrip(b"\0 \r\n\t")
    if not body:
        raise BridgeGarbledError(address, "empty answer")
    if not body.lstrip().startswith((b"{", b"[", b'"', b",")):
        return _text_answers(body, commands, address)
    document = read_json(body, address)
    value, repairs, truncated = document.value, document.repairs, document.truncated
    if not isinstance(value, dict):
        raise BridgeGarbledError(address, f"expected an object, found {type(value).__name__}")
    if len(commands) > 1 and not _is_plain(value):
        return tuple(_joined_part(value, name, repairs, truncated=truncated) for name in commands)
    return tuple(_answer(value, name, repairs, truncated=truncated) for name in commands)


def answer_of(document: Document) -> Answer:
    """Give a web page of the cgminer shape (STATUS and sections) as an answer."""
    return _answer(
        object_of(document), document.source, document.repairs, truncated=document.truncated
    )


def raise_for_status(answer: Answer, address: str) -> None:
    """Turn an error STATUS into the error of our tree.

    Raises:
        BridgeUnsupportedError: The firmware does not know the command (code 14, or says so).
        BridgeAuthError: Access denied (code 45).
        BridgeGarbledError: It could not read our request (codes 23 and 24).
        BridgeRefusedError: Any other error.
    """
    for status in answer.status:
        if status.severity in (Severity.ERROR, Severity.FATAL):
            raise _status_error(status, address)


def _status_error(status: Status, address: str) -> BridgeError:
    detail = f"status {status.severity} code {status.code}: {status.message}"
    if status.code == _CODE_INVALID_COMMAND or "invalid command" in (status.message or "").lower():
        return BridgeUnsupportedError(address, detail, sent=True)
    if status.code == _CODE_ACCESS_DENIED:
        return BridgeAuthError(address, detail, sent=True)
    if status.code in _CODES_BAD_REQUEST:
        return BridgeGarbledError(address, detail, sent=True)
    return BridgeRefusedError(address, detail, sent=True)


def _is_plain(value: Row) -> bool:
    """Tell a refusal of a whole joined request from an answer by parts."""
    return "STATUS" in value


def _joined_part(value: Row, command: str, repairs: tuple[str, ...], *, truncated: bool) -> Answer:
    parts = rows_of(value.get(command))
    part = parts[0] if parts else {}
    # A part that did not come at all is as good as cut: nothing may be inferred from it.
    return _answer(part, command, repairs, truncated=truncated or not parts)


def _answer(value: Row, command: str, repairs: tuple[str, ...], *, truncated: bool) -> Answer:
    sections = tuple(
        Section(name=name, rows=rows_of(item))
        for name, item in value.items()
        if name != "STATUS" and isinstance(item, dict | list)
    )
    return Answer(
        command=command,
        status=_statuses(value),
        sections=sections,
        repairs=repairs,
        truncated=truncated,
    )


def _statuses(value: Row) -> tuple[Status, ...]:
    raw = value.get("STATUS")
    if isinstance(raw, str):
        # WhatsMiner's own commands put STATUS, Code and Msg side by side at the top.
        return (_status(value),)
    return tuple(_status(row) for row in rows_of(raw))


def _status(row: Row) -> Status:
    letter = row.get("STATUS")
    code = as_float(row.get("Code"))
    return Status(
        severity=_SEVERITIES.get(letter) if isinstance(letter, str) else None,
        code=None if code is None else int(code),
        message=as_text(row.get("Msg")),
        description=as_text(row.get("Description")),
    )


def _text_answers(body: bytes, commands: Sequence[str], address: str) -> tuple[Answer, ...]:
    if len(body) > REPAIR_BYTES_MAX:
        raise BridgeGarbledError(address, f"text answer over {REPAIR_BYTES_MAX} bytes")
    text, repairs = characters(body)
    statuses: list[Status] = []
    names: dict[str, list[Row]] = {}
    chunks = _split(text, "|")
    truncated = chunks[-1].strip(" \0\r\n") != ""
    for number, chunk in enumerate(chunks):
        items = _items(chunk.lstrip(" \0\r\n").rstrip("\0\r\n"))
        if truncated and number == len(chunks) - 1:
            items = items[:-1]
        if not items or items == [""]:
            continue
        name, row = _text_row(items)
        if name == "STATUS":
            statuses.append(_status(row))
        else:
            names.setdefault(name, []).append(row)
    if not statuses and not names:
        raise BridgeGarbledError(address, "text answer without a section")
    sections = tuple(Section(name=name, rows=tuple(rows)) for name, rows in names.items())
    return tuple(
        Answer(
            command=command,
            status=tuple(statuses),
            sections=sections,
            repairs=repairs,
            truncated=truncated,
        )
        for command in commands
    )


def _items(chunk: str) -> list[str]:
    """Split a section into its items; a comma that was not escaped stays within its value."""
    items: list[str] = []
    for part in _split(chunk, ","):
        if len(_split(part, "=")) > 1 or not items or len(_split(items[-1], "=")) == 1:
            items.append(part)
        else:
            items[-1] += f",{part}"
    return items


def _text_row(items: Sequence[str]) -> tuple[str, Row]:
    row: dict[str, object] = {}
    for item in items:
        key, *rest = _split(item, "=")
        if rest:
            row[_unescape(key)] = _unescape("=".join(rest))
    first = _unescape(_split(items[0], "=")[0])
    return _TEXT_SECTIONS.get(first, first), row


def _split(text: str, mark: str) -> list[str]:
    """Split at the marks that no backslash escapes."""
    parts: list[str] = []
    start = 0
    for match in _TEXT_SPLIT[mark].finditer(text):
        parts.append(text[start : match.end() - 1])
        start = match.end()
    parts.append(text[start:])
    return parts


def _unescape(text: str) -> str:
    return _TEXT_UNESCAPE.sub(r"\1", text)
