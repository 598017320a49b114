"""The one process that calls the CUDA driver's checkpoint functions; standard library only.

Started once and kept: each process that begins with ``cuInit`` pays 2.3 to 2.7 s for it
(nvcf#263, #437). JSON lines in, JSON lines out; the first line says what the driver is. It ends
when its input does. Run as a file: ``python -I cuda_child.py [LIBRARY]``.
"""

import ctypes
import json
import sys
from typing import Any

LIBRARY = "libcuda.so.1"
# CUcheckpointLockArgs: timeoutMs, reserved0, reserved1[7]. Source: cuda.h 12.8.
_LOCK_RESERVED = 7


class LockArgs(ctypes.Structure):
    """Arguments of the lock; a timeout of 0 waits without end."""

    _fields_ = (
        ("timeout_ms", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * _LOCK_RESERVED),
    )


SYMBOLS = {
    "state": "cuCheckpointProcessGetState",
    "lock": "cuCheckpointProcessLock",
    "checkpoint": "cuCheckpointProcessCheckpoint",
    "restore": "cuCheckpointProcessRestore",
    "unlock": "cuCheckpointProcessUnlock",
}


def main(argv: list[str]) -> int:
    """Serve until the input ends; 0 always: what went wrong stands in the lines."""
    calls, said = _load(argv[0] if argv else LIBRARY)
    _say(said)
    for line in sys.stdin:
        request = json.loads(line)
        _say(_answer(calls, request))
    return 0


def _load(library: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        driver = ctypes.CDLL(library)
    except OSError as exc:
        return {}, {"error": "no_driver", "detail": str(exc)}
    try:
        code = int(driver.cuInit(0))
        version = ctypes.c_int(0)
        driver.cuDriverGetVersion(ctypes.byref(version))
    except AttributeError as exc:
        return {}, {"error": "no_driver", "detail": str(exc)}
    if code != 0:
        return {}, {"error": "cuda_init", "detail": f"cuInit gave {code}", "result": code}
    missing = [name for name in SYMBOLS.values() if not hasattr(driver, name)]
    if missing:
        detail = f"driver API {version.value} has no {', '.join(missing)}"
        return {}, {"error": "no_checkpoint_api", "detail": detail, "version": version.value}
    calls = {op: getattr(driver, name) for op, name in SYMBOLS.items()}
    return calls, {"version": version.value}


def _answer(calls: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    op, pid = request["op"], ctypes.c_int(request["pid"])
    if op not in calls:
        return {"error": "no_checkpoint_api", "detail": f"{op} cannot be called"}
    if op == "state":
        state = ctypes.c_int(-1)
        code = int(calls[op](pid, ctypes.byref(state)))
        return {"result": code, "state": state.value}
    if op == "lock":
        arguments = LockArgs(timeout_ms=request["timeout_ms"])
        return {"result": int(calls[op](pid, ctypes.byref(arguments)))}
    return {"result": int(calls[op](pid, None))}


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
