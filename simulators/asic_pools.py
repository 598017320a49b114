"""The pools of a simulated miner and the cgminer commands that change them.

Source: API-README of cgminer 4.11.1: pools above a removed one move down by one number, and the
active one is not removed.
"""

from __future__ import annotations

import msgspec

from simulators.asic_rpc import Json, Voice, split_parameter

CODE_INVALID_POOL = 8
CODE_SWITCHED = 27
CODE_MISSING_PARAMETER = 15
CODE_ADDED = 55
CODE_LAST_POOL = 66
CODE_ACTIVE_POOL = 67
CODE_REMOVED = 68
POOLS_MAX = 32


class Pool(msgspec.Struct, frozen=True):
    """One pool."""

    url: str
    user: str
    password: str = ""


class Pools:
    """The pools of one miner, in the order of their numbers.

    Args:
        first: The pools that it starts with, at least one.
    """

    def __init__(self, first: tuple[Pool, ...]) -> None:
        self.rows = list(first)
        self.active = 0

    def replace(self, rows: list[Pool]) -> None:
        """Take other pools; the first one is active."""
        self.rows = rows
        self.active = 0

    def run(self, command: str, parameter: str, voice: Voice) -> Json:
        """Carry out `addpool`, `switchpool` or `removepool`."""
        if command == "addpool":
            return self._add(parameter, voice)
        if not (parameter.isascii() and parameter.isdigit()):
            return voice.refuse(CODE_MISSING_PARAMETER, "Missing pool id parameter")
        number = int(parameter)
        if number >= len(self.rows):
            return voice.refuse(CODE_INVALID_POOL, f"Invalid pool id {number}")
        if command == "switchpool":
            self.active = number
            return voice.say(CODE_SWITCHED, f"Switching to pool {number}: '{self._url(number)}'")
        return self._remove(number, voice)

    def _add(self, parameter: str, voice: Voice) -> Json:
        parts = split_parameter(parameter)
        if len(parts) < 3 or not parts[0] or len(self.rows) >= POOLS_MAX:
            return voice.refuse(53, f"Invalid addpool details '{parameter[:64]}'")
        self.rows.append(Pool(parts[0], parts[1], parts[2]))
        return voice.say(CODE_ADDED, f"Added pool {len(self.rows) - 1}: '{parts[0]}'")

    def _remove(self, number: int, voice: Voice) -> Json:
        if len(self.rows) == 1:
            return voice.refuse(CODE_LAST_POOL, f"Cannot remove last pool {number}")
        if number == self.active:
            return voice.refuse(CODE_ACTIVE_POOL, f"Cannot remove active pool {number}")
        url = self._url(number)
        del self.rows[number]
        if self.active > number:
            self.active -= 1
        return voice.say(CODE_REMOVED, f"Removed pool {number}:'{url}'")

    def _url(self, number: int) -> str:
        return self.rows[number].url
