"""The self-test from outside: the worker's lines, a worker that dies, the kept report and when it is out of date."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import hardware, selftest
from engine.cli.doctor import report_lines, result_lines
from engine.errors import InputError
from engine.selftest_checks import CHECKS, CheckResult, Figure, Report, Subject, result

SUBJECT = Subject(device="gpu", device_name="Apple M2 Ultra", dtype="bfloat16")
NOW = hardware.Hardware(
    system="Darwin",
    machine="arm64",
    chip="Apple M2 Ultra",
    backend="metal",
    cores=24,
    performance_cores=16,
    memory_bytes=192 << 30,
    memory_available_bytes=None,
    versions={"python": "3.12.1", "droid-tune": "0.1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2", "textual": "8.2.8"},
)


def sound(name: str = "", value: float | None = 0.0) -> tuple[CheckResult, ...]:
    """A result of each check; the one called `name` measured `value` against a limit of 1."""
    return tuple(
        result(check, [Figure(name="x", value=value if check.name == name else 0.5, limit=1.0)], seconds=0.1) for check in CHECKS
    )


def keep(home: Path, *, results: tuple[CheckResult, ...] | None = None, **changes: Any) -> Report:
    report = Report(
        date="2026-11-22T16:30:00+01:00",
        host="studio",
        chip=NOW.chip,
        backend=NOW.backend,
        versions=dict(NOW.versions),
        model="demo",
        subject=SUBJECT,
        seconds=4.0,
        results=sound() if results is None else results,
    ).model_copy(update=changes)
    path = selftest.report_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json())
    return report


def program(tmp_path: Path, body: str) -> list[str]:
    """A worker in place of the real one: it knows the result lines as `lines` and prints what `body` says."""
    lines = [SUBJECT.model_dump_json(), *(found.model_dump_json() for found in sound())]
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys\nlines = {lines!r}\n{body}\n")
    return [sys.executable, str(script)]


async def test_results_are_told_as_they_come_and_the_report_is_kept(tmp_path: Path) -> None:
    assert selftest.latest(tmp_path) is None
    told: list[str] = []
    worker = program(tmp_path, "assert sys.argv[1:] == ['selftest', 'demo']\nprint(*lines, sep='\\n')")
    report = await selftest.run("demo", lambda found: told.append(found.name), tmp_path, program=worker)
    assert told == [check.name for check in CHECKS]
    assert (report.outcome, report.subject, report.model) == ("passed", SUBJECT, "demo")
    assert selftest.latest(tmp_path) == report
    assert selftest.stale(report, hardware.facts()) == []
    assert [path.name for path in selftest.report_file(tmp_path).parent.iterdir()] == ["selftest.json"]


async def test_a_worker_that_dies_fails_the_check_that_it_was_in(tmp_path: Path) -> None:
    """As a GPU driver ends a process: by a signal, after two results. What is left counts as not tried."""
    worker = program(
        tmp_path, "print(*lines[:3], sep='\\n', flush=True)\nprint('no such kernel', file=sys.stderr, flush=True)\nos.abort()"
    )
    told: list[CheckResult] = []
    report = await selftest.run("demo", told.append, tmp_path, program=worker)
    assert tuple(told) == report.results
    assert [found.outcome for found in told] == ["passed", "passed", "failed", "skipped", "skipped", "skipped"]
    assert "-6" in told[2].note and "no such kernel" in told[2].note
    kept = selftest.latest(tmp_path)
    assert kept is not None and kept.outcome == "failed"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('no backend', file=sys.stderr); sys.exit(1)", "no backend"),
        (
            'print(\'\'\'{"error": "cannot be loaded", "where": "demo", "remedy": "mend it"}\'\'\'); sys.exit(2)',
            "cannot be loaded",
        ),
        ("print('hello')", "hello"),
    ],
)
async def test_a_worker_that_tests_nothing_is_an_error_and_keeps_no_report(tmp_path: Path, body: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        await selftest.run("demo", lambda found: None, tmp_path, program=program(tmp_path, body))
    assert selftest.latest(tmp_path) is None


async def test_a_model_that_is_none_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        await selftest.run(str(tmp_path), lambda found: None, tmp_path, program=["/nowhere"])


def test_a_report_is_out_of_date_when_what_decides_the_figures_has_changed(tmp_path: Path) -> None:
    """mlx, droid-tune and the device do; Textual, Python and the host's name do not."""
    report = keep(tmp_path)
    assert selftest.stale(report, replace(NOW, versions={**NOW.versions, "textual": "9.0", "python": "3.13.0"})) == []
    assert selftest.stale(report.model_copy(update={"host": "elsewhere"}), NOW) == []
    assert selftest.stale(report, replace(NOW, versions={**NOW.versions, "mlx": "0.33.0"})) == [
        "mlx was 0.32.4 and is 0.33.0 now"
    ]
    (ours,) = selftest.stale(report, replace(NOW, versions={**NOW.versions, "droid-tune": "0.2.0"}))
    assert ours.startswith("droid-tune was 0.1.0")
    assert selftest.stale(report, replace(NOW, chip="Apple M4")) == ["chip was Apple M2 Ultra and is Apple M4 now"]
    more = selftest.stale(report, replace(NOW, backend="cuda", versions={**NOW.versions, "mlx-cuda-13": "0.32.4"}))
    assert more == ["backend was metal and is cuda now", "mlx-cuda-13 was not there and is 0.32.4 now"]


def test_the_last_self_test_in_a_line(tmp_path: Path) -> None:
    assert selftest.last_line(tmp_path, NOW) == ("skipped", "self-test not run yet: droid-tune doctor --selftest")
    keep(tmp_path)
    assert selftest.last_line(tmp_path, NOW) == ("passed", "self-test passed 2026-11-22 · mlx 0.32.4")
    keep(tmp_path, results=sound("same bits twice", 3.0))
    assert selftest.last_line(tmp_path, NOW) == ("warning", "self-test passed 2026-11-22, not: same bits twice · mlx 0.32.4")
    keep(tmp_path, results=sound("gradient", None))
    outcome, line = selftest.last_line(tmp_path, NOW)
    assert outcome == "failed" and "failed 2026-11-22 (gradient)" in line and "--selftest" in line
    keep(tmp_path, versions={**NOW.versions, "mlx": "0.31.0"})
    outcome, line = selftest.last_line(tmp_path, NOW)
    assert outcome == "warning" and "mlx was 0.31.0 and is 0.32.4 now" in line


@pytest.mark.parametrize("damage", ["", "{}", '{"date": 3}', "\x00\xff"])
def test_a_damaged_report_is_said_and_does_no_harm(tmp_path: Path, damage: str) -> None:
    keep(tmp_path)
    selftest.report_file(tmp_path).write_text(damage)
    with pytest.raises(InputError, match="is damaged"):
        selftest.latest(tmp_path)
    outcome, line = selftest.last_line(tmp_path, NOW)
    assert outcome == "warning" and "is damaged" in line and "--selftest" in line


def test_what_is_drawn(tmp_path: Path) -> None:
    good, bad = sound()[0], sound("gradient", 2.0)[4]
    assert result_lines(good) == ["✓ golden values          0.1 s  x 0.5 (≤ 1)"]
    head, *rest = result_lines(bad)
    assert head == "✕ gradient               0.1 s  x 2 (≤ 1)"
    assert any(bad.meaning in line for line in rest) and any(bad.remedy in line for line in rest)
    skipped = result(CHECKS[4], skipped="bfloat16 is too coarse")
    assert result_lines(skipped) == ["– gradient               0.0 s  skipped: bfloat16 is too coarse"]
    lines = report_lines(keep(tmp_path, results=(*sound("same bits twice", 9.0)[:4], skipped)))
    assert lines[0] == "self-test passed in 4 s: 3 of 5 checks passed, 1 warning, 1 skipped"
    assert lines[1] == "demo in bfloat16 on Apple M2 Ultra (gpu), mlx 0.32.4"


def test_the_report_as_json_survives_the_round_trip(tmp_path: Path) -> None:
    report = keep(tmp_path, results=sound("gradient", None))
    tree = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert tree["outcome"] == "failed"
    assert Report.model_validate(tree) == report
    one = tree["results"][0]
    assert set(one) == {"name", "measures", "outcome", "figures", "seconds", "note", "meaning", "remedy"}
    assert one["figures"] == [{"name": "x", "value": 0.5, "limit": 1.0}]
