"""The small model: its attention against a slow one, and what an offload frees and brings back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.reference.decoding import CHUNK_TOKENS, Decoding, Wish, ask_canary
from edge_agent.reference.errors import OptionError
from edge_agent.reference.model import ModelSize, encode, layout
from edge_agent.reference.numpy_model import NumpyModel

SMALL = ModelSize(layers=2, dim=32, heads=2, context=128, seed=7)
MODEL = NumpyModel(SMALL)


def slow_logits(model: NumpyModel, tokens: list[int]) -> list[float]:
    """Compute the last logits in plain loops of float64: no cache, no matrices, no batches."""
    weights = {name: array.astype(float) for name, array in model._weights.items()}
    dim, heads = SMALL.dim, SMALL.heads
    width, half = dim // heads, dim // heads // 2

    def norm(row: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.asarray(row / math.sqrt(sum(row * row) / len(row) + 1e-5) * scale)

    def turn(row: np.ndarray, place: int) -> np.ndarray:
        out = row.copy()
        for head in range(heads):
            for index in range(half):
                angle = place * 10_000 ** (-index / half)
                low, high = head * width + index, head * width + index + half
                out[low] = row[low] * math.cos(angle) - row[high] * math.sin(angle)
                out[high] = row[low] * math.sin(angle) + row[high] * math.cos(angle)
        return out

    rows = [weights["embed"][token] for token in tokens]
    for layer in range(SMALL.layers):
        own = {name: weights[f"{layer}.{name}"] for name in ("wq", "wk", "wv", "wo")}
        normed = [norm(row, weights[f"{layer}.norm1"]) for row in rows]
        keys = [turn(row @ own["wk"], place) for place, row in enumerate(normed)]
        values = [row @ own["wv"] for row in normed]
        for place, row in enumerate(normed):
            query, mixed = turn(row @ own["wq"], place), np.zeros(dim)
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = [
                    math.exp(query[part] @ key[part] / math.sqrt(width))
                    for key in keys[: place + 1]
                ]
                for score, value in zip(scores, values, strict=False):
                    mixed[part] += score / sum(scores) * value[part]
            rows[place] = rows[place] + mixed @ own["wo"]
        for place, row in enumerate(rows):
            y = norm(row, weights[f"{layer}.norm2"])
            gate = y @ weights[f"{layer}.gate"]
            gate = gate / (1 + np.exp(-gate)) * (y @ weights[f"{layer}.up"])
            rows[place] = row + gate @ weights[f"{layer}.down"]
    return list(norm(rows[-1], weights["norm"]) @ weights["head"])


@settings(max_examples=6)
@given(st.lists(st.integers(0, 257), min_size=1, max_size=12), st.integers(1, 5))
def test_logits_are_those_of_plain_loops(tokens: list[int], piece: int) -> None:
    cache = MODEL.new_cache()
    for at in range(0, len(tokens), piece):
        logits = MODEL.forward(cache, tokens[at : at + piece])
    cache.close()
    assert np.allclose(logits, slow_logits(MODEL, tokens), atol=2e-4)


def test_an_offload_frees_all_and_brings_back_every_bit() -> None:
    model = NumpyModel(SMALL)
    used = model.device_bytes
    assert used == model.mirror_bytes == 4 * sum(math.prod(shape) for _, shape in layout(SMALL))
    straight, moved = model.new_cache(), model.new_cache()
    expected = [model.forward(straight, [token]).tobytes() for token in range(40)]
    straight.close()
    before = ask_canary(model)
    seen = []
    for token in range(40):
        seen.append(model.forward(moved, [token]).tobytes())
        if token % 10 == 5:
            model.offload()
            model.offload()  # twice is once
            assert model.device_bytes == 0
            model.onload()
            model.onload()
    moved.close()
    assert seen == expected
    assert ask_canary(model) == before
    assert model.device_bytes == used


def test_a_view_left_behind_is_an_error_and_no_leak() -> None:
    model = NumpyModel(SMALL)
    left_behind = model._weights["norm"]
    with pytest.raises(BufferError):
        model.offload()
    assert left_behind[0] == 1


def test_another_seed_is_another_model() -> None:
    other = NumpyModel(ModelSize(layers=2, dim=32, heads=2, context=128, seed=8))
    assert ask_canary(other).logits_sha256 != ask_canary(MODEL).logits_sha256


def decode(wish: Wish) -> tuple[str, Decoding]:
    decoding, text = Decoding(wish, MODEL.new_cache()), ""
    while decoding.finish is None:
        text += decoding.step(MODEL)
    decoding.cache.close()
    return text, decoding


def test_a_long_prompt_goes_in_by_pieces_and_says_nothing_before_its_end() -> None:
    prompt = "x" * (2 * CHUNK_TOKENS)
    decoding = Decoding(Wish(prompt=prompt, max_tokens=1), MODEL.new_cache())
    said = [decoding.step(MODEL) for _ in range(3)]
    decoding.cache.close()
    assert (said[:2], decoding.finish, decoding.tokens_out) == (["", ""], "length", 1)
    assert decoding.prompt_tokens == encode(prompt)


def test_greedy_repeats_itself_and_a_seed_repeats_its_draws() -> None:
    greedy = [decode(Wish(prompt="q", max_tokens=20))[0] for _ in range(2)]
    drawn = [
        decode(Wish(prompt="q", max_tokens=20, temperature=1.5, seed=seed))[0] for seed in (1, 1, 2)
    ]
    assert greedy[0] == greedy[1]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(text.isprintable() or "\n" in text for text in (*greedy, *drawn))


@settings(max_examples=25)
@given(st.integers(0, 15), st.integers(1, 4), st.integers(0, 3))
def test_a_stop_ends_the_text_before_it_however_it_is_streamed(
    at: int, length: int, seed: int
) -> None:
    wish = Wish(prompt="go", max_tokens=20, temperature=1.0, seed=seed)
    whole = decode(wish)[0]
    stop = whole[at : at + length]
    if not stop:
        return
    wish = Wish(prompt="go", max_tokens=20, temperature=1.0, seed=seed, stops=(stop,))
    text, decoding = decode(wish)
    assert text == whole[: whole.find(stop)]
    assert decoding.finish == "stop"


@pytest.mark.parametrize(
    "sizes", [{"dim": 30, "heads": 4}, {"layers": 0}, {"context": 2}, {"heads": 0}, {"dim": 8}]
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        ModelSize(**sizes)
