"""The compiler of CUDA C for a GPU, where its library is installed; it needs no GPU.

Source: nvrtc.h 13.0.
"""

import ctypes
import ctypes.util
import sys
from pathlib import Path
from typing import Any


def load() -> Any | None:  # noqa: ANN401 - a library
    """Load the newest libnvrtc of this machine: CUDA's own, or that of a wheel; None: none."""
    wheels = [
        path for folder in map(Path, sys.path) for path in folder.glob("nvidia/*/lib/libnvrtc.so.*")
    ]
    own = Path("/usr/local/cuda/lib64").glob("libnvrtc.so.*")
    named = ctypes.util.find_library("nvrtc")
    for place in [*sorted(map(str, [*wheels, *own]), reverse=True), *([named] if named else [])]:
        try:
            for part in Path(place).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(part), mode=ctypes.RTLD_GLOBAL)  # it looks for it by its name alone
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


def compiled(nvrtc: Any, source: str, architecture: str, *options: str) -> tuple[bytes, bytes, str]:  # noqa: ANN401 - a library
    """Compile a source; give its PTX, its machine code (none for a virtual target), and the log.

    Raises:
        ValueError: it does not compile: the log.
    """
    program = ctypes.c_void_p()
    text, name = source.encode(), b"kernel.cu"
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    assert code == 0, f"nvrtcCreateProgram gave {code}"
    words = [f"--gpu-architecture={architecture}".encode(), *(one.encode() for one in options)]
    told = (ctypes.c_char_p * len(words))(*words)
    failed = nvrtc.nvrtcCompileProgram(program, len(words), told)
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
