"""What a config's rewards and its other sections say together: paths, values taken from elsewhere, and what excludes what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import InputError
from engine.objective import Objective
from engine.sections import RewardConfig, SamplingConfig

SOFT_OVERLONG = "soft_overlong"


def placed(
    rewards: Sequence[RewardConfig], sampling: SamplingConfig, absolute: Callable[[str | None], str | None]
) -> list[RewardConfig]:
    """The rewards with absolute paths, and with the run's own limit where soft_overlong does not name one."""
    made = []
    for reward in rewards:
        options = {name: absolute(value) if is_path(name, value) else value for name, value in reward.options.items()}
        if reward.name == SOFT_OVERLONG and reward.file is None and options.get("max_tokens") is None:
            options["max_tokens"] = sampling.max_completion_tokens
        made.append(reward.model_copy(update={"file": absolute(reward.file), "options": options}))
    return made


def refusal(rewards: Sequence[RewardConfig], objective: Objective) -> InputError | None:
    """Why these rewards cannot go with this objective; None where they can. `where` is the key."""
    if objective.soft_overlong and any(reward.name == SOFT_OVERLONG and reward.file is None for reward in rewards):
        what = f"overlong completions would be punished twice: objective.soft_overlong is {objective.soft_overlong:g} as well"
        return InputError(what, where="rewards", remedy="remove the reward, or set objective.soft_overlong: 0")
    return None


def is_path(option: str, value: Any) -> bool:
    """Whether an option's value names a file: a judge's cache and a schema's file do, JSON text and a number of tokens do not."""
    return isinstance(value, str) and (option == "cache" or (option == "schema" and value.endswith(".json")))
