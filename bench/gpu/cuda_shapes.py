"""The sizes of the model on a GPU."""

from msgspec import Struct


class Shape(Struct, frozen=True, kw_only=True):
    """A decoder of Llama's kind; as it stands, that of 7 billion weights.

    Args:
        prompt: places that the fixed prompt takes of the context.
    """

    hidden: int = 4_096
    heads: int = 32
    mlp: int = 11_008
    vocabulary: int = 32_000
    context: int = 256
    prompt: int = 16

    @property
    def head(self) -> int:
        """Give the width of one head."""
        return self.hidden // self.heads

    def weights(self, layers: int) -> list[tuple[int, int]]:
        """Give the weights in their order in memory."""
        square, up, down = (
            (self.hidden, self.hidden),
            (self.hidden, self.mlp),
            (self.mlp, self.hidden),
        )
        per_layer = [square, square, square, square, up, up, down]
        ends = (self.vocabulary, self.hidden), (self.hidden, self.vocabulary)
        return [ends[0], *(per_layer * layers), ends[1]]

    def weight_count(self, layers: int) -> int:
        """Give how many numbers the weights are."""
        return sum(rows * columns for rows, columns in self.weights(layers))

    def kv_bytes(self, layers: int) -> int:
        """Give the memory of keys and values in half precision."""
        return 2 * 2 * layers * self.hidden * self.context


LLAMA_7B = Shape()
