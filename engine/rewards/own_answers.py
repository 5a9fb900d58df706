"""What rewards owe a row's own answer, laid out as engine.data.scoring.reference_completion writes it.

Of the built-in rewards
* those that compare with the row (answer, exact, number, math, multiple_choice, regex, json_schema, r1_accuracy_reward_func), the
  two that want an integer, and those of the layout (format, think_answer_strict, think_answer_soft, tag_count,
  r1_soft_format_reward_func) must give it full marks;
* step_coverage and domain must do so for rows with reasoning steps: a bare answer takes no steps and says no terms;
* soft_overlong must give 0: the row's own chain fits into the limit; it needs a tokenizer;
* code_tests and llm_judge are left out, and the report says why;
* of the rest (repetition, length_target, language, spaces and line breaks) it is not known what they should give.
What a user's own function should give is not known either. Those are run, and their failures are told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import RewardConfig
from engine.data.scoring import OwnAnswer
from engine.rewards.answers import extract_answer, numbers
from engine.rewards.registry import BUILT_IN, LOADED, full_marks, needed_columns

NO_TOKENS = "left out: it needs token counts; give --model"
_MOST = 0.9  # of the rows a kind of answer must have, to be taken for the data's
_LETTER = re.compile(r"\W*[A-Z]\W*")
_OF_FORM = frozenset(("repetition", "length_target", "language", "r1_strict_format_reward_func", "r1_count_xml"))
_OF_STEPS = frozenset(("step_coverage", "domain"))
_REFERENCES = frozenset(("answer", "pattern", "schema"))  # columns that say what is right
_LEFT_OUT = {
    "code_tests": "it runs programs, and an answer is none; `droid-tune rewards test CONFIG --completions FILE` tries it",
    "llm_judge": "it asks a server; `droid-tune rewards test CONFIG --completions FILE` tries it",
}


@dataclass(frozen=True, slots=True)
class Dues:
    """What one reward owes."""

    full: float | None  # marks that the row's own answer must get; None: not known
    needs_steps: bool = False  # of rows with reasoning steps alone
    columns: tuple[str, ...] | None = None  # it cannot do without them; None: its file says which
    left_out: str = ""  # why it is not called


def dues(spec: RewardConfig) -> Dues:
    """The reward's own."""
    name = spec.name
    if spec.file is not None or name not in (*BUILT_IN, *LOADED):
        return Dues(None)
    if name in _LEFT_OUT:
        return Dues(full_marks(name), left_out=f"left out: {_LEFT_OUT[name]}")
    columns = needed_columns(BUILT_IN[name])  # an option may stand in for the column
    return Dues(None if name in _OF_FORM else full_marks(name), name in _OF_STEPS, columns)


def not_to_be_called(spec: RewardConfig, rows: Sequence[OwnAnswer], has_tokens: bool) -> str:
    """Why the reward is left out for these rows; empty where it is not."""
    if spec.file is not None:
        return ""
    if spec.name == "soft_overlong" and not has_tokens:
        return NO_TOKENS
    has_tags = spec.options.get("tags") is not None or any(row.example.columns.get("tags") is not None for row in rows)
    if spec.name == "tag_count" and has_tags:
        return "left out: its tags are others than those of the row's own answer, as it is laid out here"
    return dues(spec).left_out


def judges_answers(columns: Sequence[str]) -> bool:
    """Whether a reward that needs these columns compares with the row's reference."""
    return not _REFERENCES.isdisjoint(columns)


def suited(rows: Sequence[OwnAnswer]) -> tuple[str, str]:
    """The built-in reward that suits the rows' answers, and why: `number` where nine of ten hold one number, `multiple_choice`
    where as many are a letter or have choices, else `answer`."""
    answers = [extract_answer(row.example.answer or "") for row in rows]
    found = {
        "number": sum(len(numbers(text)) == 1 for text in answers),
        "multiple_choice": sum(
            _LETTER.fullmatch(text) is not None or row.example.columns.get("choices") is not None
            for text, row in zip(answers, rows, strict=True)
        ),
    }
    hold = {"number": "hold one number", "multiple_choice": "are a letter, or have choices"}
    for name, count in found.items():
        if count >= _MOST * len(rows):
            return name, f"chosen because {count:,} of {len(rows):,} answers {hold[name]}; --reward names another"
    return "answer", "chosen because the answers are texts; --reward names another"
