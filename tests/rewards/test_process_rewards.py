"""Rewards of single reasoning steps, with real children: what a function may return, and where each value ends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.combine import combine, outcomes
from engine.rewards.process import RewardError, RewardProcess, Scores, check

CHAINS = """
    from engine.rewards.steps import split_steps

    def right(line):
        left, equals, result = line.partition("=")
        if not equals:
            return None
        return float(sum(int(term) for term in left.split("+")) == int(result))

    def chain(completions, **columns):
        return [[right(step.text) for step in split_steps(text, "\\n")] for text in completions]
"""


def mine(tmp_path: Path, code: str, name: str = "f", steps: str | None = "\n") -> RewardConfig:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return RewardConfig(name=name, file=str(path), steps=steps, timeout=20.0)


def score(specs: list[RewardConfig], completions: list[str], **columns: list[Any]) -> Scores:
    with RewardProcess(specs) as process:
        return process.score(["p"] * len(completions), completions, columns)


def each(tmp_path: Path, bodies: Iterable[str], completions: list[str], steps: str | None = "\n") -> list[Scores]:
    """What functions f0, f1, ... of these bodies say, each called alone and all of them of one file."""
    names = {f"f{place}": body for place, body in enumerate(bodies)}
    code = "".join(f"def {name}(completions): {body}\n" for name, body in names.items())
    with RewardProcess([mine(tmp_path, code, name, steps) for name in names]) as process:
        return [process.score(["p"] * len(completions), completions, {}, None, [*{*names} - {name}]) for name in names]


def only(scores: Scores) -> RewardError:
    assert len(scores.errors) == 1, scores.errors
    return scores.errors[0]


# ---- values


def test_each_line_of_a_sum_is_judged(tmp_path: Path) -> None:
    """
    "1+2=3\\n3+4=8\\nso 8": the first line is right and ends at 5, the second is wrong (7) and ends at 11, the third is no
    equation: the mean is (1 + 0) / 2. "2+2=4 \\n\\n": one step, whose end leaves the blanks out. "no sum here": None of all.
    """
    completions = ["1+2=3\n3+4=8\nso 8", "2+2=4 \n\n", "no sum here"]
    specs = [mine(tmp_path, CHAINS, "chain"), RewardConfig(name="number", weight=2.0)]
    scores = score(specs, completions, answer=["7", "4", "1"])
    assert scores.errors == [] and scores.failed == [False] * 3
    assert scores.steps == [{"chain": [(5, 1.0), (11, 0.0)]}, {"chain": [(5, 1.0)]}, {"chain": []}]
    assert scores.parts == [{"chain": 0.5, "number": 0.0}, {"chain": 1.0, "number": 1.0}, {"chain": None, "number": 0.0}]
    weights = {spec.name: spec.weight for spec in specs}
    assert combine(scores.parts, scores.failed, weights) == [0.5, 3.0, 0.0]
    assert outcomes(scores.parts, scores.failed, weights, {"chain"}) == [0.0, 2.0, 0.0]


def test_ordinary_rewards_have_no_steps(tmp_path: Path) -> None:
    scores = score([mine(tmp_path, "def f(completions): return [1.0, 2.0]", steps=None)], ["a\nb", "c"])
    assert scores.steps == [{}, {}] and scores.parts == [{"f": 1.0}, {"f": 2.0}]


GOOD: dict[str, list[list[tuple[int, float]]]] = {  # value -> ends and values of each completion
    "[[1, True, -0.5], [0]]": [[(1, 1.0), (3, 1.0), (5, -0.5)], [(2, 0.0)]],
    "(((1.0, None, 3.0)), (2,))": [[(1, 1.0), (5, 3.0)], [(2, 2.0)]],
    "[None, [None]]": [[], []],
    "[[None, None, 1], None]": [[(5, 1.0)], []],
}


def test_what_may_be_returned(tmp_path: Path) -> None:
    found = each(tmp_path, [f"return {value}" for value in GOOD], ["a\nb\nc", "dd"])
    for place, (scores, ends_and_values) in enumerate(zip(found, GOOD.values(), strict=True)):
        assert scores.errors == [] and scores.failed == [False, False]
        assert [row[f"f{place}"] for row in scores.steps] == ends_and_values
        means = [sum(value for _, value in row) / len(row) if row else None for row in ends_and_values]
        assert [row[f"f{place}"] for row in scores.parts] == means


def test_an_empty_completion_has_no_steps(tmp_path: Path) -> None:
    scores = score([mine(tmp_path, "def f(completions): return [[], []]")], ["", " \n "])
    assert scores.errors == [] and scores.parts == [{"f": None}] * 2 and scores.steps == [{"f": []}] * 2


def test_async_functions_are_awaited(tmp_path: Path) -> None:
    code = """
        import asyncio
        async def one(steps):
            await asyncio.sleep(0)
            return [float(len(step)) for step in steps]
        async def f(completions, steps): return await asyncio.gather(*map(one, steps))
    """
    assert score([mine(tmp_path, code)], ["abc\nde", "f"]).steps == [{"f": [(3, 3.0), (6, 2.0)]}, {"f": [(1, 1.0)]}]


def test_ends_are_counted_in_characters_of_the_text_that_was_sent(tmp_path: Path) -> None:
    """
    Combining marks, emoji of several code points and characters beyond the basic plane. The last text holds a surrogate pair
    as two characters, which JSON makes one of: its step ends at 3 all the same, and the next at 5.
    """
    texts = ["e\u0301=1\n🎲🎲 \nx", "👨‍👩‍👧\n日本語", "\ud83d\ude00a\nb"]
    scores = score([mine(tmp_path, "def f(steps): return [[1.0] * len(s) for s in steps]")], texts)
    assert [[end for end, _ in row["f"]] for row in scores.steps] == [[4, 7, 10], [5, 9], [3, 5]]
    assert texts[0][:7].endswith("🎲🎲") and texts[1][:5] == "👨‍👩‍👧"


def test_separators_of_several_characters_and_two_process_rewards(tmp_path: Path) -> None:
    code = """
        def f(steps): return [[float(len(step)) for step in row] for row in steps]
        def g(steps): return [[float(len(row))] * len(row) for row in steps]
    """
    specs = [mine(tmp_path, code, "f", "\n\n"), mine(tmp_path, code, "g", "\n")]
    assert score(specs, ["a\nb\n\nc"]).steps == [{"f": [(3, 3.0), (6, 1.0)], "g": [(1, 3.0), (3, 3.0), (6, 3.0)]}]


# ---- the `steps` keyword


def test_step_texts_arrive_by_keyword(tmp_path: Path) -> None:
    code = """
        def f(prompts, completions, **rest):
            assert rest == {"steps": [["a b", "c"], []], "level": [1, 2]}, rest
            for row in rest["steps"]: row.clear()
            completions.clear()
            return [[1, 2], []]
        def g(prompts, completions, **rest):
            assert rest == {"level": [1, 2]}, rest
            return [0, 0]
    """
    scores = score([mine(tmp_path, code), mine(tmp_path, code, "g", None)], [" a b \n\nc", ""], level=[1, 2])
    assert scores.errors == []
    assert scores.steps == [{"f": [(4, 1.0), (8, 2.0)]}, {"f": []}]


def test_a_column_of_that_name_wins(tmp_path: Path) -> None:
    code = "def f(completions, steps): return [[float(n)] * len(c.split()) for c, n in zip(completions, steps)]"
    assert score([mine(tmp_path, code, steps=" ")], ["a b", "c"], steps=[3, 4]).parts == [{"f": 3.0}, {"f": 4.0}]


def test_check_wants_no_column_for_the_steps(tmp_path: Path) -> None:
    code = "def f(completions, steps, level): return []"
    check([mine(tmp_path, code)], columns=("answer", "level"))
    with pytest.raises(InputError, match="'f' needs the column 'level'"):
        check([mine(tmp_path, code)], columns=("answer",))
    with pytest.raises(InputError, match="'f' needs the column 'steps'") as caught:
        check([mine(tmp_path, code, steps=None)], columns=("answer", "level"))
    assert "set the reward's `steps` key" in caught.value.remedy


def test_a_built_in_reward_has_no_values_for_steps() -> None:
    with pytest.raises(InputError, match="built-in reward 'number' gives one value for a completion"):
        check([RewardConfig(name="number", steps="\n")])


# ---- what cannot be used

BAD = {  # the middle completion's value, which has two steps -> the message
    "[1.0]": "not one value per step: completion [1] has 2 steps and got 1 values",
    "[1.0, 2.0, 3.0]": "not one value per step: completion [1] has 2 steps and got 3 values",
    "[]": "not one value per step: completion [1] has 2 steps and got 0 values",
    "1.0": "float is not a list: return one value per step, float, int, bool or None: value [1]",
    "'ab'": "str is not a list: return one value per step, float, int, bool or None: value [1]",
    "{0: 1.0, 1: 1.0}": "dict is not a list: return one value per step, float, int, bool or None: value [1]",
    "(x for x in (1.0, 1.0))": "generator is not a list: return one value per step, float, int, bool or None: value [1]",
    "[1.0, float('nan')]": "nan is not a usable reward: value [1][1]",
    "[-float('inf'), 1.0]": "-inf is not a usable reward: value [1][0]",
    "[1.0, 10 ** 400]": "inf is not a usable reward: value [1][1]",
    "[1e308, 1e308]": "the sum of its steps' values is not finite: value [1]",
    "[1.0, [1.0]]": "list is not a number: a step's value is float, int, bool or None: value [1][1]",
    "[(), None]": "tuple is not a number: a step's value is float, int, bool or None: value [1][0]",
    "[{'a': [1]}, 1.0]": "dict is not a number: return float, int, bool or None: value [1][0]",
    "[1.0, '1.0']": "str is not a number: return float, int, bool or None: value [1][1]",
}


def test_a_bad_value_fails_its_completion_alone(tmp_path: Path) -> None:
    found = each(tmp_path, [f"return [[1.0], {value}, [None, 3.0]]" for value in BAD], ["a", "b\nc", "d\ne"])
    for place, (scores, message) in enumerate(zip(found, BAD.values(), strict=True)):
        error = only(scores)
        assert (error.rows, error.all_rows, error.traceback) == ((1,), False, "")
        assert error.message == message
        assert scores.failed == [False, True, False]
        name = f"f{place}"
        assert scores.parts == [{name: 1.0}, {name: None}, {name: 3.0}]
        assert scores.steps == [{name: [(1, 1.0)]}, {name: []}, {name: [(3, 3.0)]}]


def test_one_error_for_all_rows_with_the_same_fault(tmp_path: Path) -> None:
    """Else a journal would get a line for each of a step's hundreds of completions."""
    completions = ["a", "a\nb", "a\nb\nc", "a\nb\nc\nd"]
    error = only(score([mine(tmp_path, "def f(completions): return [[1.0] * 9] * 4")], completions))
    assert (error.rows, error.all_rows) == ((0, 1, 2, 3), True)
    assert error.message == (
        "not one value per step: completion [0] has 1 steps and got 9 values; "
        "completion [1] has 2 steps and got 9 values; completion [2] has 3 steps and got 9 values; ..."
    )


def test_a_list_from_a_reward_without_steps_names_the_key(tmp_path: Path) -> None:
    for scores in each(tmp_path, [f"return [1.0, {value}]" for value in ("[1.0, 2.0]", "(1.0,)")], ["a", "b\nc"], None):
        error = only(scores)
        assert error.rows == (1,) and "is not a number" in error.message and "set the reward's `steps` key" in error.message


FAILING = {  # body -> message
    "return [[1.0]]": "f0 returned 1 values for 2 completions",
    "completions.clear(); return []": "f1 returned 0 values for 2 completions",
    "return 1.0": "f2 returned float, not a list",
    "raise ValueError('no')": "ValueError: no",
    "__import__('os')._exit(3)": "its process ended (exit code 3)",
}


def test_calls_that_fail_as_a_whole(tmp_path: Path) -> None:
    for place, (scores, message) in enumerate(zip(each(tmp_path, FAILING, ["a", "b\nc"]), FAILING.values(), strict=True)):
        error = only(scores)
        assert message in error.message and error.all_rows and scores.failed == [True, True]
        assert scores.parts == [{f"f{place}": None}] * 2 and scores.steps == [{f"f{place}": []}] * 2
