"""Generated sample data: every answer is right, every row is different, the same seed gives the same rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from engine import methods, share
from engine.api import Engine
from engine.data import arithmetic
from engine.data.samples import MAX_ROWS, TOPICS, Topic, sample_rows, write_samples
from engine.data.validate import validate
from engine.errors import InputError
from engine.rewards.answers import last_number, same_text
from engine.rewards.format import has_format


def value(expression: str) -> Fraction:
    """A chain of + and - from left to right, or one product or quotient."""
    if "*" in expression or "/" in expression:
        left, sign, right = re.split(r"([*/])", expression)
        return Fraction(left) * Fraction(right) if sign == "*" else Fraction(left) / Fraction(right)
    return sum((Fraction(term) for term in re.findall(r"[+-]?\d+", expression)), start=Fraction(0))


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("method", methods.METHODS)
def test_rows_are_distinct_seeded_and_ready_for_their_method(tmp_path: Path, method: str, topic: Topic) -> None:
    rows = sample_rows(method, 300, 7, topic)
    assert len({row["prompt"] for row in rows}) == 300
    assert sample_rows(method, 300, 7, topic) == rows != sample_rows(method, 300, 8, topic)
    assert sample_rows(method, 20, 7, topic) == rows[:20]
    report = validate(write_samples(tmp_path / "rows.jsonl", method, 300, 7, topic=topic), method)
    assert (report.verdict, report.usable, report.duplicates) == ("ready", 300, 0)
    assert report.format == ("prompt+completion" if method == "sft" else "prompt+answer")


def test_arithmetic_answers_are_right_and_no_row_is_held_out_or_was_imitated() -> None:
    """The embedded model was made from problems of the split `sft` and is judged on `heldout`."""
    held_out = {json.loads(line)["prompt"] for line in (share.share_root("datasets") / "arithmetic-heldout.jsonl").open()}
    rows = sample_rows("grpo", 500, 3)
    for row in rows:
        expression = row["prompt"].removeprefix("What is ").removesuffix("?")
        assert value(expression) == Fraction(row["answer"]), row
        terms = tuple(int(term) for term in re.findall(r"[+-]?\d+", expression))
        assert arithmetic.Problem(terms).split == "train"
    assert not held_out & {row["prompt"] for row in rows}


def test_every_step_of_a_word_problem_is_right_and_ends_in_its_answer() -> None:
    for row, reference in zip(sample_rows("sft", 1000, 1, "words"), sample_rows("grpo", 1000, 1, "words"), strict=True):
        assert row["prompt"] == reference["prompt"]
        steps = re.findall(r"([\d+*/-]+)=(\d+)", row["completion"])
        assert len(steps) >= 2 and all(value(left) == Fraction(right) for left, right in steps), row
        assert steps[-1][1] == reference["answer"] and int(reference["answer"]) > 0
        numbers = {int(number) for number in re.findall(r"\d+", row["prompt"])}
        used = {int(number) for left, _ in steps for number in re.findall(r"\d+", left)}
        assert used <= numbers | {int(right) for _, right in steps}, "a step uses a number that nobody was told"


@pytest.mark.parametrize("topic", TOPICS)
def test_worked_completions_earn_the_rewards_that_their_answers_define(topic: Topic) -> None:
    for row, reference in zip(sample_rows("sft", 50, 1, topic), sample_rows("gspo", 50, 1, topic), strict=True):
        assert has_format(row["completion"])
        if row["prompt"] == reference["prompt"]:
            assert same_text(row["completion"], reference["answer"])
        assert last_number(reference["answer"]) == Fraction(reference["answer"])


@pytest.mark.parametrize(
    ("rows", "topic", "method"), [(0, "words", "grpo"), (MAX_ROWS + 1, "words", "sft"), (5, "poems", "grpo")]
)
def test_what_cannot_be_made_is_refused(rows: int, topic: Topic, method: str) -> None:
    with pytest.raises(InputError):
        sample_rows(method, rows, 0, topic)
    with pytest.raises(InputError, match="unknown method"):
        sample_rows("poetry", 5, 0)


async def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "made" / "here.jsonl"
    engine = Engine(tmp_path)
    assert await engine.sample_data("grpo", out, 5, 0) == out
    written = out.read_text()
    with pytest.raises(InputError, match="is there already"):
        await engine.sample_data("grpo", out, 5, 1)
    assert out.read_text() == written
    await engine.sample_data("grpo", out, 5, 1, overwrite=True)
    assert out.read_text() != written and len(out.read_text().splitlines()) == 5
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["rows.json", "file/rows.jsonl", "folder.jsonl"])
def test_a_place_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError):
        write_samples(tmp_path / name, "grpo", 3, 0, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_verb(tmp_path: Path) -> None:
    def droid_tune(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "tui", "sample-data", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    made = droid_tune("rows.jsonl", "--method", "sft", "--rows", "12", "--seed", "4", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"path": "rows.jsonl", "method": "sft", "rows": 12, "seed": 4, "topic": "arithmetic"}
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").open()] == sample_rows("sft", 12, 4)
    again = droid_tune("rows.jsonl")
    assert again.returncode == 2 and "is there already" in again.stderr and "--force" in again.stderr
    assert droid_tune("rows.jsonl", "--topic", "words", "--force").returncode == 0
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").open()] == sample_rows("grpo", 300, 0, "words")
