"""Reasoning chains and instructions: what is imitated, what rewards compare with, what the system text says."""

from __future__ import annotations

from typing import Any

import pytest

from engine.data.chains import final_answer
from engine.data.formats import Row, to_example
from engine.data.values import Problem
from engine.rewards.answers import same_text
from engine.rewards.chains import step_weights
from engine.rewards.format import has_format
from engine.types import Example, Message

CHAIN: dict[str, Any] = {"problem": "7 boxes of 4?", "reasoning_steps": ["4*7", " = 28 "], "solution": "28"}


def example(fields: dict[str, Any], format: str, kind: Any, system: str | None = None) -> Example:
    found = to_example(Row(1, fields), format, kind, system)
    assert isinstance(found, Example), found
    return found


def test_a_chain_is_imitated_in_the_layout_that_is_rewarded() -> None:
    found = example(CHAIN, "reasoning", "sft")
    assert found.messages == (Message("user", "7 boxes of 4?"),)
    assert found.completion == "<think>\n4*7\n= 28\n</think>\n<answer>28</answer>"
    assert has_format(found.completion) and same_text(found.completion, found.answer or "")


def test_a_solution_that_says_more_ends_the_thinking() -> None:
    found = example(CHAIN | {"solution": "That makes 28.\n#### 28"}, "reasoning", "sft")
    assert found.completion == "<think>\n4*7\n= 28\nThat makes 28.\n#### 28\n</think>\n<answer>28</answer>"
    assert has_format(found.completion) and found.answer == "28"
    given = example(CHAIN | {"solution": "28 boxes", "answer": 28}, "reasoning", "sft")
    assert given.completion is not None and given.completion.endswith("28 boxes\n</think>\n<answer>28</answer>")
    tagged = example(CHAIN | {"solution": "<answer> 28 </answer>"}, "reasoning", "sft")
    assert tagged.completion == found.completion.replace("That makes 28.\n#### 28\n", "")


def test_rewards_get_the_answer_and_the_columns() -> None:
    fields = CHAIN | {"reasoning_steps": "4*7\n\n= 28", "sparse_indicators": [0, 1], "efficiency_markers": 40, "type": "box"}
    found = example(fields, "reasoning", "rl")
    assert (found.completion, found.answer) == (None, "28")
    assert found.columns["reasoning_steps"] == ["4*7", "= 28"], "a list, however it was written"
    assert (found.columns["sparse_indicators"], found.columns["efficiency_markers"]) == ([0, 1], 40)
    assert (found.columns["answer"], found.columns["types"]) == ("28", "box")


@pytest.mark.parametrize("marks", [[0, 1], [True, False], [0.5, 0], ["= 28"], "4*7", None])
def test_marks_are_read_as_the_reward_reads_them(marks: Any) -> None:
    found = example(CHAIN | {"sparse_indicators": marks}, "reasoning", "rl")
    assert len(step_weights(found.columns["reasoning_steps"], found.columns["sparse_indicators"])) == 2


@pytest.mark.parametrize(
    ("marks", "kind", "field", "reason"),
    [
        ([1], "wrong-length", "sparse_indicators", "1 marks for 2 steps"),
        ([], "wrong-length", "sparse_indicators", "0 marks for 2 steps"),
        ([0, 1.5], "wrong-type", "sparse_indicators[1]", "1.5 is no weight"),
        (["= 28", 1], "wrong-type", "sparse_indicators[0]", "'= 28' is no weight"),
        ([float("nan"), 0], "wrong-type", "sparse_indicators[0]", "nan is no weight"),
        ({"0": 1}, "wrong-type", "sparse_indicators", "an object"),
        (0.5, "wrong-type", "sparse_indicators", "is 0.5"),
        (["29", " "], "marks-nothing", "sparse_indicators", "no step contains '29 or  '"),
    ],
)
def test_marks_that_fit_no_step_are_refused_by_data_and_reward_alike(marks: Any, kind: str, field: str, reason: str) -> None:
    problem = to_example(Row(1, CHAIN | {"sparse_indicators": marks}), "reasoning", "sft", None)
    assert isinstance(problem, Problem) and (problem.kind, problem.field) == (kind, field)
    assert reason in problem.reason and "from 0 to 1" in problem.remedy
    with pytest.raises(ValueError, match="does not fit 2 steps") as refused:
        step_weights(["4*7", "= 28"], marks)
    assert problem.reason in str(refused.value)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("28", "28"),
        (" 28. ", "28"),
        ("7*4 = 28\n#### 28", "28"),
        ("#### 1\nno, #### 2 m", "2 m"),
        ("####", "####"),
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1", r"\boxed{1"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("We add.\nThe answer is 28.", "28"),
        ("Answer: 28", "28"),
        ("not the answer: 3, but the answer is: 4", "4"),
        ("The answer is 3.\nOr is it?", "The answer is 3.\nOr is it?"),
        ("The answer depends on x", "The answer depends on x"),
        ("Give 500 mg every 8 hours.", "Give 500 mg every 8 hours"),
        (".", "."),
    ],
)
def test_final_answer(solution: str, answer: str) -> None:
    assert final_answer(solution) == answer


def test_the_domain_makes_the_system_text() -> None:
    fields = CHAIN | {"domain": "medicine", "expertise_level": "nurse", "domain_context": {"units": ["mg", "ml"]}}
    text = "You answer questions of this field: medicine.\nAnswer at this level: nurse.\nunits: mg, ml"
    assert example(fields, "reasoning", "rl").messages[0] == Message("system", text)
    assert example(fields, "reasoning", "rl", "S").messages[0] == Message("system", f"S\n\n{text}")
    assert example(fields | {"system": "own"}, "reasoning", "sft", "S").messages[0].content == f"own\n\n{text}"
    assert example(CHAIN | {"domain_context": "Mind the units."}, "reasoning", "rl").messages[0].content == "Mind the units."
    asked = {"required_terms": ["clearance"], "elements": "a dose", "source": "BNF"}
    assert example(CHAIN | {"domain_context": asked}, "reasoning", "rl").messages[0].content == "source: BNF"
    assert len(example(CHAIN | {"domain_context": ["clearance"]}, "reasoning", "rl").messages) == 1
    other = example({"prompt": "a", "answer": "1", "domain": "law"}, "prompt+answer", "rl")
    assert other.messages == (Message("user", "a"),), "a column called domain is no system text elsewhere"


def test_instructions() -> None:
    fields = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    found = example(fields, "instruction", "sft")
    assert (found.messages, found.completion, found.answer) == ((Message("user", "Add.\n\n2 and 2"),), "4", None)
    assert example(fields, "instruction", "rl").answer == "4"
    bare = example({"instruction": "Hi.", "input": "", "response": "Ho.", "output": "no"}, "instruction", "sft")
    assert (bare.messages, bare.completion) == ((Message("user", "Hi."),), "Ho.")
