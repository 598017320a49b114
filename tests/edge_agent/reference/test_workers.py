"""How a worker's process is started."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent.reference.worker_wire import Slots, slots_bytes
from edge_agent.reference.workers import WorkerOptions, WorkerProcess

_ASK = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import site; "
    "print(json.dumps([sys.prefix, site.getsitepackages()]))"
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the words with which the next worker was to be started."""
    words: list[str] = []

    async def start(*given: str, **_options: Any) -> Any:  # noqa: ANN401 - a process
        words.extend(given)
        raise OSError("not started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    return words


async def start_of(backend: str) -> None:
    slots_fd = os.memfd_create("slots")
    os.truncate(slots_fd, slots_bytes(1))
    try:
        worker = WorkerProcess(0, Slots(slots_fd, 1))
        with pytest.raises(OSError, match="not started"):
            await worker.live(WorkerOptions(backend=backend), slots_fd, lambda _message: None)
    finally:
        os.close(slots_fd)


@pytest.mark.parametrize("backend", ["auto", "cupy"])
async def test_a_gpus_worker_knows_where_packages_are(
    command: list[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # CuPy looks for CUDA's libraries there; without site a virtual environment is not known.
    await start_of(backend)
    monkeypatch.undo()
    at = command.index("-c")
    words = [*command[:at], "-c", _ASK, command[at + 2]]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        told, _ = await process.communicate()
    prefix, places = json.loads(told)
    assert prefix == sys.prefix
    assert any(Path(place).is_relative_to(sys.prefix) for place in places)


async def test_a_cpus_worker_starts_without_looking_at_them(command: list[str]) -> None:
    await start_of("cpu")
    assert "-IS" in command
