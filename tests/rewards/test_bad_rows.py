"""One bad row, number or message among good ones, in the real reward process: what it says and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.process import RewardProcess, check

MINE = """
class Scalar:  # as numpy's and others' are: no numbers.Real, but with .item()
    def __init__(self, value): self.value = value
    def item(self):
        if isinstance(self.value, list): raise ValueError("several")
        return self.value
def scalars(completions): return [Scalar(0.5), Scalar(2), Scalar(float("nan")), Scalar([1, 2])]
def numpys(completions):
    import numpy as np
    return [np.float32(0.5), np.float64(0.25), np.int64(3), np.float32("nan")]
def fractions(completions):
    from fractions import Fraction
    return [Fraction(1, 4), True, False, None]
def messages(completions): return [len(completion[0]["content"]) for completion in completions]
"""


def test_bad_rows_and_odd_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    own = [RewardConfig(name=name, file=str(path)) for name in ("scalars", "numpys", "fractions", "messages")]
    with RewardProcess([RewardConfig(name="regex"), RewardConfig(name="length_target"), *own]) as process:
        columns = {"pattern": ["a", "(", "(", "b"], "target_length": [1, 1, 0, 2]}
        scores = process.score(["p"] * 4, ["a"] * 4, columns)
    values = {name: [part[name] for part in scores.parts] for name in scores.parts[0]}
    errors = {error.name: error for error in scores.errors}
    assert values["regex"] == [1, None, None, 0] and values["length_target"] == [1, 1, None, 0.5]
    assert errors["regex"].rows == (1, 2) and errors["length_target"].rows == (2,)
    assert errors["regex"].row_fault and not errors["regex"].all_rows and errors["regex"].traceback == ""
    assert errors["regex"].message.count("is not a regular expression") == 1  # the same for both rows
    assert values["scalars"] == [0.5, 2, None, None] and values["numpys"] == [0.5, 0.25, 3, None]
    assert values["fractions"] == [0.25, 1, 0, None] and "fractions" not in errors
    said = {error.message for error in scores.errors if error.name == "scalars"}
    assert said == {
        "nan is not a usable reward",
        "Scalar is not a number: return float, int, bool or None",
    }
    assert "string indices must be integers" in errors["messages"].message
    assert "completions are strings here, not lists of messages" in errors["messages"].message
    assert not errors["messages"].row_fault


def test_a_missing_column_tells_what_every_reward_gets(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(completions, level): return [0.0]", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        check([RewardConfig(name="f", file=str(path))], columns=("answer",))
    assert caught.value.remedy.endswith("the data has: answer; besides, every reward gets `prompts` and `completions`")
