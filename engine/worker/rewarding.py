"""From completions to groups with rewards and advantages: the reward process asked, its answers combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import RewardConfig
from engine.errors import InputError
from engine.methods import Advantage
from engine.rewards.combine import combine
from engine.rewards.process import RewardProcess
from engine.types import Example, Group, Prompt, Rollout
from engine.worker.advantages import advantages
from engine.worker.task import Warn


class Judge:
    """Scores completions in the reward process. A failure is warned about with its traceback; never replaced by a value."""

    def __init__(self, specs: Sequence[RewardConfig], warn: Warn) -> None:
        self.weights = {spec.name: spec.weight for spec in specs}
        self.warn = warn
        self._told = False  # that no reward applies, once a run
        self.process = RewardProcess(list(specs))
        self.process.start()

    def groups(
        self,
        prompts: Sequence[Prompt],
        examples: Sequence[Example],
        rollouts: Sequence[Sequence[Rollout]],
        mode: Advantage,
        step: int,
    ) -> list[Group]:
        """The step's groups, in the order of `prompts`. Raises InputError where a reward failed on every completion."""
        flat = [(example, rollout) for example, members in zip(examples, rollouts, strict=True) for rollout in members]
        names = sorted({name for example in examples for name in example.columns} | {"answer"})
        columns: dict[str, list[Any]] = {name: [example.columns.get(name) for example, _ in flat] for name in names}
        columns["answer"] = [example.answer for example, _ in flat]
        scores = self.process.score(
            [prompt.text for prompt, members in zip(prompts, rollouts, strict=True) for _ in members],
            [rollout.text for _, rollout in flat],
            columns,
        )
        for error in scores.errors:
            self.warn(
                "reward-failed",
                f"reward {error.name} failed on {len(error.rows)} of {len(flat)} completions: {error.message}",
                "those completions are left out of baseline and update; mend the function",
                traceback=error.traceback,
                rows=list(error.rows)[:8],
            )
            if error.all_rows:
                raise InputError(
                    f"reward {error.name} failed on every completion of step {step}: {error.message}",
                    where="rewards",
                    remedy="mend the function, then resume the run",
                )
        totals = combine(scores.parts, scores.failed, self.weights)
        if flat and not any(total is not None for total in totals) and not self._told:
            self._told = True
            self.warn(
                "no-reward",
                f"no reward applies to any completion of step {step}: nothing can be learned from it",
                "look at the rows and at what the rewards return for them (None: not applicable)",
            )
        size = len(flat) // len(prompts)
        rewards = [totals[start : start + size] for start in range(0, len(flat), size)]
        found = advantages(rewards, mode)
        return [
            Group(prompt, tuple(members), tuple(scores.parts[i * size : (i + 1) * size]), tuple(rewards[i]), tuple(found[i]))
            for i, (prompt, members) in enumerate(zip(prompts, rollouts, strict=True))
        ]

    def close(self) -> None:
        """End the reward process."""
        self.process.close()


def sample_rows(groups: Sequence[Group], step: int) -> list[Mapping[str, Any]]:
    """One row of a samples file for each completion."""
    return [
        {
            "step": step,
            "prompt_id": group.prompt.id,
            "member": member,
            "prompt": group.prompt.text,
            "answer": group.prompt.answer,
            "text": rollout.text,
            "token_ids": list(rollout.token_ids),
            "logprobs": list(rollout.logprobs),
            "finish": rollout.finish,
            "parts": dict(group.reward_parts[member]),
            "reward": group.rewards[member],
            "advantage": group.advantages[member],
        }
        for group in groups
        for member, rollout in enumerate(group.rollouts)
    ]


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def part_means(groups: Sequence[Group]) -> dict[str, float | None]:
    """Each reward part's mean over the completions that it applies to."""
    parts = [part for group in groups for part in group.reward_parts]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: mean([value for part in parts if (value := part.get(name)) is not None]) for name in names}
