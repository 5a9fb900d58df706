"""Every built-in reward against completions labelled by hand, attempts to cheat it among them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engine.rewards.registry import BUILT_IN, LOADED, describe, needed_columns, resolve
from tests.rewards.labelled import Label, answers, forms, peers, reasoning

T = TypeVar("T")

LABELS: dict[str, list[Label]] = {**answers.LABELS, **forms.LABELS, **reasoning.LABELS, **peers.LABELS}
LIBRARIES = {"math": "math_verify", "json_schema": "jsonschema"}
MISSING = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]
NAMES = [pytest.param(name, marks=pytest.mark.skipif(name in MISSING, reason=f"needs {LIBRARIES.get(name)}")) for name in LABELS]


def columns_of(name: str, label: Label) -> dict[str, list[Any]]:
    defaults = {"answer": "42"} if "answer" in needed_columns(BUILT_IN[name]) else {}
    return {column: [value] for column, value in {**defaults, **label.columns}.items()}


@pytest.mark.parametrize("name", NAMES)
def test_labelled_completions(name: str) -> None:
    """Each by itself; all that are wrong are told."""
    wrong = []
    for label in LABELS[name]:
        (score,) = resolve(name, None, label.options)(
            prompts=[label.prompt], completions=[label.completion], **columns_of(name, label)
        )
        if score != (None if label.score is None else pytest.approx(label.score, abs=1e-12)):
            wrong.append((score, label))
    assert wrong == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_there_are_enough_labels(name: str) -> None:
    """Twelve for each reward, four of them attempts to cheat; and a score above the worst, below the best, or both ends."""
    labels = LABELS[name]
    assert len(labels) >= 12 and sum(bool(label.cheat) for label in labels) >= 4
    assert len({(label.completion, label.prompt, str(label.columns), str(label.options)) for label in labels}) == len(labels)
    full = next(info.full_marks for info in describe() if info.name == name)
    scores = [label.score for label in labels if label.score is not None]
    assert max(scores) == full and min(scores) < full


def test_there_are_enough_labels_for_the_rewards_with_tests_of_their_own() -> None:
    """They count by the tables of their tests. code_tests: dictionaries of name -> (completion, tests, score), the 0 of a program
    that is no plain mistake being a cheat; of 0, 1 and None there are more than 12. llm_judge scores nothing itself: pairs of a
    judge's answer and the score that is read in it, None where an answer would pass for a score and must not."""
    assert set(LOADED) == {"code_tests", "llm_judge"}
    programs = [
        value.elts[2].value
        for table in _literals("test_code.py", ast.Dict)
        for value in table.values
        if isinstance(value, ast.Tuple) and len(value.elts) == 3 and isinstance(value.elts[2], ast.Constant)
    ]
    assert len(programs) >= 12 and programs.count(0.0) >= 4 and programs.count(1.0) >= 4 and None in programs
    answers = [
        pair.elts[1].value
        for table in _literals("test_judge.py", ast.List)
        for pair in table.elts
        if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 and isinstance(pair.elts[1], ast.Constant)
    ]
    assert sum(isinstance(score, float) for score in answers) >= 4 and answers.count(None) >= 8


def _literals(file: str, kind: type[T]) -> list[T]:
    tree = ast.parse(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


@pytest.mark.parametrize("name", sorted(set(LABELS) - set(MISSING)))
def test_a_batch_is_scored_as_its_rows(name: str) -> None:
    """A completion's score depends on its own row alone."""
    (*_, options) = (label.options for label in LABELS[name])
    labels = [label for label in LABELS[name] if label.options == options]
    rows = [columns_of(name, label) for label in labels]
    names = {column for row in rows for column in row}
    columns = {column: [row.get(column, [None])[0] for row in rows] for column in names}
    prompts, completions = [label.prompt for label in labels], [label.completion for label in labels]
    scores = resolve(name, None, options)(prompts=prompts, completions=completions, **columns)
    assert scores == [None if label.score is None else pytest.approx(label.score, abs=1e-12) for label in labels]


def test_the_readme_names_every_built_in_reward() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*BUILT_IN, *LOADED) if f"`{name}`" not in text] == []
