"""The verb `measure`: one real step of a config, timed phase by phase, outside any run. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from engine import config as configs
from engine import machine_load
from engine.data import formats
from engine.models.sources import with_weights
from engine.worker.batching import Batch
from engine.worker.bench_timing import Clock
from engine.worker.guard import MemoryGuard
from engine.worker.model import load_policy
from engine.worker.run import split_of, task_of
from engine.worker.step_times import own_pids, step_lengths
from engine.worker.task import Task, Warn, Watch
from engine.worker.trainer import Trainer, UpdateResult
from engine.worker.work import StepWork

WARM_SECONDS = 60.0  # a first step that took longer is not made a second time: what it warmed up is small beside it
Tell = Callable[[dict[str, Any]], None]


def measure(request: Mapping[str, Any], tell: Tell) -> None:
    """Tells {"event": "progress" | "warning", "text"} and {"event": "step", "step"}; the request: `config`, as YAML with
    absolute paths. Raises InputError."""

    def told(text: str) -> None:
        tell({"event": "progress", "text": text})

    def warn(kind: str, message: str, remedy: str, **_: Any) -> None:
        tell({"event": "warning", "text": f"{message} ({remedy})"})

    config = configs.parse(request["config"], base=Path.cwd()).config
    told("loading the model")
    folder = with_weights(configs.model_folder(config.model))
    policy = load_policy(folder, config.adapter, config.run.seed, config.chat, config.quantize)
    guard, policy.recomputes = split_of(config, policy, None, warn)
    task = task_of(config, policy, formats.load_training_data(config), guard, warn)
    try:
        trainer = Trainer(policy, config.optim, config.run.steps * task.updates_per_step, config.run.seed)
        clock = Clock()
        start = machine_load.mark(own_pids(task))
        work, updates = timed_step(task, guard, trainer, 1, clock, told, warn)
        warmed = sum(part.seconds for part in clock.parts.values()) < WARM_SECONDS
        if warmed:  # the first step pays for what is compiled and allocated once
            clock = Clock()
            start = machine_load.mark(own_pids(task))
            told("once more, now that everything is warm")
            work, updates = timed_step(task, guard, trainer, 2, clock, told, warn)
        load = machine_load.since(start)
    finally:
        task.close()
    lengths = step_lengths(work, updates, guard.micro_batch_rows, policy.sharing)
    found = {
        "seconds": {name: part.seconds for name, part in clock.parts.items()},
        "cpu_seconds": {name: part.cpu_seconds for name, part in clock.parts.items()},
        "peak_bytes": {name: part.peak_bytes for name, part in clock.parts.items()},
        "prompts": lengths.prompts,
        "completions": lengths.completions,
        "updates": [[astuple(batch) for batch in batches] for batches in lengths.updates or ()],
        "scored": [astuple(batch) for batch in lengths.scored or ()],
        "micro_batch_rows": guard.micro_batch_rows,
        "warmed": warmed,
        "others_cores": load.others_cores,
    }
    tell({"event": "step", "step": found})


def timed_step(
    task: Task, guard: MemoryGuard, trainer: Trainer, number: int, clock: Clock, told: Callable[[str], None], warn: Warn
) -> tuple[StepWork, list[list[Batch]]]:
    """Step `number` (from 1) as a run makes it, timed by phases (rollout, reward, score, update); with the batches of each
    update."""

    def phase(_: int, name: str, __: int | None) -> None:
        clock.now(name)
        told(name)

    work = task.begin(number, Watch(phase, lambda: None, warn))
    updates: list[list[Batch]] = []
    told("update")
    for update in range((number - 1) * task.updates_per_step, number * task.updates_per_step):
        clock.now("update")
        batches, result = guard.update(lambda: task.batches(work), _updating(task, trainer, update))
        updates.append(batches)
        work.updates.append(result)
    clock.now(None)
    return work, updates


def _updating(task: Task, trainer: Trainer, number: int) -> Callable[[list[Batch]], UpdateResult]:
    return lambda batches: trainer.update(number, batches, task.loss)
