"""The model on a GPU: a Llama-like decoder in torch, random fp16 weights, static KV.

For a swap all weights lie in one arena, so that they can leave and come back under the same
addresses, and a captured graph of the decode step stays valid; else in plain memory, which every
driver can checkpoint. Written for a GPU that was not at hand: tests run it on the CPU, with a
stand-in for what PyTorch has of CUDA.
"""

import hashlib
import time
from typing import Any

from bench.gpu.arena import Arena
from bench.gpu.cuda_shapes import LLAMA_7B, Shape
from bench.gpu.workload import Options

CHUNK_BYTES, STREAMS = 256 << 20, 2
_CANARY_TOKEN = 17
_FILL = 1 << 28


def _library() -> Any:  # noqa: ANN401 - an optional package
    import torch  # noqa: PLC0415 - only a worker with a GPU has it

    return torch


class _Raw:
    """Memory at an address, as the array interface names it."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "<f2", "data": (address, False), "version": 3,
        }  # fmt: skip


class CudaModel:
    """One decode step after another, with a batch of one.

    Args:
        shape: of the model; another one in tests.
    """

    def __init__(self, options: Options, shape: Shape = LLAMA_7B) -> None:
        self._options = options
        self._shape = shape
        self._graph: Any = None
        self._mirror: Any = None

    def prepare(self) -> dict[str, Any]:
        """Draw the weights, fill the KV of a prompt, capture the step."""
        torch = self._torch = _library()
        self._device = torch.device("cuda:0")
        torch.zeros(1, device=self._device)  # makes the context current
        count = self._shape.weight_count(self._options.layers)
        self._flat = self._weights(count)
        generator = torch.Generator(device=self._device).manual_seed(1)
        for at in range(0, count, _FILL):
            self._flat[at : at + _FILL].normal_(0.0, 0.02, generator=generator)
        mirror = self._pin() if self._options.mirror else {}
        with torch.no_grad():
            self._make_views()
            self._make_state()
            if self._options.mode == "graph":
                self._capture()
            self._fill_prompt()
        digest = self.first()
        self.unit()  # its kernels are loaded when they are first used: not in a switch
        # A digest of what is no number is as stable as any, and shows nothing.
        if not bool(torch.isfinite(self._logits).all().item()):
            raise ValueError("the logits are no numbers")
        if self.first() != digest:
            raise ValueError("the logits of the fixed prompt are not the same twice")
        return mirror | {
            "backend": "cuda",
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda),
            "card": str(torch.cuda.get_device_name(0)),
            "weights_bytes": 2 * count,
            "reserved_mib": int(torch.cuda.memory_reserved()) >> 20,
        }

    def first(self) -> str:
        """Give the digest of the logits after the fixed prompt."""
        self._token.fill_(_CANARY_TOKEN)
        self._position.fill_(self._shape.prompt)
        self._step()
        logits = self._logits.cpu().numpy().tobytes()
        return hashlib.sha256(logits).hexdigest()

    def unit(self) -> int:
        """Decode one token and wait for it, as a server that streams does."""
        self._position.add_(1).remainder_(self._shape.context)
        # The prompt's places keep the prompt.
        self._position.clamp_(min=self._shape.prompt + 1)
        self._step()
        self._torch.cuda.current_stream().synchronize()
        return 1

    def drain(self) -> None:
        """Wait for the device."""
        self._torch.cuda.synchronize()

    def offload(self) -> None:
        """Give the weights' memory back; nothing is copied out, they never change."""
        assert self._mirror is not None, "offloading needs a mirror"
        self._torch.cuda.synchronize()
        self._arena.unmap()

    def load(self) -> None:
        """Map memory and copy the mirror in, in chunks on two streams."""
        torch = self._torch
        self._arena.map()
        step = CHUNK_BYTES // 2
        for number, at in enumerate(range(0, self._flat.numel(), step)):
            with torch.cuda.stream(self._streams[number % STREAMS]):
                self._flat[at : at + step].copy_(self._mirror[at : at + step], non_blocking=True)
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)

    # --- making it ------------------------------------------------------------------------

    def _weights(self, count: int) -> Any:  # noqa: ANN401 - a tensor of an optional package
        torch = self._torch
        if not self._options.mirror:
            return torch.empty(count, dtype=torch.float16, device=self._device)
        self._arena = Arena(2 * count)
        flat = torch.as_tensor(_Raw(self._arena.address, count), device=self._device)
        # A copy would stay when the arena is unmapped, and every swap would be for nothing.
        if flat.data_ptr() != self._arena.address:
            raise ValueError("PyTorch copied the arena instead of taking its addresses")
        return flat

    def _pin(self) -> dict[str, Any]:
        torch = self._torch
        began = time.perf_counter()
        self._mirror = torch.empty(self._flat.numel(), dtype=torch.float16, pin_memory=True)
        self._mirror.copy_(self._flat)
        torch.cuda.synchronize()
        took_s = time.perf_counter() - began
        self._streams = [torch.cuda.Stream() for _ in range(STREAMS)]
        self.offload()
        began = time.perf_counter()
        self.load()
        torch.cuda.synchronize()
        load_s = time.perf_counter() - began
        gb = 2 * self._flat.numel() / 1e9
        return {"pin_s": round(took_s, 3), "load_gb_per_s": round(gb / load_s, 2)}

    def _make_views(self) -> None:
        views, at = [], 0
        for rows, columns in self._shape.weights(self._options.layers):
            views.append(self._flat[at : at + rows * columns].view(rows, columns))
            at += rows * columns
        self._embedding, self._head = views[0], views[-1]
        inner = views[1:-1]
        self._layers = [inner[at : at + 7] for at in range(0, len(inner), 7)]

    def _make_state(self) -> None:
        torch, device, shape = self._torch, self._device, self._shape
        half = torch.float16
        kv = (self._options.layers, shape.heads, shape.context, shape.head)
        self._keys = torch.zeros(kv, dtype=half, device=device)
        self._values = torch.zeros(kv, dtype=half, device=device)
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._logits = torch.zeros(1, shape.vocabulary, dtype=half, device=device)
        self._places = torch.arange(shape.context, device=device)
        powers = torch.arange(0, shape.head, 2, device=device, dtype=torch.float32) / shape.head
        angles = self._places.float()[:, None] / (10_000.0**powers)[None, :]
        self._cos, self._sin = angles.cos().half(), angles.sin().half()

    def _fill_prompt(self) -> None:
        for place in range(self._shape.prompt):
            self._token.fill_(place + 1)
            self._position.fill_(place)
            self._decode()
        self._torch.cuda.synchronize()

    def _capture(self) -> None:
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._decode()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decode()
        self._graph = graph

    # --- one step -------------------------------------------------------------------------

    def _step(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        with self._torch.no_grad():
            self._decode()

    def _decode(self) -> None:
        torch = self._torch
        x = self._embedding.index_select(0, self._token)
        mask = (self._places <= self._position).view(1, 1, self._shape.context)
        for number, layer in enumerate(self._layers):
            x = x + self._attend(number, layer, _norm(torch, x), mask)
            y = _norm(torch, x)
            x = x + (torch.nn.functional.silu(y @ layer[4]) * (y @ layer[5])) @ layer[6]
        self._logits.copy_(_norm(torch, x) @ self._head)
        self._token.copy_(self._logits.argmax(dim=-1))

    def _attend(self, number: int, layer: list[Any], x: Any, mask: Any) -> Any:  # noqa: ANN401 - tensors of an optional package
        torch, one = self._torch, (self._shape.heads, 1, self._shape.head)
        query, key = (self._turn((x @ layer[at]).view(one)) for at in (0, 1))
        value = (x @ layer[2]).view(one)
        keys, values = self._keys[number], self._values[number]
        keys.index_copy_(1, self._position, key)
        values.index_copy_(1, self._position, value)
        scores = (query @ keys.transpose(1, 2)) * (self._shape.head**-0.5)
        shares = torch.softmax(scores.float().masked_fill(~mask, float("-inf")), dim=-1).half()
        return (shares @ values).view(1, self._shape.hidden) @ layer[3]

    def _turn(self, x: Any) -> Any:  # noqa: ANN401 - tensors of an optional package
        half = self._shape.head // 2
        cos = self._cos.index_select(0, self._position).view(1, 1, half)
        sin = self._sin.index_select(0, self._position).view(1, 1, half)
        one, two = x[..., :half], x[..., half:]
        return self._torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def _norm(torch: Any, x: Any) -> Any:  # noqa: ANN401 - tensors of an optional package
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-5)).half()
