"""What a language model is to the server: weights that can leave the device, and caches.

Tokens are bytes, with a begin and an end: whatever a customer writes has tokens, and no file of a
vocabulary is needed.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.reference.errors import OptionError

BEGIN, END = 256, 257
VOCABULARY = 258
Logits = NDArray[np.float32]


class ModelSize(Struct, frozen=True, kw_only=True):
    """A decoder of Llama's kind; weights are drawn from the seed.

    Raises:
        OptionError: the sizes do not fit each other.
    """

    layers: int = 4
    dim: int = 256
    heads: int = 4
    context: int = 1_024
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not (1 <= self.layers <= 256 and 1 <= self.heads <= 256 and 16 <= self.dim <= 65_536):
            raise OptionError("layers and heads must be 1..256, dim 16..65536")
        if self.dim % (2 * self.heads):
            raise OptionError("dim must be an even multiple of heads")
        if not 16 <= self.context <= 1 << 20:
            raise OptionError("context must be 16..1048576")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward part: 8/3 of the width, in whole sixteens."""
        return -(-8 * self.dim // 3 // 16) * 16


class Cache(Protocol):
    """Keys and values of one sequence."""

    @property
    def length(self) -> int:
        """Give how many tokens it holds."""
        ...

    def close(self) -> None:
        """Free its memory, wherever that is."""
        ...


class Model(Protocol):
    """A model on a device, with a mirror of its weights in host memory.

    One thread makes it and calls it; the figures may be read from any.
    """

    @property
    def name(self) -> str:
        """Give what runs it."""
        ...

    @property
    def device_bytes(self) -> int:
        """Give the device memory that weights and caches hold."""
        ...

    @property
    def mirror_bytes(self) -> int:
        """Give the host memory that the mirror holds."""
        ...

    def new_cache(self) -> Cache:
        """Make room for one sequence."""
        ...

    def forward(self, cache: Any, tokens: Sequence[int]) -> Logits:  # noqa: ANN401 - its own caches
        """Take tokens in behind those of the cache; give the logits after the last."""
        ...

    def offload(self) -> None:
        """Free the device: weights are dropped (the mirror has them), caches are copied out."""
        ...

    def onload(self) -> None:
        """Bring weights and caches back, bit by bit the same."""
        ...


def layout(size: ModelSize) -> list[tuple[str, tuple[int, ...]]]:
    """Name the tensors and their shapes, in the order in which they lie in one piece of memory."""
    dim, hidden = size.dim, size.hidden
    tensors: list[tuple[str, tuple[int, ...]]] = [("embed", (VOCABULARY, dim))]
    for layer in range(size.layers):
        square = [(f"{layer}.{name}", (dim, dim)) for name in ("wq", "wk", "wv", "wo")]
        tensors += [
            (f"{layer}.norm1", (dim,)),
            *square,
            (f"{layer}.norm2", (dim,)),
            (f"{layer}.gate", (dim, hidden)),
            (f"{layer}.up", (dim, hidden)),
            (f"{layer}.down", (hidden, dim)),
        ]
    return [*tensors, ("norm", (dim,)), ("head", (dim, VOCABULARY))]


def encode(text: str) -> list[int]:
    """Give the tokens of a text, begin first."""
    return [BEGIN, *text.encode()]
