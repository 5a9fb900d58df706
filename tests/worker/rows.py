"""What several tests of the worker start from: prompts, sampled rows, a plain forward, moved weights."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from engine.types import Message, Prompt
from engine.worker.batching import Row
from engine.worker.model import Policy
from engine.worker.sampler import sample


def prompts_of(policy: Policy, *texts: str) -> list[Prompt]:
    """Rendered prompts, numbered in order."""
    made = []
    for number, text in enumerate(texts):
        rendered, ids, _ = policy.render([Message("user", text)])
        made.append(Prompt(number, tuple(ids), rendered, None))
    return made


def rollout_rows(policy: Policy, prompts: list[Prompt], temperature: float, group: int = 4) -> list[Row]:
    groups = sample(policy, prompts, group, max_tokens=24, temperature=temperature, seed=3, step=1)
    return [
        Row(number * group + member, prompt.token_ids, rollout.token_ids, number, rollout.logprobs)
        for number, (prompt, members) in enumerate(zip(prompts, groups, strict=True))
        for member, rollout in enumerate(members)
    ]


def plain(policy: Policy, row: Row, temperature: float) -> np.ndarray:
    """One unpadded forward of one row with the full head: log softmax(logits / T) at its completion tokens, the softmax in
    float64 (mlx's own is off by 1e-4 on a CPU where the vocabulary is large)."""
    tokens = [*row.prompt, *row.tokens]
    logits = np.array(policy.model(mx.array([tokens]))[0].astype(mx.float32)).astype(np.float64) / temperature
    logits = logits[len(row.prompt) - 1 : -1]  # [C, V]
    logits -= logits.max(axis=-1, keepdims=True)
    return logits[np.arange(len(row.tokens)), list(row.tokens)] - np.log(np.exp(logits).sum(axis=-1))


def nudge(policy: Policy, size: float = 0.05) -> None:
    """Move every trained weight, so that an adapter does something (a fresh LoRA adds exactly 0)."""
    moved = [
        (name, value + size * mx.random.normal(value.shape, key=mx.random.key(7))) for name, value in policy.trainable().items()
    ]
    policy.model.load_weights(moved, strict=False)
