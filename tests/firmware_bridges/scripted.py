"""A miner of answers written beforehand, for the tests of controls."""

import json
from collections.abc import Sequence

from firmware_bridges.errors import BridgeError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import Query, Wire
from firmware_bridges.transport import Deadlines

Said = bytes | BridgeError


class Scripted:
    """Gives its answers in turn, and keeps what it was asked.

    Args:
        said: Answers, or the errors instead of them; objects are sent as JSON.
    """

    def __init__(self, *said: object) -> None:
        self._said = [_said(item) for item in said]
        self.asked: list[tuple[str, str, object]] = []
        self.deadlines: list[Deadlines | None] = []

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        self.asked.append(_short(query))
        self.deadlines.append(deadlines)
        said = self._said.pop(0)
        if isinstance(said, BridgeError):
            raise said
        return said

    @property
    def left(self) -> int:
        """Give the number of answers that nobody asked for."""
        return len(self._said)


def context(asker: Scripted) -> ControlContext:
    """Make what a control is made of."""
    return ControlContext(
        asker=asker,
        credentials=None,
        address="10.0.0.1:1",
        wall_s=lambda: 1_800_000_000.0,
        random_text=lambda: "0123456789abcdef",
    )


def status(letter: str, code: int, message: str, **sections: Sequence[object]) -> object:
    """Make one answer of the cgminer API."""
    row = {"STATUS": letter, "When": 1, "Code": code, "Msg": message, "Description": "made up"}
    return {"STATUS": [row], **sections, "id": 1}


def _short(query: Query) -> tuple[str, str, object]:
    payload = json.loads(query.payload) if query.payload else None
    if query.wire is Wire.CGMINER:
        return "4028", query.key, payload.get("parameter") if payload else None
    return query.method, query.path, payload


def _said(item: object) -> Said:
    return item if isinstance(item, bytes | BridgeError) else json.dumps(item).encode()
