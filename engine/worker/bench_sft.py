"""The benchmark of supervised updates: ours, optimizer and all, against a bare value_and_grad over the same rows."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.worker import bench_model
from engine.worker.bench_model import Settings
from engine.worker.bench_timing import Clock, Told, alternate
from engine.worker.bench_update import BareUpdate, gradient_difference, require_all
from engine.worker.model import Policy
from engine.worker.supervised import SupervisedTask
from engine.worker.trainer import Trainer
from engine.worker.work import StepWork


def sft(policy: Policy, settings: Settings, told: Told) -> dict[str, Any]:
    """Seconds and peak memory of an update on prompts x group different rows, and of the floor's; the ratio of seconds (ours over
    bare); the gradients' relative difference."""
    settings = replace(settings, method="sft")
    with tempfile.TemporaryDirectory(prefix="droid-tune-bench-") as folder:
        config = bench_model.run_config(policy, settings, Path(folder))
    asked = bench_model.prompts(policy, settings.rows, settings.prompt_tokens)
    data = bench_model.replies(policy, asked, settings.max_tokens)
    task = SupervisedTask(policy, config, data, data[:1], bench_model.guard(config))
    policy.recomputes = bench_model.recomputes(config, policy)
    trainer = Trainer(policy, config.optim, 1 << 20, bench_model.SEED)
    numbers = iter(range(1 << 20))
    batches = task.batches(StepWork(1))
    require_all([batches], settings.rows)
    bare = BareUpdate(policy, task, batches)

    def ours(clock: Clock) -> None:
        number = next(numbers)
        clock.now("update")
        trainer.update(number, task.batches(StepWork(number + 1)), task.loss)

    def floor(clock: Clock) -> None:
        clock.now("update")
        bare.value_and_grad()

    sides = {"ours": ours, "bare": floor} if settings.bare else {"ours": ours}
    timed = alternate(sides, settings.repeats, bench_model.weights_bytes(policy), told, warm=settings.warm)
    tokens = bare.rows.completions.size
    found = {
        "rows": settings.rows,
        "prompt_tokens": bare.rows.prompts.shape[1],
        "target_tokens": bare.rows.completions.shape[1],
        "micro_batch_rows": task.guard.micro_batch_rows,
        "recomputes": policy.recomputes,
        **{side: timed.told(side, tokens=tokens) for side in sides},
        "load": timed.load.as_dict(),
    }
    if settings.bare:
        told("gradients")
        found["time"], found["cpu_time"] = timed.ratio("ours", "bare"), timed.cpu_ratio("ours", "bare")
        found["gradient_difference"] = gradient_difference(policy, task, batches, bare)
    return found
