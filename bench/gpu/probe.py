"""What a machine has for the bench, asked before anything is measured; changes nothing.

``python -m bench.gpu.probe driver|torch|cupy``, each in a process of its own, says one JSON line.
The supervisor has no CUDA in it, and two libraries may bring two versions of CUDA.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.gpu.cuda_source import SOURCE

PACKAGES = ("torch", "cupy", "numpy")
PARTS = ("driver", "torch", "cupy")
# The first import of a large library from a cold disk takes a minute.
PROBE_S = 150.0
# CUresult. Source: cuda.h 13.0.
_CODES = {
    2: "out of memory",
    34: "only a stub of libcuda is there",
    100: "no GPU",
    101: "no such GPU",
    304: "the operating system refused: device files or permissions",
    802: "the system is not ready: is the fabric manager running?",
    803: "libcuda and the kernel's driver differ in version",
    804: "the forward-compatibility package does not work with this GPU",
    999: "unknown error: is the kernel's driver loaded?",
}
_PROC_VERSION = Path("/proc/driver/nvidia/version")


class Found(Struct, frozen=True, kw_only=True):
    """What one part found.

    Args:
        missing: why nothing can be measured here; None: nothing is missing.
        free_bytes: of the card's memory, before anything of ours is on it.
    """

    missing: str | None = None
    free_bytes: int | None = None
    facts: dict[str, Any] = {}


def look(parts: tuple[str, ...] = PARTS) -> Found:
    """Ask all parts; the first that misses something ends it."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return Found(missing=f"not installed for {sys.executable}: {', '.join(absent)}")
    free_bytes, facts = None, {"python": sys.executable}
    for part in parts:
        found = _ask(part)
        facts |= found.facts
        free_bytes = free_bytes or found.free_bytes
        if found.missing is not None:
            return Found(missing=found.missing, facts=facts)
    return Found(free_bytes=free_bytes, facts=facts)


def _ask(part: str) -> Found:
    command = [sys.executable, "-m", "bench.gpu.probe", part]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=False, timeout=PROBE_S
        )
    except subprocess.TimeoutExpired:
        return Found(missing=f"{part}: no answer in {PROBE_S:g} s")
    try:
        # Libraries may chat: ours is the last line.
        return msgspec.json.decode(done.stdout.rstrip().rpartition("\n")[2], type=Found)
    except msgspec.MsgspecError:
        words = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Found(missing=f"{part}: {words[:300]}")


# --- the parts, each in its own process --------------------------------------------------------


def driver(library: str = "libcuda.so.1") -> Found:
    """Look at the driver, and at the first GPU that it shows to us."""
    # A sandbox shows a kernel of its own.
    facts: dict[str, Any] = {"kernel": platform.release()}
    with contextlib.suppress(OSError):
        facts["kernel_driver"] = _PROC_VERSION.read_text(encoding="utf-8").splitlines()[0].strip()
    try:
        cuda = ctypes.CDLL(library)
    except OSError as exc:
        return Found(missing=f"no driver: {exc}", facts=facts)
    version, count, device = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("cuInit", lambda: cuda.cuInit(0)),
        ("cuDriverGetVersion", lambda: cuda.cuDriverGetVersion(ctypes.byref(version))),
        ("cuDeviceGetCount", lambda: cuda.cuDeviceGetCount(ctypes.byref(count))),
        ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), 0)),
    )
    for name, step in steps:
        try:
            code = int(step())  # type: ignore[call-overload]  # ctypes gives a number
        except AttributeError:
            return Found(missing=f"no driver: it has no {name}", facts=facts)
        if code != 0:
            why = _CODES.get(code, "see CUresult in cuda.h")
            return Found(missing=f"driver: {name} gave {code}: {why}", facts=facts)
    facts["cuda_driver_api"] = version.value
    facts["checkpoint_api"] = hasattr(cuda, "cuCheckpointProcessCheckpoint")
    return Found(facts=facts | _by_nvml(cuda, device))


def _by_nvml(cuda: Any, device: ctypes.c_int) -> dict[str, Any]:  # noqa: ANN401 - a library
    """Ask NVML about that very GPU: its numbers count otherwise than CUDA's."""
    facts: dict[str, Any] = {}
    raw = (ctypes.c_ubyte * 16)()
    # A figure is worth having without these.
    with contextlib.suppress(Exception):
        ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
        if int(ask(ctypes.byref(raw), device)) != 0:
            return facts
        h = bytes(raw).hex()
        uuid = f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            facts["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
            handle = _handle(nvml, uuid)
            facts |= _each(nvml, handle)
        finally:
            nvml.nvmlShutdown()
    return facts


def _handle(nvml: Any, uuid: str) -> object:  # noqa: ANN401 - no types
    """Give the handle of a whole GPU, or of the slice of one that we were given."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _each(nvml: Any, handle: object) -> dict[str, Any]:  # noqa: ANN401 - no types
    asked: dict[str, Callable[[], object]] = {
        "card": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "vram_mib": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20,
        "pcie_generation": lambda: int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
        "pcie_width": lambda: int(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
        "power_limit_w": lambda: int(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1_000,
        "persistence": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "compute_mode": lambda: int(nvml.nvmlDeviceGetComputeMode(handle)),
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "others_on_it": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }
    facts: dict[str, Any] = {}
    for name, ask in asked.items():
        with contextlib.suppress(Exception):  # each card lacks some, and a slice of one more
            facts[name] = ask()
    return facts


def with_torch(torch: Any) -> Found:  # noqa: ANN401 - an optional package
    """Look whether PyTorch computes on the GPU, and how much memory is free."""
    facts = {"torch": str(torch.__version__), "torch_cuda": str(torch.version.cuda)}
    if torch.version.cuda is None:
        return Found(missing=f"torch {torch.__version__} is built without CUDA", facts=facts)
    try:
        if not torch.cuda.is_available():
            reason = (
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU it can use"
            )
            return Found(missing=reason, facts=facts)
        free_bytes, _total = torch.cuda.mem_get_info(0)
        one = torch.ones(8, device="cuda:0", dtype=torch.float16)
        if float((one + one).sum().item()) != 16.0:
            return Found(missing="torch: the GPU adds wrongly", facts=facts)
        facts["card_of_torch"] = str(torch.cuda.get_device_name(0))
    except Exception as exc:  # noqa: BLE001 - what a driver makes PyTorch raise is its own, by version
        return Found(missing=f"torch: {_words(exc)}", facts=facts)
    return Found(free_bytes=int(free_bytes), facts=facts)


def with_cupy(cupy: Any) -> Found:  # noqa: ANN401 - an optional package
    """Look whether CuPy compiles the miner's kernel for the GPU."""
    facts: dict[str, Any] = {"cupy": str(cupy.__version__)}
    try:
        facts["cuda_of_cupy"] = int(cupy.cuda.runtime.runtimeGetVersion())
        if int(cupy.cuda.runtime.getDeviceCount()) < 1:
            return Found(missing="cupy finds no GPU", facts=facts)
        module = cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"))
        module.get_function("search")
    except Exception as exc:  # noqa: BLE001 - as above
        return Found(missing=f"cupy: {_words(exc)}", facts=facts)
    return Found(facts=facts)


def _words(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"[:300]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def main(argv: list[str]) -> int:
    """Say what one part finds."""
    part = argv[0]
    if part == "driver":
        found = driver()
    else:
        try:
            library = importlib.import_module(part)
        except Exception as exc:  # noqa: BLE001 - a broken install raises whatever it likes
            found = Found(missing=f"{part} cannot be imported: {_words(exc)}")
        else:
            found = with_torch(library) if part == "torch" else with_cupy(library)
    os.write(1, msgspec.json.encode(found) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
