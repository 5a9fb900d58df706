"""Every built-in reward against completions labelled by hand, attempts to cheat it among them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engine.rewards.registry import BUILT_IN, LOADED, describe, needed_columns
from tests.rewards.labelled import Label, answers, forms, peers, reasoning

LABELS: dict[str, list[Label]] = {**answers.LABELS, **forms.LABELS, **reasoning.LABELS, **peers.LABELS}
LIBRARIES = {"math": "math_verify", "json_schema": "jsonschema"}
MISSING = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]
CASES = [
    pytest.param(
        name, label, id=f"{name}-{place}", marks=[pytest.mark.skipif(name in MISSING, reason=f"needs {LIBRARIES.get(name)}")]
    )
    for name, labels in LABELS.items()
    for place, label in enumerate(labels)
]


def columns_of(name: str, label: Label) -> dict[str, list[Any]]:
    defaults = {"answer": "42"} if "answer" in needed_columns(BUILT_IN[name]) else {}
    return {column: [value] for column, value in {**defaults, **label.columns}.items()}


@pytest.mark.parametrize(("name", "label"), CASES)
def test_labelled_completion(name: str, label: Label) -> None:
    (score,) = BUILT_IN[name](prompts=[label.prompt], completions=[label.completion], **columns_of(name, label))
    assert score == (None if label.score is None else pytest.approx(label.score, abs=1e-12)), label.cheat


@pytest.mark.parametrize("name", BUILT_IN)
def test_there_are_enough_labels(name: str) -> None:
    """Twelve for each reward, four of them attempts to cheat; and a score above the worst, below the best, or both ends."""
    labels = LABELS[name]
    assert len(labels) >= 12 and sum(bool(label.cheat) for label in labels) >= 4
    assert len({(label.completion, label.prompt, str(label.columns)) for label in labels}) == len(labels)
    full = next(info.full_marks for info in describe() if info.name == name)
    scores = [label.score for label in labels if label.score is not None]
    assert max(scores) == full and min(scores) < full


@pytest.mark.parametrize("name", sorted(set(LABELS) - set(MISSING)))
def test_a_batch_is_scored_as_its_rows(name: str) -> None:
    """A completion's score depends on its own row alone."""
    labels = LABELS[name]
    rows = [columns_of(name, label) for label in labels]
    names = {column for row in rows for column in row}
    columns = {column: [row.get(column, [None])[0] for row in rows] for column in names}
    prompts, completions = [label.prompt for label in labels], [label.completion for label in labels]
    scores = BUILT_IN[name](prompts=prompts, completions=completions, **columns)
    assert scores == [None if label.score is None else pytest.approx(label.score, abs=1e-12) for label in labels]


def test_the_readme_names_every_built_in_reward() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*BUILT_IN, *LOADED) if f"`{name}`" not in text] == []
