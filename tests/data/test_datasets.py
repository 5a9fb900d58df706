"""The sample files: each is ready for every method, and its answers are right."""

from __future__ import annotations

import ast
import json
import operator
import re
from fractions import Fraction
from pathlib import Path

import pytest

from engine import methods, share
from engine.data.samples import Topic, write_samples
from engine.data.validate import validate

# by hand: name, format
FILES = {
    "arithmetic.jsonl": "prompt+answer",
    "wordproblems-gsm8k.jsonl": "gsm8k",
    "chat.jsonl": "messages",
    "completions.jsonl": "prompt+completion",
}
# what `droid-tune sample-data` writes: method, topic, format, rows, seed
MADE: dict[str, tuple[str, Topic, str, int, int]] = {
    "arithmetic-train.jsonl": ("grpo", "arithmetic", "prompt+answer", 512, 0),
    "arithmetic-sft.jsonl": ("sft", "arithmetic", "prompt+completion", 512, 1),
    "chains-reasoning.jsonl": ("grpo", "chains", "reasoning", 24, 0),
    "decisive-reasoning.jsonl": ("gspo", "decisive", "reasoning", 24, 0),
    "medicine-reasoning.jsonl": ("dr_grpo", "medicine", "reasoning", 24, 0),
    "science-reasoning.jsonl": ("dr_grpo", "science", "reasoning", 24, 0),
    "law-reasoning.jsonl": ("dr_grpo", "law", "reasoning", 24, 0),
    "instruction.jsonl": ("sft", "words", "instruction", 24, 0),
    "text.jsonl": ("sft", "words", "text", 24, 0),
}
BY_THE_DEMOS_RECIPE = {"arithmetic-heldout.jsonl"}  # `droid-tune build-demo`
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(expression: str) -> Fraction:
    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        assert isinstance(node, ast.BinOp)
        return Fraction(OPERATORS[type(node.op)](walk(node.left), walk(node.right)))

    return walk(ast.parse(expression, mode="eval").body)


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (share.share_root("datasets") / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_samples_are_ready(name: str, method: str) -> None:
    report = validate(share.share_root("datasets") / name, method)
    assert (report.format, report.verdict, report.duplicates) == (FILES[name], "ready", 0)
    assert 40 <= report.usable == report.rows <= 64


@pytest.mark.parametrize("name", MADE)
def test_samples_are_what_the_verb_writes_and_ready(tmp_path: Path, name: str) -> None:
    """Byte for byte, and for each kind of method that can use the format."""
    method, topic, format, rows, seed = MADE[name]
    made = write_samples(tmp_path / name, method, rows, seed, topic=topic, format=format)
    assert (share.share_root("datasets") / name).read_bytes() == made.read_bytes()
    for each in ("sft", "grpo", "dr_grpo", "gspo"):
        if format in methods.method(each).formats:
            report = validate(made, each)
            assert (report.format, report.verdict, report.usable, report.warnings) == (format, "ready", rows, ()), report


def test_every_file_is_listed_here() -> None:
    folder = share.share_root("datasets")
    assert {path.name for path in folder.iterdir()} == {*FILES, *MADE, *BY_THE_DEMOS_RECIPE}


def test_arithmetic_answers_are_right() -> None:
    for row in rows("arithmetic.jsonl"):
        assert value(row["prompt"].removeprefix("What is ").removesuffix("?")) == Fraction(row["answer"]), row


def test_every_step_of_the_word_problems_is_right() -> None:
    for row in rows("wordproblems-gsm8k.jsonl"):
        solution, _, last = row["answer"].rpartition("####")
        steps = re.findall(r"([\d+*/-]+) = (\d+)", solution)
        assert len(steps) >= 2 and all(value(left) == Fraction(right) for left, right in steps), row
        assert Fraction(steps[-1][1]) == Fraction(last.replace(",", "")), row


def test_completions_are_right() -> None:
    for row in rows("completions.jsonl"):
        task, _, text = row["prompt"].partition(": ")
        if task == "Reverse the word":
            assert row["completion"] == text[::-1]
        elif task == "Write in capitals":
            assert row["completion"] == text.upper()
        elif task == "Sort alphabetically":
            assert row["completion"] == ", ".join(sorted(text.split(", ")))
        elif match := re.fullmatch(r"How often does the letter (\w) occur in (\w+)\?", row["prompt"]):
            assert row["completion"] == str(match[2].count(match[1]))


def test_datasets_is_no_package() -> None:
    """A package of that name would shadow Hugging Face's."""
    assert not list(Path(share.share_root("datasets")).glob("*.py"))
