"""Real runs for tests: start a worker on the embedded model, wait for moments in its journal, kill it, compare two runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from engine import config as configs
from engine.api import Engine, Run
from engine.runs.journal import Event, JournalReader
from engine.runs.record import lock_is_held
from engine.runs.state import RunState

DEADLINE_SECONDS = 120.0


def small_config(recipe: str, **overrides: Any) -> configs.RunConfig:
    """A packaged recipe made small, on its first 64 rows; `overrides` are dotted keys with __ for the dot."""
    small: dict[str, Any] = {"run.steps": 3, "run.eval_rows": 8, "run.eval_every": 2, "run.checkpoint_every": 2}
    if recipe != "sft":
        small |= {"sampling.prompts_per_step": 4, "sampling.group_size": 4}
    if "data" not in overrides:
        small["data.train"] = f"datasets/arithmetic-{'sft' if recipe == 'sft' else 'train'}.jsonl[:64]"
    changes = small | {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.load(Path(__file__).parents[2] / "configs" / f"{recipe}.yaml", changes).config


async def finish(home: Path, config: configs.RunConfig) -> tuple[Run, RunState]:
    """Train the config to its end."""
    run = await Engine(home).start(config)
    return run, await run.wait()


def await_event(run: Run, since: int, wanted: Callable[[Event], bool]) -> Event:
    """The first event after `since` that is wanted, as soon as it is written."""
    reader = JournalReader(run.record.journal_file)
    return await_condition(lambda: next((e for e in reader.read() if e.seq > since and wanted(e)), None), "an event")


def await_condition(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` gives once it is truthy; looked at every millisecond, for two minutes at most."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {DEADLINE_SECONDS:.0f} s")
        time.sleep(0.001)  # the poll of a condition that another process makes true
    return found


def events(run: Run) -> list[Event]:
    """All events so far."""
    reader, found = JournalReader(run.record.journal_file), []
    while more := reader.read():
        found += more
    return found


def kill(run: Run) -> None:
    """SIGKILL the worker and wait until its lock is free."""
    pid = await_condition(lambda: run.record.summary().pid, "a process id")
    os.kill(pid, signal.SIGKILL)
    await_condition(lambda: not lock_is_held(run.record), "the end of the worker")


def outcome(run: Run) -> dict[str, Any]:
    """What resume promises to reproduce: final weights and optimizer, every sample, every metric but seconds and bytes."""
    last = sorted(run.record.checkpoints_dir.glob("step-*"))[-1]
    state = RunState()
    for event in events(run):
        state.apply(event)
    series = {**state.series, **{f"held_out.{name}": entry for name, entry in state.held_out.items()}}
    return {
        "checkpoint": last.name,
        "weights": load_file(last / "adapters.safetensors"),
        "optimizer": load_file(last / "optimizer.safetensors"),
        "best": load_file(run.record.adapters_dir / "adapters.safetensors"),
        "samples": {
            path.name: [json.loads(line) for line in path.open()] for path in sorted(run.record.samples_dir.glob("*.jsonl"))
        },
        "metrics": {
            name: (list(entry.steps), list(entry.values))
            for name, entry in series.items()
            if "seconds." not in name and "bytes." not in name
        },
        "result": {key: value for key, value in (state.result or {}).items() if key not in ("adapter", "command")},
    }


def assert_same_bits(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Every number of two outcomes is the same, to the last bit."""
    for name in ("weights", "optimizer", "best"):
        assert left[name].keys() == right[name].keys()
        for key, value in left[name].items():
            assert np.array_equal(value, right[name][key]), f"{name}: {key} differs"
    for name in ("checkpoint", "samples", "metrics", "result"):
        assert left[name] == right[name], name
