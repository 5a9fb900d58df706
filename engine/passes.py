"""Seconds of a model's passes on a machine whose rates are known: layers forward and backward, the head, the draw of a token.

Counted: each product at the rate of its rows and width, and the fetching of its weight where the weights are more than a cache
holds; attention with its whole softmax where no fused kernel runs; exponentials, norms and plain arithmetic by numbers; and each
operation's dispatch. The counts of arrays are those of a llama-type layer as mlx_lm writes it. What is left out: that some of
this happens at the same time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from engine.chunking import whole_positions
from engine.machine_rates import Rates
from engine.memory import Plan
from engine.memory_cache import CACHE_STEP, SHARED_STEP
from engine.model_files import LinearModule, ModelShape

# Operations of a layer beside its products, forward: norms, reshapes, rope, cache, attention, activation, residuals.
_LAYER_OPS, _DECODE_OPS = 24, 24  # the latter on top: positions that differ by row, the batch's cache
_SHARED_OPS, _SHARED_PLAIN = 30, 2  # attention in two parts: operations on top, and numbers written for each score
_LORA_OPS, _DORA_OPS, _LEAN_OPS = 5, 8, 3  # of each adapted module
_HEAD_OPS, _DRAW_OPS = 14, 30
_BACKWARD_OPS = 2  # for each forward one
# Arrays that each pass writes, in numbers for each number of the named size
_NORM_BACKWARD, _SWIGLU_BACKWARD = 2.5, 1.5
_SOFTMAX_PLAIN, _SOFTMAX_BACKWARD = 2, 4
_ROPE = 6  # norms' worth that a rope of different positions takes on top
_OPTIMIZER_PLAIN = 16  # of a trained number: two moments, the step, the norm, clipping, what is watched


@dataclass(frozen=True, slots=True)
class Call:
    """Sequences that go through the layers together: each of `rows` has `new` tokens behind `before` that a cache holds. Of
    these the first `shared` are held once for every `group` rows."""

    rows: float
    new: float
    before: float = 0.0
    shared: float = 0.0
    group: float = 1.0

    @property
    def tokens(self) -> float:
        return self.rows * self.new

    @property
    def context(self) -> float:
        return self.before + self.new


class Passes:
    """Seconds of the passes of one run's model. `plan.shape` must be known."""

    def __init__(self, plan: Plan, shape: ModelShape, rates: Rates) -> None:
        self.plan = plan
        self.shape = shape
        self.rates = rates
        self.rank = plan.config.adapter.rank
        self.is_dora = plan.config.adapter.type == "dora"
        self.fuses = plan.backend != "cpu"  # attention, where no gradient is recorded
        inside = [module for module in plan.modules if module.layer >= 0]
        adapted = {module.path for module in plan.adapted}
        lowest = 0 if plan.is_full else min((module.layer for module in plan.adapted), default=0)
        self.passed = max(shape.layers - lowest, 0)  # layers that gradients go through
        self.forward_linears = _alike([(m, m.path in adapted) for m in inside])
        self.backward_linears = _alike([(m, m.path in adapted) for m in inside if m.layer >= lowest])

    # Parts.

    def product(self, rows: float, inputs: float, outputs: float, count: float = 1.0) -> float:
        """Of `count` products [rows, inputs] x [inputs, outputs], arithmetic alone."""
        width = min(inputs, outputs)
        return count * 2 * rows * inputs * outputs / self.rates.product(max(rows, 1), width, self.plan.item)

    def plain(self, numbers: float) -> float:
        return numbers / self.rates.numbers["plain"]

    def exponentials(self, numbers: float) -> float:
        return numbers / self.rates.numbers["exp"]

    def _fetched(self, numbers: float, beside: float = 0.0) -> float:
        """Of so many numbers that each pass fetches again: weights, and `beside` bytes of a cache, are used in turn."""
        return numbers * self.plan.item / self.rates.streamed(max(self.plan.weights + beside, 1))

    def _linear(self, module: LinearModule, tokens: float) -> float:
        """The module's own product, forward or with regard to its input."""
        active, rows = 1.0, tokens
        if module.experts > 1:
            own = module.outputs if module.inputs == self.shape.hidden else module.inputs
            used = max(1.0, self.shape.intermediate / max(own, 1))  # experts of one token
            active = min(module.experts, tokens * used)
            rows = tokens * used / max(active, 1.0)
        numbers = module.inputs * module.outputs
        if module.quantised:
            seconds = active * 2 * rows * numbers / self.rates.quantised_product(rows)
            return seconds + self._fetched(active * numbers / 2 / self.plan.item) + self.rates.op_seconds
        seconds = self.product(rows, module.inputs, module.outputs, active)
        return seconds + self._fetched(active * numbers) + self.rates.op_seconds

    def _adapter(self, module: LinearModule, tokens: float, *, lean: bool = False, norms: bool = True) -> float:
        """What a low-rank adapter adds to its module, forward; `lean`, as rollouts compute it. DoRA takes the norms of the whole
        weight in each forward pass that is not lean; no gradient goes through them."""
        low = self.product(tokens, module.inputs, self.rank) + self.product(tokens, self.rank, module.outputs)
        if lean:
            written = (1 + self.is_dora) * module.outputs + self.rank
            return low + self.plain(tokens * written) + _LEAN_OPS * self.rates.op_seconds
        seconds = low + self.plain(tokens * (2 * module.outputs + self.rank)) + _LORA_OPS * self.rates.op_seconds
        if self.is_dora:
            seconds += self.plain(2 * tokens * module.outputs) + _DORA_OPS * self.rates.op_seconds
            if norms:
                numbers = module.inputs * module.outputs
                seconds += self.product(module.outputs, self.rank, module.inputs) + self.plain(3 * numbers)
        return seconds

    def _attention(self, call: Call, gradient: bool) -> float:
        """Of one layer: scores, softmax, sum of values, and what is copied on the way."""
        shape = self.shape
        if call.shared:
            return self._attention_in_two_parts(call)
        new, context = call.new, call.context
        pairs = call.rows * shape.heads * new * context
        width = min(shape.head_dim, context)
        seconds = 4 * pairs * shape.head_dim / self.rates.product(max(new, 1), width, self.plan.item)
        keys = 2 * call.rows * shape.kv_heads * shape.head_dim * context
        if new == 1:  # decoding; elsewhere they have just been written
            seconds += self._fetched(keys, keys * shape.layers * self.plan.item)
        if gradient or not self.fuses:
            seconds += self.exponentials(pairs) + self.plain(_SOFTMAX_PLAIN * pairs)
        if call.before:
            seconds += self.plain(keys)
        return seconds

    def _attention_in_two_parts(self, call: Call) -> float:
        """The same of rows that decode one token over prompts that they share (engine/worker/shared_prompts.py)."""
        shape, own = self.shape, call.context - call.shared
        each = shape.heads / shape.kv_heads  # query heads of a key head, which go through a product together
        seconds = 0.0
        for tokens, together in ((call.shared, each * call.group), (own, each)):
            width = min(shape.head_dim, tokens)
            flops = 4 * call.rows * shape.heads * tokens * shape.head_dim
            seconds += flops / self.rates.product(max(together, 1), max(width, 1), self.plan.item)
        keys = 2 * shape.kv_heads * shape.head_dim * call.rows * (call.shared / call.group + own)
        scores = call.rows * shape.heads * call.context
        seconds += self._fetched(keys, keys * shape.layers * self.plan.item) + scores / self.rates.numbers["softmax"]
        return seconds + self.plain(keys + _SHARED_PLAIN * scores) + _SHARED_OPS * self.rates.op_seconds

    def _between(self, tokens: float) -> float:
        """Norms, rope, residuals, transposes and the activation of one layer."""
        shape = self.shape
        d, i, a, k = shape.hidden, shape.intermediate, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        norms = 2 * d + 2 * (a + k) + (a + k if shape.family == "qwen3" else 0)  # rope takes about twice a norm
        return (
            tokens * norms / self.rates.numbers["norm"]
            + self.plain(tokens * (2 * d + 2 * a + 2 * k))
            + self.exponentials(tokens * i)
            + _LAYER_OPS * self.rates.op_seconds
        )

    # Passes.

    def forward(self, call: Call, *, adapter: bool = True, gradient: bool = False, lean: bool = False) -> float:
        """All layers; `lean` with the adapters of a rollout."""
        seconds = self.shape.layers * (self._attention(call, gradient) + self._between(call.tokens))
        for (module, is_adapted), count in self.forward_linears:
            seconds += count * self._linear(module, call.tokens)
            if adapter and is_adapted:
                seconds += count * self._adapter(module, call.tokens, lean=lean)
        return seconds

    def backward(self, call: Call) -> float:
        """The layers that gradients go through, after a forward pass that kept everything."""
        shape, tokens = self.shape, call.tokens
        d, i = shape.hidden, shape.intermediate
        a, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        pairs = call.rows * shape.heads * call.new * call.context
        width = min(shape.head_dim, call.context)
        each = 8 * pairs * shape.head_dim / self.rates.product(max(call.new, 1), width, self.plan.item)
        each += self.plain(_SOFTMAX_BACKWARD * pairs)
        each += tokens * (2 * d * _NORM_BACKWARD + 2 * (a + k)) / self.rates.numbers["norm"]
        each += self.exponentials(_SWIGLU_BACKWARD * tokens * i) + self.plain(tokens * (4 * d + 4 * a + 4 * k))
        seconds = self.passed * (each + _BACKWARD_OPS * _LAYER_OPS * self.rates.op_seconds)
        for (module, is_adapted), count in self.backward_linears:
            seconds += count * (self._linear(module, tokens) + self.plain(tokens * module.inputs))
            if self.plan.is_full:
                seconds += count * self._linear(module, tokens)
            elif is_adapted:
                seconds += count * _BACKWARD_OPS * self._adapter(module, tokens, norms=False)
        return seconds

    def head(self, positions: float, *, gradient: bool = False) -> float:
        """Logits and log-probabilities of so many positions; with `gradient` also the slopes, which the backward pass uses."""
        vocabulary, hidden = self.shape.vocabulary, self.shape.hidden
        trained = vocabulary * hidden * 4 if self.plan.is_full else 0
        again = gradient and self.plan.is_full and positions > whole_positions(vocabulary, trained)  # the logits, once more
        products = 1 + (2 if self.plan.is_full else 1) * gradient + again
        numbers = positions * vocabulary
        seconds = products * self._head_product(positions) + (1 + again) * self.exponentials(numbers)
        return seconds + self.plain((3 + 4 * gradient) * numbers) + _HEAD_OPS * self.rates.op_seconds

    def decode(self, call: Call, *, greedy: bool = False) -> float:
        """One more token for each row."""
        rows, shape = call.rows, self.shape
        numbers = rows * shape.vocabulary
        drawn = self.exponentials(numbers) if greedy else numbers / self.rates.numbers["draw"]
        chosen = self._head_product(rows) + drawn + self.plain(2 * numbers) + (_DRAW_OPS + rows / 2) * self.rates.op_seconds
        turned = rows * (shape.heads + shape.kv_heads) * shape.head_dim  # rope: rows stand at positions of their own
        each = _DECODE_OPS * self.rates.op_seconds + _ROPE * turned / self.rates.numbers["norm"]
        return self.forward(call, lean=True) + shape.layers * each + chosen

    def copied(self, rows: float, before: float, new: float, *, shares: bool) -> float:
        """Of copying the cache of `rows` rows, when rows leave the batch or begin in it: it has room for whole steps."""
        slots = -(-new // SHARED_STEP) * SHARED_STEP if shares else before + -(-new // CACHE_STEP) * CACHE_STEP
        shape = self.shape
        return 2 * rows * shape.layers * shape.kv_heads * shape.head_dim * slots / self.rates.numbers["norm"]

    def step_weights(self, batches: float) -> float:
        """The optimizer's step, and the sum of gradients over so many micro-batches."""
        arrays = 2 * sum(count for (_, is_adapted), count in self.forward_linears if is_adapted or self.plan.is_full)
        return self.plain(self.plan.trainable * (_OPTIMIZER_PLAIN + batches)) + arrays * _OPTIMIZER_PLAIN * self.rates.op_seconds

    def _head_product(self, rows: float) -> float:
        hidden, vocabulary = self.shape.hidden, self.shape.vocabulary
        if self._head_is_quantised:
            return 2 * rows * hidden * vocabulary / self.rates.quantised_product(rows)
        return self.product(rows, hidden, vocabulary) + self._fetched(hidden * vocabulary)

    @cached_property
    def _head_is_quantised(self) -> bool:
        ends = [m for m in self.plan.modules if m.layer < 0 and m.outputs == self.shape.vocabulary]
        named = [m for m in ends if "lm_head" in m.path] or ends
        return bool(named) and named[0].quantised


def _alike(modules: list[tuple[LinearModule, bool]]) -> list[tuple[tuple[LinearModule, bool], int]]:
    """One module of each size, with the number of those like it: a model has a handful of sizes, and hundreds of modules."""
    sizes: Counter[tuple[int, int, int, bool, bool]] = Counter()
    first: dict[tuple[int, int, int, bool, bool], tuple[LinearModule, bool]] = {}
    for module, is_adapted in modules:
        key = (module.inputs, module.outputs, module.experts, module.quantised, is_adapted)
        sizes[key] += 1
        first.setdefault(key, (module, is_adapted))
    return [(first[key], count) for key, count in sizes.items()]
