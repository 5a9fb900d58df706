"""Rewards before any training, in the real reward process: what they give completions that stand for rows' own answers.

The one dry run of `validate`, which has the row's own answer alone, laid out, and of `rewards test`, which has others to compare
it with (trial.py). What the rewards owe is in own_answers.py. Those that are left out are loaded all the same: an option that
cannot be, or a column that is not there, is a failure for every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.config import RewardConfig
from engine.data.scoring import Failure, Marks, OwnAnswer, Scorer
from engine.errors import InputError
from engine.rewards.combine import columns_of
from engine.rewards.own_answers import NO_TOKENS, Dues, dues, judges_answers, not_to_be_called, suited
from engine.rewards.process import RewardError, RewardProcess, Scores, without_column

Encode = Callable[[str], list[int]]
PATIENCE_SECONDS = 30.0
_AT_ONCE = 32  # rows of a call, about as many completions as a run's step has: its time limit was meant for those
_NARROWED = 3
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_WITHOUT_TOKENS = "here is no tokenizer"  # how the reward process ends its refusal to call one that needs them


@dataclass(slots=True)
class _Reward:
    """One reward in the dry run. Once there is a `note` it is not called any more."""

    spec: RewardConfig
    dues: Dues
    note: str = ""  # why it is left out or given up
    failure: InputError | None = None  # why it cannot be loaded
    chosen: str = ""
    columns: tuple[str, ...] = ()  # it cannot do without them
    seconds: float = 0.0
    narrowed: int = 0  # calls whose rows were tried one by one


@dataclass(slots=True)
class _Lot:
    """What one reward says of one lot of rows."""

    given: list[float | None] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)  # message: places
    seconds: float = 0.0

    def fail(self, message: str, places: Iterable[int]) -> None:
        self.failures.setdefault(message, []).extend(places)

    def end(self, reward: _Reward, error: InputError, start: int, count: int) -> None:
        """The reward could not be called for `count` rows from `start` on, and will not be any more."""
        self.fail(error.what, range(start, start + count))
        self.given += [None] * count
        reward.note = "given up: the reward process could not be started again"


@contextmanager
def answer_scorer(
    rewards: Sequence[RewardConfig] | Literal["auto"],
    *,
    encode: Encode | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    must_load: bool = False,
) -> Iterator[Scorer]:
    """A scorer, whose process ends with the context. "auto" takes the one built-in reward that suits the rows.

    `encode` gives the token ids of a completion. A reward that has used `patience_seconds` is given up, one that hangs or
    crashes at once; a failure of any kind is told in the marks and never raised, but with `must_load` that of a reward which
    cannot be loaded: an InputError of the first call.
    """
    trial = _Trial(rewards, encode, patience_seconds, must_load)
    try:
        yield trial
    finally:
        trial.close()


class _Trial:
    def __init__(
        self,
        rewards: Sequence[RewardConfig] | Literal["auto"],
        encode: Encode | None,
        patience_seconds: float,
        must_load: bool,
    ) -> None:
        self._asked = rewards
        self._encode = encode
        self._patience = patience_seconds
        self._must_load = must_load
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
            made = [_Reward(spec, dues(spec)) for spec in self._asked]
        elif any(row.example.answer is not None for row in rows):
            name, why = suited(rows)
            spec = RewardConfig(name=name)
            made = [_Reward(spec, dues(spec), chosen=why)]
        else:
            made = []
        for reward in made:
            reward.note = not_to_be_called(reward.spec, rows, self._encode is not None)
        self._process = _started(made)
        asked = {} if self._process is None else self._process.columns
        for reward in made:
            needed = asked.get(reward.spec.name, ())
            reward.columns = needed if reward.dues.columns is None else reward.dues.columns
            missing = [name for name in needed if name not in self._columns]
            if reward.note and reward.failure is None and missing:
                reward.failure = without_column(reward.spec.name, missing[0], self._columns)
            if self._must_load and reward.failure is not None:
                raise reward.failure
        return made

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
            reward.note = NO_TOKENS
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
                lot.given[-len(rows) :] = [None] * len(rows)
                lot.fail(_said(raised[0], reward.spec.file), range(start, start + len(rows)))
                reward.note = f"given up after {start + len(rows):,} rows"
            return
        lot.given += [part[name] for part in scores.parts]
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
            nothing = (None,) * len(rows)
            return Marks(name, len(rows), nothing, None, failures=(failure,), given=nothing)
        remedy = "mend the function" if reward.spec.file else "`droid-tune rewards` says which columns and options it has"
        failures = tuple(Failure(why, remedy, tuple(places)) for why, places in lot.failures.items())
        owed = [not reward.dues.needs_steps or isinstance(row.example.columns.get("reasoning_steps"), list) for row in rows]
        return Marks(
            name=name,
            tried=len(lot.given),
            values=tuple(value if is_owed else None for value, is_owed in zip(lot.given, owed, strict=False)),
            full=reward.dues.full,
            judges_answers=judges_answers(reward.columns),
            failures=failures,
            seconds=lot.seconds,
            note=reward.note or reward.chosen,
            given=tuple(lot.given),
            needs_answer="answer" in reward.columns,
        )


def _started(rewards: Sequence[_Reward]) -> RewardProcess | None:
    """A process with the rewards that can be loaded; those that cannot have the reason. None where nothing is left."""
    asked = [reward for reward in rewards if reward.failure is None]
    while asked:
        process = RewardProcess([reward.spec for reward in asked])
        try:
            process.start()
        except InputError as error:
            blamed = [reward for reward in asked if reward.spec.name == process.refused or len(asked) == 1]
            for reward in blamed:
                reward.failure, reward.note = error, "cannot be loaded"
            if not blamed:
                for reward in asked:  # which one is it?
                    alone = _started([reward])
                    if alone is not None:
                        alone.close()
            if all(reward.failure is None for reward in asked):  # each can be loaded, but not all of them
                for reward in asked:
                    reward.failure, reward.note = error, "cannot be loaded"
            asked = [reward for reward in asked if reward.failure is None]
        else:
            return process
    return None


def _said(error: RewardError, file: str | None) -> str:
    """The message, and where in the user's file it was raised."""
    lines = [line for path, line in _FRAME.findall(error.traceback) if file is not None and Path(path).name == Path(file).name]
    return f"{error.message} ({file}, line {lines[-1]})" if lines else error.message
