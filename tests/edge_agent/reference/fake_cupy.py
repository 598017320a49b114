"""The little of CuPy that the miner uses, its kernels compiled as C++ and run by this CPU.

It shows that the kernel's arithmetic and the host's book-keeping are right. It shows nothing of a
GPU: launches run to their end at once, and nothing runs side by side.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_BEFORE = """
#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline
struct Place { unsigned x; };
static Place blockIdx, blockDim, threadIdx, gridDim;
static unsigned atomicAdd(unsigned *at, unsigned by) { unsigned old = *at; *at += by; return old; }
static void atomicAdd(unsigned long long *at, unsigned long long by) { *at += by; }
"""
_AFTER = """
extern "C" void launch(unsigned grid, unsigned block, const u32 *fixed, u32 first, u64 count,
                       u32 *out, const volatile u32 *stop) {
  gridDim.x = grid;
  blockDim.x = block;
  for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < block; threadIdx.x++)
      scan(fixed, first, count, out, stop);
}
"""


def compile_kernel(source: str, folder: Path, compiler: str) -> Callable[..., None]:
    """Compile the source; give a function that launches it."""
    (folder / "kernel.cpp").write_text(_BEFORE + source + _AFTER)
    library = folder / "kernel.so"
    subprocess.run(
        [compiler, "-O2", "-w", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"],
        check=True,
        timeout=60,
    )
    launch = ctypes.CDLL(str(library)).launch
    launch.argtypes = [
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    launch.restype = None
    return launch


class _Array:
    def __init__(self, values: np.ndarray) -> None:
        self._values = np.ascontiguousarray(values)
        self.data = SimpleNamespace(ptr=self._values.ctypes.data)

    def fill(self, value: int) -> None:
        self._values.fill(value)


class _Event:
    done = True

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _pinned(size: int) -> ctypes.Array[ctypes.c_ubyte]:
    class Pinned(ctypes.c_ubyte * size):  # type: ignore[misc]
        @property
        def ptr(self) -> int:
            return ctypes.addressof(self)

    return Pinned()


def make_cupy(launch: Callable[..., None]) -> SimpleNamespace:
    """Make the stand-in around a compiled kernel; ``launches`` keeps the counts asked for."""
    launches: list[int] = []

    class RawKernel:
        def __init__(self, source: str, name: str) -> None:
            assert f"void {name}(" in source

        def __call__(
            self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]
        ) -> None:
            fixed, first, count, out, stop = arguments
            launches.append(int(count))
            launch(
                grid[0], block[0], fixed.data.ptr, int(first), int(count), out.data.ptr, int(stop)
            )

    stream = SimpleNamespace(ptr=0, synchronize=lambda: None)
    runtime = SimpleNamespace(
        getDeviceProperties=lambda _: {"name": b"stand-in"},
        memcpyAsync=lambda to, start, size, _kind, _stream: ctypes.memmove(to, start, size),
    )
    cuda = SimpleNamespace(
        Event=_Event,
        alloc_pinned_memory=_pinned,
        get_current_stream=lambda: stream,
        get_elapsed_time=lambda _began, _ended: 4.0,
        runtime=runtime,
    )
    return SimpleNamespace(
        RawKernel=RawKernel,
        asarray=_Array,
        zeros=lambda count, dtype: _Array(np.zeros(count, dtype=dtype)),
        cuda=cuda,
        launches=launches,
    )
