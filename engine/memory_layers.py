"""What the layers keep of a micro-batch between its forward and its backward pass, and what is there beside it meanwhile.

What is kept follows from the layer's arithmetic. What is beside it is what mlx has started and not finished: it goes up to about
a hundred operations ahead, a good part of a layer, and frees an array only when its last reader is done. Those counts are
measured, by varying one size of random models at a time, on the CPU backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.memory_batches import Shape
from engine.model_files import ModelShape

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Beside:
    """Arrays under way while the last layer is differentiated: first its inside, then its attention, the larger of the two.
    Multiples of each completion token's widths (D hidden, I intermediate, A queries, the joined keys), of one softmax of all
    heads' scores, and of the layer's weights: gradients before they are added up, and DoRA's adapted weights."""

    inside: tuple[float, float]  # D, I
    attention: tuple[float, float, float, float]  # D, A, scores, keys
    weights: float
    prompts: tuple[float, float] = (0.0, 0.0)  # D, I of each prompt token: their layer begins to be computed again, too


# by adapter type, and whether layers are computed again: then the layer that is, is among them
BESIDE: Mapping[tuple[str, bool], Beside] = {
    ("lora", False): Beside((12.4, 4.6), (3.5, 2.8, 2.5, 1.9), 0.0),
    ("lora", True): Beside((12.0, 19.0), (11.4, 9.5, 3.8, 3.8), 0.0, (13.0, 8.9)),
    ("dora", False): Beside((4.0, 7.5), (7.6, 2.6, 2.1, 5.7), 0.2),
    ("dora", True): Beside((14.0, 26.7), (12.9, 18.0, 4.0, 6.7), 0.0, (13.3, 16.9)),
    ("full", False): Beside((16.5, 3.1), (11.5, 2.4, 2.3, 5.5), 0.1),
    ("full", True): Beside((22.8, 16.0), (17.2, 5.8, 5.0, 6.4), 1.3, (21.1, 6.1)),
}


class Layers:
    """Of one model with its adapter; `item` is the size of an activation in bytes."""

    def __init__(self, shape: ModelShape, item: int, kind: str, rank: int) -> None:
        self.shape = shape
        self.item = item
        self.kind = kind
        self.rank = rank
        self.query = shape.heads * shape.head_dim
        self.key = shape.kv_heads * shape.head_dim

    def kept(self, batch: Shape) -> int:
        """Bytes of one layer. Per token, with D = hidden size, I = intermediate size, A = heads x head_dim, K = kv_heads x
        head_dim:

          4 D          the layer's input, that after attention, and both after their norm
          2 A + 2 K    queries, keys, values, and the output of attention
          heads x T    the softmax of its scores over the T keys: attention is not fused while gradients are recorded
          5 I          gate, up, sigmoid(gate), silu(gate), and their product
          A + K        queries and keys before their norm (qwen3)

        Where prompts are shared, their keys and values are joined to each completion's. Full training: 2 D in float32 more, the
        norm weights' gradients before they are summed over tokens. Adapters: the rank of each of the seven modules, in float32;
        in a 16-bit model also a float32 copy of every module's input (then the 16-bit outputs of attention and of the product
        are not kept). DoRA: the outputs that its magnitudes multiply.
        """
        d, i, a, k = self.shape.hidden, self.shape.intermediate, self.query, self.key
        size = self._numbers * self.item
        if self.shape.family == "qwen3":
            size += (a + k) * self.item
        if self.kind == "full":
            size += 2 * d * FLOAT32
        else:
            size += 7 * self.rank * FLOAT32
            if self.item < FLOAT32:
                size += (5 * d + a + i) * FLOAT32 - (a + i) * self.item
            if self.kind == "dora":
                size += (a + 2 * k + 2 * d + 2 * i) * self.item
        scores = batch.pairs + (batch.prompts * batch.length**2 if batch.shares else 0)
        return size * batch.tokens + scores * self.shape.heads * self.item + self.joined(batch)

    def joined(self, batch: Shape) -> int:
        """Bytes of the prompts' keys and values, once for each completion."""
        return 2 * self.key * self.item * batch.rows * batch.length if batch.shares else 0

    def given(self, batch: Shape) -> int:
        """Bytes that a layer keeps which is computed again: its input, and the keys and values of the prompts, once each."""
        own = 2 * self.key * self.item * batch.prompts * batch.length if batch.shares else 0
        return self.shape.hidden * self.item * batch.tokens + own

    def passed(self, batch: Shape, layers: int, recomputes: bool) -> int:
        """Bytes that so many layers keep when the backward pass begins."""
        return layers * (self.given(batch) if recomputes else self.kept(batch))

    def forward(self, batch: Shape) -> int:
        """Bytes of all that one layer computes without keeping it: 9 D, 4 A + 4 K, 4 I, and the scores twice, for each token."""
        d, i, a, k = self.shape.hidden, self.shape.intermediate, self.query, self.key
        numbers = batch.tokens * (9 * d + 4 * a + 4 * k + 4 * i) + 2 * batch.pairs * self.shape.heads
        return numbers * self.item + self.joined(batch)

    def beside(self, batch: Shape, recomputes: bool) -> int:
        """Bytes under way while a layer's completions are differentiated (where it is computed again, its own among them), or
        its prompts after them, which are then there no more."""
        found, d, i = BESIDE[self.kind, recomputes], self.shape.hidden, self.shape.intermediate
        tokens, prompts = (batch.positions, batch.prompts * batch.length) if batch.shares else (batch.tokens, 0)
        each = found.inside[0] * d + found.inside[1] * i
        hidden, query, scores, keys = found.attention
        attention = tokens * (hidden * d + query * self.query) + scores * batch.pairs * self.shape.heads
        attention += keys * batch.rows * batch.width * self.key
        after = 0.0 if recomputes or not prompts else prompts * each - tokens * self._numbers
        beside = max(tokens * each, attention, after) + prompts * (found.prompts[0] * d + found.prompts[1] * i)
        weights = 2 * d * (self.query + self.key) + 3 * d * i
        return round((beside + found.weights * weights) * self.item)

    @property
    def _numbers(self) -> int:
        """Of a token, what every kind of training keeps in a layer."""
        return 4 * self.shape.hidden + 2 * self.query + 2 * self.key + 5 * self.shape.intermediate
