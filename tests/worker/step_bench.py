"""What the tests of a step share: rewards fixed beforehand, by a real reward process, and naive loops from the formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from engine import config as configs
from engine.config import RunConfig
from engine.types import Example, Group, Message
from engine.worker.batching import Batch, Row, minibatches
from engine.worker.guard import MemoryGuard
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.rewarding import Judge
from engine.worker.step import RewardTask
from engine.worker.task import Watch
from engine.worker.trainer import Trainer, UpdateResult
from engine.worker.work import StepWork

from .rows import nudge

TEMPERATURE = 0.6
LIMIT = 12  # completion tokens
REWARD_FILE = '''
"""Rewards that were fixed beforehand: a row's column holds one value for each member of its group."""

def planned(prompts, plans):
    seen, values = {}, []
    for prompt, plan in zip(prompts, plans):
        seen[prompt] = seen.get(prompt, -1) + 1
        values.append(plan[seen[prompt]])
    if "raise" in values:
        raise RuntimeError("the judge is out")
    return values

def right(prompts, completions, right_plan):
    return planned(prompts, right_plan)

def long(prompts, completions, long_plan):
    return planned(prompts, long_plan)
'''
CONFIG = """
model: demo
method: grpo
data: {train: rows.jsonl}
sampling: {prompts_per_step: 6, group_size: 4, max_prompt_tokens: 40, max_completion_tokens: 12, temperature: 0.6}
objective: {minibatches: 4, updates_per_rollout: 2, beta: 0.0}
rewards:
  - {name: right, weight: 2.0, file: rewards.py}
  - {name: long, weight: -0.5, file: rewards.py}
optim: {name: adamw, learning_rate: 5e-3, schedule: constant, warmup: 0.0}
run: {steps: 3}
"""


@dataclass(frozen=True)
class Plan:
    """One prompt, its group's values of both rewards, and the weighted sums 2 right - 0.5 long, worked out by hand."""

    text: str
    right: tuple[float | None, ...]
    long: tuple[float | None, ...]
    rewards: tuple[float | None, ...]

    def example(self, line: int = 1) -> Example:
        columns = {"right_plan": list(self.right), "long_plan": list(self.long)}
        return Example(line, (Message("user", self.text),), None, None, columns)


# The second has one completion without a reward and one whose advantage is 0 (1 = mean of 1, 0, 2), the third no variance; in
# the fourth `long` does not apply.
PLANS = (
    Plan("What is 2+3?", (1, 0, 1, 0), (0, 2, 2, 0), (2, -1, 1, 0)),
    Plan("Hi", (1, None, 0, 1), (2, None, None, 0), (1, None, 0, 2)),
    Plan("Say no more", (1, 1, 1, 1), (2, 2, 2, 2), (1, 1, 1, 1)),
    Plan("One plus one", (1, 0, 0, 0), (None, None, None, None), (2, 0, 0, 0)),
    Plan("And then?", (0, 1, 0, 1), (0, 0, 0, 2), (0, 2, 0, 1)),
    Plan("Two by two", (1, 1, 0, 0), (4, 0, 0, 0), (0, 2, 0, 0)),
)
REWARDS = {plan.text: plan.rewards for plan in PLANS}
TOO_LONG = Plan("A prompt that is over the limit of forty tokens", (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
TRAIN = [plan.example() for plan in (PLANS[0], TOO_LONG, *PLANS[1:])]


class Bench:
    """A shared judge and what it warned about."""

    def __init__(self, folder: Path) -> None:
        (folder / "rewards.py").write_text(REWARD_FILE)
        self.folder = folder
        self.warnings: list[dict[str, Any]] = []
        self.judge = Judge(self.config().rewards, self.warn, lambda tokens: "".join(map(chr, tokens)))

    def warn(self, kind: str, message: str, remedy: str, **more: Any) -> None:
        self.warnings.append({"kind": kind, "message": message, **more})

    def config(self, **overrides: Any) -> RunConfig:
        """CONFIG with dotted keys changed, __ for the dot."""
        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        return configs.parse(CONFIG, base=self.folder, overrides=changes).config

    def task(
        self, policy: Policy, train: Sequence[Example] = TRAIN, held_out: Sequence[Example] = TRAIN, **overrides: Any
    ) -> RewardTask:
        """A task on the shared judge. An eighth of all tokens ends a completion, so that lengths differ."""
        policy.stop_ids = frozenset(range(34))
        return RewardTask(policy, self.config(**overrides), train, held_out, self.judge, MemoryGuard(3))


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("judge"))
    yield bench
    bench.judge.close()


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    shared_bench.warnings.clear()
    return shared_bench


def watch() -> Watch:
    return Watch(phase=lambda step, name, update: None, alive=lambda: None, warn=lambda *_, **__: None)


def nudged(policy: Policy) -> Policy:
    nudge(policy)
    return policy


def text_of(group: Group) -> str:
    """The user's text in the rendered prompt <|user|>TEXT<|end|><|assistant|>."""
    return group.prompt.text.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>")


def naive_advantages(rewards: Sequence[float | None], mode: str) -> list[float]:
    present = [r for r in rewards if r is not None]
    if max(present) == min(present):
        return [0.0] * len(rewards)
    scale = stdev(present) + 1e-4 if mode == "group" else 1.0
    return [0.0 if r is None else (r - mean(present)) / scale for r in rewards]


@dataclass(frozen=True)
class Term:
    """One completion of an update as the formulas see it."""

    row: Row
    advantage: float
    weight: float  # of each of its tokens


def naive_terms(work: StepWork, chosen: Sequence[int], task: RewardTask) -> dict[int, Term]:
    """The completions that an update on the groups `chosen` trains on, by their place in the step.

    N counts every completion of those groups and K the tokens of those that have a reward; only then are completions left
    out: those without a reward, and at beta 0 those whose advantage is 0.
    """
    objective = task.config.resolved_objective()
    members = []
    for number in chosen:
        group = work.groups[number]
        rewards = REWARDS[text_of(group)]
        found = naive_advantages(rewards, objective.advantage)
        for member, rollout in enumerate(group.rollouts):
            row = Row(4 * number + member, group.prompt.token_ids, rollout.token_ids, number)
            members.append((row, rewards[member], found[member]))
    n = len(members)
    tokens = {g: sum(len(row.tokens) for row, reward, _ in members if reward is not None and row.group == g) for g in chosen}
    terms = {}
    for row, reward, advantage in members:
        if reward is None or (objective.beta == 0 and advantage == 0):
            continue
        weight = {
            "seq_mean": 1 / (n * len(row.tokens)),
            "constant": 1 / (n * LIMIT),
            "token_mean": 1 / sum(tokens.values()),
            "group_token_mean": 1 / (len(chosen) * tokens[row.group]),
            "seq_sum": 1 / n,
        }[objective.aggregate]
        terms[row.index] = Term(row, advantage, weight)
    return terms


def coming_groups(work: StepWork) -> list[int]:
    """The groups of the next update: part u mod 4 of pass u div 4 (seed 0)."""
    number, part = divmod(len(work.updates), 4)
    return minibatches(6, 4, 0, work.step, number)[part]


def rows_of(batches: Sequence[Batch]) -> dict[int, tuple[float, list[float], list[int]]]:
    """Weight, advantages and token ids of every row of an update by index; no row may be there twice."""
    found: dict[int, tuple[float, list[float], list[int]]] = {}
    for batch in batches:
        for place, index in enumerate(batch.index.tolist()):
            here = batch.mask[place] > 0
            assert index not in found
            found[index] = (
                float(batch.weight[place]),
                batch.advantage[place][here].tolist(),
                batch.completions[place][here].tolist(),
            )
    return found


def nothing_learned() -> UpdateResult:
    return UpdateResult(0.0, 0.0, 0.0, dict.fromkeys(STATS, 0.0), True)


def completions(work: StepWork) -> list[Row]:
    """Every completion of the step, group after group."""
    rows: list[Row] = []
    for number, group in enumerate(work.groups):
        for rollout in group.rollouts:
            rows.append(Row(len(rows), group.prompt.token_ids, rollout.token_ids, number))
    return rows


def take_update(task: RewardTask, trainer: Trainer, work: StepWork) -> UpdateResult:
    result = trainer.update(len(work.updates), task.batches(work), task.loss)
    work.updates.append(result)
    return result


def trainer_of(task: RewardTask, **changes: Any) -> Trainer:
    return Trainer(task.policy, task.config.optim.model_copy(update=changes), 100, seed=0)


def assert_same_gradient(found: Any, expected: Any) -> None:
    """Within 1e-4 of the expected gradient's norm."""
    parts = dict(tree_flatten(expected))
    norm = math.sqrt(sum(float(mx.square(part).sum().item()) for part in parts.values()))
    apart = math.sqrt(sum(float(mx.square(part - parts[name]).sum().item()) for name, part in tree_flatten(found)))
    assert norm > 1e-3 and len(tree_flatten(found)) == len(parts)
    assert apart < 1e-4 * norm
