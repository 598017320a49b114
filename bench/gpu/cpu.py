"""Stand-ins on the CPU: the same supervisor, wire and gate, real hashes and real logits, no GPU."""

import hashlib
import platform
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.workload import BATCH, BATCH_FIRST, Options, hash_of


class CpuMiner:
    """Double SHA-256 of a header with hashlib."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._nonce = 0

    def prepare(self) -> dict[str, Any]:
        """Nothing has to be loaded."""
        return {"backend": "cpu", "python": platform.python_version()}

    def first(self) -> str:
        """Hash the batch around the genesis nonce."""
        digests = b"".join(hash_of(BATCH_FIRST + at) for at in range(BATCH))
        return hashlib.sha256(digests).hexdigest()

    def unit(self) -> int:
        """Hash the next batch."""
        for at in range(BATCH):
            hash_of((self._nonce + at) & 0xFFFFFFFF)
        self._nonce = (self._nonce + BATCH) & 0xFFFFFFFF
        return BATCH

    def drain(self) -> None:
        """Nothing is ever under way."""

    def offload(self) -> None:
        """Nothing is held."""

    def load(self) -> None:
        """Nothing is held."""


class CpuModel:
    """A small network in numpy: weights that can be dropped and copied back from a mirror."""

    _WIDTH = 256

    def __init__(self, options: Options) -> None:
        self._options = options
        self._weights: npt.NDArray[np.float32] | None = None
        self._mirror: npt.NDArray[np.float32] | None = None
        self._x: npt.NDArray[np.float32] = np.zeros(self._WIDTH, dtype=np.float32)

    def prepare(self) -> dict[str, Any]:
        """Draw the weights."""
        shape = (self._options.layers, self._WIDTH, self._WIDTH)
        rng = np.random.default_rng(1)
        self._weights = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        if self._options.mirror:
            self._mirror = self._weights.copy()
        return {"backend": "cpu", "numpy": np.__version__, "weights_bytes": self._weights.nbytes}

    def first(self) -> str:
        """Give the digest of the logits of a fixed prompt."""
        self._x = np.linspace(-1.0, 1.0, self._WIDTH, dtype=np.float32)
        self.unit()
        return hashlib.sha256(self._x.tobytes()).hexdigest()

    def unit(self) -> int:
        """Do one decode step."""
        assert self._weights is not None, "it was offloaded"
        for layer in self._weights:
            self._x = np.tanh(layer @ self._x)
        return 1

    def drain(self) -> None:
        """Nothing is ever under way."""

    def offload(self) -> None:
        """Drop the weights; the mirror holds them."""
        assert self._mirror is not None, "offloading needs a mirror"
        self._weights = None

    def load(self) -> None:
        """Copy the mirror back."""
        assert self._mirror is not None, "loading needs a mirror"
        self._weights = self._mirror.copy()
