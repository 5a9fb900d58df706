"""Real runs in this process, on the blank model, for the tests of the learning canaries: begun as a worker begins them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine import config as configs
from engine.data import formats
from engine.runs import record as records
from engine.runs.journal import Event, JournalReader, JournalWriter
from engine.runs.record import RunRecord
from engine.worker.companion import Companion
from engine.worker.guard import MemoryGuard
from engine.worker.loop import Loop
from engine.worker.model import Policy, load_policy
from engine.worker.rewarding import Judge
from engine.worker.rollouts import Gathered, Gatherer
from engine.worker.step import RewardTask
from engine.worker.supervised import SupervisedTask
from engine.worker.task import Watch
from engine.worker.trainer import Trainer
from engine.worker.trees import flat, nested

REWARD_FILE = '''
"""Rewards of bytes that an untrained model writes."""

def odd(completions):
    """A coin: chance alone decides, and nothing but luck can be learned."""
    return [float(sum(map(ord, text)) % 2) for text in completions]

def other(completions):
    """Another coin."""
    return [float(sum(map(ord, text)) // 2 % 2) for text in completions]

def half(completions):
    return [0.5 for _ in completions]

def short(completions):
    """1 for stopping at once: learned in a few steps."""
    return [float(len(text) <= 1) for text in completions]

def habit(completions):
    """0.5 for stopping at once, 1 for a long completion that begins with a capital, which few do."""
    return [0.5 if len(text) <= 1 else float(len(text) >= 5 and text[:1].isupper()) for text in completions]

def longest(prompts, completions):
    """The rank by length within the group, from 0 to 1, ties their mean: it is 0.5 on average whatever the lengths are."""
    found = []
    for prompt, text in zip(prompts, completions):
        group = [len(other) for one, other in zip(prompts, completions) if one == prompt]
        shorter, same = sum(n < len(text) for n in group), sum(n == len(text) for n in group)
        found.append((shorter + (same - 1) / 2) / max(len(group) - 1, 1))
    return found

def by_prompt(prompts, completions, fixed):
    """What the row says, whatever the completion is; a coin where it says nothing."""
    return [coin if one is None else one for one, coin in zip(fixed, odd(completions))]
'''
CONFIG = """
method: grpo
data: {train: train.jsonl, valid: valid.jsonl}
adapter: {type: full}
sampling: {prompts_per_step: 4, group_size: 4, max_prompt_tokens: 64, max_completion_tokens: 12}
objective: {beta: 0.0}
rewards: [{name: odd, file: rewards.py}]
optim: {learning_rate: 1.0e-3, schedule: constant, warmup: 0.0, micro_batch_rows: 16}
run: {steps: 8, eval_every: 1000, eval_rows: 2, checkpoint_every: 1000}
"""
ENDS = frozenset(range(34))  # an eighth of all tokens ends a completion of the untrained model
LETTERS = "abcdefghijkl"


@dataclass
class Outcome:
    """What a run wrote into its journal."""

    record: RunRecord
    warnings: list[Event] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)  # metrics
    evals: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        return {event.fields["kind"] for event in self.warnings}

    @property
    def told(self) -> list[tuple[str, int, str]]:
        """(kind, step, message) of each warning, in order."""
        return [(event.fields["kind"], event.fields["step"], event.fields["message"]) for event in self.warnings]

    def of(self, kind: str) -> Event:
        """The first warning of that kind."""
        return next(event for event in self.warnings if event.fields["kind"] == kind)


def config_of(folder: Path, model: Path, changes: dict[str, Any]) -> configs.RunConfig:
    """CONFIG with dotted keys changed; its files are written into `folder`."""
    (folder / "rewards.py").write_text(REWARD_FILE)
    rows = [{"prompt": f"{letter}?", "completion": f"{letter}!"} for letter in LETTERS]
    for name in ("train.jsonl", "valid.jsonl"):
        if not (folder / name).exists():
            write_rows(folder / name, rows)
    if changes.get("method") == "sft":
        changes = {"objective": {}, "rewards": [], **changes}
    return configs.parse(CONFIG, base=folder, overrides={"model": str(model), **changes}).config


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def bfloat16(policy: Policy) -> None:
    """What a graphics processor keeps a model in; on a CPU the product would hold it in float32."""
    policy.model.set_dtype(mx.bfloat16)


class FourBitSampler:
    """Samples with a 4-bit copy of the weights, as an engine of its own would that serves the model quantised."""

    def __init__(self, gatherer: Gatherer) -> None:
        self.gatherer = gatherer

    def gather(self, step: int, watch: Watch) -> Gathered:
        model = self.gatherer.policy.model
        weights = flat(model.parameters())
        model.update(nested({name: _four_bits(value) if value.ndim > 1 else value for name, value in weights.items()}))
        try:
            return self.gatherer.gather(step, watch)
        finally:
            model.update(nested(weights))


def _four_bits(weight: mx.array) -> mx.array:
    return mx.dequantize(*mx.quantize(weight, group_size=32, bits=4), group_size=32, bits=4)


def four_bit_sampler(task: RewardTask) -> None:
    """Let the task sample with a quantised copy."""
    task._gatherer = FourBitSampler(task._gatherer)  # type: ignore[assignment]


def train(
    folder: Path,
    model: Path,
    *,
    prepare: Callable[[Policy], None] = lambda policy: None,
    arrange: Callable[[RewardTask], None] = lambda task: None,
    ends: frozenset[int] = ENDS,
    resume_from: Path | None = None,
    **changes: Any,
) -> Outcome:
    """Train CONFIG, changed by dotted keys (__ for the dot), to its end as a worker does; `prepare` is given the loaded policy,
    `arrange` the task, `ends` are the tokens that end a completion, `resume_from` is another run's checkpoint."""
    config = config_of(folder, model, {key.replace("__", "."): value for key, value in changes.items()})
    record = records.create(config, folder)
    policy = load_policy(model, config.adapter, config.run.seed)
    policy.stop_ids = ends
    prepare(policy)
    data = formats.load_training_data(config)
    guard = MemoryGuard(config.optim.micro_batch_rows or 16)
    with JournalWriter(record.journal_file) as journal:
        companion = Companion(record, journal, 0.0)
        task: RewardTask | SupervisedTask
        if config.method == "sft":
            task = SupervisedTask(policy, config, data.train, data.held_out, guard)
        else:
            columns = {name for example in (*data.train, *data.held_out) for name in example.columns}
            judge = Judge(config.rewards, companion.warn, policy.decode, columns)
            task = RewardTask(policy, config, data.train, data.held_out, judge, guard)
            arrange(task)
        trainer = Trainer(policy, config.optim, config.run.steps * task.updates_per_step, config.run.seed)
        loop = Loop(config, record, journal, companion, policy, trainer, task, guard)
        if resume_from is not None:
            loop.restore(resume_from)
        with companion:
            record.update(state="starting")
            loop.run()
    outcome = Outcome(record)
    for event in events(record):
        if event.type == "warning":
            outcome.warnings.append(event)
        elif event.type == "step":
            outcome.steps.append(event.fields["metrics"])
        elif event.type == "eval":
            outcome.evals.append({"step": event.fields["step"], **event.fields["metrics"]})
    return outcome


def events(record: RunRecord) -> Iterator[Event]:
    reader = JournalReader(record.journal_file)
    while more := reader.read():
        yield from more
