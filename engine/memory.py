"""The arrays of a run and when they are alive: sizes from config.json and the safetensors headers, times the run's own.

Every number follows from sizes; the only factors are counts of arrays, each explained where it stands and checked in the
tests against peaks that mlx reports. What is left out: what a run holds beside its arrays (Python, the libraries, and the
freed buffers that mlx keeps for reuse and gives up under pressure).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from engine import model_files, optim_rules
from engine.chunking import chunk_positions, whole_positions
from engine.config import RunConfig, model_folder
from engine.errors import InputError
from engine.hardware import Backend
from engine.methods import method
from engine.model_files import LinearModule, ModelShape, TensorHeader

FLOAT32 = 4
CACHE_STEP = 256  # tokens by which mlx_lm's KV cache grows
WIDTH = 8  # widths of a batch are rounded up to a multiple of this
LOGITS_COPIES = 3  # of the update, in float32: the logits, the gradient through the chosen token, that through the normaliser
CHUNK_COPIES = 14  # of a chunk's logits, measured: mlx dispatches chunks ahead of those that are done
HEAD_SUMS = 4  # gradients of a trained head that are alive at once, measured
DRAW_COPIES = 3  # of the rollout, in float32: the logits, those at the temperature, the noise of the draw
# whose layers carry no recurrent state: prompts of any length share a batch. engine/worker/prefix.py finds it out at load
_DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3", "granite", "cohere2", "olmo2", "glm4")
SHARING_FAMILIES = frozenset((*_DENSE, "smollm3", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"))
MEASURED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose layers `Plan.layer` describes


class Plan:
    """The sizes of one run, in bytes where a docstring says nothing else."""

    def __init__(self, config: RunConfig, backend: Backend) -> None:
        folder = model_folder(config.model)
        described = model_files.read_json(folder / "config.json")
        self.config = config
        self.backend = backend
        self.shape: ModelShape | None = model_files.read_shape(described)
        tied = self.shape is not None and self.shape.tied
        # mlx_lm drops the copy of a tied head, and the rotary frequencies that old checkpoints carry
        headers = [header for header in model_files.read_headers(folder) if not header.name.endswith("rotary_emb.inv_freq")]
        self.headers = [header for header in headers if not (tied and header.name.startswith("lm_head."))]
        self.modules = model_files.linear_modules(self.headers, described, str(folder))
        if config.quantize.bits is not None:
            self._quantise(config.quantize.bits, config.quantize.group_size)
        self.is_full = config.adapter.type == "full"
        self.casts = backend == "cpu" and any(header.is_float and header.dtype != "F32" for header in self.headers)
        self.item = self._held_item()
        self.weights = sum(self._held(header) for header in self.headers)
        if self.is_full and any(module.quantised for module in self.modules):
            remedy = "use adapter.type: lora, or an unquantised model"
            raise InputError("a quantised model cannot be trained in full", where=str(folder), remedy=remedy)

    def _quantise(self, bits: int, group_size: int) -> None:
        """Every linear module as it is held once it is quantised: packed weights, and a scale and a bias for each group."""
        fitting = {f"{m.path}.weight" for m in self.modules if not m.quantised and m.inputs % group_size == 0}
        self.headers = [
            part
            for header in self.headers
            for part in (model_files.quantised(header, bits, group_size) if header.name in fitting else [header])
        ]
        self.modules = [replace(m, quantised=m.quantised or f"{m.path}.weight" in fitting) for m in self.modules]

    def _held(self, header: TensorHeader) -> int:
        """On a CPU every floating-point array is held in float32, scales of quantised weights included; else as it is."""
        return header.elements * FLOAT32 if self.backend == "cpu" and header.is_float else header.bytes

    def _held_item(self) -> int:
        """Bytes of an activation: of the floating-point type that most of the model's arrays have."""
        if self.backend == "cpu":
            return FLOAT32
        sizes = [header.bytes // header.elements for header in self.headers if header.is_float and header.elements]
        return max(set(sizes), key=sizes.count, default=FLOAT32)

    @cached_property
    def adapted(self) -> list[LinearModule]:
        adapter = self.config.adapter
        if self.is_full:
            return []
        found = model_files.adapted_modules(self.modules, self.layers, kind=adapter.type, last=adapter.layers, keys=adapter.keys)
        if not found:
            remedy = "give paths inside a layer, such as self_attn.q_proj"
            raise InputError("match no module of the model", where="adapter.keys", remedy=remedy)
        return found

    @cached_property
    def layers(self) -> int:
        return max((module.layer for module in self.modules), default=-1) + 1

    @cached_property
    def trainable(self) -> int:
        """Parameters: of a low-rank adapter rank x (inputs + outputs) for each module, for DoRA and its magnitudes."""
        if self.is_full:
            return sum(header.elements for header in self.headers if header.is_float)
        extra = self.config.adapter.type == "dora"
        rank = self.config.adapter.rank
        return sum(m.experts * (rank * (m.inputs + m.outputs) + (m.outputs if extra else 0)) for m in self.adapted)

    @property
    def _trainable_bytes(self) -> int:
        """Adapters are float32 on every base; full training keeps the model's own type."""
        return sum(self._held(header) for header in self.headers if header.is_float) if self.is_full else self.trainable * FLOAT32

    @property
    def adapter(self) -> int:
        return 0 if self.is_full else self._trainable_bytes

    @cached_property
    def _trainable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that are trained, by path, as mlx_lm lays them out."""
        if self.is_full:
            return {header.name: header.shape for header in self.headers if header.is_float}
        rank = self.config.adapter.rank
        found: dict[str, tuple[int, ...]] = {}
        for m in self.adapted:
            stack = m.experts > 1
            found[f"{m.path}.lora_a"] = (rank * m.experts, m.inputs) if stack else (m.inputs, rank)
            found[f"{m.path}.lora_b"] = (m.experts, m.outputs, rank) if stack else (rank, m.outputs)
            if self.config.adapter.type == "dora":
                found[f"{m.path}.m"] = (m.outputs,)
        return found

    @property
    def optimizer(self) -> int:
        """Its state is float32 whatever type the weights have."""
        return optim_rules.state_numbers(self.config.optim.name, self._trainable_shapes) * FLOAT32

    @property
    def reference(self) -> int:
        """A second copy of what is trained, only where there is a KL term and the reference is not just the model without its
        adapter: in full training, and once it has moved."""
        if method(self.config.method).kind == "sft":
            return 0
        objective = self.config.resolved_objective()
        return self._trainable_bytes if objective.beta and (self.is_full or objective.ref_sync_every) else 0

    @property
    def held(self) -> int:
        return self.weights + self.adapter + self.optimizer + self.reference

    # The update: one micro-batch forward and backward, nothing recomputed.

    @property
    def update_rows(self) -> int:
        """Rows of the largest mini-batch."""
        sampling = self.config.sampling
        if method(self.config.method).kind == "sft":
            return sampling.prompts_per_step
        return -(-sampling.prompts_per_step // self.config.resolved_objective().minibatches) * sampling.group_size

    @property
    def completion_width(self) -> int:
        return _round_up(self.config.sampling.max_completion_tokens, WIDTH)

    @property
    def width(self) -> int:
        """Tokens of a row: prompt and completion."""
        return _round_up(self.config.sampling.max_prompt_tokens + self.completion_width, WIDTH)

    def prompts(self, rows: int) -> int:
        """Prompts that a micro-batch computes, at most: each once where completions share them, else one for each row."""
        if not self.shares:
            return rows
        return min(rows, -(-self.config.sampling.prompts_per_step // self.config.resolved_objective().minibatches))

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for all its completions, whatever the lengths of the batch's other prompts."""
        return method(self.config.method).kind == "rl" and self.shape is not None and self.shape.family in SHARING_FAMILIES

    def layer_of(self, rows: int) -> int:
        """What one layer keeps for a micro-batch. Shared prompts: theirs, the completions', and both one's keys and values
        joined for each row, which stand in place of the completion's own."""
        if not self.shares or self.shape is None:
            return self.layer(rows * self.width, self.width)
        length, new = self.config.sampling.max_prompt_tokens, self.completion_width
        joined = 2 * rows * length * self.shape.kv_heads * self.shape.head_dim * self.item
        return self.layer(rows * new, length + new) + self.layer(self.prompts(rows) * length, length) + joined

    def layer(self, tokens: int, width: int) -> int:
        """What one layer keeps between its forward and its backward pass, for `tokens` tokens in rows of `width`.

        Per token, with D = hidden size, I = intermediate size, A = heads x head_dim, K = kv_heads x head_dim:
          4 D          the layer's input, that after attention, and both after their norm
          2 A + 2 K    queries, keys, values, and the output of attention
          heads x T    the softmax of the scores: attention is not fused while gradients are recorded
          5 I          gate, up, sigmoid(gate), silu(gate), and their product
          A + K        queries and keys before their norm (qwen3)
        Full training: 2 D in float32 more, the norm weights' gradients before they are summed over tokens. Adapters: the
        rank of each of the seven modules, in float32; in a 16-bit model also a float32 copy of every module's input (then
        the 16-bit outputs of attention and of the product are not kept). DoRA: the outputs that its magnitudes multiply.
        """
        shape = self.shape
        if shape is None:
            return 0
        d, i, a, k = shape.hidden, shape.intermediate, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        values = 4 * d + 2 * a + 2 * k + shape.heads * width + 5 * i
        if shape.family == "qwen3":
            values += a + k
        size = values * self.item
        if self.is_full:
            size += 2 * d * FLOAT32
        else:
            size += 7 * self.config.adapter.rank * FLOAT32
            if self.item < FLOAT32:
                size += (5 * d + a + i) * FLOAT32 - (a + i) * self.item
            if self.config.adapter.type == "dora":
                size += (a + 2 * k + 2 * d + 2 * i) * self.item
        return size * tokens

    def activations(self, rows: int) -> int:
        """Of the layers that gradients pass through (those below the first adapter keep nothing), of one layer more, whose
        gradients stand beside its values while it is differentiated, and of the last hidden states before the head."""
        shape = self.shape
        if shape is None:
            return 0
        lowest = 0 if self.is_full else max(0, min(module.layer for module in self.adapted))
        passed = shape.layers - lowest
        tokens, new, length = rows * self.width, self.completion_width, self.config.sampling.max_prompt_tokens
        if self.shares:
            tokens = rows * new + self.prompts(rows) * length
        last = (2 * tokens + rows * self.completion_width) * shape.hidden * self.item
        beside = self.layer(rows * new, length + new) if self.shares else self.layer_of(rows)  # prompts come after completions
        return passed * self.layer_of(rows) + beside + last + self._dequantised

    @cached_property
    def _dequantised(self) -> int:
        """DoRA on a quantised base multiplies by the plain weights, and keeps them for the backward pass."""
        if self.config.adapter.type != "dora":
            return 0
        return sum(m.inputs * m.outputs * self.item for m in self.adapted if m.quantised)

    def logits(self, rows: int) -> int:
        """The head runs on completion tokens only, the softmax in float32; a 16-bit model's own logits are kept beside. Many
        positions are computed in chunks, of which mlx has several under way at once; a trained head's gradient is then summed."""
        if self.shape is None:
            return 0
        positions, vocabulary = rows * self.completion_width, self.shape.vocabulary
        head = vocabulary * self.shape.hidden * FLOAT32 if self.is_full else 0
        if positions > whole_positions(vocabulary, head):
            return chunk_positions(vocabulary) * vocabulary * FLOAT32 * CHUNK_COPIES + HEAD_SUMS * head
        own = self.item if self.item < FLOAT32 else 0
        return positions * vocabulary * (LOGITS_COPIES * FLOAT32 + own)

    def gradients(self, rows: int) -> int:
        """One set, and the sum so far where an update takes several micro-batches."""
        return self._trainable_bytes * (1 if rows >= self.update_rows else 2)

    def update_peak(self, rows: int) -> int:
        """Everything held, and the worse end of the backward pass: at its start all activations and logits, at its end all
        gradients and two layers' worth of activations. Adapters' gradients are counted at both ends, being small."""
        summed = self.gradients(rows) - self._trainable_bytes
        start = self.activations(rows) + self.logits(rows)
        if not self.is_full:
            return self.held + summed + start + self._trainable_bytes
        return self.held + summed + max(start, self._trainable_bytes + 2 * self.layer_of(rows))

    def rows_within(self, limit: int) -> int:
        """The most rows whose update stays within `limit` bytes; 1 where not even that fits or the sizes are unknown."""
        if self.shape is None:
            return 1
        low, high = 1, self.update_rows
        if self.update_peak(high) <= limit:
            return high
        while high - low > 1:  # low is the answer where nothing above it fits; high does not fit
            middle = (low + high) // 2
            low, high = (middle, high) if self.update_peak(middle) <= limit else (low, middle)
        return low

    # The rollout: each prompt alone, then all rows together.

    @property
    def decoded(self) -> list[tuple[int, int]]:
        """(prompts, completions of each) of the batches that are decoded: a step's rollout and the evaluation."""
        if self.shape is None or method(self.config.method).kind == "sft":
            return []
        return [(self.config.sampling.prompts_per_step, self.config.sampling.group_size), (self.config.run.eval_rows, 1)]

    def cached(self, rows: int, tokens: int) -> int:
        """Keys and values of all layers; a sliding layer keeps its window only."""
        shape = self.shape
        if shape is None:
            return 0
        sliding = shape.sliding_layers if shape.window else 0
        kept = (shape.layers - sliding) * tokens + sliding * min(tokens, shape.window or tokens)
        return 2 * shape.kv_heads * shape.head_dim * self.item * rows * kept

    def cache(self, prompts: int, group: int) -> int:
        """The larger of two moments. Once prompts are read: their own caches in whole steps, these merged, and a copy for every
        completion. At the end: the prompt's length and whole steps for the completion, one layer twice while it grows."""
        length, new = self.config.sampling.max_prompt_tokens, self.config.sampling.max_completion_tokens - 1
        if self.shape is None:
            return 0
        alone = self.cached(prompts, _round_up(length, CACHE_STEP))
        merged = alone + self.cached(prompts, length) + self.cached(prompts * group, length)
        grown = self.cached(prompts * group, length + _round_up(new, CACHE_STEP))
        return max(merged, grown + grown // self.shape.layers)

    def draw_logits(self, rows: int) -> int:
        return 0 if self.shape is None else rows * self.shape.vocabulary * DRAW_COPIES * FLOAT32

    def rollout_peak(self) -> int | None:
        """Everything held, the cache, and the larger of one prompt's pass through a layer and of the draw. An upper bound:
        how much of this falls together is for mlx's scheduler to say."""
        if method(self.config.method).kind == "sft":
            return None
        length = self.config.sampling.max_prompt_tokens
        prompt = self.layer(length, length)
        return self.held + max((self.cache(u, g) + max(prompt, self.draw_logits(u * g)) for u, g in self.decoded), default=0)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
