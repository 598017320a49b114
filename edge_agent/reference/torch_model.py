"""The same decoder in PyTorch, on a GPU.

**Not yet run on a GPU.** Its arithmetic, and what leaves and comes back, run in tests on the CPU
where PyTorch is installed, held to the numpy model. What checks it where it runs is the canary: its
logits' digest must be equal before and after every pause, offload and resume, or the server calls
itself failed.

The mirror is pinned once, at load. An offload drops the weights without copying them out, and a
resume copies them back in one piece; caches, which do change, are copied both ways. What the
context and cuBLAS keep on the device is neither weights nor caches and is not counted.
"""

import importlib
import math
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_agent.reference.errors import BackendError, BackendMissingError
from edge_agent.reference.model import Logits, ModelSize, layout

# A type of a library that is no dependency and has no types here.
Tensor = Any


class _Held:
    """Device memory that weights and caches hold; one thread changes it, any may read."""

    device_bytes = 0


class TorchCache:
    """Keys and values of one sequence: [layer, key or value, token, width]."""

    def __init__(self, torch: Any, size: ModelSize, held: _Held) -> None:  # noqa: ANN401 - as Tensor
        self.length = 0
        self._torch = torch
        self._held = held
        self._shape = (size.layers, 2, size.context, size.dim)
        self.values: Tensor = None
        self._host: Tensor = None
        self._closed = False
        self.onload()

    def offload(self) -> None:
        """Copy out what is used, and free the rest."""
        if self.values is not None:
            used = self.values[:, :, : self.length]
            self._host = self._torch.empty_like(used, device="cpu").copy_(used)
            self._free()

    def onload(self) -> None:
        """Take memory on the device, and copy back what was copied out."""
        if self.values is None and not self._closed:
            values = self._torch.zeros(self._shape, dtype=self._torch.float16, device="cuda")
            if self._host is not None:
                values[:, :, : self.length].copy_(self._host)
            self.values, self._host = values, None
            self._held.device_bytes += _bytes_of(values)

    def close(self) -> None:
        """Free its memory for good."""
        self._closed, self._host = True, None
        self._free()

    def _free(self) -> None:
        if self.values is not None:
            self._held.device_bytes -= _bytes_of(self.values)
            self.values = None


class TorchModel:
    """The model on the first GPU that this process may see.

    Raises:
        BackendMissingError: PyTorch is not installed, or finds no GPU.
        BackendError: it cannot load the model there.
    """

    def __init__(self, size: ModelSize) -> None:
        # Source: PyTorch documentation, "Reproducibility": what cuBLAS needs to repeat itself.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._size = size
        self._tensors = layout(size)
        self._held = _Held()
        self._left_bytes = 0
        self._flat: Tensor = None
        self._weights: dict[str, Tensor] = {}
        self._caches: weakref.WeakSet[TorchCache] = weakref.WeakSet()
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as exc:
            raise BackendMissingError(f"PyTorch is not installed: {exc}") from exc
        try:
            self._load()
        except BackendError:
            raise
        except Exception as exc:  # what PyTorch raises without room or driver differs by version
            raise BackendError(f"PyTorch: {type(exc).__name__}: {exc}") from exc

    def _load(self) -> None:
        torch = self._torch
        if not torch.cuda.is_available():
            raise BackendMissingError("PyTorch finds no GPU")
        torch.use_deterministic_algorithms(mode=True)
        # All memory is written before it is read here: filling it first would only take time.
        torch.utils.deterministic.fill_uninitialized_memory = False
        self.name = f"torch {torch.cuda.get_device_name(0)}"
        half = self._size.dim // self._size.heads // 2
        steps = torch.arange(half, device="cuda", dtype=torch.float32)
        self._frequencies = 1e4 ** (-steps / half)
        self._mirror = self._draw()
        self.onload()

    @property
    def device_bytes(self) -> int:
        """Give what weights and caches hold of the device, and what an offload did not free."""
        return self._held.device_bytes + self._left_bytes

    @property
    def mirror_bytes(self) -> int:
        """Give the host memory that the mirror holds."""
        return _bytes_of(self._mirror)

    def new_cache(self) -> TorchCache:
        """Make room for one sequence."""
        cache = TorchCache(self._torch, self._size, self._held)
        self._caches.add(cache)
        return cache

    def offload(self) -> None:
        """Free the device; what the allocator does not get back goes on counting."""
        torch, held_bytes = self._torch, self._held.device_bytes
        if held_bytes == 0:
            return
        before_bytes = int(torch.cuda.memory_allocated())
        for cache in self._caches:
            cache.offload()
        if self._flat is not None:
            self._held.device_bytes -= _bytes_of(self._flat)
            self._weights, self._flat = {}, None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        freed_bytes = before_bytes - int(torch.cuda.memory_allocated())
        self._left_bytes = max(0, held_bytes - freed_bytes)

    def onload(self) -> None:
        """Bring weights and caches back."""
        if self._flat is None:
            flat = self._torch.empty_like(self._mirror, device="cuda")
            flat.copy_(self._mirror, non_blocking=True)
            self._weights = self._views(flat)
            self._flat = flat
            self._held.device_bytes += _bytes_of(flat)
        for cache in self._caches:
            cache.onload()
        self._left_bytes = 0
        self._torch.cuda.synchronize()

    def forward(self, cache: TorchCache, tokens: Sequence[int]) -> Logits:
        """Take tokens in; give the logits after the last."""
        torch, weights, start = self._torch, self._weights, cache.length
        assert start + len(tokens) <= self._size.context, "the context is full"
        with torch.inference_mode():
            places = torch.arange(start, start + len(tokens), device="cuda", dtype=torch.float32)
            angles = places[:, None, None] * self._frequencies
            turn = (angles.cos(), angles.sin())
            x = weights["embed"][torch.tensor(list(tokens), device="cuda")]
            for layer in range(self._size.layers):
                x = x + self._attend(layer, self._norm(x, weights[f"{layer}.norm1"]), cache, turn)
                y = self._norm(x, weights[f"{layer}.norm2"])
                gate = torch.nn.functional.silu(y @ weights[f"{layer}.gate"])
                x = x + (gate * (y @ weights[f"{layer}.up"])) @ weights[f"{layer}.down"]
            cache.length += len(tokens)
            logits = self._norm(x[-1], weights["norm"]) @ weights["head"]
            answer: Logits = logits.float().cpu().numpy()
        return np.ascontiguousarray(answer)

    def _attend(
        self, layer: int, x: Tensor, cache: TorchCache, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        torch, weights, start, count = self._torch, self._weights, cache.length, len(x)
        heads, width = self._size.heads, self._size.dim // self._size.heads
        keys, values = cache.values[layer]
        query = _turned(torch, (x @ weights[f"{layer}.wq"]).view(count, heads, width), turn)
        key = _turned(torch, (x @ weights[f"{layer}.wk"]).view(count, heads, width), turn)
        end = start + count
        keys[start:end] = key.reshape(count, -1)
        values[start:end] = x @ weights[f"{layer}.wv"]
        seen_keys = keys[:end].view(end, heads, width).permute(1, 2, 0)
        seen_values = values[:end].view(end, heads, width).transpose(0, 1)
        scores = (query.transpose(0, 1) @ seen_keys).float() / math.sqrt(width)
        if count > 1:  # none sees what comes after it
            order = torch.arange(end, device="cuda")
            scores.masked_fill_(order[None, :] > order[start:, None], -math.inf)
        mixed = scores.softmax(dim=-1).to(x.dtype) @ seen_values
        return mixed.transpose(0, 1).reshape(count, -1) @ weights[f"{layer}.wo"]

    def _norm(self, x: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        mean = wide.pow(2).mean(dim=-1, keepdim=True)
        return (wide * (mean + 1e-5).rsqrt()).to(x.dtype) * scale

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        views, at = {}, 0
        for name, shape in self._tensors:
            count = math.prod(shape)
            views[name] = flat[at : at + count].view(shape)
            at += count
        return views

    def _draw(self) -> Tensor:
        """Draw the weights on the GPU, which is quick, and keep them in pinned host memory."""
        torch = self._torch
        total = sum(math.prod(shape) for _, shape in self._tensors)
        generator = torch.Generator(device="cuda").manual_seed(self._size.seed)
        flat = torch.empty(total, dtype=torch.float16, device="cuda")
        flat.normal_(0.0, 1 / math.sqrt(self._size.dim), generator=generator)
        for name, view in self._views(flat).items():
            if "norm" in name:
                view.fill_(1)
        mirror = torch.empty(total, dtype=torch.float16, pin_memory=True)
        mirror.copy_(flat)
        return mirror


def _bytes_of(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _turned(torch: Any, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:  # noqa: ANN401 - as Tensor
    """Turn each pair of a head by the angle of its place."""
    cosine, sine = turn
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cosine - high * sine, low * sine + high * cosine), dim=-1).to(x.dtype)
