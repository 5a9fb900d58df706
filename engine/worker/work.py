"""What a step has gathered so far, in a form that a checkpoint can hold between two of its updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from engine.types import Group, Prompt, Rollout
from engine.worker.batching import Floats
from engine.worker.trainer import UpdateResult


@dataclass(slots=True)
class StepWork:
    """One step under way: its rollouts and scores, and what its updates measured. `groups` is empty in supervised training."""

    step: int
    groups: list[Group] = field(default_factory=list)
    discarded: list[Group] = field(default_factory=list)  # groups of equal rewards that dynamic sampling replaced
    refills: int = 0  # its extra rollouts
    old: list[Floats] | None = None  # [rows] of [C]; None: a single update, the policy itself
    ref: list[Floats] | None = None  # [rows] of [C]; None: no KL in the loss
    entropy: list[Floats] | None = None  # [rows] of [C], nats; None: no mask by entropy
    kl: float | None = None  # mean k1 per token, where the KL is in the reward
    updates: list[UpdateResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; float32 values survive the round trip to the bit."""
        return {
            "step": self.step,
            "groups": [asdict(group) for group in self.groups],
            "discarded": [asdict(group) for group in self.discarded],
            "refills": self.refills,
            "old": _lists(self.old),
            "ref": _lists(self.ref),
            "entropy": _lists(self.entropy),
            "kl": self.kl,
            "updates": [asdict(update) for update in self.updates],
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> StepWork:
        """The inverse of as_dict."""
        return cls(
            step=tree["step"],
            groups=[_group(group) for group in tree["groups"]],
            discarded=[_group(group) for group in tree["discarded"]],
            refills=tree["refills"],
            old=_arrays(tree["old"]),
            ref=_arrays(tree["ref"]),
            entropy=_arrays(tree["entropy"]),
            kl=tree["kl"],
            updates=[UpdateResult(**update) for update in tree["updates"]],
            seconds=dict(tree["seconds"]),
        )


def _lists(values: list[Floats] | None) -> list[list[float]] | None:
    return None if values is None else [value.tolist() for value in values]


def _arrays(values: list[list[float]] | None) -> list[Floats] | None:
    return None if values is None else [np.array(value, dtype=np.float32) for value in values]


def _group(tree: Mapping[str, Any]) -> Group:
    prompt = Prompt(**{**tree["prompt"], "token_ids": tuple(tree["prompt"]["token_ids"])})
    rollouts = tuple(
        Rollout(**{**r, "token_ids": tuple(r["token_ids"]), "logprobs": tuple(r["logprobs"])}) for r in tree["rollouts"]
    )
    return Group(
        prompt,
        rollouts,
        reward_parts=tuple(tree["reward_parts"]),
        rewards=tuple(tree["rewards"]),
        step_rewards=tuple(tuple((end, value) for end, value in steps) for steps in tree["step_rewards"]),
        outcomes=tuple(tree["outcomes"]),
        advantages=tuple(tree["advantages"]),
        token_advantages=tuple(tuple(tokens) for tokens in tree["token_advantages"]),
    )
