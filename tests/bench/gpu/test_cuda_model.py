"""The bench's model without a GPU: PyTorch's own arithmetic on the CPU, CUDA stood in for."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.gpu import cuda_model
from bench.gpu.cuda_model import CudaModel
from bench.gpu.cuda_shapes import Shape
from bench.gpu.workload import Options
from tests.bench.gpu.fake_arena import FakeArena
from tests.fakes.torch_cuda import make_torch

real = pytest.importorskip("torch", reason="PyTorch is not installed")

SHAPE = Shape(hidden=64, heads=4, mlp=176, vocabulary=300, context=24, prompt=6)
LAYERS = 3
Numbers = npt.NDArray[np.float64]


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a library
    fake = make_torch(real)
    monkeypatch.setattr(cuda_model, "_library", lambda: fake)
    monkeypatch.setattr(cuda_model, "Arena", FakeArena)
    # Several chunks, the last of them no whole one, and several pieces of weights to draw.
    monkeypatch.setattr(cuda_model, "CHUNK_BYTES", 50_000)
    monkeypatch.setattr(cuda_model, "_FILL", 30_000)
    return fake


def made(**options: Any) -> CudaModel:  # noqa: ANN401 - of Options
    model = CudaModel(Options(layers=LAYERS, **options), SHAPE)
    model.prepare()
    return model


# --- the arithmetic, against numpy in double precision -------------------------------------------


def reference(weights: Numbers, tokens: list[int]) -> Numbers:
    """Give the logits after the last token: Llama's decoder, all tokens at once.

    Source: Touvron et al., LLaMA (2023), section 2.2; Su et al., RoFormer (2021).
    """
    views, at = [], 0
    for rows, columns in SHAPE.weights(LAYERS):
        views.append(weights[at : at + rows * columns].reshape(rows, columns))
        at += rows * columns
    assert at == len(weights) == SHAPE.weight_count(LAYERS)
    x = views[0][tokens]
    for number in range(LAYERS):
        wq, wk, wv, wo, gate, up, down = views[1 + 7 * number : 8 + 7 * number]
        h = normed(x)
        x = x + attended(turned(h @ wq), turned(h @ wk), h @ wv) @ wo
        h = normed(x)
        g = h @ gate
        x = x + (g / (1 + np.exp(-g)) * (h @ up)) @ down
    return np.asarray(normed(x)[-1] @ views[-1])


def normed(x: Numbers) -> Numbers:
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5))


def turned(x: Numbers) -> Numbers:
    """Turn each pair of a head, as complex numbers."""
    heads = x.reshape(len(x), SHAPE.heads, SHAPE.head)
    half = SHAPE.head // 2
    pairs = heads[..., :half] + 1j * heads[..., half:]
    rates = 10_000.0 ** (-2.0 * np.arange(half) / SHAPE.head)
    pairs = pairs * np.exp(1j * np.arange(len(x))[:, None, None] * rates)
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def attended(query: Numbers, key: Numbers, value: Numbers) -> Numbers:
    count = len(query)
    values = value.reshape(count, SHAPE.heads, SHAPE.head)
    out = np.zeros_like(values)
    for head in range(SHAPE.heads):
        scores = query[:, head] @ key[:, head].T / np.sqrt(SHAPE.head)
        scores[np.triu_indices(count, 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = shares / shares.sum(axis=-1, keepdims=True) @ values[:, head]
    return out.reshape(count, SHAPE.hidden)


def sharp(mode: str, *, mirror: bool) -> CudaModel:
    """Make a model whose attention tells places apart: weights as wide as at full size."""
    model = made(mode=mode, mirror=mirror)
    with real.no_grad():
        model._flat.mul_((4_096 / SHAPE.hidden) ** 0.5)
        model._fill_prompt()
    model.first()
    return model


def check(model: CudaModel, tokens: list[int]) -> None:
    told = model._logits.float().numpy()[0]
    right = reference(model._flat.double().numpy(), tokens)
    # Half precision has eleven bits, and errors add up over the layers.
    assert np.abs(told - right).max() < 0.02 * right.std()
    assert int(model._token.item()) == int(told.argmax())


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_logits_are_those_of_the_reference(mode: str, *, mirror: bool) -> None:
    check(sharp(mode, mirror=mirror), [*range(1, SHAPE.prompt + 1), cuda_model._CANARY_TOKEN])


@pytest.mark.usefixtures("torch")
def test_decoding_on_is_that_of_the_reference_too() -> None:
    model = sharp("graph", mirror=False)
    tokens = [*range(1, SHAPE.prompt + 1), cuda_model._CANARY_TOKEN]
    for _ in range(4):
        tokens.append(int(model._token.item()))
        assert model.unit() == 1
        check(model, tokens)


# --- what stays, leaves and comes back ------------------------------------------------------------


@pytest.mark.usefixtures("torch")
def test_the_digest_is_the_same_for_graph_and_eager_and_in_a_new_process() -> None:
    digests = {
        made(mode=mode, mirror=mirror).first()
        for mode in ("eager", "graph")
        for mirror in (False, True)
    }
    assert len(digests) == 1


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_decoding_past_the_context_leaves_the_prompt_as_it_is(mode: str) -> None:
    model = made(mode=mode)
    digest = model.first()
    keys = model._keys[:, :, : SHAPE.prompt].clone()
    places = set()
    for _ in range(3 * SHAPE.context):
        model.unit()
        places.add(int(model._position.item()))
    assert places == set(range(SHAPE.prompt + 1, SHAPE.context))
    assert real.equal(model._keys[:, :, : SHAPE.prompt], keys)
    assert model.first() == digest


def test_weights_that_left_come_back_in_chunks_on_two_streams_and_the_rest_waits(
    torch: Any,  # noqa: ANN401 - a library
) -> None:
    model = made(mode="graph", mirror=True)
    digest = model.first()
    for _ in range(2):
        model.unit()
        torch.log.clear()
        model.offload()
        assert torch.log == [("synchronize", "all")]  # before the memory is taken away
        assert not getattr(model._arena, "mapped", True)
        assert bool(real.isnan(model._flat).all())
        torch.log.clear()
        model.load()
        one, two = (stream.name for stream in model._streams)
        count = -(-model._flat.numel() // 25_000)
        assert count > 3
        entered = [name for what, name, *_ in torch.log if what == "enter"]
        assert entered == [(one, two)[at % 2] for at in range(count)]
        assert torch.log[-2:] == [("wait", "main", one), ("wait", "main", two)]
        assert model.first() == digest


@pytest.mark.usefixtures("torch")
def test_what_did_not_come_back_whole_is_seen_in_the_digest() -> None:
    model = made(mode="graph", mirror=True)
    digest = model.first()
    model.offload()
    model.load()
    model._flat[SHAPE.weight_count(0) // 2 + 5] += 0.5
    assert model.first() != digest


@pytest.mark.usefixtures("torch")
def test_logits_that_are_no_numbers_are_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(self: CudaModel) -> None:
        make(self)
        self._head[:] = float("nan")

    make = CudaModel._make_views
    monkeypatch.setattr(CudaModel, "_make_views", spoiled)
    with pytest.raises(ValueError, match="no numbers"):
        made(mode="eager")


def test_an_arena_that_was_copied_is_no_arena(
    torch: Any,  # noqa: ANN401 - a library
) -> None:
    take = torch.as_tensor
    torch.as_tensor = lambda raw, device: take(raw, device=device).clone()
    with pytest.raises(ValueError, match="copied the arena"):
        made(mirror=True)


@pytest.mark.usefixtures("torch")
def test_without_a_mirror_nothing_is_offloaded() -> None:
    model = made(mode="eager")
    with pytest.raises(AssertionError, match="needs a mirror"):
        model.offload()


def test_the_stand_in_does_nothing_while_it_captures_and_refuses_to_wait(
    torch: Any,  # noqa: ANN401 - a library
) -> None:
    number = torch.zeros(1, device="cuda:0")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        number.add_(1)
        twice = number * 2
    assert float(number) == 0.0
    graph.replay()
    graph.replay()
    assert (float(number), float(twice)) == (2.0, 4.0)
    with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):
        number.item()
    with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):
        torch.cuda.synchronize()
