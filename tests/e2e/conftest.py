"""A running stack in a short path (Unix sockets), gone with every process at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.stack import Stack


@pytest.fixture
def root() -> Iterator[Path]:
    """Give an empty folder; `HCP_E2E_KEEP` names a folder that is kept instead."""
    kept = os.environ.get("HCP_E2E_KEEP")
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
        Path(kept).mkdir(parents=True)
        yield Path(kept).resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="hcp-e2e-")).resolve()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stacks() -> Iterator[list[Stack]]:
    """Take stacks that are killed at the end, whatever has happened."""
    taken: list[Stack] = []
    yield taken
    for stack in taken:
        for program in stack.programs.values():
            program.kill_now()
