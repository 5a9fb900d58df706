"""The sample files: each is ready for every method, and its answers are right."""

from __future__ import annotations

import ast
import json
import operator
import re
from fractions import Fraction
from pathlib import Path

import pytest

from engine import share
from engine.data.validate import validate

FILES = {
    "arithmetic.jsonl": "prompt+answer",
    "wordproblems-gsm8k.jsonl": "gsm8k",
    "chat.jsonl": "messages",
    "completions.jsonl": "prompt+completion",
}
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
