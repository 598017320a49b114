"""A small decoder on the CPU in numpy: rotary attention with a key-value cache, gated feed-forward.

The "device" is memory of its own that the system hands out and takes back as a whole, so that what
an offload frees is really free, and a view that was left behind is an error instead of a leak.

Source: Touvron et al., LLaMA (2023), section 2.2; Su et al., RoFormer (2021); Shazeer, GLU Variants
(2020).
"""

import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.reference.model import Logits, ModelSize, layout

Array = NDArray[np.float32]
_FLOAT_BYTES = 4
_EPSILON = np.float32(1e-5)


class Device:
    """Counts the memory that is handed out; one thread changes it, any may read."""

    used_bytes = 0


class DeviceMemory:
    """One piece of memory, given back to the system when it is closed."""

    def __init__(self, device: Device, floats: int) -> None:
        self._device = device
        self._bytes = floats * _FLOAT_BYTES
        self._map = mmap.mmap(-1, self._bytes)
        device.used_bytes += self._bytes

    def array(self) -> Array:
        """Give all of it as one array."""
        return np.frombuffer(self._map, dtype=np.float32)

    def close(self) -> None:
        """Give it back.

        Raises:
            BufferError: an array of it is still held.
        """
        self._map.close()
        self._device.used_bytes -= self._bytes


class NumpyCache:
    """Keys and values of one sequence: [layer, key or value, token, width]."""

    def __init__(self, device: Device, size: ModelSize) -> None:
        self.length = 0
        self._device = device
        self._shape = (size.layers, 2, size.context, size.dim)
        self._memory: DeviceMemory | None = None
        self._values: Array | None = None
        self._host: Array | None = None
        self._closed = False
        self.onload()

    @property
    def values(self) -> Array:
        """Give the array on the device."""
        assert self._values is not None, "a cache off the device is not used"
        return self._values

    def offload(self) -> None:
        """Copy out what is used, and free the rest."""
        if self._values is not None:
            self._host = self._values[:, :, : self.length].copy()
            self._free()

    def onload(self) -> None:
        """Take memory on the device, and copy back what was copied out."""
        if self._memory is None and not self._closed:
            self._memory = DeviceMemory(self._device, math.prod(self._shape))
            self._values = self._memory.array().reshape(self._shape)
            if self._host is not None:
                self._values[:, :, : self.length] = self._host
                self._host = None

    def close(self) -> None:
        """Free its memory for good."""
        self._closed, self._host = True, None
        self._free()

    def _free(self) -> None:
        self._values = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class NumpyModel:
    """The model with its mirror; loaded when made."""

    name = "numpy"

    def __init__(self, size: ModelSize) -> None:
        self._size = size
        self._device = Device()
        self._tensors = layout(size)
        self._mirror = self._draw()
        self._memory: DeviceMemory | None = None
        self._weights: dict[str, Array] = {}
        self._caches: weakref.WeakSet[NumpyCache] = weakref.WeakSet()
        half = size.dim // size.heads // 2
        self._frequencies = (1e4 ** (-np.arange(half) / half)).astype(np.float32)
        self.onload()

    @property
    def device_bytes(self) -> int:
        """Give the device memory that weights and caches hold."""
        return self._device.used_bytes

    @property
    def mirror_bytes(self) -> int:
        """Give the host memory that the mirror holds."""
        return self._mirror.nbytes

    def new_cache(self) -> NumpyCache:
        """Make room for one sequence."""
        cache = NumpyCache(self._device, self._size)
        self._caches.add(cache)
        return cache

    def offload(self) -> None:
        """Free the device."""
        for cache in self._caches:
            cache.offload()
        self._weights = {}
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def onload(self) -> None:
        """Bring weights and caches back."""
        if self._memory is None:
            self._memory = DeviceMemory(self._device, self._mirror.size)
            flat = self._memory.array()
            flat[:] = self._mirror
            self._weights = self._views(flat)
        for cache in self._caches:
            cache.onload()

    def forward(self, cache: NumpyCache, tokens: Sequence[int]) -> Logits:
        """Take tokens in; give the logits after the last."""
        weights, start = self._weights, cache.length
        assert start + len(tokens) <= self._size.context, "the context is full"
        places = np.arange(start, start + len(tokens), dtype=np.float32)
        angles = places[:, None, None] * self._frequencies
        turn = (np.cos(angles), np.sin(angles))
        x = weights["embed"][list(tokens)]
        for layer in range(self._size.layers):
            x = x + self._attend(layer, _norm(x, weights[f"{layer}.norm1"]), cache, turn)
            y = _norm(x, weights[f"{layer}.norm2"])
            gate = y @ weights[f"{layer}.gate"]
            gate = gate / (1 + np.exp(-gate)) * (y @ weights[f"{layer}.up"])
            x = x + gate @ weights[f"{layer}.down"]
        cache.length += len(tokens)
        logits: Logits = _norm(x[-1], weights["norm"]) @ weights["head"]
        return logits

    def _attend(self, layer: int, x: Array, cache: NumpyCache, turn: tuple[Array, Array]) -> Array:
        weights, start, count = self._weights, cache.length, len(x)
        heads, width = self._size.heads, self._size.dim // self._size.heads
        keys, values = cache.values[layer]
        query = _turned((x @ weights[f"{layer}.wq"]).reshape(count, heads, width), turn)
        key = _turned((x @ weights[f"{layer}.wk"]).reshape(count, heads, width), turn)
        end = start + count
        keys[start:end] = key.reshape(count, -1)
        values[start:end] = x @ weights[f"{layer}.wv"]
        seen_keys = keys[:end].reshape(end, heads, width).transpose(1, 2, 0)
        seen_values = values[:end].reshape(end, heads, width).transpose(1, 0, 2)
        scores = query.transpose(1, 0, 2) @ seen_keys / np.float32(math.sqrt(width))
        if count > 1:  # none sees what comes after it
            later = np.arange(end)[None, :] > np.arange(start, end)[:, None]
            scores = np.where(later, np.float32(-np.inf), scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ seen_values).transpose(1, 0, 2).reshape(count, -1)
        attended: Array = mixed @ weights[f"{layer}.wo"]
        return attended

    def _views(self, flat: Array) -> dict[str, Array]:
        views, at = {}, 0
        for name, shape in self._tensors:
            count = math.prod(shape)
            views[name] = flat[at : at + count].reshape(shape)
            at += count
        return views

    def _draw(self) -> Array:
        total = sum(math.prod(shape) for _, shape in self._tensors)
        rng = np.random.default_rng(self._size.seed)
        flat = rng.standard_normal(total, dtype=np.float32)
        flat *= np.float32(1 / math.sqrt(self._size.dim))
        for name, view in self._views(flat).items():
            if "norm" in name:
                view[:] = 1
        flat.flags.writeable = False
        return flat


def _norm(x: Array, scale: Array) -> Array:
    mean = (x * x).mean(axis=-1, keepdims=True)
    normed: Array = x / np.sqrt(mean + _EPSILON) * scale
    return normed


def _turned(x: Array, turn: tuple[Array, Array]) -> Array:
    """Turn each pair of a head by the angle of its place."""
    cosine, sine = turn
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return np.concatenate((low * cosine - high * sine, low * sine + high * cosine), axis=-1)
