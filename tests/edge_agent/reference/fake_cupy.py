"""The little of CuPy that the miner uses, its kernel compiled as C++ and run by this CPU."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.fakes.cuda_host import Array, HostKernel


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


def make_cupy(kernel: HostKernel) -> SimpleNamespace:
    """Make the stand-in around a compiled kernel; ``launches`` keeps the counts asked for."""
    launches: list[int] = []

    class RawKernel:
        def __init__(self, source: str, name: str) -> None:
            assert f"void {name}(" in source

        def __call__(
            self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]
        ) -> None:
            launches.append(int(arguments[2]))
            kernel(grid, block, arguments)

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
        asarray=Array,
        zeros=lambda count, dtype: Array(np.zeros(count, dtype=dtype)),
        cuda=cuda,
        launches=launches,
    )
