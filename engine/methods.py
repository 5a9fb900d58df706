"""The training methods, one row of data each. What a method does differently is an Objective; there are no trainer classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.errors import InputError

Advantage = Literal["group", "group_ddof0", "none", "batch", "rloo"]
Ratio = Literal["token", "sequence"]
Surrogate = Literal["clip", "cispo"]
Aggregate = Literal["seq_mean", "constant", "token_mean", "group_token_mean", "seq_sum"]
Kl = Literal["k2", "k3"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A policy loss: sum over tokens of weight x (surrogate + beta x KL). Formulas: engine/worker/losses.py."""

    advantage: Advantage = "group"
    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    aggregate: Aggregate = "seq_mean"
    epsilon_low: float | None = 0.2  # None (cispo only): no lower bound
    epsilon_high: float = 0.2
    delta: float | None = None  # upper bound of the unclipped branch (two-sided clipping), None: no bound
    tis_cap: float | None = None  # truncated importance weight old/sampler on the policy term, None: no weight
    beta: float = 0.0  # weight of the KL term; at 0 nothing is computed for it
    kl: Kl = "k3"
    minibatches: int = 1  # optimizer updates that one pass over the rollouts is split into, by whole groups
    updates_per_rollout: int = 1  # passes over the same rollouts


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table that `droid-tune methods` and the method picker show."""

    id: str
    title: str
    kind: Literal["sft", "rl"]
    summary: str
    differs: str  # from GRPO, in one line
    when: str
    source: str  # paper and equation
    formats: tuple[str, ...]
    objective: Objective | None  # None: supervised


_RL_FORMATS = ("prompt+answer", "gsm8k", "messages", "prompt+completion")

METHODS: dict[str, Method] = {
    m.id: m
    for m in (
        Method(
            id="sft",
            title="Supervised fine-tuning",
            kind="sft",
            summary="imitate the completions in your data",
            differs="no rollouts and no rewards: the data's own completions are the target",
            when="You have good completions and want the model to write like them; also the usual start before a reward method.",
            source="token-mean negative log-likelihood of the completion",
            formats=("prompt+completion", "messages", "prompt+answer", "gsm8k"),
            objective=None,
        ),
        Method(
            id="grpo",
            title="Group Relative Policy Optimization",
            kind="rl",
            summary="learn from rewards, with the group as the baseline",
            differs="the reference: advantage by the group's mean and deviation, token ratio, mean per completion",
            when="An answer can be checked by a rule and the model is right now and then.",
            source="DeepSeekMath, arXiv 2402.03300, Eq. 3 and Sec. 4.1.2; KL Eq. 4",
            formats=_RL_FORMATS,
            objective=Objective(),
        ),
        Method(
            id="dr_grpo",
            title="GRPO Done Right",
            kind="rl",
            summary="GRPO without its length and difficulty bias",
            differs="advantages are centred, not divided by the deviation; the loss divides by a constant, not by length",
            when="Completions grow longer without getting better, or prompts differ much in difficulty.",
            source="Understanding R1-Zero-Like Training, arXiv 2503.20783, Sec. 3.1 and Listing 1",
            formats=_RL_FORMATS,
            objective=Objective(advantage="none", aggregate="constant"),
        ),
        Method(
            id="gspo",
            title="Group Sequence Policy Optimization",
            kind="rl",
            summary="one importance ratio per completion, made for reusing rollouts",
            differs="the ratio is the whole completion's (length-normalised), narrowly clipped; four mini-batches per rollout",
            when="Each rollout batch should serve several updates, or the model is a mixture of experts.",
            source="GSPO, arXiv 2507.18071, Eq. 5 and 7; clip range and mini-batches Sec. 5.1",
            formats=_RL_FORMATS,
            objective=Objective(ratio="sequence", epsilon_low=3e-4, epsilon_high=4e-4, minibatches=4),
        ),
    )
}


def method(name: str) -> Method:
    """The row called `name`; an InputError names the rows there are."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}", where="method", remedy=f"one of: {', '.join(METHODS)}")
    return METHODS[name]


def resolve_objective(name: str, overrides: dict[str, Any]) -> Objective:
    """The method's row with the config's `objective:` overrides applied, or an InputError for an illegal combination."""
    row = method(name).objective
    if row is None:
        raise InputError(f"{name} has no objective options", where="objective", remedy="remove the section's entries")
    objective = replace(row, **overrides)
    if objective.surrogate == "cispo" and objective.ratio == "sequence":
        raise InputError(
            "cispo weights tokens by their own ratio; it has no sequence form", where="objective.ratio", remedy="use ratio: token"
        )
    if objective.surrogate == "clip" and objective.epsilon_low is None:
        raise InputError(
            "the clip surrogate needs a lower bound", where="objective.epsilon_low", remedy="give a number, such as 0.2"
        )
    if objective.delta is not None and objective.delta <= 1 + objective.epsilon_high:
        raise InputError(
            f"delta {objective.delta} must exceed 1 + epsilon_high = {1 + objective.epsilon_high}",
            where="objective.delta",
            remedy="raise it, or leave it out",
        )
    return objective
