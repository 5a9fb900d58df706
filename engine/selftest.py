"""The self-test of this machine's numerics, from outside: it runs in a worker process, and its last report is kept.

What a check computes lives in engine/worker/selftest_checks.py. Imports no mlx.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from engine import config as configs
from engine import hardware
from engine.errors import InputError
from engine.models.sources import present
from engine.runs import launch, record
from engine.selftest_checks import CHECKS, COMMAND, CheckResult, Outcome, Report, Subject, result

SECONDS = 600.0  # how long the worker may take; the embedded model needs seconds, a large one minutes

T = TypeVar("T", bound=BaseModel)


async def run(
    model: str, on_result: Callable[[CheckResult], None], home: Path, *, program: Sequence[str] = launch.WORKER
) -> Report:
    """Run every check on `model` in a worker process, telling `on_result` each as it completes; the report is kept for `latest`.

    `program` gets the arguments selftest MODEL. A worker that dies fails the check that it was in. Raises InputError where
    the model cannot be loaded, mlx does not work at all, or the report cannot be written.
    """
    path = configs.model_path(model, Path.cwd())
    present(path)
    environment = launch.worker_environment(os.environ, {})[0]
    started = perf_counter()
    with tempfile.TemporaryFile() as errors:
        subject, results = await _checks([*program, "selftest", path], environment, errors, on_result)
    known = hardware.facts()
    report = Report(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        host=platform.node(),
        chip=known.chip,
        backend=known.backend,
        versions=dict(known.versions),
        model=path,
        subject=subject,
        seconds=perf_counter() - started,
        results=tuple(results),
    )
    _keep(report, report_file(home))
    return report


async def _checks(
    command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes], on_result: Callable[[CheckResult], None]
) -> tuple[Subject, list[CheckResult]]:
    """What the worker prints, line by line; checks that it did not come to are added, the first of them failed."""
    worker = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors
    )
    assert worker.stdout is not None
    lines, broke = [], ""
    results: list[CheckResult] = []
    try:
        async with asyncio.timeout(SECONDS):
            async for line in worker.stdout:
                lines.append(line)
                if len(lines) > 1:
                    results.append(_parsed(CheckResult, line))
                    on_result(results[-1])
            await worker.wait()
        if worker.returncode:
            broke = f"the worker ended with exit status {worker.returncode}: {_last_words(errors)}"
    except TimeoutError:
        broke = f"no answer within {SECONDS:.0f} s"
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    if not lines:
        remedy = "`droid-tune doctor` shows what is installed; mend that first"
        raise InputError(f"the self-test cannot start: {broke}", where="engine.worker selftest", remedy=remedy)
    subject = _parsed(Subject, lines[0])
    for place, check in enumerate(CHECKS[len(results) :]):
        missing = result(check, broke=broke or "no result") if place == 0 else result(check, skipped="the worker had ended")
        results.append(missing)
        on_result(missing)
    return subject, results


def _parsed(kind: type[T], line: bytes) -> T:
    """A line of the worker; an InputError that the worker printed is raised here."""
    where, remedy = "engine.worker selftest", "reinstall droid-tune"
    try:
        tree = json.loads(line)
        if isinstance(tree, dict) and "error" in tree:
            raise InputError(tree["error"], where=tree["where"], remedy=tree["remedy"])
        return kind.model_validate(tree)
    except (ValueError, KeyError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(f"not a result: {line[:80]!r}", where=where, remedy=remedy) from error


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# The last report.


def report_file(home: Path) -> Path:
    """Where the last report lies: one for this machine, under the home of all runs."""
    return home / "machine" / "selftest.json"


def latest(home: Path) -> Report | None:
    """The last report, None where the self-test was never run. Raises InputError for a file that is no report."""
    path = report_file(home)
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        what = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is damaged"
        raise InputError(f"the last self-test's report {what}", where=str(path), remedy=f"`{COMMAND}` writes it anew") from error


def stale(report: Report, now: hardware.Hardware) -> list[str]:
    """What is not as it was when the report was made, a phrase each; empty where it still speaks of this machine.

    The host's name is left out: a laptop's changes with its network, and the numerics do not.
    """
    then = {"chip": report.chip, "backend": report.backend, **_numeric(report.versions)}
    present = {"chip": now.chip, "backend": now.backend, **_numeric(now.versions)}
    return [
        f"{name} was {then.get(name, 'not there')} and is {present.get(name, 'gone')} now"
        for name in dict.fromkeys([*then, *present])
        if then.get(name) != present.get(name)
    ]


def _numeric(versions: Mapping[str, str]) -> dict[str, str]:
    """The packages that decide the figures."""
    return {name: version for name, version in versions.items() if name == "droid-tune" or name.startswith("mlx")}


def last_line(home: Path, now: hardware.Hardware) -> tuple[Outcome, str]:
    """The last self-test in a line, and how serious it is: "skipped" where there is none, "warning" where it is out of date."""
    try:
        report = latest(home)
    except InputError as error:
        return "warning", f"self-test: {error}"
    if report is None:
        return "skipped", f"self-test not run yet: {COMMAND}"
    day, changed = report.date[:10], stale(report, now)
    if changed:
        return "warning", f"self-test {report.outcome} {day}, but {changed[0]}: {COMMAND}"
    if report.outcome == "failed":
        return "failed", f"self-test failed {day} ({', '.join(report.named('failed'))}): {COMMAND}"
    noted = f", not: {', '.join(report.named('warning'))}" if report.outcome == "warning" else ""
    return report.outcome, f"self-test passed {day}{noted} · mlx {report.versions.get('mlx', 'of unknown version')}"


def _keep(report: Report, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write_atomic(path, (report.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
        raise InputError(f"the report cannot be kept: {error.strerror}", where=str(path), remedy=remedy) from error
