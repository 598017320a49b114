"""The miner on a GPU: a CuPy RawKernel of double SHA-256 with at most two launches under way.

Written for a GPU that was not at hand: the kernel's arithmetic is tested with a C compiler, the
launches here are not.
"""

import ctypes
import hashlib
import struct
import time
from typing import Any

from bench.gpu.arena import ArenaError
from bench.gpu.cuda_source import SOURCE
from bench.gpu.wire import Gate
from bench.gpu.workload import (
    BATCH,
    BATCH_FIRST,
    GENESIS_HEADER,
    GENESIS_NONCE,
    Options,
    hash_of,
)

DEPTH = 2
_THREADS = 256
_BLOCKS_PER_SM = 16
_LIMIT = 0  # a hash of 32 leading zero bits: rare enough never to matter for the rate
_CHECKED = 100_000
# A card that idled takes a while to its clocks: what was fitted before would be shorter than asked.
_WARM_S = 0.5
_FIRST = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_HOST_REGISTER_MAPPED = 2


class CudaMiner:
    """Searches nonces of the genesis header.

    Args:
        gate: its page is mapped into the GPU's view when the kernel polls the stop word.
    """

    def __init__(self, options: Options, gate: Gate) -> None:
        self._options = options
        self._gate = gate
        self._nonce = 0
        self._per_thread = 64
        self._took_ms = 0.0
        self._under_way: list[Any] = []

    def prepare(self) -> dict[str, Any]:
        """Compile, check 100,000 nonces against hashlib, and fit a launch to its length."""
        import cupy  # noqa: PLC0415 - only a worker with a GPU has it

        self._cupy = cupy
        module = cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"))
        self._search, self._digests = (module.get_function(n) for n in ("search", "digests"))
        self._midstate = cupy.asarray(midstate_of(GENESIS_HEADER), dtype=cupy.uint32)
        tail = struct.unpack(">3I", GENESIS_HEADER[64:76])
        self._tail = cupy.asarray(tail, dtype=cupy.uint32)
        self._found = cupy.zeros(16, dtype=cupy.uint32)
        self._stop = self._map_stop() if self._options.stop_word else 0
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        self._blocks = int(properties["multiProcessorCount"]) * _BLOCKS_PER_SM
        self._check()
        self._fit()
        return {
            "backend": "cuda",
            "cupy": cupy.__version__,
            "card": properties["name"].decode(),
            "launch_ms": self._options.launch_ms,
            "launch_took_ms": round(self._took_ms, 3),
            "nonces_per_launch": self._per_launch(),
            "stop_word": self._options.stop_word,
        }

    def first(self) -> str:
        """Hash the batch around the genesis nonce on the GPU."""
        return hashlib.sha256(self._batch(BATCH_FIRST, BATCH)).hexdigest()

    def unit(self) -> int:
        """Put one launch under way; when two are, waits for the older.

        It waits after the launch and not before: told to stop while it waits, it adds no third to
        what a pause has to wait for.
        """
        self._launch()
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record()
        self._under_way.append(event)
        if len(self._under_way) >= DEPTH:
            self._under_way.pop(0).synchronize()
        return self._per_launch()

    def drain(self) -> None:
        """Wait for all launches."""
        self._cupy.cuda.get_current_stream().synchronize()
        self._under_way.clear()

    def offload(self) -> None:
        """It holds next to nothing: it stays."""

    def load(self) -> None:
        """It never left."""

    def _per_launch(self) -> int:
        return self._blocks * _THREADS * self._per_thread

    def _launch(self) -> None:
        u32 = self._cupy.uint32
        arguments = (
            self._midstate, self._tail, u32(self._nonce), u32(self._per_thread), u32(_LIMIT),
            self._found, self._cupy.uintp(self._stop),
        )  # fmt: skip
        self._search((self._blocks,), (_THREADS,), arguments)
        self._nonce = (self._nonce + self._per_launch()) & 0xFFFFFFFF

    def _batch(self, first: int, count: int) -> bytes:
        cupy = self._cupy
        out = cupy.empty(8 * count, dtype=cupy.uint32)
        blocks = -(-count // _THREADS)
        u32 = cupy.uint32
        self._digests(
            (blocks,), (_THREADS,), (self._midstate, self._tail, u32(first), u32(count), out)
        )
        words: bytes = cupy.asnumpy(out).astype(">u4").tobytes()
        return words

    def _check(self) -> None:
        first = BATCH_FIRST - _CHECKED // 2
        digests = self._batch(first, _CHECKED)
        for at in range(_CHECKED):
            if digests[32 * at : 32 * at + 32] != hash_of(first + at):
                raise ValueError(f"the kernel's hash of nonce {first + at} is wrong")

        self._check_search()

    def _check_search(self) -> None:
        """Let the kernel that mines find what is known: one nonce, in one launch around it."""
        self._nonce = GENESIS_NONCE - self._per_launch() // 2
        self._launch()
        self.drain()
        count, *nonces = (int(word) for word in self._cupy.asnumpy(self._found))
        found = nonces[:count]
        # Another nonce may meet the limit by chance; each must.
        wrong = [nonce for nonce in found if hash_of(nonce)[-4:] != bytes(4)]
        if GENESIS_NONCE not in found or wrong:
            raise ValueError(f"the kernel that mines found {found}, of which {wrong} are wrong")

    def _fit(self) -> None:
        """Choose the nonces per thread so that a launch takes about as long as asked."""
        warm = time.perf_counter() + _WARM_S
        while time.perf_counter() < warm:
            self._timed_ms()
        for _ in range(3):
            wanted = self._per_thread * self._options.launch_ms / self._timed_ms()
            self._per_thread = min(max(int(wanted), 1), 1 << 20)
        self._took_ms = self._timed_ms()

    def _timed_ms(self) -> float:
        self._launch()
        self.drain()
        began = time.perf_counter()
        self._launch()
        self.drain()
        return max((time.perf_counter() - began) * 1e3, 1e-3)

    def _map_stop(self) -> int:
        """Give the device address of the gate's stop word, its first four bytes."""
        runtime = self._cupy.cuda.runtime
        page = self._gate.page
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        runtime.hostRegister(address, len(page), _HOST_REGISTER_MAPPED)
        driver = ctypes.CDLL("libcuda.so.1")
        mapped = ctypes.c_uint64(0)
        result = driver.cuMemHostGetDevicePointer_v2(
            ctypes.byref(mapped), ctypes.c_void_p(address), ctypes.c_uint(0)
        )
        if result != 0:
            raise ArenaError(f"cuMemHostGetDevicePointer gave {result}")
        return mapped.value


def midstate_of(header: bytes) -> tuple[int, ...]:
    """Give the state after the first 64 bytes; hashlib does not show it, so it is computed."""
    words = list(struct.unpack(">16I", header[:64]))
    state = _FIRST
    for at in range(16, 64):
        near, far = words[at - 15], words[at - 2]
        s0 = _ror(near, 7) ^ _ror(near, 18) ^ (near >> 3)
        s1 = _ror(far, 17) ^ _ror(far, 19) ^ (far >> 10)
        words.append((words[at - 16] + s0 + words[at - 7] + s1) & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for word, constant in zip(words, round_constants(), strict=True):
        t1 = h + (_ror(e, 6) ^ _ror(e, 11) ^ _ror(e, 25)) + ((e & f) ^ (~e & g)) + constant + word
        t2 = (_ror(a, 2) ^ _ror(a, 13) ^ _ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
        h, g, f, e, d, c, b, a = g, f, e, (d + t1) & 0xFFFFFFFF, c, b, a, (t1 + t2) & 0xFFFFFFFF
    after = (a, b, c, d, e, f, g, h)
    return tuple((x + y) & 0xFFFFFFFF for x, y in zip(state, after, strict=True))


def round_constants() -> tuple[int, ...]:
    """Read the constants of the kernel's source: they stand in one place."""
    text = SOURCE.read_text()
    body = text[text.index("K[64] = {") :].split("{", 1)[1].split("}", 1)[0]
    return tuple(int(word, 16) for word in body.replace("\n", " ").split(","))


def _ror(x: int, n: int) -> int:
    return ((x >> n) | (x << (32 - n))) & 0xFFFFFFFF
