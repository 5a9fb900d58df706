"""What a reward method cannot do with the rest of a config, in plain words."""

from __future__ import annotations

from engine import reward_rules
from engine.errors import InputError
from engine.objective import Objective
from engine.sections import DataConfig, RunConfig


def refusal(config: RunConfig, objective: Objective) -> InputError | None:
    """The first thing that cannot be; `where` is the key."""
    for refused, what, key, remedy in (
        (not config.rewards, f"{config.method} needs at least one reward", "rewards", "add `rewards: [{name: answer}]`"),
        (
            config.sampling.group_size < 2 and objective.advantage != "global",
            "a group of one has no baseline: every advantage is 0",
            "sampling.group_size",
            "use 2 or more",
        ),
        (
            objective.minibatches > config.sampling.prompts_per_step,
            f"{objective.minibatches} mini-batches of whole groups need as many prompts, "
            f"but there are {config.sampling.prompts_per_step}",
            "sampling.prompts_per_step",
            "raise it, or set objective.minibatches lower",
        ),
        (
            config.data.targets != "assistant",
            f"targets is for sft: {config.method} learns from completions that it samples",
            "data.targets",
            "leave it out",
        ),
        (
            config.data.decisive_weight != DataConfig.model_fields["decisive_weight"].default,
            f"decisive_weight is for sft: {config.method} learns from rewards, where step_coverage weighs the steps",
            "data.decisive_weight",
            "leave it out",
        ),
        (
            bool(config.adapter.dropout),
            "dropout makes the scored policy differ from the sampled one",
            "adapter.dropout",
            "set it to 0 for reward methods",
        ),
        (
            objective.ref_sync_mix < 1 and config.adapter.type != "full",
            "a mean of two low-rank adapters is not the adapter of the mean",
            "objective.ref_sync_mix",
            "use 1 (the reference becomes the policy), or adapter.type: full",
        ),
        (
            len({reward.name for reward in config.rewards}) < len(config.rewards),
            "two rewards have the same name",
            "rewards",
            "each part is reported by its name",
        ),
        (
            any(reward.steps for reward in config.rewards) and objective.advantage == "rloo",
            "leave-one-out has no form for rewards of single steps",
            "rewards",
            "use objective.advantage: group, none, batch or global",
        ),
        (
            any(reward.steps for reward in config.rewards) and objective.ratio in ("sequence", "sequence_sum"),
            "rewards of single steps need an advantage for each token, and the ratio is the whole completion's",
            "objective.ratio",
            "use method gspo_token (ratio: sequence_token), or ratio: token",
        ),
    ):
        if refused:
            return InputError(what, where=key, remedy=remedy)
    return reward_rules.refusal(config.rewards, objective)
