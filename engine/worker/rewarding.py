"""From completions to groups with rewards: the reward process asked, its answers combined."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.combine import columns_of, combine, outcomes
from engine.rewards.process import RewardProcess
from engine.types import Example, Group, Prompt, Rollout
from engine.worker.task import Warn

Decode = Callable[[Sequence[int]], str]  # completion ids -> text, a final stop token left out
_SHOWN = 8  # rows of a failure
_PARTIAL = 4  # tokens that one character may be spread over


class Judge:
    """Scores completions in the reward process. A failure is warned about with its traceback; never replaced by a value."""

    def __init__(self, specs: Sequence[RewardConfig], warn: Warn, decode: Decode, columns: Collection[str] = ()) -> None:
        """`columns`: all that the run's data has, so that a reward gets the same ones with every batch."""
        self.weights = {spec.name: spec.weight for spec in specs}
        self.built_in = frozenset(spec.name for spec in specs if spec.file is None)
        self.by_step = frozenset(spec.name for spec in specs if spec.steps is not None)  # the process rewards
        self.warn = warn
        self.decode = decode
        self.columns = frozenset(columns)
        self._told = False  # that no reward applies, once a run
        self.process = RewardProcess(list(specs))
        self.process.start()

    def groups(
        self,
        prompts: Sequence[Prompt],
        examples: Sequence[Example],
        rollouts: Sequence[Sequence[Rollout]],
        step: int,
        extra: bool = False,
    ) -> list[Group]:
        """The groups with their rewards, in the order of `prompts`. Raises InputError where a reward failed on every completion,
        unless these are `extra` ones, which say nothing of the whole step, or all of one row of the data, which is at fault."""
        flat = [(example, rollout) for example, members in zip(examples, rollouts, strict=True) for rollout in members]
        scores = self.process.score(
            [prompt.text for prompt, members in zip(prompts, rollouts, strict=True) for _ in members],
            [rollout.text for _, rollout in flat],
            columns_of([example for example, _ in flat], self.columns),
            [list(rollout.token_ids) for _, rollout in flat] if self.process.token_ids else None,
        )
        for error in scores.errors:
            lines = sorted({flat[row][0].line for row in error.rows})
            is_own = error.name not in self.built_in
            self.warn(
                "reward-failed",
                f"reward {error.name} failed on {len(error.rows)} of {len(flat)} completions, of {_at(lines)}: {error.message}",
                "those completions are left out of baseline and update; "
                + ("mend the function" if is_own else "the reward is built in: look at the row, and at the reward's options"),
                traceback=error.traceback,
                rows=list(error.rows)[:_SHOWN],
                lines=lines[:_SHOWN],
            )
            if error.all_rows and not extra and not (error.row_fault and len(lines) == 1):
                raise InputError(
                    f"reward {error.name} failed on every completion of step {step}: {error.message}",
                    where="rewards",
                    remedy=f"{'mend the function' if is_own else 'look at the rows and at its options'}, then resume the run",
                )
        totals = combine(scores.parts, scores.failed, self.weights)
        if flat and not any(total is not None for total in totals) and not extra and not self._told:
            self._told = True
            self.warn(
                "no-reward",
                f"no reward applies to any completion of step {step}: nothing can be learned from it",
                "look at the rows and at what the rewards return for them (None: not applicable)",
            )
        size = len(flat) // len(prompts)
        own = [slice(start, start + size) for start in range(0, len(flat), size)]
        groups = [
            Group(prompt, tuple(members), tuple(scores.parts[part]), tuple(totals[part]))
            for prompt, members, part in zip(prompts, rollouts, own, strict=True)
        ]
        if not self.by_step:
            return groups
        apart = outcomes(scores.parts, scores.failed, self.weights, self.by_step)
        steps = [self._steps(rollout, found) for (_, rollout), found in zip(flat, scores.steps, strict=True)]
        return [
            replace(group, step_rewards=tuple(steps[part]), outcomes=tuple(apart[part]))
            for group, part in zip(groups, own, strict=True)
        ]

    def _steps(self, rollout: Rollout, found: Mapping[str, Sequence[tuple[int, float]]]) -> tuple[tuple[int, float], ...]:
        """(index of the step's last token, weight x value) of every rewarded step of a completion."""
        return tuple(
            (token_at(self.decode, rollout.token_ids, end), self.weights[name] * value)
            for name, values in found.items()
            for end, value in values
        )

    def close(self) -> None:
        """End the reward process."""
        self.process.close()


def _at(lines: Sequence[int]) -> str:
    """Rows of the data by their lines: "the row at line 12 of the data"."""
    shown = ", ".join(map(str, lines[:_SHOWN])) + (", ..." if len(lines) > _SHOWN else "")
    return f"the row at line {shown} of the data" if len(lines) == 1 else f"the rows at lines {shown} of the data"


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
            "advantage": group.advantages[member] if group.advantages else None,
            **({"step_rewards": [list(pair) for pair in group.step_rewards[member]]} if group.step_rewards else {}),
            **({"token_advantages": list(group.token_advantages[member])} if group.token_advantages else {}),
        }
        for group in groups
        for member, rollout in enumerate(group.rollouts)
    ]


def token_at(decode: Decode, tokens: Sequence[int], end: int) -> int:
    """The index of the token with which the text of `tokens` first reaches character `end` (exclusive) whole.

    A token may hold a part of a character only: then it is the one that completes it.
    """
    text = decode(tokens)
    low = bisect_left(range(len(tokens)), end, key=lambda place: len(decode(tokens[: place + 1])))
    for place in range(max(0, low - _PARTIAL), len(tokens)):
        prefix = decode(tokens[: place + 1])
        if len(prefix) >= end and prefix[:end] == text[:end]:
            return place
    raise ValueError(f"the text of {len(tokens)} tokens has no character {end}")


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def part_means(groups: Sequence[Group]) -> dict[str, float | None]:
    """Each reward part's mean over the completions that it applies to."""
    parts = [part for group in groups for part in group.reward_parts]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: mean([value for part in parts if (value := part.get(name)) is not None]) for name in names}
