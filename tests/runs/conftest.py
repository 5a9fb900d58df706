"""A config, a run folder, and the processes that a test starts."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config import RunConfig, parse
from engine.runs import record as records
from engine.runs.launch import launch
from engine.runs.record import RunRecord

STAND_IN = (sys.executable, "-P", str(Path(__file__).with_name("stand_in_worker.py")))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def make_config(folder: Path, steps: int = 5, name: str | None = None) -> RunConfig:
    (folder / "train.jsonl").write_text("".join(f'{{"prompt": "what is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(8)))
    text = f"""
    model: demo
    method: grpo
    data: {{train: train.jsonl}}
    rewards: [{{name: answer}}]
    run: {{steps: {steps}, name: {name or "null"}}}
    """
    return parse(text, base=folder).config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def record(config: RunConfig, home: Path) -> RunRecord:
    return records.create(config, home)


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """launch() with the stand-in worker; whatever was started is killed after the test."""
    started: list[tuple[RunRecord, int]] = []

    def run(record: RunRecord, resume: bool = False) -> int:
        pid = launch(record, resume, program=STAND_IN)
        started.append((record, pid))
        return pid

    yield run
    for record, pid in started:
        if records.lock_is_held(record):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
