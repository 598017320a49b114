"""Double SHA-256 on an NVIDIA GPU through CuPy.

**Not yet run on a GPU.** The machines that this was written on had none; there the kernel's source
was compiled as C++ and held to hashlib, and the host code ran against a stand-in for CuPy. What a
GPU adds (launch sizes, the stop word seen by a running kernel, times) is unproven until this passed
``self_check`` on one, which it must at each start, as every backend must.

Two launches are under way at any time, each sized to take ``launch_ms``; a stop word in pinned
host memory, which kernels see under unified addressing, ends them early.
"""

import importlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from edge_agent.reference.backend import Batch, Work
from edge_agent.reference.cuda_kernel import FOUND_MAX, KERNEL_NAME, OUT_WORDS, kernel_source
from edge_agent.reference.errors import BackendError, BackendMissingError
from edge_agent.reference.header import TARGET_MAX
from edge_agent.reference.sha256_state import INITIAL_STATE, compress

DEPTH = 2
LAUNCH_MS = 2.0
_BLOCK = 256
_GRID_MAX = 4_096
_NONCES_RANGE = (1 << 16, 1 << 28)
_FOUND_EXPECTED = FOUND_MAX // 4
_POLL_S = 20e-6
_DEVICE_TO_HOST = 2  # cudaMemcpyDeviceToHost


class _Place(Struct, frozen=True):
    """Where one launch writes: on the device, and its copy in pinned memory."""

    device: Any
    pinned: Any
    words: Any
    began: Any
    ended: Any


class _Launch(Struct, frozen=True):
    place: _Place
    first: int
    count: int


class CupyBackend:
    """One GPU: the first that this process may see.

    Args:
        launch_ms: what one launch should take; a pause waits for at most ``DEPTH`` of them.

    Raises:
        BackendMissingError: CuPy is not installed, or finds no device.
    """

    def __init__(self, launch_ms: float = LAUNCH_MS) -> None:
        try:
            # No dependency of this project: whoever has a GPU installs the wheel of their CUDA.
            self._cupy: Any = importlib.import_module("cupy")
            device: bytes = self._cupy.cuda.runtime.getDeviceProperties(0)["name"]
        except ImportError as exc:
            raise BackendMissingError(f"CuPy is not installed: {exc}") from exc
        except Exception as exc:  # what CuPy raises without a driver is its own, by version
            raise BackendMissingError(f"CuPy finds no device: {exc}") from exc
        self.name = f"cupy {device.decode(errors='replace')}"
        self._launch_ms = launch_ms
        self._kernel = self._cupy.RawKernel(kernel_source(), KERNEL_NAME)
        self._stop_memory, self._stop = self._pinned(16)
        self._stop[:] = 0
        self._places = [self._make_place() for _ in range(DEPTH)]
        self._nonces = 1 << 20

    def scan(self, work: Work, first: int, count: int) -> tuple[int, ...]:
        """Try each nonce of a range in one launch."""
        launch = self._launch(self._places[0], self._fixed(work), first, count)
        launch.place.ended.synchronize()
        return self._collect(launch).found

    def run(
        self, work: Work, first: int, end: int, wanted_elsewhere: Callable[[], bool]
    ) -> Iterator[Batch]:
        """Keep launches under way; the stop word ends them once wanted elsewhere."""
        fixed = self._fixed(work)
        # An easy target must not fill the list of what was found.
        most = max(1, _FOUND_EXPECTED * (TARGET_MAX + 1) // (work.target + 1))
        free = deque(self._places)
        under_way: deque[_Launch] = deque()
        try:
            while under_way or first < end:
                while free and first < end:
                    count = min(self._nonces, most, end - first)
                    under_way.append(self._launch(free.popleft(), fixed, first, count))
                    first += count
                if self._stopped(under_way[0], wanted_elsewhere):
                    return
                launch = under_way.popleft()
                batch = self._collect(launch)
                free.append(launch.place)
                yield batch
        finally:
            self._stop[0] = 1
            self._cupy.cuda.get_current_stream().synchronize()
            self._stop[0] = 0

    def _stopped(self, launch: _Launch, wanted_elsewhere: Callable[[], bool]) -> bool:
        """Wait for a launch; tell whether this was wanted elsewhere before its end."""
        while not (wanted := wanted_elsewhere()) and not launch.place.ended.done:
            time.sleep(_POLL_S)
        return wanted

    def _fixed(self, work: Work) -> Any:  # noqa: ANN401 - an array of a library without types
        state = compress(INITIAL_STATE, work.prefix[:64])
        tail = np.frombuffer(work.prefix[64:], dtype=">u4").astype(np.uint32)
        target = np.frombuffer(work.target.to_bytes(32, "big"), dtype=">u4").astype(np.uint32)
        words = np.concatenate((np.array(state, dtype=np.uint32), tail, target))
        return self._cupy.asarray(words)

    def _pinned(self, words: int) -> tuple[Any, Any]:
        memory = self._cupy.cuda.alloc_pinned_memory(4 * words)
        return memory, np.frombuffer(memory, dtype=np.uint32, count=words)

    def _make_place(self) -> _Place:
        memory, words = self._pinned(OUT_WORDS)
        device = self._cupy.zeros(OUT_WORDS, dtype=np.uint32)
        event = self._cupy.cuda.Event
        return _Place(device, memory, words, event(), event())

    def _launch(self, place: _Place, fixed: Any, first: int, count: int) -> _Launch:  # noqa: ANN401 - as above
        place.device.fill(0)
        grid = max(1, min(_GRID_MAX, -(-count // _BLOCK)))
        stop = np.uint64(self._stop_memory.ptr)
        arguments = (fixed, np.uint32(first), np.uint64(count), place.device, stop)
        place.began.record()
        self._kernel((grid,), (_BLOCK,), arguments)
        # The copy stands between kernel and event: reading it later waits for no other launch.
        self._cupy.cuda.runtime.memcpyAsync(
            place.pinned.ptr,
            place.device.data.ptr,
            4 * OUT_WORDS,
            _DEVICE_TO_HOST,
            self._cupy.cuda.get_current_stream().ptr,
        )
        place.ended.record()
        return _Launch(place, first, count)

    def _collect(self, launch: _Launch) -> Batch:
        """Read a launch that has ended, and size the next ones by how long it took.

        Raises:
            BackendError: more was found than there is room for, or it did not try all.
        """
        words = launch.place.words
        number, tried = int(words[0]), int(words[2]) | int(words[3]) << 32
        if number > FOUND_MAX:
            raise BackendError(f"{self.name}: {number} nonces in one launch, room for {FOUND_MAX}")
        if tried != launch.count:
            raise BackendError(f"{self.name}: {tried} of {launch.count} nonces were tried")
        if launch.count >= _NONCES_RANGE[0]:
            place = launch.place
            took_ms = max(0.01, self._cupy.cuda.get_elapsed_time(place.began, place.ended))
            low, high = _NONCES_RANGE
            self._nonces = max(low, min(high, int(launch.count * self._launch_ms / took_ms)))
        found = tuple(sorted(int(nonce) for nonce in words[4 : 4 + number]))
        return Batch(hashes=tried, upto=launch.first + tried, found=found)
