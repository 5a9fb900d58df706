"""The rewards of a data check, in the real reward process: what they give each row's own answer, before anything is sampled.

A row's own answer is laid out as engine.data.scoring.reference_completion writes it. Of the built-in rewards
* those that compare with the row (answer, exact, number, math, multiple_choice, regex, json_schema, r1_accuracy_reward_func), the
  two that want an integer, and those of the layout (format, think_answer_strict, think_answer_soft, tag_count,
  r1_soft_format_reward_func) must give it full marks;
* step_coverage and domain must do so for rows with reasoning steps: a bare answer takes no steps and says no terms;
* soft_overlong must give 0: the row's own chain fits into the limit; it needs a tokenizer;
* code_tests and llm_judge are left out, and the report says why;
* of the rest (repetition, length_target, language, spaces and line breaks) it is not known what they should give.
What a user's own function should give is not known either. Those are run, and only their failures are told. Those that are left
out are loaded all the same: an option that cannot be, or a column that is not there, is a failure for every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from engine.config import RewardConfig
from engine.data.scoring import Failure, Marks, OwnAnswer, Scorer
from engine.errors import InputError
from engine.rewards.answers import extract_answer, numbers
from engine.rewards.combine import columns_of
from engine.rewards.process import RewardError, RewardProcess, Scores, without_column
from engine.rewards.registry import BUILT_IN, LOADED, full_marks, needed_columns

Encode = Callable[[str], list[int]]
PATIENCE_SECONDS = 30.0
_AT_ONCE = 32  # rows of a call, about as many completions as a run's step has: its time limit was meant for those
_NARROWED = 3
_MOST = 0.9  # of the rows a kind of answer must have, to be taken for the data's
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LETTER = re.compile(r"\W*[A-Z]\W*")
_OF_FORM = frozenset(("repetition", "length_target", "language", "r1_strict_format_reward_func", "r1_count_xml"))
_NO_TOKENS = "left out: it needs token counts; give --model"
_WITHOUT_TOKENS = "here is no tokenizer"  # how the reward process ends its refusal to call one that needs them
_LEFT_OUT = {
    "code_tests": "it runs programs, and an answer is none; `droid-tune rewards test CONFIG --completions FILE` tries it",
    "llm_judge": "it asks a server; `droid-tune rewards test CONFIG --completions FILE` tries it",
}
_OF_STEPS = frozenset(("step_coverage", "domain"))
_REFERENCES = frozenset(("answer", "pattern", "schema"))  # columns that say what is right


@dataclass(slots=True)
class _Reward:
    """One reward in the dry run. Once there is a `note` it is not called any more."""

    spec: RewardConfig
    full: float | None
    judges_answers: bool
    note: str = ""  # why it is left out or given up
    failure: InputError | None = None  # why it cannot be loaded
    chosen: str = ""
    seconds: float = 0.0
    narrowed: int = 0  # calls whose rows were tried one by one


@dataclass(slots=True)
class _Lot:
    """What one reward says of one lot of rows."""

    values: list[float | None] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)  # message: places
    seconds: float = 0.0

    def fail(self, message: str, places: Iterable[int]) -> None:
        self.failures.setdefault(message, []).extend(places)

    def end(self, reward: _Reward, error: InputError, start: int, count: int) -> None:
        """The reward could not be called for `count` rows from `start` on, and will not be any more."""
        self.fail(error.what, range(start, start + count))
        self.values += [None] * count
        reward.note = "given up: the reward process could not be started again"


@contextmanager
def answer_scorer(
    rewards: Sequence[RewardConfig] | Literal["auto"],
    *,
    encode: Encode | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[Scorer]:
    """A scorer for `validate`, whose process ends with the context. "auto" takes the one built-in reward that suits the rows.

    `encode` gives the token ids of a completion. A reward that has used `patience_seconds` is given up, one that hangs or
    crashes at once; a failure of any kind is told in the marks and never raised.
    """
    trial = _Trial(rewards, encode, patience_seconds)
    try:
        yield trial
    finally:
        trial.close()


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


class _Trial:
    def __init__(self, rewards: Sequence[RewardConfig] | Literal["auto"], encode: Encode | None, patience_seconds: float) -> None:
        self._asked = rewards
        self._encode = encode
        self._patience = patience_seconds
        self._rewards: list[_Reward] | None = None
        self._process: RewardProcess | None = None
        self._columns: set[str] = set()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def __call__(self, rows: Sequence[OwnAnswer], /) -> Sequence[Marks]:
        for row in rows:
            self._columns.update(row.example.columns)
        if self._rewards is None:
            self._rewards = self._begin(rows)
        lots = {reward.spec.name: _Lot() for reward in self._rewards}
        for start in range(0, len(rows), _AT_ONCE):
            if all(reward.note for reward in self._rewards):
                break
            self._call(rows[start : start + _AT_ONCE], start, lots)
        return [self._marks(reward, lots[reward.spec.name], rows) for reward in self._rewards]

    def _begin(self, rows: Sequence[OwnAnswer]) -> list[_Reward]:
        """Which rewards are tried, with a process for those that are called."""
        if self._asked != "auto":
            made = [_made(spec) for spec in self._asked]
        elif any(row.example.answer is not None for row in rows):
            name, why = suited(rows)
            made = [replace(_made(RewardConfig(name=name)), chosen=why)]
        else:
            made = []
        for reward in made:
            reward.note = reward.note or self._without_tokens(reward.spec) or _own_tags(reward.spec, rows)
        self._process = _started(made)
        if self._process is not None:
            for reward in made:
                missing = [name for name in self._process.columns.get(reward.spec.name, ()) if name not in self._columns]
                if reward.note and reward.failure is None and missing:
                    reward.failure = without_column(reward.spec.name, missing[0], self._columns)
        return made

    def _without_tokens(self, spec: RewardConfig) -> str:
        needs_ids = spec.name == "soft_overlong" and spec.file is None
        return _NO_TOKENS if needs_ids and self._encode is None else ""

    def _call(self, rows: Sequence[OwnAnswer], start: int, lots: dict[str, _Lot]) -> None:
        """One call of every reward that is still in the running."""
        rewards = [reward for reward in self._rewards or [] if not reward.note]
        scores = self._scores(rows, rewards)
        for reward in rewards:
            lot = lots[reward.spec.name]
            if isinstance(scores, Scores):
                self._enter(reward, scores, rows, start, lot)
            else:
                lot.end(reward, scores, start, len(rows))

    def _scores(self, rows: Sequence[OwnAnswer], rewards: Sequence[_Reward]) -> Scores | InputError:
        """What these rewards say; an error where the process was ended by one, and a file could not be imported a second time."""
        process = self._process
        assert process is not None
        ids = None
        if self._encode is not None and process.token_ids:
            ids = [self._encode(row.completion) for row in rows]
        wanted = {reward.spec.name for reward in rewards}
        others = [reward.spec.name for reward in self._rewards or [] if reward.spec.name not in wanted]
        prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
        try:
            return process.score(prompts, completions, columns_of([row.example for row in rows], self._columns), ids, others)
        except InputError as error:
            return error

    def _enter(self, reward: _Reward, scores: Scores, rows: Sequence[OwnAnswer], start: int, lot: _Lot) -> None:
        """What the call says of the rows, the first of which is at `start`. Where the function raised, each row is tried alone,
        to know which it was; of a function that always raises, those of the first few calls. One that raises for none of
        them alone cannot be called with several, as a run does: it is given up."""
        name = reward.spec.name
        lot.seconds += scores.seconds[name]
        reward.seconds += scores.seconds[name]
        errors = [error for error in scores.errors if error.name == name]
        raised = [error for error in errors if error.all_rows and error.traceback]
        if raised and self._encode is None and raised[0].message.endswith(_WITHOUT_TOKENS):
            reward.note = _NO_TOKENS
            return
        if raised and len(rows) > 1 and reward.narrowed < _NARROWED:
            reward.narrowed += 1
            before = sum(map(len, lot.failures.values()))
            for place, row in enumerate(rows, start):
                alone = self._scores([row], [reward])
                if not isinstance(alone, Scores):
                    lot.end(reward, alone, place, 1)
                else:
                    self._enter(reward, alone, [row], place, lot)
                if reward.note:
                    return
            if sum(map(len, lot.failures.values())) == before:
                lot.values[-len(rows) :] = [None] * len(rows)
                lot.fail(_said(raised[0], reward.spec.file), range(start, start + len(rows)))
                reward.note = f"given up after {start + len(rows):,} rows"
            return
        values = [part[name] for part in scores.parts]
        if name in _OF_STEPS and reward.spec.file is None:
            have_steps = [isinstance(row.example.columns.get("reasoning_steps"), list) for row in rows]
            values = [value if has_steps else None for value, has_steps in zip(values, have_steps, strict=True)]
        lot.values += values
        for error in errors:
            lot.fail(_said(error, reward.spec.file), [start + row for row in error.rows])
            if error.all_rows and not error.traceback and not reward.note:
                reward.note = f"given up after {start + len(rows):,} rows"
        if reward.seconds > self._patience and not reward.note:
            reward.note = f"given up after {self._patience:g} s; --full tries all rows"

    def _marks(self, reward: _Reward, lot: _Lot, rows: Sequence[OwnAnswer]) -> Marks:
        name = reward.spec.name
        if reward.failure is not None:
            failure = Failure(reward.failure.what, reward.failure.remedy, tuple(range(len(rows))))
            return Marks(name, len(rows), (None,) * len(rows), None, failures=(failure,))
        remedy = "mend the function" if reward.spec.file else "`droid-tune rewards` says which columns and options it has"
        failures = tuple(Failure(why, remedy, tuple(places)) for why, places in lot.failures.items())
        return Marks(
            name=name,
            tried=len(lot.values),
            values=tuple(lot.values),
            full=reward.full,
            judges_answers=reward.judges_answers,
            failures=failures,
            seconds=lot.seconds,
            note=reward.note or reward.chosen,
        )


def _made(spec: RewardConfig) -> _Reward:
    name = spec.name
    if spec.file is not None or name not in (*BUILT_IN, *LOADED):
        return _Reward(spec, None, False)
    if name in _OF_FORM:
        return _Reward(spec, None, False)
    judges = name in BUILT_IN and not _REFERENCES.isdisjoint(needed_columns(BUILT_IN[name]))
    note = f"left out: {_LEFT_OUT[name]}" if name in _LEFT_OUT else ""
    return _Reward(spec, full_marks(name), judges, note)


def _own_tags(spec: RewardConfig, rows: Sequence[OwnAnswer]) -> str:
    if spec.name != "tag_count" or spec.file is not None:
        return ""
    has_own = spec.options.get("tags") is not None or any(row.example.columns.get("tags") is not None for row in rows)
    return "left out: its tags are others than those of the row's own answer, as it is laid out here" if has_own else ""


def _started(rewards: Sequence[_Reward]) -> RewardProcess | None:
    """A process with the rewards that can be loaded; those that cannot have the reason. None where nothing is left."""
    asked = [reward for reward in rewards if reward.failure is None]
    while asked:
        process = RewardProcess([reward.spec for reward in asked])
        try:
            process.start()
        except InputError as error:
            if len(asked) == 1:
                asked[0].failure, asked[0].note = error, "cannot be loaded"
                return None
            for reward in asked:  # which one is it?
                alone = _started([reward])
                if alone is not None:
                    alone.close()
            asked = [reward for reward in asked if reward.failure is None]
        else:
            return process
    return None


def _said(error: RewardError, file: str | None) -> str:
    """The message, and where in the user's file it was raised."""
    lines = [line for path, line in _FRAME.findall(error.traceback) if file is not None and Path(path).name == Path(file).name]
    return f"{error.message} ({file}, line {lines[-1]})" if lines else error.message
