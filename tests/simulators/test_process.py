import sys
from pathlib import Path

import pytest

from simulators.process import Program, StartError

SERVE = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


def program(tmp_path: Path, code: str) -> Program:
    ready = tmp_path / "ready"
    return Program("child", [sys.executable, "-c", code, str(ready)], tmp_path / "log", ready=ready)


async def test_a_killed_program_starts_again(tmp_path: Path) -> None:
    child = program(tmp_path, SERVE)
    await child.start()
    first = child.pid
    await child.kill()
    gone = child.running
    await child.start()
    assert (gone, child.running) == (False, True)
    assert child.pid != first
    await child.stop()


async def test_a_program_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    child = program(tmp_path, "raise SystemExit('no such disk')")
    with pytest.raises(StartError, match="no such disk"):
        await child.start()
