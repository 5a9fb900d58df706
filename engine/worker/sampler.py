"""Rollouts: one batch over all prompts x group of a step, each prompt prefilled once, in a loop of our own.

Prefill each prompt alone, merge, decode the rows together over prompts that are held once for all of their rows, filter those
that stopped, and put rows that wait into the freed places (where the memory plan does not let all begin at once); or, where
decoding.py found that the family cannot, one row after the other. What is left out, and why: mlx_lm's BatchGenerator (it reports
log-probabilities of temperature 1 in the model's own precision), top-p and top-k (the scored policy would be another one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from engine.prompt_sharing import Asked, saved_bytes, shares_prompts
from engine.types import Prompt, Rollout
from engine.worker import keys, lean
from engine.worker.decoding import attention, merged
from engine.worker.draw import draw
from engine.worker.model import Policy
from engine.worker.trees import floats, matrix

_SHRINK = 0.75  # places are cleared and filled when no more than this share still runs: doing so copies the cache


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    step: int,
    purpose: str = "sample",
    greedy: bool = False,
    rows_at_once: int | None = None,
    share_prompts: Asked = "auto",
    alive: Callable[[], None] = lambda: None,
) -> list[list[Rollout]]:
    """`group_size` rollouts of each prompt, [prompts][group_size].

    Every draw has a key of its own, made of (seed, step, purpose, prompt id, its repetition, member, position); log-probabilities
    are those of softmax(logits / temperature) in float32. No more than `rows_at_once` rows are decoded together (None: all);
    the others wait for a place. `share_prompts`: whether the rows of a prompt hold its keys together, where the model allows it.
    `alive` is called once per decoded position.
    """
    names = [(*name, member) for name in _names(prompts) for member in range(group_size)]
    rows = [_Row(keys.key32(seed, step, purpose, *name[:2]), name[2] << 16) for name in names]
    saved = saved_bytes(sum(len(prompt.token_ids) for prompt in prompts), group_size, policy.decoding.token_bytes)
    shares = saved > 0 and shares_prompts(share_prompts, mx.default_device().type == mx.DeviceType.cpu, saved)
    waiting = _Waiting(policy, prompts, group_size, shares)
    with lean.adapters(policy.model), attention(policy.model, shares):
        _Decoder(policy, rows, waiting, _Ask(max_tokens, temperature, greedy), rows_at_once or len(rows), alive).run()
    made = [_rollout(policy, row) for row in rows]
    return [made[start : start + group_size] for start in range(0, len(made), group_size)]


@dataclass(frozen=True, slots=True)
class _Ask:
    """How rows go on."""

    max_tokens: int
    temperature: float
    greedy: bool


@dataclass(slots=True)
class _Row:
    """One completion as far as it has come."""

    key: int  # of its prompt
    member: int  # shifted, so that positions fit below it
    taken: list[int] = field(default_factory=list)
    scored: list[float] = field(default_factory=list)
    done: bool = False


class _Waiting:
    """Rows that have not begun, in order. A prompt is prefilled when its first row begins and held until its last one does."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], group_size: int, shares: bool) -> None:
        self.policy, self.prompts, self.group_size, self.shares = policy, prompts, group_size, shares
        self.begun = 0
        self._held: tuple[int, mx.array, list[Any]] | None = None  # prompt, logits after it [1, V], caches

    @property
    def left(self) -> int:
        return len(self.prompts) * self.group_size - self.begun

    def begin(self, number: int) -> tuple[mx.array, list[Any]]:
        """Logits [B, V] after the prompts of the next `number` rows, and the merged caches that hold these."""
        places = [row // self.group_size for row in range(self.begun, self.begun + number)]
        self.begun += number
        chosen = sorted(set(places))
        ends, caches = zip(*(self._prefilled(place) for place in chosen), strict=True)
        last = chosen[-1]
        self._held = (last, ends[-1], caches[-1]) if self.left and self.begun % self.group_size else None
        together = merged(caches, self.policy.decoding.mode, self.shares)
        each = mx.array([place - chosen[0] for place in places])  # [B]
        for part in together:
            part.filter(each)
        return mx.concatenate(ends, axis=0)[each], together

    def begin_alone(self) -> tuple[mx.array, list[Any]]:
        """The same for the next row by itself: [1, V] and its own caches, not merged."""
        self.begun += 1
        return self._prefill(self.prompts[(self.begun - 1) // self.group_size])

    def _prefilled(self, place: int) -> tuple[mx.array, list[Any]]:
        if self._held is not None and self._held[0] == place:
            return self._held[1:]
        return self._prefill(self.prompts[place])

    def _prefill(self, prompt: Prompt) -> tuple[mx.array, list[Any]]:
        cache = make_prompt_cache(self.policy.model)
        return self.policy.head(self.policy.hidden(mx.array([prompt.token_ids]), cache=cache)[:, -1:])[:, -1], cache


class _Decoder:
    """The rows that run, each in a place of the batch."""

    def __init__(
        self, policy: Policy, rows: Sequence[_Row], waiting: _Waiting, ask: _Ask, places: int, alive: Callable[[], None]
    ) -> None:
        self.policy, self.rows, self.waiting, self.ask, self.alive = policy, rows, waiting, ask, alive
        self.is_alone = policy.decoding.mode == "alone"
        self.places = 1 if self.is_alone else min(places, len(rows))
        self.running: list[_Row] = []
        self.logits = mx.zeros((0, 0))  # [B, V] after the last token of each place
        self.cache: list[Any] = []
        self.keys = mx.zeros((0, 2), dtype=mx.uint32)  # [B, 2] of each place's next draw, less `drawn` in the second column
        self.drawn = 0
        self.logprobs: list[mx.array] = []  # [B] of each position since rows left or began: they stay on the device until then

    def run(self) -> None:
        """Until no row waits and none runs."""
        while True:
            left = [place for place, row in enumerate(self.running) if not row.done]
            if not left and not self.waiting.left:
                self._keep_logprobs()
                return
            if len(left) <= _SHRINK * (self.places if self._fills(left) else len(self.running)):
                self._clear_and_fill(left)
            self._one_position()
            self.alive()

    def _fills(self, left: Sequence[int]) -> bool:
        """Whether rows that wait may begin now: beside others only where the family's caches can be extended."""
        return bool(self.waiting.left) and (self.policy.decoding.refills or not left)

    def _clear_and_fill(self, left: list[int]) -> None:
        """Drop the places whose rows are done, and begin rows that wait."""
        self._keep_logprobs()
        if left and len(left) < len(self.running):
            keep = mx.array(left)
            for part in self.cache:
                part.filter(keep)
            self.logits = self.logits[keep]
        running = [self.running[place] for place in left]
        number = min(self.places - len(left), self.waiting.left) if self._fills(left) else 0
        if number:
            first = self.waiting.begun
            logits, cache = self.waiting.begin_alone() if self.is_alone else self.waiting.begin(number)
            if running:
                for part, other in zip(self.cache, cache, strict=True):
                    part.extend(other)
                logits, cache = mx.concatenate([self.logits, logits]), self.cache
            self.logits, self.cache = logits, cache
            running += self.rows[first : first + number]
        self.running, self.drawn = running, 0
        self.keys = mx.array([(row.key, row.member + len(row.taken)) for row in running], dtype=mx.uint32)

    def _one_position(self) -> None:
        """One token of every place; those of rows that are done are not kept."""
        row_keys = self.keys + mx.array([0, self.drawn], dtype=mx.uint32)
        self.drawn += 1
        token, logprob = draw(self.logits, row_keys, self.ask.temperature, self.ask.greedy)
        if any(len(row.taken) + 1 < self.ask.max_tokens for row in self.running if not row.done):
            self.logits = self.policy.model(token[:, None], cache=self.cache)[:, -1]
            mx.async_eval(token, logprob, self.logits)  # under way while the host looks at the tokens
        self.logprobs.append(logprob)
        for row, one in zip(self.running, floats(token), strict=True):
            if not row.done:
                row.taken.append(int(one))
                row.done = one in self.policy.stop_ids or len(row.taken) == self.ask.max_tokens

    def _keep_logprobs(self) -> None:
        """Those of the tokens that each row took since it was last done."""
        if self.logprobs:
            for row, values in zip(self.running, matrix(mx.stack(self.logprobs, axis=1)), strict=True):  # [B, positions]
                row.scored += values[: len(row.taken) - len(row.scored)]
        self.logprobs = []


def _names(prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """(id, how often it stood before) of each prompt: a small data set may fill one step with the same prompt twice."""
    seen: Counter[int] = Counter()
    names = []
    for prompt in prompts:
        names.append((prompt.id, seen[prompt.id]))
        seen[prompt.id] += 1
    return names


def _rollout(policy: Policy, row: _Row) -> Rollout:
    finish = "stop" if row.taken[-1] in policy.stop_ids else "length"
    return Rollout(tuple(row.taken), tuple(row.scored), "stop" if finish == "stop" else "length", policy.decode(row.taken))
