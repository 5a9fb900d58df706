"""The training methods, one row of data each. What a method does differently is an Objective; there are no trainer classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.errors import InputError
from engine.objective import Objective, changed, meaningless, with_overrides

__all__ = ["METHODS", "Method", "Objective", "method", "resolve_objective"]


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

    @property
    def defaults(self) -> dict[str, Any]:
        """Its values of the options that every method has, and of the others those that are on."""
        if self.objective is None:
            return {}
        given = {name: value for name, value in asdict(self.objective).items() if name not in self.meaningless}
        return {name: value for name, value in given.items() if name in _ALWAYS_SHOWN or value != getattr(Objective(), name)}

    @property
    def changed(self) -> dict[str, Any]:
        """The options whose value is not GRPO's."""
        grpo = METHODS["grpo"].objective
        return {} if self.objective is None or grpo is None else changed(self.objective, grpo)

    @property
    def meaningless(self) -> dict[str, str]:
        """Options that this method's own values leave without effect (refused when set), each with the reason."""
        return {} if self.objective is None else meaningless(self.objective)


_ALWAYS_SHOWN = frozenset(
    ("advantage", "ratio", "surrogate", "aggregate", "epsilon_low", "epsilon_high", "beta", "kl", "kl_in", "minibatches")
)
_RL_FORMATS = ("prompt+answer", "gsm8k", "messages", "prompt+completion", "reasoning", "instruction")

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
            formats=("prompt+completion", "messages", "prompt+answer", "gsm8k", "instruction", "reasoning", "text"),
            objective=None,
        ),
        Method(
            id="grpo",
            title="Group Relative Policy Optimization",
            kind="rl",
            summary="learn from rewards, with the group as the baseline",
            differs="the reference: advantage by the group's mean and deviation, token ratio, mean per completion",
            when="An answer can be checked by a rule and the model is right now and then.",
            source="DeepSeekMath, arXiv 2402.03300, Eq. 3 and Sec. 4.1.2; KL Eq. 4, its weight 0.04 Sec. 4.2",
            formats=_RL_FORMATS,
            objective=Objective(beta=0.04),
        ),
        Method(
            id="dr_grpo",
            title="GRPO Done Right",
            kind="rl",
            summary="GRPO without its length and difficulty bias",
            differs="advantages are centred, not divided by the deviation; the loss divides by a constant, not by length; no KL",
            when="Completions grow longer without getting better, or prompts differ much in difficulty.",
            source="Understanding R1-Zero-Like Training, arXiv 2503.20783, Sec. 3.1 and Listing 1; no KL App. G",
            formats=_RL_FORMATS,
            objective=Objective(advantage="none", aggregate="constant"),
        ),
        Method(
            id="gspo",
            title="Group Sequence Policy Optimization",
            kind="rl",
            summary="one importance ratio per completion, made for reusing rollouts",
            differs="the ratio is the whole completion's (length-normalised), narrowly clipped; four mini-batches; no KL",
            when="Each rollout batch should serve several updates, or the model is a mixture of experts.",
            source="GSPO, arXiv 2507.18071, Eq. 5 and 7; clip range and mini-batches Sec. 5.1",
            formats=_RL_FORMATS,
            objective=Objective(ratio="sequence", epsilon_low=3e-4, epsilon_high=4e-4, minibatches=4),
        ),
        Method(
            id="gspo_token",
            title="GSPO with token advantages",
            kind="rl",
            summary="GSPO's ratio, with room for an advantage of each token's own",
            differs="as gspo, but each token carries its own advantage: process rewards and entropy masks work",
            when="You want GSPO and reward single reasoning steps, or train on the tokens of highest entropy only.",
            source="GSPO, arXiv 2507.18071, Eq. 13 and 14",
            formats=_RL_FORMATS,
            objective=Objective(ratio="sequence_token", epsilon_low=3e-4, epsilon_high=4e-4, minibatches=4),
        ),
        Method(
            id="dapo",
            title="Decoupled Clip and Dynamic Sampling",
            kind="rl",
            summary="more room for rising tokens, no wasted groups, no reward for running on",
            differs="clips higher above than below, means over all tokens, refills equal groups, punishes overlong; no KL",
            when="Long answers, many groups all right or all wrong, entropy that falls too early.",
            source="DAPO, arXiv 2503.14476, Eq. 8 (mean over the update, as its authors run it), 11 (bounded), 13; Sec. 3.4, 4.1",
            formats=_RL_FORMATS,
            objective=Objective(
                aggregate="token_mean",
                epsilon_high=0.28,
                minibatches=16,
                truncated="mask",
                soft_overlong=0.2,
                dynamic_sampling=3,
            ),
        ),
        Method(
            id="cispo",
            title="Clipped Importance-Sampling Policy Optimization",
            kind="rl",
            summary="cap each token's importance weight, and let every token learn",
            differs="REINFORCE weighted by a capped, constant ratio: no token loses its gradient to the clip; token mean; no KL",
            when="Many updates on each rollout, and rare but decisive tokens that clipping would silence.",
            source="MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5; the cap 1 + epsilon_high = 5 is ScaleRL's, arXiv 2510.13786",
            formats=_RL_FORMATS,
            objective=Objective(
                surrogate="cispo",
                aggregate="token_mean",
                epsilon_low=None,
                epsilon_high=4.0,
                minibatches=16,
                dynamic_sampling=3,
            ),
        ),
        Method(
            id="rloo",
            title="REINFORCE Leave-One-Out",
            kind="rl",
            summary="plain REINFORCE, with the group's other completions as the baseline",
            differs="baseline without the completion itself, a completion is one action (ratio of sums), KL in the reward",
            when="You want the unbiased gradient, or groups as small as two.",
            source="Back to Basics, arXiv 2402.14740: leave-one-out, one action; beta 0.05, clip 0.2 as in TRL's trainer",
            formats=_RL_FORMATS,
            objective=Objective(advantage="rloo", ratio="sequence_sum", beta=0.05, kl="k1", kl_in="reward"),
        ),
        Method(
            id="reinforce_pp",
            title="REINFORCE++",
            kind="rl",
            summary="PPO without a critic: advantages whitened over the whole batch",
            differs="no group baseline: each token's return (reward less the KL to come) is whitened over the step's tokens",
            when="Prompts are sampled once or twice each, or a group's mean is too noisy a baseline.",
            source="REINFORCE++, arXiv 2501.03262, token KL in the reward and global advantage normalization; beta 0.001",
            formats=_RL_FORMATS,
            objective=Objective(advantage="global", beta=0.001, kl="k1", kl_in="reward"),
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
    return with_overrides(row, overrides)
