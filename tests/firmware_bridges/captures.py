"""Recorded answers of real miners, where the machine has them (`HCP_SHARED`, or ../shared)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDER = (
    Path(os.environ.get("HCP_SHARED", Path(__file__).parents[3] / "shared"))
    / "asic_fixtures"
    / "captures"
)


class Capture:
    """One recorded miner."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.json"
        if not path.exists():
            pytest.skip("recorded answers are not on this machine (HCP_SHARED)")
        self.raw = path.read_bytes()
        self._file = json.loads(self.raw)

    @property
    def expected(self) -> Mapping[str, object]:
        """Values read off the recording by those who made it."""
        expected: Mapping[str, object] = self._file["expected"]
        return expected

    def rpc(self, command: str) -> bytes:
        """Give the wire bytes of one cgminer answer, as the miner frames it."""
        for exchange in self._file["exchanges"]:
            if exchange["transport"] == "tcp-cgminer" and command in exchange["request"].values():
                return json.dumps(exchange["response"]).encode() + b"\0"
        raise KeyError(command)

    def page(self, name: str) -> bytes:
        """Give one web page."""
        for exchange in self._file["exchanges"]:
            if exchange["transport"] == "http" and exchange["path"] == f"/cgi-bin/{name}":
                return json.dumps(exchange["response"]).encode()
        raise KeyError(name)


def recorded(name: str) -> Capture:
    """Give one recording; skips the test where it is not on this machine."""
    return Capture(name)
