"""The memory plan: the arrays of a run and when they are alive, from sizes alone. Bytes, where nothing else is said.

Every number follows from sizes; the only factors are counts of arrays, each explained where it stands and held against the
peaks that mlx reports (tests/bench/estimates.py). The rooms: what is held (memory_held), how rows are packed (memory_batches),
what layers keep (memory_layers), what to change where nothing fits (memory_advice). What is left out: what a run holds beside
its arrays (Python, the libraries, and the freed buffers that mlx keeps for reuse and gives up under pressure).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from engine.chunking import chunk_positions, padded_positions, whole_positions
from engine.memory_batches import WIDTH, Shape, most, packed, round_up
from engine.memory_cache import CACHE_STEP, KeyCache
from engine.memory_held import FLOAT32, Held
from engine.memory_layers import Layers
from engine.memory_moments import Moment
from engine.prompt_sharing import saved_bytes, shares_prompts

__all__ = ["FLOAT32", "MEASURED_FAMILIES", "SHARING_FAMILIES", "WIDTH", "Fit", "Plan"]

LOGITS_COPIES = 3  # of the update, in float32: the logits, their softmax, and their gradient
CHUNK_COPIES = 5  # where each chunk's slope is taken with it: also the softmax times the factor, and one array ahead
HEAD_SUMS = 4  # gradients of a trained head that are alive at once, measured
DRAW_COPIES = 3  # of the rollout, in float32: the logits, those at the temperature, the noise of the draw
# of a micro-batch, with its prompts. Twice as many are no faster: of the random 4 M model an update in parts of 4,416 tokens took
# 13.1 s of CPU and one of 8,832 took 13.5; another in parts of 8,512 took 27.3 and one of 17,024 took 29.0
USEFUL_TOKENS = 8192
WATCHED = 64 * 1024**2  # of old weights that an update holds, at most, to see whether it moves them
STEP_COPIES = 3  # of the largest trained array, while the optimizer changes it
# Without gradients nothing is kept; of all that a layer computes for rows that are scored, or for a prompt, so much is under way
SCORED, READ = 0.7, 0.8
SCORED_COPIES = 3.2  # of the logits, in float32
# whose layers carry no recurrent state: prompts of any length share a batch. engine/worker/prefix.py finds it out at load
_DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3", "granite", "cohere2", "olmo2", "glm4")
SHARING_FAMILIES = frozenset((*_DENSE, "smollm3", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"))
# whose attention takes prompts that are held once while rows decode. engine/worker/decoding.py finds it out at load
DECODE_SHARING = SHARING_FAMILIES - {"gemma2", "deepseek_v3"}
MEASURED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose layers `Layers.kept` describes
# of other families: a layer may keep more than a llama's does, such as norms after its parts, or an expert's tokens sorted
UNKNOWN_FAMILY = 1.25


@dataclass(frozen=True, slots=True)
class Fit:
    """How a run is cut so that it stays within a limit; where it cannot, the smallest cut."""

    micro_batch_rows: int
    recomputes: bool  # the backward pass computes each layer again
    decode_rows: int | None  # of a rollout at once; None: all of them
    update_peak: int
    rollout_peak: int | None  # None for supervised training
    score_peak: int | None  # None where nothing is scored
    limit: int

    @property
    def peak(self) -> int:
        return max(self.update_peak, self.rollout_peak or 0, self.score_peak or 0)

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit


class Plan(Held):
    """The sizes of one run."""

    # The update: one micro-batch forward and backward after the other.

    @property
    def recomputes(self) -> bool:
        """Whether the config asks for each layer to be computed again; `auto` is decided by `fit`."""
        return self.config.optim.grad_checkpoint is True

    @property
    def update_groups(self) -> int:
        """Prompts of the largest mini-batch."""
        return -(-self.config.sampling.prompts_per_step // (1 if self.objective is None else self.objective.minibatches))

    @property
    def update_rows(self) -> int:
        """Rows of the largest mini-batch."""
        return self.update_groups * (1 if self.is_supervised else self.config.sampling.group_size)

    @property
    def completion_width(self) -> int:
        return round_up(self.config.sampling.max_completion_tokens, WIDTH)

    @property
    def shares(self) -> bool:
        """Whether a prompt is computed once for all its completions, whatever the lengths of the batch's other prompts."""
        return not self.is_supervised and self.shape is not None and self.shape.family in SHARING_FAMILIES

    def prompts(self, rows: int) -> int:
        """Prompts that a micro-batch of `rows` rows computes, at most: each once where completions share them."""
        return min(rows, self.update_groups) if self.shares else rows

    def batches(self, rows: int, groups: int | None = None) -> list[Shape]:
        """The micro-batches of at most `rows` rows that an update's (or `groups` groups') completions are packed into."""
        sampling = self.config.sampling
        group, length = 1 if self.is_supervised else sampling.group_size, sampling.max_prompt_tokens
        kinds = packed(groups or self.update_groups, group, rows, length, self.shares)
        return [Shape(own, prompts, length, self.completion_width, self.shares and prompts < own) for prompts, own in kinds]

    @cached_property
    def _layers(self) -> Layers | None:
        adapter = self.config.adapter
        return None if self.shape is None else Layers(self.shape, self.item, adapter.type, adapter.rank)

    @property
    def margin(self) -> float:
        """What stands between a layer of this family and one that was measured."""
        known = self.shape is not None and self.shape.family in MEASURED_FAMILIES and not self.shape.is_mixture
        return 1.0 if known else UNKNOWN_FAMILY

    def _kept(self, batch: Shape, recomputes: bool) -> int:
        return 0 if self._layers is None else round(self.margin * self._layers.passed(batch, self.passed, recomputes))

    def _beside(self, batch: Shape, recomputes: bool) -> int:
        return 0 if self._layers is None else round(self.margin * self._layers.beside(batch, recomputes))

    def activations(self, rows: int, recomputes: bool | None = None) -> int:
        """Of the micro-batch that has most: what the layers keep, and what is under way beside it."""
        again = self.recomputes if recomputes is None else recomputes
        return max(self._kept(one, again) + self._beside(one, again) for one in self.batches(rows)) + self._dequantised

    @cached_property
    def _dequantised(self) -> int:
        """DoRA on a quantised base multiplies by the plain weights, and keeps them for the backward pass."""
        if self.config.adapter.type != "dora":
            return 0
        return sum(m.inputs * m.outputs * self.item for m in self.adapted if m.quantised)

    def logits(self, positions: int) -> int:
        """The head runs on completion tokens only, the softmax in float32; a 16-bit model's own logits are kept beside. Many
        positions are computed in chunks, one after the other; a trained head's gradient is then summed."""
        if self.shape is None:
            return 0
        positions, vocabulary = padded_positions(positions), self.shape.vocabulary
        head = vocabulary * self.shape.hidden * FLOAT32 if self.is_full else 0
        own = self.item if self.item < FLOAT32 else 0
        copies, sums = LOGITS_COPIES, 0
        if positions > whole_positions(vocabulary, head):
            positions, sums = chunk_positions(vocabulary), HEAD_SUMS * head
            copies = CHUNK_COPIES
        return positions * vocabulary * (copies * FLOAT32 + own) + sums

    def gradients(self, rows: int) -> int:
        """One set, and the sum so far where an update takes several micro-batches."""
        return self.trainable_bytes * (1 if rows >= self.update_rows else 2)

    def update_peak(self, rows: int, recomputes: bool | None = None) -> int:
        """Everything held, and the worst of the update's moments."""
        return self.held + max(moment.bytes for moment in self.update_moments(rows, recomputes))

    def update_moments(self, rows: int, recomputes: bool | None = None) -> list[Moment]:
        """The backward pass begins: all that layers keep, and the logits or what is under way in the last layer. It ends: all
        gradients, and one layer. The optimizer steps: gradients, the weights that are watched, and copies of the largest array.
        Adapters' gradients are counted throughout, being small."""
        again = self.recomputes if recomputes is None else recomputes
        own, gradients = self.trainable_bytes, self.gradients(rows)
        unborn = own if self.is_full else 0  # before the backward pass
        plain = ("dequantised weights", self._dequantised)
        steps = (("gradients", own), ("watched weights", min(own, WATCHED)), ("copies", STEP_COPIES * self._largest), plain)
        moments = [Moment("as the optimizer steps", steps)]
        for one in self.batches(rows):
            beside, logits = self._beside(one, again), self.logits(one.positions)
            most = ("logits", logits) if logits > beside else ("work under way", beside)
            begins = (("activations", self._kept(one, again)), most, ("gradients", gradients - unborn), plain)
            moments.append(Moment("as the backward pass begins", begins))
            ends = (("last layer", self._last(one, again)), ("work under way", beside), ("gradients", gradients), plain)
            moments.append(Moment("as the backward pass ends", ends))
        return moments

    @cached_property
    def _largest(self) -> int:
        """Bytes of the largest array that is trained, in float32."""
        return max(map(math.prod, self.trainable_shapes.values()), default=0) * FLOAT32

    def _last(self, batch: Shape, recomputes: bool) -> int:
        """The layer that is differentiated last, and the two gradients of an embedding that is the head too."""
        if self._layers is None or self.shape is None:
            return 0
        twice = self.shape.vocabulary * self.shape.hidden * self.item if self.is_full and self.shape.tied else 0
        return twice + (0 if recomputes else round(self.margin * self._layers.kept(batch)))

    # The scores: without gradients, several layers under way at once.

    @property
    def scores(self) -> bool:
        """Whether a step's completions are scored before its updates."""
        objective = self.objective
        if objective is None:
            return False
        return bool(objective.beta) or objective.entropy_quantile < 1 or (objective.updates > 1 and objective.old == "trainer")

    def score_peak(self, rows: int) -> int | None:
        """Everything held, and what is under way of a forward pass; None where nothing is scored."""
        return self.held + max(moment.bytes for moment in self.score_moments(rows)) if self.scores else None

    def score_moments(self, rows: int) -> list[Moment]:
        """Of each kind of micro-batch: several layers under way, or the logits after them."""
        if self._layers is None or self.shape is None:
            return [Moment("in a forward pass", ())]
        moments, vocabulary = [], self.shape.vocabulary
        for one in self.batches(rows, self.config.sampling.prompts_per_step):
            at_once = min(one.positions, max(chunk_positions(vocabulary), whole_positions(vocabulary)))
            moments.append(Moment("in a forward pass", (("layers", round(SCORED * self.margin * self._layers.forward(one))),)))
            moments.append(Moment("after a forward pass", (("logits", round(SCORED_COPIES * at_once * vocabulary * FLOAT32)),)))
        return moments

    # The rollout: each prompt alone, then all rows together.

    @property
    def decoded(self) -> list[tuple[int, int]]:
        """(prompts, completions of each) of the batches that are decoded: a step's rollout and the evaluation."""
        if self.shape is None or self.is_supervised:
            return []
        return [(self.config.sampling.prompts_per_step, self.config.sampling.group_size), (self.config.run.eval_rows, 1)]

    def keys(self, prompts: int, group: int) -> KeyCache | None:
        """What a batch of so many completions of so many prompts keeps of them; None where the sizes are unknown."""
        sampling = self.config.sampling
        if self.shape is None:
            return None
        found = KeyCache(self.shape, self.item, sampling.max_prompt_tokens, sampling.max_completion_tokens - 1, shares=False)
        saved = saved_bytes(prompts * sampling.max_prompt_tokens, group, found.token_bytes)
        shares = self.shape.family in DECODE_SHARING and shares_prompts(sampling.share_prompts, self.backend == "cpu", saved)
        return replace(found, shares=shares and group > 1)

    def cache(self, prompts: int, group: int, rows: int | None = None) -> int:
        """Keys and values at their most, with `rows` rows decoded at once (None: all)."""
        keys = self.keys(prompts, group)
        return 0 if keys is None else keys.peak(prompts, group, min(prompts * group, rows or prompts * group))

    def draw_logits(self, rows: int) -> int:
        return 0 if self.shape is None else rows * self.shape.vocabulary * DRAW_COPIES * FLOAT32

    def rollout_peak(self, rows: int | None = None) -> int | None:
        """Everything held, the cache and the draw, or the cache of the prompts and one prompt's pass; for `rows` at once (None:
        all). None for supervised training."""
        if self.is_supervised:
            return None
        return self.held + max((self._rolled(u, g, rows) for u, g in self.decoded), default=0)

    def _rolled(self, prompts: int, group: int, rows: int | None) -> int:
        keys, together = self.keys(prompts, group), min(prompts * group, rows or prompts * group)
        if keys is None:
            return 0
        length = keys.length
        alone = 0 if self._layers is None else READ * self.margin * self._layers.forward(Shape(1, 1, length, 0, shares=False))
        read = keys.plain(min(prompts, together), round_up(length, CACHE_STEP))
        return max(self.cache(prompts, group, rows) + self.draw_logits(together), read + round(alone))

    # What fits.

    def rows_within(self, limit: int, recomputes: bool | None = None) -> int:
        """The most rows that are scored and trained within `limit` bytes; 1 where not even that fits or the sizes are unknown."""
        if self.shape is None:
            return 1

        def fits(rows: int) -> bool:
            return self.update_peak(rows, recomputes) <= limit and (self.score_peak(rows) or 0) <= limit

        return most(self.update_rows, fits) if fits(1) else 1

    @property
    def rows_of_use(self) -> int:
        """Rows of a micro-batch beyond which more at once only take memory: those of USEFUL_TOKENS, but whole groups where one
        has more, so that no prompt is computed twice for it."""
        length, group = self.config.sampling.max_prompt_tokens, 1 if self.is_supervised else self.config.sampling.group_size
        own = group if self.shares else 1
        tokens = own * self.completion_width + length * (1 if self.shares else own)
        return max(group, own * (USEFUL_TOKENS // tokens))

    def decode_rows_within(self, limit: int) -> int | None:
        """The most rows that can be decoded at once within `limit` bytes; None: all, 1 where not even that fits."""
        everything = max((u * g for u, g in self.decoded), default=0)
        if not everything or (self.rollout_peak() or 0) <= limit:
            return None
        return most(everything, lambda rows: (self.rollout_peak(rows) or 0) <= limit)

    def fit(self, limit: int) -> Fit:
        """How the run is cut to stay within `limit`. Rows of a micro-batch become fewer before layers are computed again, which
        costs about a third of the time, while smaller micro-batches cost little; and there are no more than are of use."""
        own, asked = self.config.optim.micro_batch_rows, self.config.optim.grad_checkpoint
        choices = [asked] if isinstance(asked, bool) else [False, True]
        rows = {again: own or min(self.rows_within(limit, again), self.rows_of_use) for again in choices}
        peaks = {again: self.update_peak(rows[again], again) for again in choices}
        again = next((each for each in choices if peaks[each] <= limit), min(choices, key=peaks.__getitem__))
        decode = self.decode_rows_within(limit)
        return Fit(rows[again], again, decode, peaks[again], self.rollout_peak(decode), self.score_peak(rows[again]), limit)
