"""The cgminer API as firmwares with commands of their own speak it: requests with a parameter.

Source: API-README of cgminer 4.11.1. A request is JSON or `command|parameter`; the answer is one
JSON object and a NUL; several commands joined by `+` are answered side by side, without parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

REQUEST_BYTES_MAX = 4095
CODE_INVALID_COMMAND = 14
CODE_INVALID_JSON = 23
CODE_MISSING_COMMAND = 24

Json = dict[str, object]
Run = Callable[[str, str], Json]


class Request(msgspec.Struct, frozen=True):
    """One request."""

    command: str
    parameter: str = ""


class Voice(msgspec.Struct, frozen=True):
    """How a firmware stamps its answers.

    Args:
        description: What it calls itself.
        wall_s: The miner's clock, Unix seconds.
    """

    description: str
    wall_s: int

    def say(self, code: int, message: str, sections: Json | None = None, letter: str = "S") -> Json:
        """Make one answer."""
        status = {
            "STATUS": letter,
            "When": self.wall_s,
            "Code": code,
            "Msg": message,
            "Description": self.description,
        }
        return {"STATUS": [status], **(sections or {}), "id": 1}

    def refuse(self, code: int, message: str) -> Json:
        """Make one refusal."""
        return self.say(code, message, letter="E")


class _Fields(msgspec.Struct):
    command: str | None = None
    parameter: str | int | None = None


def converse(data: bytes, voice: Voice, run: Run) -> bytes:
    """Answer the first bytes of a connection; what is over 4,095 bytes was never received.

    Args:
        data: As received.
        voice: Of the firmware.
        run: Carries out one command with its parameter and makes its answer.
    """
    request = _parse(data[:REQUEST_BYTES_MAX].rstrip(b"\0\r\n "), voice)
    if isinstance(request, dict):
        return msgspec.json.encode(request) + b"\0"
    names = [name for name in request.command.split("+") if name]
    if len(names) > 1:
        parts: Json = {name: [run(name, "")] for name in names}
        return msgspec.json.encode({**parts, "id": 1}) + b"\0"
    return msgspec.json.encode(run(request.command, request.parameter)) + b"\0"


def split_parameter(text: str) -> list[str]:
    """Split a parameter at its commas; a backslash keeps the next character as it is."""
    parts, escaped = [""], False
    for char in text:
        if escaped or char not in ",\\":
            parts[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            parts.append("")
    return parts


def _parse(data: bytes, voice: Voice) -> Request | Json:
    if not data.startswith(b"{"):
        name, _, parameter = data.decode("latin-1").partition("|")
        return Request(name, parameter)
    try:
        fields = msgspec.json.decode(data, type=_Fields)
    except msgspec.DecodeError:
        return voice.refuse(CODE_INVALID_JSON, "Invalid JSON")
    if not fields.command:
        return voice.refuse(CODE_MISSING_COMMAND, "Missing JSON 'command'")
    return Request(fields.command, "" if fields.parameter is None else str(fields.parameter))
