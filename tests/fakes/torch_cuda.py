"""PyTorch on the CPU with a stand-in for what it has of CUDA; the rest is PyTorch's own.

A graph is what was recorded while it was captured, operation by operation, and a replay does these
again in the very tensors: what a real one would not see (a number read by the host) is not seen
here. While one is captured nothing is done, and what would wait for the device is refused. Streams
keep what was asked of them, and no order: nothing runs side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

# Operations that wait for the device: CUDA refuses them while a graph is captured.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")
_DEVICE = "device"
_MAKERS = ("zeros", "ones", "empty", "arange", "tensor", "empty_like", "full")


def make_torch(torch: Any) -> Any:  # noqa: ANN401 - a library without types here
    """Give a module like `torch` whose GPU is the CPU; ``log`` keeps what was asked of streams."""
    fake = _Torch(torch)
    fake.cuda = _cuda(torch, fake.log)
    fake.cuda.memory_allocated = fake.allocated
    return fake


class _Torch:
    def __init__(self, torch: Any) -> None:  # noqa: ANN401 - as above
        self._torch = torch
        self.log: list[tuple[str, ...]] = []
        self.on_device: list[tuple[Any, int]] = []
        self.cuda: Any = None
        self.version = SimpleNamespace(cuda="stand-in")
        for name in _MAKERS:
            setattr(self, name, self._maker(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return getattr(self._torch, name)

    def allocated(self) -> int:
        """Give the bytes of all that was made on the device and is still held by anybody."""
        self.on_device = [(ref, size) for ref, size in self.on_device if not ref.expired()]
        return sum(size for _ref, size in self.on_device)

    def device(self, name: str) -> Any:  # noqa: ANN401 - as above
        assert name.startswith("cuda"), name
        return self._torch.device("cpu")

    def Generator(self, device: object) -> Any:  # noqa: ANN401, N802 - its name there
        self._check(device)
        return self._torch.Generator(device="cpu")

    def as_tensor(self, raw: Any, device: object) -> Any:  # noqa: ANN401 - as above
        """Take memory by its address, as the array interface names it."""
        self._check(device)
        told = raw.__cuda_array_interface__
        assert (told["typestr"], told["version"]) == ("<f2", 3)
        (count,), (address, read_only) = told["shape"], told["data"]
        assert not read_only
        memory = (ctypes.c_char * (2 * count)).from_address(address)
        return self._torch.frombuffer(memory, dtype=self._torch.float16)

    def _maker(self, make: Any) -> Any:  # noqa: ANN401 - as above
        from torch.multiprocessing.reductions import StorageWeakRef

        def made(*words: Any, pin_memory: bool = False, **options: Any) -> Any:  # noqa: ANN401
            on_device = options.get(_DEVICE, "cpu") != "cpu"
            if on_device:
                self._check(options[_DEVICE])
                options[_DEVICE] = "cpu"
            assert not (pin_memory and on_device), "memory of a device is not pinned"
            out = make(*words, **options)
            if on_device:
                storage = out.untyped_storage()
                self.on_device.append((StorageWeakRef(storage), storage.nbytes()))
            return out

        return made

    def _check(self, device: object) -> None:
        assert str(device) in {"cpu", "cuda", "cuda:0"}, device


def _cuda(torch: Any, log: list[tuple[str, ...]]) -> SimpleNamespace:  # noqa: ANN401 - as above
    class Stream:
        made = 0

        def __init__(self, name: str = "") -> None:
            Stream.made += 1
            self.name = name or f"side {Stream.made - 1}"

        def wait_stream(self, other: Stream) -> None:
            log.append(("wait", self.name, other.name))

        def synchronize(self) -> None:
            refuse()
            log.append(("synchronize", self.name))

    main = Stream("main")
    state = SimpleNamespace(stream=main, capturing=False)

    def refuse() -> None:
        if state.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    @contextlib.contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, state.stream = state.stream, chosen
        log.append(("enter", chosen.name))
        try:
            yield
        finally:
            state.stream = before

    def synchronize() -> None:
        refuse()
        log.append(("synchronize", "all"))

    @contextlib.contextmanager
    def graph(captured: Any) -> Iterator[None]:  # noqa: ANN401 - as above
        state.capturing = True
        recorder = _recorder()
        try:
            with recorder:
                yield
        finally:
            state.capturing = False
            for tensor, content in reversed(recorder.before):
                tensor.copy_(content)
        captured.acts = recorder.acts

    return SimpleNamespace(
        Stream=Stream, stream=stream, current_stream=lambda: state.stream, synchronize=synchronize,
        CUDAGraph=lambda: _Graph(torch), graph=graph, is_available=lambda: True,
        get_device_name=lambda _device=0: "stand-in", memory_reserved=lambda: 0,
        empty_cache=lambda: log.append(("empty cache",)),
    )  # fmt: skip


class _Graph:
    def __init__(self, torch: Any) -> None:  # noqa: ANN401 - as above
        self._torch = torch
        self.acts: list[tuple[Any, Any, Any, Any]] | None = None

    def replay(self) -> None:
        assert self.acts is not None, "it was not captured"
        with self._torch.no_grad():
            for act, words, options, out in self.acts:
                again = act(*words, **options)
                for old, new in zip(
                    _tensors(self._torch, out), _tensors(self._torch, again), strict=True
                ):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _tensors(torch: Any, out: Any) -> list[Any]:  # noqa: ANN401 - as above
    many = out if isinstance(out, (tuple, list)) else [out]
    return [one for one in many if isinstance(one, torch.Tensor)]


def _recorder() -> Any:  # noqa: ANN401 - as above
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):  # type: ignore[misc, unused-ignore]  # where torch is not installed
        def __init__(self) -> None:
            super().__init__()
            self.acts: list[tuple[Any, Any, Any, Any]] = []
            self.before: list[tuple[Any, Any]] = []

        def __torch_dispatch__(  # types as PyTorch has them
            self,
            func: Any,  # noqa: ANN401
            _types: Any,  # noqa: ANN401
            args: Any = (),  # noqa: ANN401
            kwargs: Any = None,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            name = func.name().removeprefix("aten::").partition(".")[0]
            if name in _WAITS:
                raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
            for one, told in zip(args, func._schema.arguments, strict=False):
                if told.alias_info is not None and told.alias_info.is_write:
                    self.before.append((one, one.clone()))
            out = func(*args, **(kwargs or {}))
            self.acts.append((func, args, kwargs or {}, out))
            return out

    return Recorder()
