"""Builds the stand-in of libcuda.so.1 and drives its state; needs a C compiler."""

import mmap
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

SOURCE = Path(__file__).parents[4] / "tests" / "fakes" / "cuda.c"
HEAD, SLOT, SLOTS = 4, 8, 8
FIELDS = ("pid", "state", "busy_ms", "checkpoint_code", "restore_code", "lose", "hang_ms", "calls")


def build(folder: Path, *flags: str) -> Path:
    """Compile the stand-in; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in of libcuda.so.1 cannot be built")
    target = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", str(target)]
    subprocess.run([*command, str(SOURCE)], check=True)
    return target


class FakeCuda:
    """The shared state: what the driver would know of processes."""

    def __init__(self, folder: Path, version: int = 12_080) -> None:
        self.path = folder / "state"
        self.path.write_bytes(bytes(4 * (HEAD + SLOT * SLOTS)))
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words: npt.NDArray[np.int32] = np.frombuffer(self._map, dtype="<i4")
        self._words[1] = version

    def add(self, pid: int, **fields: int) -> None:
        """Let a process exist, running unless told otherwise."""
        free = next(at for at in range(SLOTS) if self._words[HEAD + SLOT * at] == 0)
        self._words[HEAD + SLOT * free] = pid
        self.set(pid, **fields)

    def set(self, pid: int, **fields: int) -> None:
        for name, value in fields.items():
            self._words[self._base(pid) + FIELDS.index(name)] = value

    def get(self, pid: int, name: str) -> int:
        return int(self._words[self._base(pid) + FIELDS.index(name)])

    def refuse_init(self, code: int) -> None:
        self._words[0] = code

    def show(self, devices: int) -> None:
        """Let the driver count so many GPUs."""
        self._words[3] = devices

    @property
    def inits(self) -> int:
        return int(self._words[2])

    def _base(self, pid: int) -> int:
        return next(HEAD + SLOT * at for at in range(SLOTS) if self._words[HEAD + SLOT * at] == pid)
