"""Copies of the repository in which faults are tried: the engine that the tests import there is the copy's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .fault import Fault
from .witness import REPORT

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("engine", "tests", "tui", "configs", "datasets", "pyproject.toml")
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "tests.mutations.witness")  # what pyproject.toml sets up, and ours
LIMIT_SECONDS = 180.0  # of one test; a test that hangs has not caught anything

# caught: the test failed, by an assertion. missed: it passed. broken: it fell over (at collection, in its setup, by an error that
# is no assertion, or by time), or it does not pass without the fault.
Verdict = Literal["caught", "missed", "broken"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one fault."""

    fault: Fault
    verdict: Verdict
    test: str  # the one that failed, with its parameters; else the one that was named
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """One run of pytest."""

    code: int
    tests: tuple[dict[str, Any], ...]  # as witness.py writes them
    seconds: float
    last_words: str  # the line of its output that says most about an end before any test


class Stopped(Exception):
    """The trials were interrupted."""


class Copy:
    """The repository in the new folder `folder`, for one trial at a time; once `stop` is set it runs no more tests."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self._stop = stop
        self.root = folder / "copy"
        self._report = folder / "report.json"
        self._temp = folder / "temp"
        self.root.mkdir(parents=True)
        for name in PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, self.root / name)

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """Inside, the copy has the fault."""
        path = self.root / fault.file
        source = path.read_text(encoding="utf-8")
        path.write_text(fault.faulty(source), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(source, encoding="utf-8")

    def pytest(self, tests: Sequence[str], *options: str, limit_seconds: float = LIMIT_SECONDS) -> Ended:
        """Run the tests here. No bytecode is kept: a faulty file of equal size and second would pass for the sound one."""
        if self._stop.is_set():
            raise Stopped
        self._report.unlink(missing_ok=True)
        path = os.pathsep.join([str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the others take more than half of a start
            REPORT: str(self._report),
        }
        plugins = [part for name in PLUGINS for part in ("-p", name)]
        options = ("-q", "-p", "no:cacheprovider", *plugins, f"--basetemp={self._temp}", *options)
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "pytest", *options, f"--rootdir={self.root}", *tests],
                cwd=self.root,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_seconds,
            )
        except subprocess.TimeoutExpired:
            return Ended(-1, (), time.perf_counter() - start, f"not done after {limit_seconds:.0f} s")
        found = json.loads(self._report.read_text(encoding="utf-8")) if self._report.exists() else []
        return Ended(done.returncode, tuple(found), time.perf_counter() - start, _last_words(done.stdout, done.stderr))


def failing(copy: Copy, tests: Sequence[str]) -> dict[str, str]:
    """Those of the tests that do not pass in the copy as it is, and why. They are run together; those of which nothing was seen
    (one that there is not keeps pytest from running any) are then run alone."""
    ended = copy.pytest(tests, limit_seconds=LIMIT_SECONDS * len(tests))
    if ended.code == 0:
        return {}
    found: dict[str, str] = {}
    for test in tests:
        seen = [one for one in ended.tests if one["test"] == test or one["test"].startswith(f"{test}[")]
        wrong = [one for one in seen if not one["passed"]]
        if not seen and len(tests) > 1:
            found |= failing(copy, [test])
        elif wrong or not seen:
            found[test] = f"does not pass without the fault: {_reason(wrong, ended)}"
    return found


def tried(copy: Copy, fault: Fault) -> Result:
    """The verdict on one fault, whose test is known to pass without it."""
    with copy.with_fault(fault):
        ended = copy.pytest([fault.test], "-x")
    if ended.code == 0:
        return Result(fault, "missed", fault.test, ended.seconds, "the test passes with the fault")
    noticed = [one for one in ended.tests if one["noticed"]]
    if ended.code == 1 and noticed:
        return Result(fault, "caught", noticed[0]["test"], ended.seconds)
    wrong = [one for one in ended.tests if not one["passed"]]
    return Result(fault, "broken", fault.test, ended.seconds, f"exit status {ended.code}: {_reason(wrong, ended)}")


def _reason(wrong: Sequence[dict[str, Any]], ended: Ended) -> str:
    return f"{wrong[0]['test']}: {wrong[0]['error']}" if wrong else ended.last_words


def _last_words(stdout: str, stderr: str) -> str:
    """The last error that pytest shows (its lines begin with E), else the last line of all."""
    shown = [line[1:].strip() for line in stdout.splitlines() if line.startswith("E  ")]
    return (shown or (stderr or stdout).strip().splitlines() or [""])[-1]
