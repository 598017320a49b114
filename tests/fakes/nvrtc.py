"""The compiler of CUDA C for a GPU, where its library is installed; it needs no GPU.

Source: nvrtc.h 13.0.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any


def found() -> list[str]:
    """Find every libnvrtc of this machine: CUDA's own, and those of wheels."""
    wheels = (
        path for folder in map(Path, sys.path) for path in folder.glob("nvidia/*/lib/libnvrtc.so.*")
    )
    own = Path("/usr/local/cuda/lib64").glob("libnvrtc.so.*")
    return sorted({str(path.resolve()) for path in (*wheels, *own)})


def load(place: str) -> Any:  # noqa: ANN401 - a library
    """Load one of them."""
    for part in Path(place).parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(part), mode=ctypes.RTLD_GLOBAL)  # it looks for it by its name alone
    return ctypes.CDLL(place)


def compiled(nvrtc: Any, source: str, architecture: str) -> tuple[bytes, bytes, str]:  # noqa: ANN401 - a library
    """Compile a source; give its PTX, its machine code (none for a virtual target), and the log.

    Raises:
        ValueError: it does not compile: the log.
    """
    program = ctypes.c_void_p()
    text, name = source.encode(), b"kernel.cu"
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    assert code == 0, f"nvrtcCreateProgram gave {code}"
    told = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    failed = nvrtc.nvrtcCompileProgram(program, 1, told)
    log = _text(nvrtc, program, "ProgramLog").decode(errors="replace").rstrip("\0\n ")
    if failed:
        raise ValueError(log)
    real = architecture.startswith("sm_")
    ptx, binary = _text(nvrtc, program, "PTX"), _text(nvrtc, program, "CUBIN") if real else b""
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, binary, log


def _text(nvrtc: Any, program: ctypes.c_void_p, what: str) -> bytes:  # noqa: ANN401 - a library
    size = ctypes.c_size_t(0)
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0, what
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0, what
    return buffer.raw
