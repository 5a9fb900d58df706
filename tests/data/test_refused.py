"""What training would refuse, the data check refuses, too: held-out files, a single row, limits, plain text without prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli import report_lines
from engine.config import model_folder
from engine.data.validate import DataReport, HeldOut, validate


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(prompt: str, answer: str = "1") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def held(report: DataReport) -> HeldOut:
    assert report.held_out is not None
    return report.held_out


@pytest.mark.parametrize(
    ("rows", "usable", "kinds"),
    [
        ([pair("x"), "{oops"], 1, ["not-json"]),
        ([pair("x", "")], 0, ["empty"]),
        ([{"question": "x", "answer": "Four."}], 0, ["no-reference"]),
        ([{"text": "all of it"}], 0, ["refused-format", "no-prompt"]),
    ],
)
def test_a_held_out_file_that_cannot_be_used(tmp_path: Path, rows: list[Any], usable: int, kinds: list[str]) -> None:
    train = write(tmp_path / "a.jsonl", pair("a"), pair("b"))
    report = validate(train, "grpo", valid=write(tmp_path / "v.jsonl", *rows))
    found = held(report)
    assert (report.verdict, report.is_settings_only, found.is_unusable, found.usable) == ("unusable", False, True, usable)
    assert [group.kind for group in found.problems] == kinds
    shown = "\n".join(report_lines.report(report))
    assert f"held-out {tmp_path / 'v.jsonl'}: rows {len(rows)}, usable {usable}; unusable" in shown and f"1 x {kinds[0]}" in shown


def test_problems_of_a_held_out_file_are_warnings(tmp_path: Path) -> None:
    """Also of a folder's own; its lines are those of that file."""
    write(tmp_path / "train.jsonl", pair("a"), pair("b"))
    write(tmp_path / "valid.jsonl", pair("x"), pair("y", ""))
    report = validate(tmp_path, "grpo")
    assert report.verdict == "ready with warnings" and report.problems == report.warnings == ()
    assert [(group.kind, group.lines) for group in held(report).problems] == [("empty", (2,))]
    assert held(report).path == str(tmp_path / "valid.jsonl") and (held(report).rows, held(report).usable) == (2, 1)
    assert json.loads(json.dumps(report.as_dict()))["held_out"]["problems"][0]["lines"] == [2]
    write(tmp_path / "valid.jsonl", pair("x"))
    assert validate(tmp_path, "grpo").verdict == "ready"


def test_one_row_leaves_nothing_to_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair("a"))
    report = validate(path, "grpo")
    assert (report.verdict, report.is_settings_only) == ("unusable", False)
    assert [(group.kind, group.lines) for group in report.problems] == [("too-few", ())]
    assert "one row leaves nothing to hold out (the file as a whole)" in "\n".join(report_lines.report(report))
    assert validate(path, "grpo", valid=write(tmp_path / "v.jsonl", pair("b"))).verdict == "ready"
    assert validate(path, "grpo", is_held_out=True).verdict == "ready"


def test_every_row_is_over_one_limit_or_the_other(tmp_path: Path) -> None:
    """The embedded model's tokens are bytes, with 3 about a prompt and one behind a completion: rows of (4, 41) and (43, 2).
    Each limit lets one of them through, both together none."""
    long = "x" * 40
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": long}, {"prompt": long, "completion": "b"})
    settings: dict[str, Any] = {"tokenizer": model_folder("demo"), "max_prompt_tokens": 10}
    report = validate(path, "sft", max_completion_tokens=10, **settings)
    assert report.prompt_tokens is not None and report.completion_tokens is not None
    assert (report.prompt_tokens.over_limit, report.completion_tokens.over_limit) == (1, 1)
    assert (report.verdict, report.is_settings_only, report.problems[0].kind) == ("unusable", True, "over-limits")
    passing = validate(
        path, "sft", max_completion_tokens=41, valid=write(tmp_path / "v.jsonl", {"prompt": "v", "completion": "y"}), **settings
    )
    assert passing.verdict == "ready with warnings"
    split = validate(path, "sft", max_completion_tokens=41, **settings)
    assert (split.verdict, split.is_settings_only) == ("unusable", True), (
        "of two rows a run holds back one: the other is too long"
    )
    assert [(group.kind, group.count) for group in split.problems] == [("over-limits", 1)]
    train = write(tmp_path / "b.jsonl", *({"prompt": text, "completion": "y"} for text in "ab"))
    of_valid = validate(train, "sft", max_completion_tokens=10, valid=path, **settings)
    assert (of_valid.verdict, of_valid.problems) == ("unusable", ())
    assert [(group.kind, group.count) for group in held(of_valid).problems] == [("over-limits", 2)]
    assert "none of its 2 rows is within the token limits" in held(of_valid).problems[0].reason


def test_plain_text_has_no_last_reply(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    assert validate(path, "sft").verdict == "ready"
    assert (validate(path, "sft", targets="last").verdict, validate(path, "sft", targets="last").problems[0].kind) == (
        "unusable",
        "no-prompt",
    )


def test_words(tmp_path: Path) -> None:
    """Numbers agree; answers that are all different have no balance; nobody is to blame for a lopsided file."""
    rows = [pair("a", "1"), pair("b", "2"), pair("c", "")]
    shown = "\n".join(report_lines.report(validate(write(tmp_path / "a.jsonl", *rows), "grpo")))
    assert "(line 3 field answer)" in shown and "answers " not in shown
    shown = "\n".join(report_lines.report(validate(write(tmp_path / "b.jsonl", *rows[:2], pair("a", "1")), "grpo")))
    assert "repeats  1 row repeats an earlier one: line 3" in shown and "answers  '1' 67%, '2' 33%" in shown
    report = validate(write(tmp_path / "c.jsonl", *(pair(f"q{n}", "yes") for n in range(21))), "grpo")
    assert [(group.kind, group.count, group.lines) for group in report.warnings] == [("one-sided", 21, ())]
