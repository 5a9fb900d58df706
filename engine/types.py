"""The values that flow through a run, as frozen plain-Python dataclasses: Prompt -> Rollout -> Group -> StepMetrics.

Everything here is host data, so that the journal, the rewards and the viewers need no array library. The one value that
holds arrays, Batch, lives in engine/worker/batching.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row of a data file in the form that every method understands.

    `messages` is the prompt; `completion` the text that supervised training imitates (None where the format has none);
    `answer` the reference that rewards compare with (None where the format has none); `columns` every field of the row.
    """

    line: int  # 1-based line (or array index + 1) in the file
    messages: tuple[Message, ...]
    completion: str | None
    answer: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Message, ...] = ()  # the whole chat, where it has assistant turns before the completion's; else ()
    # (start, end, mark) of decisive steps: characters [start, end) of `completion`, apart and ascending; mark above 0, up to 1
    marks: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model sees it, with what its rewards need."""

    id: int  # index of its example in the data set; keys the random draws
    token_ids: tuple[int, ...]  # [P], with the generation prompt of the chat template
    text: str  # the rendered prompt
    answer: str | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion. The ids are those that were sampled: never decoded and encoded again."""

    token_ids: tuple[int, ...]  # [C], including the stop token when finish is "stop"
    logprobs: tuple[float, ...]  # [C], of the sampled token under softmax(logits / temperature), natural log
    finish: Finish  # "length": cut at max_completion_tokens
    text: str  # decoded without the stop token

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} token ids but {len(self.logprobs)} log-probabilities")


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one prompt with their rewards and advantages; index j belongs to rollouts[j] everywhere."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]  # [G]
    reward_parts: tuple[Mapping[str, float | None], ...] = ()  # [G] by reward name; None = not applicable or failed
    rewards: tuple[float | None, ...] = ()  # [G], weighted sums; None = excluded from baseline and update
    advantages: tuple[float, ...] = ()  # [G], of a completion's tokens the mean
    token_advantages: tuple[tuple[float, ...], ...] = ()  # [G][C] where a completion's tokens differ; else ()
    # [G] of (index of the step's last token, weight x value): process rewards, which `rewards` counts by their mean; else ()
    step_rewards: tuple[tuple[tuple[int, float], ...], ...] = ()
    outcomes: tuple[float | None, ...] = ()  # [G] the rewards without process rewards; () where there are none: the rewards


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step measured. A step is one rollout batch with all its updates (supervised: one update).

    Values that a method does not have are None, never 0. Log-probabilities are natural; `kl` and `mismatch` are means
    over completion tokens, `ratio` the mean importance ratio, `clip_low`/`clip_high` shares of tokens (of sequences for
    sequence ratios) whose clipped branch was active.
    """

    step: int
    loss: float
    grad_norm: float  # before clipping, mean over updates
    lr: float  # of the last update
    updates: int
    tokens: int  # completion tokens sampled (or trained on)
    reward: float | None = None
    reward_std: float | None = None  # over all rewards of the step, ddof 1
    reward_min: float | None = None
    reward_max: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    length: float | None = None  # mean completion tokens
    truncated: float | None = None  # share of completions cut at the limit
    zero_std_groups: int | None = None  # groups whose rewards are all equal
    groups: int | None = None
    excluded: int | None = None  # completions without a reward
    dropped: int | None = None  # completions left out of the updates because their advantage is 0
    masked: int | None = None  # completions left out because they were cut (objective.truncated: mask)
    refills: int | None = None  # extra rollouts of dynamic sampling
    discarded: int | None = None  # groups of equal rewards that those replaced
    parts_spread: Mapping[str, float | None] = field(default_factory=dict)  # weight x deviation within groups, by reward
    entropy: float | None = None  # nats per token, estimated by -mean log-prob of the sampled tokens
    kl: float | None = None  # to the reference: k2 or k3 in the loss, k1 in the reward; None where beta is 0: not computed
    ratio: float | None = None
    ratio_gap_first: float | None = None  # mean |ratio - 1| of the first update: 0 but for rounding
    ratio_gap_later: float | None = None  # of the others; None with a single update
    clip_low: float | None = None
    clip_high: float | None = None
    mismatch: float | None = None  # mean |trainer - sampler| log-prob before the first update
    mismatch_kl: float | None = None  # mean of exp(x) - 1 - x, x = trainer - sampler: an estimate of KL(sampler || trainer)
    tis: float | None = None  # mean importance weight trainer / sampler, as applied
    moved: float | None = None  # least share of trainable numbers that an applied update changed (of those that are watched)
    skipped: int | None = None  # updates that were not applied, because loss or gradient was not finite
    seconds: Mapping[str, float] = field(default_factory=dict)  # rollout, reward, score, update, total
    bytes: Mapping[str, int] = field(default_factory=dict)  # peak, active, cache
