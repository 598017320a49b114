"""The model in PyTorch on the CPU, CUDA stood in for: held to numpy, off the device and back."""

import importlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_agent.reference import torch_model
from edge_agent.reference.backends import model_loader
from edge_agent.reference.decoding import ask_canary
from edge_agent.reference.errors import BackendError, BackendMissingError
from edge_agent.reference.model import ModelSize, layout
from edge_agent.reference.numpy_model import NumpyModel
from edge_agent.reference.torch_model import TorchModel
from tests.fakes.torch_cuda import make_torch

SMALL = ModelSize(layers=2, dim=32, heads=2, context=128, seed=7)
_import = importlib.import_module


def found_as(monkeypatch: pytest.MonkeyPatch, torch: Any) -> None:  # noqa: ANN401 - a library
    def find(name: str) -> Any:  # noqa: ANN401 - as importlib
        if name == "torch" and torch is None:
            raise ImportError("No module named 'torch'")
        return torch if name == "torch" else _import(name)

    monkeypatch.setattr(torch_model, "importlib", SimpleNamespace(import_module=find))


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put PyTorch in place with a GPU that is the CPU; what it sets for the process is put back."""
    real = pytest.importorskip("torch", reason="PyTorch is not installed")
    filled = real.utils.deterministic.fill_uninitialized_memory
    fake = make_torch(real)
    found_as(monkeypatch, fake)
    yield fake
    real.use_deterministic_algorithms(mode=False)
    real.utils.deterministic.fill_uninitialized_memory = filled


def in_numpy(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> NumpyModel:
    """Give the numpy model with the same weights."""
    flat = model._mirror.float().numpy().copy()
    monkeypatch.setattr(NumpyModel, "_draw", lambda _self: flat)
    return NumpyModel(SMALL)


# The prompt at once, in pieces, token by token: what comes later must not be seen before.
@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("piece", [1, 3, 7, 40])
def test_the_logits_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    model = TorchModel(SMALL)
    other = in_numpy(model, monkeypatch)
    tokens = np.random.default_rng(piece).integers(0, 258, 40).tolist()
    mine, theirs = model.new_cache(), other.new_cache()
    for at in range(0, len(tokens), piece):
        told = model.forward(mine, tokens[at : at + piece])
        right = other.forward(theirs, tokens[at : at + piece])
        assert told.dtype == np.float32
        # Half precision has eleven bits, and errors add up over the layers.
        assert np.abs(told - right).max() < 0.02 * right.std()
    assert mine.length == theirs.length == len(tokens)
    theirs.close()


@pytest.mark.usefixtures("torch")
def test_weights_are_drawn_as_the_layout_says() -> None:
    model = TorchModel(SMALL)
    total = sum(math.prod(shape) for _name, shape in layout(SMALL))
    assert model.mirror_bytes == 2 * total
    assert set(model._weights) == {name for name, _shape in layout(SMALL)}
    assert bool((model._weights["0.norm1"] == 1).all())
    assert float(model._weights["embed"].float().std()) == pytest.approx(32**-0.5, rel=0.05)
    assert ask_canary(TorchModel(SMALL)) == ask_canary(model)


def test_an_offload_frees_all_and_brings_back_every_bit(torch: Any) -> None:  # noqa: ANN401 - a library
    model = TorchModel(SMALL)
    used = model.device_bytes
    assert used == model.mirror_bytes
    before = ask_canary(model)
    straight, moved = model.new_cache(), model.new_cache()
    assert model.device_bytes == used + 2 * 2 * SMALL.layers * 2 * SMALL.context * SMALL.dim
    expected = [model.forward(straight, [token]).tobytes() for token in range(40)]
    straight.close()
    floor = torch.allocated() - model.device_bytes
    seen = []
    for token in range(40):
        seen.append(model.forward(moved, [token]).tobytes())
        if token % 10 == 5:
            for _ in range(2):  # twice is once
                model.offload()
                assert model.device_bytes == 0
                assert torch.allocated() == floor
            for _ in range(2):
                model.onload()
            assert model.device_bytes == torch.allocated() - floor
    assert seen == expected
    moved.close()
    moved.close()
    assert ask_canary(model) == before
    assert model.device_bytes == used


@pytest.mark.usefixtures("torch")
def test_a_closed_cache_does_not_come_back() -> None:
    model = TorchModel(SMALL)
    cache = model.new_cache()
    model.forward(cache, [1, 2, 3])
    model.offload()
    cache.close()
    model.onload()
    assert cache.values is None
    assert model.device_bytes == model.mirror_bytes


@pytest.mark.usefixtures("torch")
def test_memory_that_is_still_held_after_an_offload_goes_on_counting() -> None:
    model = TorchModel(SMALL)
    used = model.device_bytes
    left_behind = model._weights["norm"]
    model.offload()
    assert model.device_bytes == used
    assert left_behind[0] == 1
    del left_behind
    model.onload()
    assert model.device_bytes == used


def test_what_stays_with_the_context_is_no_memory_of_the_model(torch: Any) -> None:  # noqa: ANN401 - as above
    model = TorchModel(SMALL)
    workspace = torch.zeros(1 << 20, device="cuda")  # as cuBLAS takes for itself, and keeps
    model.offload()
    assert model.device_bytes == 0
    assert workspace is not None


def test_a_device_that_is_full_on_the_way_back_is_tried_again(torch: Any) -> None:  # noqa: ANN401 - as above
    model = TorchModel(SMALL)
    before = ask_canary(model)
    model.offload()
    copied, whole = [], torch.empty_like

    def full(*words: Any, **options: Any) -> Any:  # noqa: ANN401 - as PyTorch
        copied.append(1)
        if len(copied) == 1:
            raise RuntimeError("CUDA out of memory")
        return whole(*words, **options)

    torch.empty_like = full
    with pytest.raises(RuntimeError, match="out of memory"):
        model.onload()
    assert model.device_bytes == 0
    model.onload()
    assert ask_canary(model) == before


def test_a_model_that_does_not_load_says_why(
    torch: Any,  # noqa: ANN401 - as above
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_words: Any, **_options: Any) -> Any:  # noqa: ANN401 - as PyTorch
        raise RuntimeError("CUDA out of memory")

    torch.empty = full
    with pytest.raises(BackendError, match="PyTorch: RuntimeError: CUDA out of memory"):
        TorchModel(SMALL)
    # A device that is full must not make it another model.
    for kind in ("auto", "torch"):
        with pytest.raises(BackendError, match="out of memory"):
            model_loader(kind, SMALL)()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendMissingError, match="finds no GPU"):
        model_loader("torch", SMALL)()
    assert model_loader("auto", SMALL)().name == "numpy"


def test_without_torch_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found_as(monkeypatch, None)
    with pytest.raises(BackendMissingError, match="not installed"):
        model_loader("torch", SMALL)()
    assert model_loader("auto", SMALL)().name == "numpy"
