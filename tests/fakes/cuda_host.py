"""CUDA C compiled as C++ and run by this CPU: each thread of a grid after the other.

It shows that a kernel's arithmetic and what the host hands to it are right. It shows nothing of a
GPU: nothing runs side by side, so no race and no time is seen.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
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
static unsigned long long atomicAdd(unsigned long long *at, unsigned long long by) {
  unsigned long long old = *at; *at += by; return old;
}
"""
_AFTER = """
extern "C" void launch_{name}(unsigned grid, unsigned block, {parameters}) {{
  gridDim.x = grid;
  blockDim.x = block;
  for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < block; threadIdx.x++)
      {name}({names});
}}
"""
_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
_SIZES = {"u32": 4, "u64": 8, "int": 4}
_TYPES = {4: ctypes.c_uint32, 8: ctypes.c_uint64}


def compiler() -> str | None:
    """Give a C++ compiler, None where there is none."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


class Array:
    """What lies on the "device": host memory with an address that kernels take."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values)
        self.data = _Pointer(self.values.ctypes.data)

    def __getitem__(self, part: slice) -> Array:
        return Array(self.values[part])

    def fill(self, value: int) -> None:
        """Set every element."""
        self.values.fill(value)


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class HostKernel:
    """One kernel: called as CuPy's are, ``(grid, block, arguments)``.

    CuPy hands a NumPy scalar over with the bytes of its type, whatever the kernel asks for, so
    each must have its parameter's size: this one looks.
    """

    def __init__(self, function: Any, name: str, parameters: str) -> None:  # noqa: ANN401 - ctypes
        self._name = name
        self._sizes = [_size_of(one) for one in parameters.split(",")]
        self._function = function
        types = [_TYPES[size] if size else ctypes.c_void_p for size in self._sizes]
        function.argtypes = [ctypes.c_uint32, ctypes.c_uint32, *types]
        function.restype = None

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]
    ) -> None:
        assert len(arguments) == len(self._sizes), f"{self._name} takes {len(self._sizes)}"
        assert 1 <= block[0] <= 1_024, "a block has 1 to 1024 threads"
        assert 1 <= grid[0] < 1 << 31, "a grid has 1 to 2**31 - 1 blocks"
        given = [
            _given(argument, size) for argument, size in zip(arguments, self._sizes, strict=True)
        ]
        self._function(grid[0], block[0], *given)


def _size_of(parameter: str) -> int | None:
    """Give the bytes of a parameter by value; None: it is a pointer."""
    return None if "*" in parameter else _SIZES[parameter.split()[-2]]


def _given(argument: Any, size: int | None) -> int:  # noqa: ANN401 - as CuPy takes them
    if isinstance(argument, Array):
        assert size is None, "an array is a pointer"
        return argument.data.ptr
    assert isinstance(argument, np.generic), f"{argument!r} has no size of its own"
    assert argument.dtype.itemsize == (size or 8), f"{argument.dtype} for {size or 8} bytes"
    return int(argument)


def kernels(source: str, folder: Path) -> dict[str, HostKernel]:
    """Compile every kernel of a source; the caller has seen that there is a compiler."""
    found = _KERNEL.findall(source)
    assert found, "the source has no kernel"
    after = [
        _AFTER.format(
            name=name,
            parameters=" ".join(parameters.split()),
            names=", ".join(one.split()[-1].lstrip("*") for one in parameters.split(",")),
        )
        for name, parameters in found
    ]
    (folder / "kernel.cpp").write_text(_BEFORE + source + "".join(after))
    library = folder / "kernel.so"
    program = compiler()
    assert program is not None, "no C++ compiler"
    subprocess.run(
        [program, "-O2", "-w", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"],
        check=True,
        timeout=60,
    )
    loaded = ctypes.CDLL(str(library))
    return {
        name: HostKernel(getattr(loaded, f"launch_{name}"), name, parameters)
        for name, parameters in found
    }
