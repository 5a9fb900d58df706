"""A step of training by rewards, and of imitation, with a real reward process: what is sampled, judged, scored, weighted and
differentiated, against loops written here from the formulas in tests/golden/README.md and plain forwards of single rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.types import Example, Group, Message, Prompt, Rollout
from engine.worker import step as step_module
from engine.worker.batching import Batch, Row, minibatches
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.rewarding import Judge
from engine.worker.step import RewardTask
from engine.worker.supervised import SupervisedTask
from engine.worker.task import Watch
from engine.worker.trainer import Trainer, UpdateResult
from engine.worker.work import StepWork
from tests.support.live import events, finish, small_config

from .test_rollout_and_score import nudge, plain

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
objective: {minibatches: 4, updates_per_rollout: 2}
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
        self.judge = Judge(self.config().rewards, self.warn)

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
        return RewardTask(policy, self.config(**overrides), train, held_out, self.judge, micro_batch_rows=3)


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


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo with kl": {"objective__beta": 0.05},
    "dr_grpo": {"method": "dr_grpo"},
    "dr_grpo with kl": {"method": "dr_grpo", "objective__beta": 0.05},
    "token_mean": {"objective__aggregate": "token_mean"},
    "token_mean with kl": {"objective__aggregate": "token_mean", "objective__beta": 0.05},
    "group_token_mean": {"objective__aggregate": "group_token_mean"},
    "seq_sum": {"objective__aggregate": "seq_sum"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_update_has_its_rows_and_weights(make_policy: Callable[..., Policy], bench: Bench, name: str) -> None:
    """Six groups in 4 mini-batches (2, 2, 1, 1), twice. In all groups 24 completions count in N; 23 have a reward, and 18 an
    advantage: not the one excluded, not the four without variance, not the one at its group's mean."""
    task = bench.task(make_policy("lora"), **OBJECTIVES[name])
    assert task.updates_per_step == 8
    work = task.begin(1, watch())
    assert len({len(row.tokens) for row in completions(work)}) > 4
    passes: list[list[int]] = [[], []]
    for update in range(8):
        chosen = coming_groups(work)
        expected = naive_terms(work, chosen, task)
        found = rows_of(task.batches(work))
        assert found.keys() == expected.keys()
        for index, (weight, advantages, tokens) in found.items():
            term = expected[index]
            assert weight == pytest.approx(term.weight, rel=1e-6)
            assert advantages == pytest.approx([term.advantage] * len(term.row.tokens), rel=1e-6)
            assert tokens == list(term.row.tokens)
        passes[update // 4] += found
        work.updates.append(nothing_learned())
    for number in passes:
        assert len(set(number)) == len(number) == (23 if "kl" in name else 18)
    assert passes[0] != passes[1]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_old_is_the_policy_and_ref_the_base_model_at_the_temperature(
    make_policy: Callable[..., Policy], bench: Bench, kind: str
) -> None:
    """After training has moved the policy, `old` is its own log-probability at T = 0.6 and `ref` the untrained model's."""
    base, policy = make_policy("full"), make_policy(kind)
    task = bench.task(policy, objective__beta=0.05)
    nudge(policy)
    work = task.begin(1, watch())
    assert work.old is not None and work.ref is not None and len(work.old) == len(work.ref) == 24
    apart = 0.0
    for row, rollout in zip(completions(work), [r for group in work.groups for r in group.rollouts], strict=True):
        now = plain(policy, row, TEMPERATURE)
        np.testing.assert_allclose(work.old[row.index], now, rtol=0, atol=1e-5)
        np.testing.assert_allclose(work.ref[row.index], plain(base, row, TEMPERATURE), rtol=0, atol=1e-5)
        np.testing.assert_allclose(rollout.logprobs, now, rtol=0, atol=1e-4)
        apart = max(apart, float(np.abs(work.old[row.index] - work.ref[row.index]).max()))
    assert apart > 0.01
    for batch in task.batches(work):
        assert batch.old is not None and batch.ref is not None
        for place, index in enumerate(batch.index.tolist()):
            width = len(work.old[index])
            assert np.array_equal(batch.old[place, :width], work.old[index])
            assert np.array_equal(batch.ref[place, :width], work.ref[index])


def test_the_ratio_is_taken_against_the_rollout_through_all_updates(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Before every one of 8 updates the mean ratio, both clipped shares and the KL of its rows are worked out from plain
    forwards: the first is 1 with nothing clipped, later ones are not, and `old` and `ref` stay as they were."""
    base, policy = make_policy("full"), nudged(make_policy("lora"))
    task = bench.task(policy, objective__beta=0.05, objective__epsilon_low=0.02, objective__epsilon_high=0.03)
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    assert work.old is not None and work.ref is not None
    old = [plain(policy, row, TEMPERATURE) for row in completions(work)]
    ref = [plain(base, row, TEMPERATURE) for row in completions(work)]
    kept = [value.copy() for value in (*work.old, *work.ref)]
    clipped = 0.0
    for update in range(8):
        ratios, below, above, kl = [], 0, 0, []
        for index, term in naive_terms(work, coming_groups(work), task).items():
            now = plain(policy, term.row, TEMPERATURE)
            for new, was, reference in zip(now, old[index], ref[index], strict=True):
                ratios.append(math.exp(new - was))
                below += ratios[-1] < 0.98 and term.advantage < 0
                above += ratios[-1] > 1.03 and term.advantage > 0
                kl.append(math.exp(reference - new) - (reference - new) - 1)
        stats = take_update(task, trainer, work).stats
        assert stats["units"] == stats["tokens"] == len(ratios)
        assert stats["ratio"] / len(ratios) == pytest.approx(mean(ratios), abs=1e-5)
        assert (stats["clip_low"], stats["clip_high"]) == pytest.approx((below, above), abs=1.01)  # one may sit on the bound
        assert stats["kl"] / len(kl) == pytest.approx(mean(kl), abs=1e-5) and mean(kl) > 1e-3
        if update == 0:
            assert stats["ratio"] / len(ratios) == pytest.approx(1, abs=1e-5) and below == above == 0
        else:
            assert max(abs(ratio - 1) for ratio in ratios) > 0.01
        clipped += stats["clip_low"] + stats["clip_high"]
    assert clipped > 20
    assert all(np.array_equal(a, b) for a, b in zip((*work.old, *work.ref), kept, strict=True))
    metrics = task.metrics(work)
    assert metrics.kl is not None and metrics.kl > 1e-3 and metrics.ratio is not None
    assert metrics.mismatch is not None and metrics.mismatch < 1e-4


def test_at_rate_zero_the_ratio_stays_one(make_policy: Callable[..., Policy], bench: Bench) -> None:
    task = bench.task(nudged(make_policy("lora")), objective__beta=0.05)
    trainer = trainer_of(task, learning_rate=0.0)
    work = task.begin(1, watch())
    for _ in range(8):
        stats = take_update(task, trainer, work).stats
        assert stats["ratio"] / stats["units"] == pytest.approx(1, abs=1e-5)
        assert stats["clip_low"] == stats["clip_high"] == 0


@pytest.mark.parametrize(("minibatch_count", "beta", "expected"), [(1, 0.0, 0), (1, 0.05, 1), (4, 0.0, 1), (4, 0.05, 2)])
def test_nothing_is_scored_that_no_update_needs(
    make_policy: Callable[..., Policy],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    minibatch_count: int,
    beta: float,
    expected: int,
) -> None:
    """One pass over all rows for `old` where there are several updates, one for `ref` where beta > 0."""
    calls: list[int] = []
    score = step_module.score
    monkeypatch.setattr(step_module, "score", lambda policy, rows, *rest: calls.append(len(rows)) or score(policy, rows, *rest))
    shape = {"objective__minibatches": minibatch_count, "objective__updates_per_rollout": 1, "objective__beta": beta}
    work = bench.task(make_policy("lora"), **shape).begin(1, watch())
    assert calls == [24] * expected
    assert (work.old is not None, work.ref is not None) == (minibatch_count > 1, beta > 0)
    assert ("score" in work.seconds) == (expected > 0)


def test_prompts_over_the_limit_are_left_out_and_ids_stay_places(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Of seven rows the second is too long: the six others make one epoch, each with its own plan's rewards."""
    task = bench.task(make_policy("lora"))
    work = task.begin(1, watch())
    assert sorted(group.prompt.id for group in work.groups) == [0, 2, 3, 4, 5, 6]
    for group in work.groups:
        assert group.prompt.text == f"<|user|>{TRAIN[group.prompt.id].messages[0].content}<|end|><|assistant|>"
        assert group.rewards == REWARDS[text_of(group)]
        assert group.advantages == pytest.approx(naive_advantages(group.rewards, "group"))
    rows = task.samples(work)
    assert [row["reward"] for row in rows] == [reward for group in work.groups for reward in group.rewards]
    assert [tuple(row["token_ids"]) for row in rows] == [row.tokens for row in completions(work)]


LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"objective__beta": 0.05},
    "dr_grpo": {"method": "dr_grpo"},
    "gspo": {"method": "gspo", "objective__beta": 0.05, "objective__epsilon_low": 0.01, "objective__epsilon_high": 0.01},
    "cispo": {"objective__surrogate": "cispo", "objective__aggregate": "token_mean"},
    "two-sided": {"objective__delta": 1.04, "objective__aggregate": "token_mean"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formulas(make_policy: Callable[..., Policy], bench: Bench, name: str) -> None:
    """In the second pass, so that ratios differ from 1 and some are clipped: row by row, one unpadded forward each, with
    loss = sum_it w_it (l_it + beta k_it)."""
    base, policy = make_policy("full"), nudged(make_policy("lora"))
    task = bench.task(policy, **{"objective__epsilon_low": 0.02, "objective__epsilon_high": 0.03} | LOSSES[name])
    objective = task.config.resolved_objective()
    assert objective.epsilon_low is not None
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    old = [mx.array(plain(policy, row, TEMPERATURE).astype(np.float32)) for row in completions(work)]
    ref = [mx.array(plain(base, row, TEMPERATURE).astype(np.float32)) for row in completions(work)]
    while len(work.updates) < 4:
        take_update(task, trainer, work)
    terms = naive_terms(work, coming_groups(work), task)
    clipped = 0

    def naive_loss() -> mx.array:
        nonlocal clipped
        total = mx.zeros(())
        for index, term in terms.items():
            sequence, first = [*term.row.prompt, *term.row.tokens], len(term.row.prompt)
            logits = policy.model(mx.array([sequence]))[0] / TEMPERATURE  # [T, V]
            rows = [logits[first - 1 + t, token] - mx.logsumexp(logits[first - 1 + t]) for t, token in enumerate(term.row.tokens)]
            logp, a = mx.stack(rows), term.advantage  # [C]
            r = mx.exp(logp - old[index])
            if objective.ratio == "sequence":
                r = mx.exp(mx.mean(logp - old[index])) * mx.ones_like(logp)
            low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
            clipped += int(((r < low) | (r > high)).sum().item())
            if objective.surrogate == "cispo":
                surrogate = -mx.stop_gradient(mx.clip(r, low, high)) * a * logp
            else:
                free = r if objective.delta is None else mx.minimum(r, objective.delta)
                surrogate = -mx.minimum(free * a, mx.clip(r, low, high) * a)
            d = ref[index] - logp
            total = total + term.weight * (surrogate + objective.beta * (mx.exp(d) - d - 1)).sum()
        return total

    def task_loss() -> mx.array:
        return sum((task.loss(batch)[0] for batch in task.batches(work)), mx.zeros(()))

    expected_value, expected = nn.value_and_grad(policy.model, naive_loss)()
    value, found = nn.value_and_grad(policy.model, task_loss)()
    assert clipped > 3
    assert value.item() == pytest.approx(expected_value.item(), abs=1e-5)
    assert_same_gradient(found, expected)


def assert_same_gradient(found: Any, expected: Any) -> None:
    """Within 1e-4 of the expected gradient's norm."""
    parts = dict(tree_flatten(expected))
    norm = math.sqrt(sum(float(mx.square(part).sum().item()) for part in parts.values()))
    apart = math.sqrt(sum(float(mx.square(part - parts[name]).sum().item()) for name, part in tree_flatten(found)))
    assert norm > 1e-3 and len(tree_flatten(found)) == len(parts)
    assert apart < 1e-4 * norm


# --- the judge ---


def judged(bench: Bench, plans: Sequence[Plan], mode: Any = "none", step: int = 3) -> list[Group]:
    prompts = [Prompt(place, (1,), plan.text, None) for place, plan in enumerate(plans)]
    rollouts = [[Rollout((65 + member,), (-1.0,), "stop", f"{plan.text} {member}") for member in range(4)] for plan in plans]
    return bench.judge.groups(prompts, [plan.example() for plan in plans], rollouts, mode, step)


def test_the_judge_weights_and_sums_what_applies(bench: Bench) -> None:
    """2 right - 0.5 long, a part that is None left out, no reward where both are; groups and members keep their order."""
    groups = judged(bench, PLANS)
    assert bench.warnings == []
    for number, (group, plan) in enumerate(zip(groups, PLANS, strict=True)):
        assert group.prompt.id == number
        assert [rollout.text for rollout in group.rollouts] == [f"{plan.text} {member}" for member in range(4)]
        assert group.reward_parts == tuple({"right": a, "long": b} for a, b in zip(plan.right, plan.long, strict=True))
        assert group.rewards == plan.rewards
        assert group.advantages == pytest.approx(naive_advantages(plan.rewards, "none"))
    (scaled, *_) = judged(bench, PLANS, "group")
    assert scaled.advantages == pytest.approx([value / (math.sqrt(5 / 3) + 1e-4) for value in (1.5, -1.5, 0.5, -0.5)])


def test_a_completion_whose_reward_fails_is_warned_about_and_excluded(bench: Bench) -> None:
    """`right` gives text for the second completion of the second group: row 5 of 8. Its group's baseline is that of the
    others, (2 + 0 + 1) / 3 = 1; its other part stands in the parts, not in a reward."""
    broken = Plan("Odd", (1, "a lot", 0, 1), (0, 3, 0, 2), (2, None, 0, 1))  # type: ignore[arg-type]
    groups = judged(bench, [PLANS[0], broken])
    assert groups[0].rewards == PLANS[0].rewards
    assert groups[1].rewards == (2, None, 0, 1) and groups[1].advantages == pytest.approx((1, 0, -1, 0))
    assert groups[1].reward_parts[1] == {"right": None, "long": 3}
    (warning,) = bench.warnings
    assert warning["kind"] == "reward-failed" and warning["rows"] == [5]
    assert "right" in warning["message"] and "1 of 8" in warning["message"]


@pytest.mark.parametrize("value", ["a lot", "raise"])
def test_a_reward_that_fails_everywhere_ends_the_step(bench: Bench, value: str) -> None:
    """Whether it raises or gives no number: an InputError that names it, and the traceback in the warning."""
    plan = Plan("Odd", (value,) * 4, (0, 3, 0, 2), (None,) * 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"right failed on every completion of step 3"):
        judged(bench, [plan])
    (warning,) = bench.warnings
    assert warning["kind"] == "reward-failed" and "4 of 4" in warning["message"]
    assert ("the judge is out" in warning["traceback"] and "rewards.py" in warning["traceback"]) == (value == "raise")


# --- metrics and evaluation ---


def test_metrics_of_a_step(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Rewards 2, -1 | 1, 1 | none, 3.  Mean 6 / 5 = 1.2; squared deviations .64 + 4.84 + .04 + .04 + 3.24 = 8.8, so the
    deviation is sqrt(8.8 / 4) = 1.48324. The second group has no variance, the third only one reward: 2 without signal.
    Tokens 1 + 2 + 3 + 4 + 5 + 5 = 20, so length 20 / 6; two of six cut: 1/3. Log-probabilities sum to -(1 + 2 + 3 + 4) 0.5
    - 10 x 1.5 = -20: entropy 20 / 20 = 1. `right` applies to five: (1 + 0 + 1 + 1 + 2) / 5 = 1; `long` to none.
    Updates: ratio (10.5 + 9.9) / 20 = 1.02, clipped below 1/20, above 3/20, KL 3 / 20, mismatch of the first alone 0.2 / 10.
    """

    def rollout(length: int, logprob: float, cut: bool = False) -> Rollout:
        return Rollout((65,) * length, (logprob,) * length, "length" if cut else "stop", "A" * length)

    def group(rollouts: tuple[Rollout, ...], right: tuple[float | None, ...], rewards: tuple[float | None, ...]) -> Group:
        parts = tuple({"right": value, "long": None} for value in right)
        return Group(Prompt(0, (1,), "", None), rollouts, parts, rewards, tuple(naive_advantages(rewards, "group")))

    groups = [
        group((rollout(1, -0.5), rollout(2, -0.5)), (1, 0), (2, -1)),
        group((rollout(3, -0.5), rollout(4, -0.5)), (1, 1), (1, 1)),
        group((rollout(5, -1.5, cut=True), rollout(5, -1.5, cut=True)), (None, 2), (None, 3)),
    ]
    updates = [
        UpdateResult(0.5, 2.0, 1e-3, dict(zip(STATS, (10, 10.5, 1, 0, 10, 1.0, 0.2), strict=True)), True),
        UpdateResult(0.1, 1.0, 5e-4, dict(zip(STATS, (10, 9.9, 0, 3, 10, 2.0, 9.0), strict=True)), True),
    ]
    work = StepWork(7, groups=groups, updates=updates, seconds={"rollout": 1.5})
    found = bench.task(make_policy("lora"), objective__beta=0.05).metrics(work)
    assert (found.step, found.updates, found.tokens, found.groups) == (7, 2, 20, 3)
    assert (found.loss, found.grad_norm, found.lr) == pytest.approx((0.3, 1.5, 5e-4))
    assert (found.reward, found.reward_std) == pytest.approx((1.2, math.sqrt(2.2)))
    assert (found.length, found.truncated, found.entropy) == pytest.approx((20 / 6, 1 / 3, 1.0))
    assert (found.zero_std_groups, found.excluded) == (2, 1)
    assert found.parts == {"right": 1.0, "long": None}
    assert (found.ratio, found.clip_low, found.clip_high) == pytest.approx((1.02, 0.05, 0.15))
    assert (found.kl, found.mismatch) == pytest.approx((0.15, 0.02))
    assert found.seconds == {"rollout": 1.5}
    assert bench.task(make_policy("lora")).metrics(work).kl is None


def test_evaluation_is_greedy_in_one_batch(
    make_policy: Callable[..., Policy], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards 2, none and -1: the score is their mean 0.5, and the sums 2 + 0 - 1 over the counts 1 + 0 + 1 give it again."""
    policy = nudged(make_policy("lora"))
    held_out = [
        Plan("What is 2+3?", (1,), (None,), (2,)).example(),
        Plan("Hi", (None,), (None,), (None,)).example(),
        Plan("And then?", (0,), (2,), (-1,)).example(),
    ]
    task = bench.task(policy, held_out=held_out)
    calls: list[int] = []
    sample = step_module.sample
    monkeypatch.setattr(
        step_module,
        "sample",
        lambda policy, prompts, *rest, **more: calls.append(len(prompts)) or sample(policy, prompts, *rest, **more),
    )
    found = task.evaluate(5, watch())
    assert calls == [3]
    assert found.score == found.metrics["reward"] == 0.5
    assert (found.rows, found.counts, found.metrics["n"]) == ((2, 0, -1), (1, 0, 1), 2)
    assert found.metrics["parts"] == {"right": 0.5, "long": 2.0}
    lengths, cut = [], []
    for row, example in zip(found.samples, held_out, strict=True):
        _, tokens, _ = policy.render(example.messages)
        start = len(tokens)
        while len(tokens) < start + LIMIT and (len(tokens) == start or tokens[-1] not in policy.stop_ids):
            tokens.append(int(mx.argmax(policy.model(mx.array([tokens]))[0, -1]).item()))
        assert row["token_ids"] == tokens[start:] and row["step"] == 5
        lengths.append(len(tokens) - start)
        cut.append(tokens[-1] not in policy.stop_ids)
    assert (found.metrics["length"], found.metrics["truncated"]) == pytest.approx((mean(lengths), mean(cut)))
    assert task.evaluate(6, watch()).rows == found.rows


def test_an_evaluation_without_any_reward_is_worse_than_every_other(make_policy: Callable[..., Policy], bench: Bench) -> None:
    nothing = Plan("Hi", (None,), (None,), (None,)).example()
    found = bench.task(make_policy("lora"), held_out=[nothing]).evaluate(0, watch())
    assert (found.score, found.rows, found.counts) == (-math.inf, (0,), (0,))
    assert (found.metrics["reward"], found.metrics["n"]) == (None, 0)


async def test_the_rate_follows_the_updates_of_the_whole_run(tmp_path: Path) -> None:
    """Three steps of 2 mini-batches x 2 passes: 12 updates, the first 3 of them warm-up (a quarter). A step reports its last
    update's rate, numbers 3, 7 and 11: (number - 3) / 9 of the way down to 0, so 1e-3 x (1, 5/9, 1/9)."""
    config = small_config(
        "grpo",
        objective__minibatches=2,
        objective__updates_per_rollout=2,
        sampling__max_completion_tokens=8,
        optim__learning_rate=1e-3,
        optim__schedule="linear",
        optim__warmup=0.25,
        run__eval_rows=2,
        run__eval_every=3,
    )
    run, state = await finish(tmp_path, config)
    assert state.state == "finished", state.failure
    steps = [event.fields["metrics"] for event in events(run) if event.type == "step"]
    assert [metrics["updates"] for metrics in steps] == [4, 4, 4]
    assert [metrics["lr"] for metrics in steps] == pytest.approx([1e-3, 1e-3 * 5 / 9, 1e-3 / 9])


# --- imitation ---

TARGETS = ("Yes", "No, never", "5", "It depends on the day", "42 and some", "What?", "Over the limit of thirty target tokens")


def supervised_task(policy: Policy, folder: Path, **overrides: Any) -> SupervisedTask:
    """Seven rows in steps of three, the last too long; a sampling temperature that must not matter."""
    rows = [Example(n + 1, (Message("user", f"Q{n}"),), text, None) for n, text in enumerate(TARGETS)]
    text = (
        "{model: demo, method: sft, data: {train: rows.jsonl}, run: {steps: 4}, "
        "sampling: {prompts_per_step: 3, max_completion_tokens: 30, temperature: 0.6}}"
    )
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    config = configs.parse(text, base=folder, overrides=changes).config
    return SupervisedTask(policy, config, rows, rows, micro_batch_rows=2)


def test_a_supervised_update_weights_every_target_token_alike(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Two steps of three make the epoch of six rows that fit, each once; every target is the text with the stop token, and the
    weight is 1 / (all target tokens of the step), prompts and padding left out."""
    policy = make_policy("lora")
    task = supervised_task(policy, tmp_path)
    assert task.updates_per_step == 1
    seen = []
    for step in (1, 2):
        found = rows_of(task.batches(task.begin(step, watch())))
        texts = [policy.decode(tokens) for _, _, tokens in found.values()]
        total = sum(len(text) + 1 for text in texts)  # a token is a byte
        assert len(found) == 3
        for weight, _, tokens in found.values():
            assert weight == pytest.approx(1 / total, rel=1e-6)
            assert tokens[-1] == policy.tokenizer.eos_token_id and len(policy.decode(tokens)) == len(tokens) - 1
        seen += texts
    assert sorted(seen) == sorted(TARGETS[:-1])


def supervised_rows(policy: Policy, places: Sequence[int]) -> list[Row]:
    rows = []
    for place in places:
        _, prompt, target = policy.render([Message("user", f"Q{place}")], TARGETS[place])
        rows.append(Row(place, tuple(prompt), tuple(target)))
    return rows


def test_the_supervised_gradient_is_that_of_plain_forwards(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """-(sum of all target log-probabilities at T = 1) / (their number), row by row without padding."""
    policy = nudged(make_policy("lora"))
    task = supervised_task(policy, tmp_path, sampling__prompts_per_step=6)
    work = task.begin(1, watch())
    rows = supervised_rows(policy, range(6))

    def naive_loss() -> mx.array:
        total, tokens = mx.zeros(()), 0
        for row in rows:
            logits, first = policy.model(mx.array([[*row.prompt, *row.tokens]]))[0], len(row.prompt)
            for t, token in enumerate(row.tokens):
                total = total - logits[first - 1 + t, token] + mx.logsumexp(logits[first - 1 + t])
                tokens += 1
        return total / tokens

    def task_loss() -> mx.array:
        return sum((task.loss(batch)[0] for batch in task.batches(work)), mx.zeros(()))

    expected_value, expected = nn.value_and_grad(policy.model, naive_loss)()
    value, found = nn.value_and_grad(policy.model, task_loss)()
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert_same_gradient(found, expected)
    work.updates.append(Trainer(policy, task.config.optim, 4, seed=0).update(0, task.batches(work), task.loss))
    metrics = task.metrics(work)
    tokens = sum(len(row.tokens) for row in rows)
    assert metrics.loss == pytest.approx(expected_value.item(), rel=1e-5)
    assert (metrics.tokens, metrics.length, metrics.reward) == (tokens, pytest.approx(tokens / 6), None)


def test_supervised_evaluation_is_the_mean_over_held_out_tokens(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    policy = nudged(make_policy("lora"))
    rows = supervised_rows(policy, range(6))
    sums = [float(plain(policy, row, 1.0).sum()) for row in rows]
    counts = [len(row.tokens) for row in rows]
    found = supervised_task(policy, tmp_path).evaluate(0, watch())
    assert found.metrics["loss"] == pytest.approx(-sum(sums) / sum(counts), rel=1e-5) and found.metrics["n"] == 6
    assert found.score == -found.metrics["loss"]
    assert found.rows == pytest.approx(sums, rel=1e-5) and found.counts == tuple(counts)


def test_dropout_acts_in_the_loss_alone(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Two draws of the loss differ; two evaluations, before and after it, do not."""
    policy = nudged(make_policy("lora", dropout=0.5))
    task = supervised_task(policy, tmp_path)
    before = task.evaluate(0, watch())
    (batch, *_) = task.batches(task.begin(1, watch()))
    assert task.loss(batch)[0].item() != task.loss(batch)[0].item()
    assert task.evaluate(0, watch()) == before
