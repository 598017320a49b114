"""The same decoder in PyTorch, on a GPU.

**Not yet run**: the machines that this was written on had neither PyTorch nor a GPU. What checks it
where it runs is the canary: its logits' digest must be equal before and after every pause, offload
and resume, or the server calls itself failed.

The mirror is pinned once, at load. An offload drops the weights without copying them out, and a
resume copies them back in one piece; caches, which do change, are copied both ways.
"""

import importlib
import math
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_agent.reference.errors import BackendError
from edge_agent.reference.model import Logits, ModelSize, layout

# A type of a library that is no dependency and has no types here.
Tensor = Any


class TorchCache:
    """Keys and values of one sequence: [layer, key or value, token, width]."""

    def __init__(self, torch: Any, size: ModelSize) -> None:  # noqa: ANN401 - as Tensor
        self.length = 0
        self._torch = torch
        self._shape = (size.layers, 2, size.context, size.dim)
        self.values: Tensor = None
        self._host: Tensor = None
        self._closed = False
        self.onload()

    def offload(self) -> None:
        """Copy out what is used, and free the rest."""
        if self.values is not None:
            self._host = self.values[:, :, : self.length].cpu()
            self.values = None

    def onload(self) -> None:
        """Take memory on the device, and copy back what was copied out."""
        if self.values is None and not self._closed:
            self.values = self._torch.zeros(self._shape, dtype=self._torch.float16, device="cuda")
            if self._host is not None:
                self.values[:, :, : self.length] = self._host.to("cuda")
                self._host = None

    def close(self) -> None:
        """Free its memory for good."""
        self._closed, self.values, self._host = True, None, None


class TorchModel:
    """The model on the first GPU that this process may see.

    Raises:
        BackendError: PyTorch is not installed, or finds no GPU.
    """

    def __init__(self, size: ModelSize) -> None:
        # Source: PyTorch documentation, "Reproducibility": what cuBLAS needs to repeat itself.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as exc:
            raise BackendError(f"PyTorch is not installed: {exc}") from exc
        if not self._torch.cuda.is_available():
            raise BackendError("PyTorch finds no GPU")
        self._torch.use_deterministic_algorithms(mode=True)
        self.name = f"torch {self._torch.cuda.get_device_name(0)}"
        self._size = size
        self._tensors = layout(size)
        self._mirror = self._draw()
        self._flat: Tensor = None
        self._weights: dict[str, Tensor] = {}
        self._caches: weakref.WeakSet[TorchCache] = weakref.WeakSet()
        half = size.dim // size.heads // 2
        steps = self._torch.arange(half, device="cuda", dtype=self._torch.float32)
        self._frequencies = 1e4 ** (-steps / half)
        self.onload()

    @property
    def device_bytes(self) -> int:
        """Give what the allocator holds of the device."""
        return int(self._torch.cuda.memory_reserved())

    @property
    def mirror_bytes(self) -> int:
        """Give the host memory that the mirror holds."""
        return int(self._mirror.numel() * self._mirror.element_size())

    def new_cache(self) -> TorchCache:
        """Make room for one sequence."""
        cache = TorchCache(self._torch, self._size)
        self._caches.add(cache)
        return cache

    def offload(self) -> None:
        """Free the device."""
        for cache in self._caches:
            cache.offload()
        self._weights, self._flat = {}, None
        self._torch.cuda.synchronize()
        self._torch.cuda.empty_cache()

    def onload(self) -> None:
        """Bring weights and caches back."""
        if self._flat is None:
            self._flat = self._torch.empty_like(self._mirror, device="cuda")
            self._flat.copy_(self._mirror, non_blocking=True)
            self._weights = self._views(self._flat)
        for cache in self._caches:
            cache.onload()
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


def _turned(torch: Any, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:  # noqa: ANN401 - as Tensor
    """Turn each pair of a head by the angle of its place."""
    cosine, sine = turn
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cosine - high * sine, low * sine + high * cosine), dim=-1).to(x.dtype)
