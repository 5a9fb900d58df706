"""What a run's own steps teach later estimates: those of a quiet machine are kept, and the next estimate says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import config as configs
from engine import corrections, hardware, machine_load, machine_rates, share
from engine.cli import estimate_lines
from engine.config import RunConfig
from engine.data import formats
from engine.estimate import estimate
from engine.machine_load import Load, Mark
from engine.machine_rates import Rates
from engine.memory import Plan
from engine.runs import record as records
from engine.runs.journal import JournalWriter
from engine.splitting import limit_bytes
from engine.timing import time_plan
from engine.types import Group, Prompt, Rollout
from engine.worker import run as worker_run
from engine.worker.batching import Row, pack
from engine.worker.companion import Companion
from engine.worker.loop import Loop
from engine.worker.model import load_policy
from engine.worker.step_times import StepTimes, own_pids, step_lengths
from engine.worker.trainer import Trainer
from engine.worker.work import StepWork

NUMBERS = dict.fromkeys(("plain", "norm", "exp", "softmax", "draw"), 1e9)
RATES = Rates({4: {64: {1: 1e9}}}, {1: 1e9}, {1: 1e12}, NUMBERS, 1e-6, 1e9)


def quiet(start: Mark) -> Load:
    return replace(machine_load.since(start), others_cores=0.0)


def demo(**changes: Any) -> RunConfig:
    small = {"run.steps": 5, "run.checkpoint_every": 5, "run.eval_every": 5, "run.eval_rows": 2, "run.name": "kept"}
    small |= {"sampling.prompts_per_step": 4, "sampling.group_size": 8, "sampling.max_completion_tokens": 24}
    return configs.load(share.share_root("configs") / "demo.yaml", {**small, **changes}).config


def test_a_run_teaches_the_next_estimate_where_the_machine_was_quiet(tmp_path: Path) -> None:
    """Five steps and a checkpoint after them: the first is left out, the medians of the other four are kept for this model and
    for these rewards, and named after the run."""
    config = demo()
    record = records.create(config, tmp_path)
    record.update(environment={"threads": 1, "blas": None})
    key = machine_rates.key(hardware.facts(), 1, None)
    machine_rates.keep(tmp_path, key, RATES)
    policy = load_policy(configs.model_folder(config.model), config.adapter, config.run.seed)
    with JournalWriter(record.journal_file) as journal, Companion(record, journal, 0.0) as companion:
        guard, policy.recomputes = worker_run.split_of(config, policy, None, companion.warn)
        task = worker_run.task_of(config, policy, formats.load_training_data(config), guard, companion.warn)
        trainer = Trainer(policy, config.optim, config.run.steps * task.updates_per_step, config.run.seed)
        times = worker_run._step_times(config, record, policy, guard, companion.warn, own_pids(task))
        assert (times.home, times.rates_key, times.by, len(times.pids)) == (tmp_path, key, "the run kept", 1)
        times.since = quiet
        record.update(state="starting")
        Loop(config, record, journal, companion, policy, trainer, task, guard, times).run()
    kept = machine_rates.load(tmp_path, key)
    assert kept is not None
    known = hardware.facts()
    model, rewards = corrections.model_key(Plan(config, known.backend)), corrections.rewards_key(config)
    assert set(kept.learned) == {model, rewards}
    assert {"rollout", "update", corrections.PEAK} <= set(kept.learned[model])
    assert kept.learned[rewards][corrections.REWARD].seconds_per_completion > 0
    fit = Plan(config, known.backend).fit(limit_bytes(config, known))
    assert 0 < kept.learned[model][corrections.PEAK].factor * fit.peak < 10 * fit.peak
    found = estimate(config, known, kept)
    assert found.time is not None and found.time.sources == ("the run kept",)
    shown = "\n".join(estimate_lines.estimate(found))
    assert "by the run kept of this model" in shown and "by the run kept with these rewards" in shown
    assert any("the run kept of this model took" in line for line in found.assumptions)


def test_what_is_kept_is_a_median_of_whole_steps(tmp_path: Path) -> None:
    """Nothing before three steps that count: the first of the process does not, nor one that replaced groups, nor one whose
    update was made before a restart, was skipped, or had no rows. Of phases and rewards of 1, 5 and 2 s for 2 completions the
    medians are kept: 2 s over what is predicted, and 1 s for each completion. What others did while the run stood still counts
    as if it had been during its steps: 0.2 cores for 26 s are 0.4 for the 13 s of steps, too many."""
    config = demo()
    policy: Any = type("Policy", (), {"sharing": "none", "recomputes": False})()
    guard: Any = type("Guard", (), {"micro_batch_rows": 4, "decode_rows": None, "peak": lambda self: 1000})()
    asked: list[Mark] = []

    def shared(start: Mark) -> Load:
        asked.append(start)
        return Load(26.0, busy, 2, 0.0, 0.0)  # 13 s of steps

    times = StepTimes(config, tmp_path, "key", "the run x", policy, guard, lambda *_, **__: None, since=shared)
    machine_rates.keep(tmp_path, "key", RATES)
    batches = pack([Row(0, (1, 2, 3), (4, 5, 6, 7), 0), Row(0, (1, 2, 3), (4, 5, 6, 7), 1)], 4)
    rollouts = (Rollout((4, 5, 6, 7), (-1.0,) * 4, "length", ""),) * 2
    group = Group(Prompt(0, (1, 2, 3), "", None), rollouts, rewards=(0.0, 1.0), advantages=(-1.0, 1.0))

    def step(seconds: float, made: Any = batches, *, applied: bool = True, refills: int = 0) -> None:
        if made is not None:
            times.updated(made)
        phases = dict.fromkeys(("rollout", "reward", "update"), seconds)
        updates: Any = [SimpleNamespace(applied=applied)]
        times.stepped(StepWork(1, [group], refills=refills, updates=updates, seconds={**phases, "total": seconds}))

    def window() -> None:
        step(1.0)
        step(5.0)
        times.keep()
        step(2.0)
        times.keep()

    step(100.0)
    step(1.0, refills=1)
    step(1.0, None)
    step(2.0, applied=False)
    step(1.0, [])
    busy = 0.2
    window()
    assert len(asked) == 1 and machine_rates.load(tmp_path, "key") == RATES
    busy = 0.05
    step(5.0, [])
    window()
    assert len(asked) == 2
    kept = machine_rates.load(tmp_path, "key")
    assert kept is not None
    phases = kept.learned[corrections.model_key(Plan(config, hardware.facts().backend))]
    lengths = step_lengths(StepWork(1, [group]), [batches], 4, "none")
    said = time_plan(Plan(config, hardware.facts().backend), RATES, 4, lengths)
    assert said is not None and phases["update"].factor == pytest.approx(2.0 / said.phases["update"])
    assert kept.learned[corrections.rewards_key(config)][corrections.REWARD].seconds_per_completion == 1.0
