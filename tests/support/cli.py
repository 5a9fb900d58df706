"""The command line for tests: as a process, and as a call of what the console script calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import DEADLINE_SECONDS
from tui.__main__ import main as console_script

ROWS = '{"prompt": "1+1?", "answer": "2"}\n{"prompt": "1+2?", "answer": "3"}\n{"prompt": "2+2?", "answer": "4"}\n'
COMMAND = [sys.executable, "-P", "-m", "tui"]


def droid_tune(home: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line with its own home; DROID_TUNE_HOME/runs holds its runs."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "DROID_TUNE_HOME": str(home), "COLUMNS": "200"},
        cwd=cwd or home,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


Command = Callable[..., subprocess.CompletedProcess[str]]


def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """As droid_tune, in this process: what the console script calls, with its arguments, environment, folder and streams."""

    def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(sys, "argv", ["droid-tune", *arguments])
            patch.setenv("DROID_TUNE_HOME", str(home))
            patch.setenv("COLUMNS", "200")
            patch.chdir(home)
            console_script()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(arguments, left.value.code, *capfd.readouterr())

    return run


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
