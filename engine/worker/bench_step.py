"""The benchmark of whole steps: rollout, rewards, scores and update as a run makes them, against the bare loop's.

The floor of a step is the bare rollout and, over the same rows, a full value_and_grad: every prompt repeated for each of its
completions, the head at every position, log-probabilities in float32. It has no rewards, no optimizer, and no
adapter while it decodes. Both sides are without a KL term, whatever the method's own weight of it; what a term costs is apart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.config import RunConfig
from engine.errors import InputError
from engine.types import Example
from engine.worker import bench_attention, bench_bare, bench_model
from engine.worker.batching import Batch
from engine.worker.bench_model import Settings
from engine.worker.bench_rollout import require_whole
from engine.worker.bench_timing import Clock, Side, Timed, Told, alternate
from engine.worker.bench_update import BareUpdate, gradient_difference, require_all
from engine.worker.guard import tokens_of
from engine.worker.measuring import timed_step
from engine.worker.model import Policy
from engine.worker.rewarding import Judge
from engine.worker.step import RewardTask
from engine.worker.trainer import Trainer

_BETAS = (0.0, 0.04)
_COSTS = tuple(f"{cpu}milliseconds_per_{of}token" for cpu in ("", "cpu_") for of in ("", "computed_"))


class Steps:
    """Steps of a run, one after the other, timed by their phases."""

    def __init__(self, policy: Policy, config: RunConfig, asked: list[Example], judge: Judge, settings: Settings) -> None:
        self.task = RewardTask(policy, config, asked, asked, judge, bench_model.guard(config))
        self.recomputes = bench_model.recomputes(config, policy)
        self.trainer = Trainer(policy, config.optim, 1 << 20, bench_model.SEED)
        mx.eval(self.trainer.optimizer.state)  # a first step holds its moments, too
        self.settings = settings
        self.updates: list[list[Batch]] = []  # of the last step, the micro-batches of each
        self.prompts: list[tuple[int, ...]] = []  # of the last step
        self._number = 0

    def __call__(self, clock: Clock) -> None:
        """One step: the parts rollout, reward, score (where there is one) and update."""
        self._number += 1
        self.task.policy.recomputes = self.recomputes
        work, self.updates = timed_step(self.task, self.task.guard, self.trainer, self._number, clock, _untold, _refused)
        self.prompts = [group.prompt.token_ids for group in work.groups]
        require_whole([rollout for group in work.groups for rollout in group.rollouts], self.settings)
        require_all(self.updates, self.settings.rows * self.task.updates_per_step // self.task.objective.minibatches)

    def bare(self, clock: Clock) -> None:
        """What the floor does for the last step: the parts rollout (as prefill and decode) and update."""
        policy = self.task.policy
        repeated = np.repeat(np.array(self.prompts, dtype=np.int32), self.settings.group, axis=0)
        with policy.reference():
            bench_bare.rollout(policy.model, repeated, self.settings.max_tokens, clock)
            clock.now(None)
        updates = [BareUpdate(policy, self.task, batches) for batches in self.updates]
        clock.now("update")
        for update in updates:
            update.value_and_grad()

    def gradient_difference(self) -> float:
        """Of the first update of the last step, with the weights as they are now."""
        bare = BareUpdate(self.task.policy, self.task, self.updates[0])
        return gradient_difference(self.task.policy, self.task, self.updates[0], bare)


def step(policy: Policy, settings: Settings, told: Told) -> dict[str, Any]:
    """Seconds and peak memory of a step's phases and of the floor's; ratios of seconds (ours over bare); the gradients' relative
    difference; what a KL term costs; and, where lengths are asked for, the cost of a completion token at each."""
    with _judged(policy, settings) as (folder, judge):
        asked = bench_model.prompts(policy, settings.prompts, settings.prompt_tokens)
        config = bench_model.run_config(policy, settings, folder, beta=0.0)
        steps = Steps(policy, config, asked, judge, settings)
        sides: dict[str, Side] = {"ours": steps, "bare": steps.bare} if settings.bare else {"ours": steps}
        timed = alternate(sides, settings.repeats, bench_model.weights_bytes(policy), told, warm=settings.warm)
        found = _told(timed, steps, settings)
        if settings.bare:
            told("gradients")
            found["gradient_difference"] = steps.gradient_difference()
            found["beta"] = _betas(policy, settings, folder, asked, judge, told)
        if settings.lengths:
            found["lengths"] = _lengths(policy, settings, folder, asked, judge, told)
            found["lengths_spread"] = {key: _spread(found["lengths"], key) for key in _COSTS}
        return found


def _told(timed: Timed, steps: Steps, settings: Settings) -> dict[str, Any]:
    phases = list(timed.passes["ours"][0])
    found: dict[str, Any] = {
        "rows": settings.rows,
        "prompt_tokens": len(steps.prompts[0]),
        "micro_batch_rows": steps.task.guard.micro_batch_rows,
        "recomputes": steps.recomputes,
        "updates": steps.task.updates_per_step,
        "ours": {
            **{phase: timed.told("ours", phase) for phase in phases},
            "rollout": timed.told("ours", "rollout", tokens=settings.tokens),
            "whole": timed.told("ours", tokens=settings.tokens),
        },
        "load": timed.load.as_dict(),
    }
    if settings.bare:
        rollout = ("prefill", "decode")
        found["bare"] = {
            "rollout": timed.told("bare", *rollout, tokens=settings.tokens),
            "update": timed.told("bare", "update"),
            "whole": timed.told("bare", tokens=settings.tokens),
        }
        for name, ratio in (("time", timed.ratio), ("cpu_time", timed.cpu_ratio)):
            found[name] = {"update": ratio("ours", "bare", "update"), "whole": ratio("ours", "bare")}
    return found


def _betas(policy: Policy, settings: Settings, folder: Path, asked: list[Example], judge: Judge, told: Told) -> dict[str, Any]:
    """A step with and without a KL term: one warm-up and one timed pass of each. Where the method refuses one, why."""
    sides: dict[str, Steps] = {}
    for beta in _BETAS:
        try:
            config = bench_model.run_config(policy, settings, folder, beta=beta)
        except InputError as error:
            return {"refused": error.what}
        sides[f"{beta:g}"] = Steps(policy, config, asked, judge, settings)
    timed = alternate(sides, 1, bench_model.weights_bytes(policy), lambda text: told(f"beta {text}"))
    off, on = timed.passes
    return {
        **{beta: {"score_and_update": timed.told(beta, "score", "update"), "whole": timed.told(beta)} for beta in sides},
        "time": timed.ratio(on, off, "score", "update"),
        "cpu_time": timed.cpu_ratio(on, off, "score", "update"),
        "more_peak_bytes": timed.peak(on) - timed.peak(off),
    }


def _lengths(
    policy: Policy, settings: Settings, folder: Path, asked: list[Example], judge: Judge, told: Told
) -> list[dict[str, Any]]:
    """The cost of a completion token in a whole step at each length, ours alone: one pass after one that is not counted, since
    larger arrays are mapped anew; and of its update, attention by itself and what is left without it."""
    rows = []
    for length in settings.lengths:
        own = replace(settings, max_tokens=length)
        steps = Steps(policy, bench_model.run_config(policy, own, folder, beta=0.0), asked, judge, own)
        told(f"{length} tokens")
        timed = alternate({"ours": steps}, 1, bench_model.weights_bytes(policy), told, warm=settings.warm)
        told(f"{length} tokens: attention")
        parts = {"rollout": timed.told("ours", "rollout"), "update": timed.told("ours", "update"), "whole": timed.told("ours")}
        seconds, cpu_seconds = ({name: part[key] for name, part in parts.items()} for key in ("seconds", "cpu_seconds"))
        batches = [batch for update in steps.updates for batch in update]
        attention = bench_attention.cost(bench_attention.calls(steps.task.loss, batches), settings.repeats, steps.recomputes)
        for known, alone in ((seconds, attention.seconds), (cpu_seconds, attention.cpu_seconds)):
            known |= {"attention": alone, "update_apart": known["update"] - alone}
        computed = sum(tokens_of(batch) for batch in batches)
        rows.append(
            {
                "max_tokens": length,
                "micro_batch_rows": steps.task.guard.micro_batch_rows,
                "micro_batches": [len(batch.index) for batch in batches],
                "recomputes": steps.recomputes,
                "computed_tokens": computed,
                "milliseconds_per_token": _milliseconds(seconds, own.tokens),
                "cpu_milliseconds_per_token": _milliseconds(cpu_seconds, own.tokens),
                "milliseconds_per_computed_token": _milliseconds(seconds, computed, "update", "update_apart"),
                "cpu_milliseconds_per_computed_token": _milliseconds(cpu_seconds, computed, "update", "update_apart"),
                "peak_bytes_above_weights": {name: part["peak_bytes_above_weights"] for name, part in parts.items()},
            }
        )
    return rows


def _spread(rows: list[dict[str, Any]], key: str) -> float | None:
    """The most over the least that an update costs apart from attention; None where noise has eaten one of them."""
    apart = [row[key]["update_apart"] for row in rows]
    return max(apart) / min(apart) if min(apart) > 0 else None


def _milliseconds(seconds: dict[str, float], tokens: int, *wanted: str) -> dict[str, float]:
    return {name: 1e3 * value / tokens for name, value in seconds.items() if not wanted or name in wanted}


@contextmanager
def _judged(policy: Policy, settings: Settings) -> Iterator[tuple[Path, Judge]]:
    """A folder with the reward in it, and the process that gives it."""
    with tempfile.TemporaryDirectory(prefix="droid-tune-bench-") as name:
        folder = Path(name)
        judge = Judge(bench_model.run_config(policy, settings, folder).rewards, _refused, policy.decode)
        try:
            yield folder, judge
        finally:
            judge.close()


def _untold(_: str) -> None:
    """A pass by itself has no progress to tell."""


def _refused(kind: str, message: str, remedy: str, **_: Any) -> None:
    """A step that warns is not the step that was to be timed."""
    raise InputError(message, where=f"bench step: {kind}", remedy=remedy)
