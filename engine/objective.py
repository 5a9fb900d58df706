"""What a policy-gradient method optimises, as data: the options, their meaning, and which of them exclude each other.

The formulas are in engine/worker/losses.py and engine/worker/credit.py; the methods' own values in engine/methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from engine.errors import InputError

Advantage = Literal["group", "group_ddof0", "none", "batch", "global", "rloo"]
Ratio = Literal["token", "sequence", "sequence_token", "sequence_sum"]
Surrogate = Literal["clip", "cispo"]
Aggregate = Literal["seq_mean", "constant", "token_mean", "group_token_mean", "seq_sum"]
Kl = Literal["k1", "k2", "k3", "k3_ratio"]
KlIn = Literal["loss", "reward"]
Old = Literal["trainer", "sampler"]
Tis = Literal["off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Truncated = Literal["keep", "zero", "mask"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A policy loss: sum over tokens of weight x (surrogate + beta x KL - entropy_bonus x entropy), and how its parts are made.

    None stands for "no bound"; every other option is off at the value that its comment gives.
    """

    advantage: Advantage = "group"
    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    aggregate: Aggregate = "seq_mean"
    epsilon_low: float | None = 0.2  # None (cispo only): no lower bound
    epsilon_high: float = 0.2
    delta: float | None = None  # upper bound of the unclipped branch (two-sided clipping), None: no bound
    beta: float = 0.0  # weight of the KL term; at 0 nothing is computed for it
    kl: Kl = "k3"
    kl_in: KlIn = "loss"
    ref_sync_every: int = 0  # steps between two moves of the reference to the policy; 0: it never moves
    ref_sync_mix: float = 1.0  # reference = mix x policy + (1 - mix) x reference
    minibatches: int = 1  # optimizer updates that one pass over the rollouts is split into, by whole groups
    updates_per_rollout: int = 1  # passes over the same rollouts
    old: Old = "trainer"  # whose log-probabilities stand for the policy of the rollout
    tis: Tis = "off"  # importance weight trainer / sampler on the policy term
    tis_cap: float = 3.0
    tis_floor: float | None = None  # of the mask modes; None: no lower bound
    truncated: Truncated = "keep"  # completions cut at max_completion_tokens
    soft_overlong: float = 0.0  # last share of max_completion_tokens over which the reward falls by up to 1; 0: off
    entropy_bonus: float = 0.0  # 0: off
    entropy_quantile: float = 1.0  # share of tokens, those of highest entropy, that the policy term trains; 1: all
    dynamic_sampling: int = 0  # extra rollouts a step may take to replace groups without reward variance; 0: off

    @property
    def trains_all(self) -> bool:
        """Whether completions without an advantage move the policy too: by a KL in the loss, or by an entropy bonus."""
        return bool(self.beta and self.kl_in == "loss") or bool(self.entropy_bonus)

    @property
    def updates(self) -> int:
        """Optimizer updates of one step."""
        return self.minibatches * self.updates_per_rollout


@dataclass(frozen=True, slots=True)
class Rule:
    """Options that have no effect while `when` holds of the objective."""

    options: tuple[str, ...]
    when: Callable[[Objective], bool]
    why: str
    remedy: str


RULES: tuple[Rule, ...] = (
    Rule(
        ("kl", "kl_in", "ref_sync_every", "ref_sync_mix"),
        lambda o: o.beta == 0,
        "at beta 0 there is no reference",
        "set objective.beta above 0",
    ),
    Rule(("ref_sync_mix",), lambda o: o.ref_sync_every == 0, "the reference never moves", "set objective.ref_sync_every"),
    Rule(("delta",), lambda o: o.surrogate == "cispo", "cispo has no unclipped branch", "use surrogate: clip"),
    Rule(
        ("entropy_quantile",),
        lambda o: o.ratio in ("sequence", "sequence_sum"),
        "the ratio is the whole completion's, so no token can be left out",
        "use ratio: sequence_token or token",
    ),
    Rule(("tis_cap", "tis_floor"), lambda o: o.tis == "off", "tis is off", "choose objective.tis, such as token_truncate"),
    Rule(
        ("tis_floor",),
        lambda o: o.tis in ("token_truncate", "sequence_truncate"),
        "truncation has an upper bound only",
        "use tis: token_mask or sequence_mask",
    ),
    Rule(("tis",), lambda o: o.old == "sampler", "with old: sampler the weight is 1 by definition", "use old: trainer"),
    Rule(
        ("dynamic_sampling",),
        lambda o: o.advantage == "global",
        "whitened over the batch, a group of equal rewards has a signal too",
        "use another objective.advantage",
    ),
)


def meaningless(objective: Objective) -> dict[str, str]:
    """Each option that has no effect under `objective`, and why."""
    found: dict[str, str] = {}
    for rule in RULES:
        if rule.when(objective):
            for option in rule.options:
                found.setdefault(option, rule.why)
    return found


def with_overrides(row: Objective, overrides: Mapping[str, Any]) -> Objective:
    """`row` with `overrides` (option -> value). InputError for an illegal combination, and for an option that is set to another
    value than the row's and has no effect."""
    objective = replace(row, **overrides)
    for rule in RULES:
        for option in rule.options:
            if option in overrides and overrides[option] != getattr(row, option) and rule.when(objective):
                raise InputError(f"{option} has no effect: {rule.why}", where=f"objective.{option}", remedy=rule.remedy)
    _check(objective)
    return objective


def _check(objective: Objective) -> None:
    """InputError for options that contradict each other."""
    if objective.surrogate == "cispo" and objective.ratio != "token":
        what = "cispo weights tokens by their own ratio; it has no sequence form"
        raise InputError(what, where="objective.ratio", remedy="use ratio: token")
    if objective.surrogate == "clip" and objective.epsilon_low is None:
        what = "the clip surrogate needs a lower bound"
        raise InputError(what, where="objective.epsilon_low", remedy="give a number, such as 0.2")
    if objective.delta is not None and objective.delta <= 1 + objective.epsilon_high:
        what = f"delta {objective.delta} must exceed 1 + epsilon_high = {1 + objective.epsilon_high}"
        raise InputError(what, where="objective.delta", remedy="raise it, or leave it out")
    if objective.beta and objective.kl == "k1" and objective.kl_in == "loss":
        what = "k1 as a loss does nothing: its expected gradient is zero"
        raise InputError(what, where="objective.kl", remedy="use k2, k3 or k3_ratio, or kl_in: reward")
    if objective.beta and objective.kl != "k1" and objective.kl_in == "reward":
        what = f"a KL in the reward is k1, log pi - log ref; {objective.kl} is for the loss"
        raise InputError(what, where="objective.kl", remedy="use kl: k1, or kl_in: loss")
    if objective.tis_floor is not None and objective.tis_floor >= objective.tis_cap:
        what = f"tis_floor {objective.tis_floor} must be below tis_cap {objective.tis_cap}"
        raise InputError(what, where="objective.tis_floor", remedy="lower it, or leave it out")


def changed(objective: Objective, base: Objective) -> dict[str, Any]:
    """The options in which `objective` differs from `base`, with its values."""
    return {
        field.name: getattr(objective, field.name)
        for field in fields(Objective)
        if getattr(objective, field.name) != getattr(base, field.name)
    }
