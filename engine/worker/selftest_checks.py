"""What the self-test measures, one function a check: figures with their limits. Nothing here reads the clock or prints.

A limit belongs to the precision that the model computes in: float32 is compared tightly, 16 bits (7 or 10 of them for the
fraction) by means, since one token's log-probability may be off by tenths without harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np

from engine.objective import Objective
from engine.sections import OptimConfig
from engine.selftest_checks import Figure
from engine.types import Message, Prompt, Rollout
from engine.worker import checkpoint, golden, keys
from engine.worker.advantages import advantages
from engine.worker.batching import Batch, Floats, Row, aggregation_weights, pack
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import policy_loss
from engine.worker.model import Policy
from engine.worker.sampler import sample
from engine.worker.trainer import Trainer
from engine.worker.trees import flat, scalar

# Prompts and completions of unequal lengths, near enough to share one padded batch. The embedded model reads them too.
TEXTS = (
    ("What is 5+67?", "<think>60+5=65+7=72</think><answer>72</answer>"),
    ("What is 12+34?", "<think>12+30=42+4=46</think><answer>46</answer>"),
    ("What is 12+34-7?", "<think>12+30=42+4=46-7=39</think><answer>39</answer>"),
)
GROUP, TOKENS, SEED = 3, 16, 0  # rollouts of each prompt, tokens of each at most
MOVE = 0.01  # standard deviation by which trained weights are moved, so that an adapter does something
DIRECTIONS = 3
STEPS = (3e-5, 1e-4, 1e-5)  # of each weight in finite differences: too small drowns in rounding, too large sees the curvature
_OBJECTIVE = Objective(epsilon_low=0.99, epsilon_high=100.0)  # GRPO, its clip out of the way: finite differences see no kink

GOLDEN, GOLDEN_ADVANTAGES = 1e-6, 1e-10  # the latter are computed in float64 on the host
GRADIENT = 1e-2


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest differences that pass; None: shown, but not judged."""

    mean: float  # of |difference| of log-probabilities
    largest: float | None
    kl: float
    logits: float


FLOAT32 = Limits(mean=1e-3, largest=1e-2, kl=1e-5, logits=1e-4)
HALF = Limits(mean=0.05, largest=None, kl=0.01, logits=0.25)  # 0.25: two bfloat16 steps of a logit of 16


def dtype_of(policy: Policy) -> str:
    """The precision that the model's activations have: float32, bfloat16 or float16."""
    return str(policy.hidden(mx.array([[1]])).dtype).removeprefix("mlx.core.")


def limits(policy: Policy) -> Limits:
    """The limits for the model's precision."""
    return FLOAT32 if dtype_of(policy) == "float32" else HALF


def move(policy: Policy) -> None:
    """Move every trained weight a little: a fresh adapter adds exactly 0, and its gradient is half 0."""
    moved = []
    for number, (name, value) in enumerate(policy.trainable().items()):
        noise = mx.random.normal(value.shape, key=mx.random.key(keys.key32(SEED, number, "self-test")))
        moved.append((name, (value + MOVE * noise).astype(value.dtype)))
    policy.model.load_weights(moved, strict=False)


def texts(policy: Policy) -> list[tuple[Prompt, tuple[int, ...]]]:
    """TEXTS as token ids: prompts and completions, each with its stop token."""
    made = []
    for number, (question, answer) in enumerate(TEXTS):
        text, prompt, target = policy.render([Message("user", question)], answer)
        made.append((Prompt(number, tuple(prompt), text, None), tuple(target)))
    return made


# The checks.


def golden_values() -> tuple[Figure, ...]:
    """Every packaged reference case, on the default device in float32; the largest differences."""
    loss, gradient = [], []
    for case in golden.fixture("policy_losses")["cases"]:
        value, slope = golden.loss_and_gradient(case)
        loss.append(abs(value - case["loss"]))
        gradient.append(np.max(np.abs(slope - np.array(case["dloss_dlogp"]))))
    other = [golden.advantage_error(case) for case in golden.fixture("advantages")["cases"]]
    return (
        figure("loss", np.max(loss), GOLDEN),
        figure("gradient", np.max(gradient), GOLDEN),
        figure("advantages", np.max(other), GOLDEN_ADVANTAGES),
    )


def batch_or_alone(policy: Policy) -> tuple[Figure, ...]:
    """Rows of unequal prompts and completions: scored together and one by one."""
    rows = [Row(place, prompt.token_ids, target) for place, (prompt, target) in enumerate(texts(policy))]
    together = score(policy, rows, 1.0, len(rows))
    alone = [score(policy, [replace(row, index=0)], 1.0, 1)[0] for row in rows]
    return differences(together, alone, limits(policy))[:2]


def sampler_and_trainer(policy: Policy) -> tuple[Figure, ...]:
    """Rollouts as the sampler scored them, and as the trainer does."""
    rows = rollout_rows(policy)
    reported = [np.array(row.sampler, dtype=np.float32) for row in rows]
    return differences(score(policy, rows, 1.0, len(rows)), reported, limits(policy))


def same_bits_twice(policies: Mapping[str, Policy]) -> tuple[Figure, ...]:
    """The same step from the same state, twice: how many tokens and weights of each policy differ."""
    found = []
    for name, policy in policies.items():
        start = policy.trainable()
        first, weights = _step(policy)
        _restore(policy, start)
        second, again = _step(policy)
        _restore(policy, start)
        tokens = sum(a.token_ids != b.token_ids or a.logprobs != b.logprobs for a, b in zip(first, second, strict=True))
        differing = sum(int(scalar(mx.sum(weights[key] != again[key]))) for key in weights)
        found += [figure(f"{name} rollouts", tokens, 0), figure(f"{name} weights", differing, 0)]
    return tuple(found)


def gradient(policy: Policy) -> tuple[Figure, ...]:
    """The policy loss's slope along random directions, by its gradient and by central differences (float32 only).

    The error is over all directions together, |differences - slopes| / |slopes|: a single slope may be near 0 by chance.
    """
    spread = (1.0, -0.5)
    rows = [
        Row(place, prompt.token_ids, target, place, advantage=spread[place], weight=0.5 / len(target))
        for place, (prompt, target) in enumerate(texts(policy)[1:])
    ]
    batches = _batches(policy, rows)
    start = policy.trainable()

    def loss() -> mx.array:
        return sum((_loss(policy, batch)[0] for batch in batches), mx.zeros(()))

    gradients = flat(nn.value_and_grad(policy.model, loss)()[1])
    directions = [_direction(start, number) for number in range(DIRECTIONS)]
    slopes = [float(sum(scalar((gradients[key] * u).sum()) for key, u in direction.items())) for direction in directions]
    scale = math.sqrt(sum(slope * slope for slope in slopes))
    errors = []
    for step in STEPS:
        measured = [_slope(policy, start, direction, step, loss) for direction in directions]
        errors.append(math.dist(measured, slopes) / scale if scale else math.nan)
        if errors[-1] <= GRADIENT:
            break
    return (figure("relative error", np.nanmin([math.inf, *errors]), GRADIENT),)


@dataclass(frozen=True, slots=True)
class Written:
    """An adapter on disk with logits of the policy that wrote it; holds nothing of the policy itself."""

    model: Path
    adapter: Path
    dtype: str
    tokens: mx.array  # [1, T]
    logits: mx.array  # [1, T, V]
    limit: float


def write_adapter(policy: Policy, folder: Path) -> Written:
    """Write the policy's adapter to `folder`; `read_back` compares. Between the two the policy can be let go: the next one is
    a second copy of the model."""
    checkpoint.write_adapter(folder, policy)
    prompt, target = texts(policy)[-1]
    tokens = mx.array([[*prompt.token_ids, *target]])
    logits = policy.model(tokens).astype(mx.float32)
    mx.eval(logits)
    return Written(policy.folder, folder, dtype_of(policy), tokens, logits, limits(policy).logits)


def read_back(written: Written) -> tuple[Figure, ...]:
    """Logits of the adapter as mlx_lm loads it onto the model, against those of the policy that wrote it."""
    model = mlx_lm.load(str(written.model), adapter_path=str(written.adapter))[0]
    if written.dtype == "float32":
        model.set_dtype(mx.float32)  # as the policy computes on a CPU
    largest = mx.abs(written.logits - model(written.tokens).astype(mx.float32)).max()
    return (figure("largest logit difference", scalar(largest), written.limit),)


# Their parts.


def figure(name: str, value: float | np.floating, limit: float | None) -> Figure:
    """A number with its limit; one that is not finite is None, which passes no limit."""
    return Figure(name=name, value=float(value) if math.isfinite(value) else None, limit=limit)


def differences(trainer: Sequence[Floats], other: Sequence[Floats], allowed: Limits) -> tuple[Figure, Figure, Figure]:
    """Mean and largest |x| and the KL estimate mean(exp(x) - 1 - x), x = trainer - other, over all tokens (in float64)."""
    x = np.concatenate(trainer).astype(np.float64) - np.concatenate(other).astype(np.float64)
    return (
        figure("mean difference", np.abs(x).mean(), allowed.mean),
        figure("largest", np.abs(x).max(), allowed.largest),
        figure("KL", (np.expm1(x) - x).mean(), allowed.kl),
    )


def rollout_rows(policy: Policy) -> list[Row]:
    """Sampled completions with what the sampler said of them, advantages +-1 in turn, and the weights of an update."""
    rollouts = _rollouts(policy)
    spread = advantages([[float(member % 2) for member in range(GROUP)]], "group")[0]
    weights = aggregation_weights(
        "seq_mean", [len(r.token_ids) for _, r in rollouts], [place // GROUP for place in range(len(rollouts))], TOKENS
    )
    return [
        Row(
            index=place,
            prompt=prompt.token_ids,
            tokens=rollout.token_ids,
            group=place // GROUP,
            sampler=rollout.logprobs,
            advantage=spread[place % GROUP],
            weight=weights[place],
        )
        for place, (prompt, rollout) in enumerate(rollouts)
    ]


def _rollouts(policy: Policy) -> list[tuple[Prompt, Rollout]]:
    prompts = [prompt for prompt, _ in texts(policy)[1:]]
    groups = sample(policy, prompts, GROUP, max_tokens=TOKENS, temperature=1.0, seed=SEED, step=1)
    return [(prompt, rollout) for prompt, members in zip(prompts, groups, strict=True) for rollout in members]


def _step(policy: Policy) -> tuple[list[Rollout], dict[str, mx.array]]:
    """A whole step from the present weights: rollouts, and the weights after one update."""
    rows = rollout_rows(policy)
    trainer = Trainer(policy, OptimConfig(learning_rate=1e-3, warmup=0.0), total_updates=1, seed=SEED)
    done = trainer.update(0, _batches(policy, rows), lambda batch: _loss(policy, batch))
    if not done.applied or not done.grad_norm:
        raise ArithmeticError(f"the step has no usable gradient: its norm is {done.grad_norm}")
    return [Rollout(row.tokens, row.sampler or (), "length", "") for row in rows], policy.trainable()


def _batches(policy: Policy, rows: Sequence[Row]) -> list[Batch]:
    return pack(rows, len(rows), old=score(policy, rows, 1.0, len(rows)))


def _loss(policy: Policy, batch: Batch) -> tuple[mx.array, mx.array]:
    return policy_loss(
        completion_logprobs(policy, batch, 1.0),
        objective=_OBJECTIVE,
        mask=mx.array(batch.mask),
        advantage=mx.array(batch.advantage),
        weight=mx.array(batch.weight),
        old=None if batch.old is None else mx.array(batch.old),
    )


def _direction(start: Mapping[str, mx.array], number: int) -> dict[str, mx.array]:
    """A random direction through all trained weights, of standard deviation 1 in each."""
    return {
        key: mx.random.normal(value.shape, key=mx.random.key(keys.key32(SEED, number, place, "direction")))
        for place, (key, value) in enumerate(start.items())
    }


def _slope(
    policy: Policy, start: Mapping[str, mx.array], direction: Mapping[str, mx.array], step: float, loss: Callable[[], mx.array]
) -> float:
    """(f(w + h u) - f(w - h u)) / 2h; the weights are put back."""
    values = []
    for h in (step, -step):
        _restore(policy, {key: value + h * direction[key] for key, value in start.items()})
        values.append(scalar(loss()))
    _restore(policy, start)
    return (values[0] - values[1]) / (2 * step)


def _restore(policy: Policy, weights: Mapping[str, mx.array]) -> None:
    policy.model.load_weights(list(weights.items()), strict=False)
