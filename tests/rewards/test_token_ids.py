"""`completion_ids`, the keyword by which TRL's users get token ids, and what else TRL's trainer gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.process import RewardProcess, check
from engine.types import Example, Message, Prompt, Rollout
from engine.worker.rewarding import Judge

TRL = """
def lengths(completion_ids, **kwargs): return [float(len(ids)) for ids in completion_ids]
def sums(completions, completions_ids): return [float(sum(ids)) for ids in completions_ids]
def by_name(completions, **kwargs): return [float(kwargs["completion_ids"][0][0])] * len(completions)
def spoils(completion_ids): completion_ids.clear(); return [0.0, 0.0]
def plain(completions): return [1.0, 1.0]
def optional(completions, trainer_state=None, log_extra=None, log_metric=None, environments=None, **kwargs):
    return [float(trainer_state is None)] * len(completions)
def needs(completions, log_metric, **kwargs): return [0.0] * len(completions)
def logs(completions, log_metrics): return [0.0] * len(completions)
"""
IDS = [[5, 6, 7], [8]]


def specs(folder: Path, *names: str) -> list[RewardConfig]:
    path = folder / "mine.py"
    path.write_text(TRL, encoding="utf-8")
    return [RewardConfig(name=name, file=str(path)) for name in names]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcess]:
    folder = tmp_path_factory.mktemp("trl")
    with RewardProcess(specs(folder, "spoils", "lengths", "sums", "by_name", "plain", "optional")) as started:
        yield started


def test_who_asks_gets_them(process: RewardProcess) -> None:
    """By TRL's name, by the one that some of its pages have, or by **kwargs; what one call does to them no other sees."""
    assert process.token_ids == {"spoils", "lengths", "sums", "by_name", "optional"}
    assert set(process.columns.values()) == {()}, "they are no column of the data"
    scores = process.score(["p"] * 2, ["a", "b"], {}, IDS)
    assert scores.errors == []
    expected = {"spoils": 0.0, "plain": 1.0, "optional": 1.0, "by_name": 5.0}
    assert scores.parts == [{**expected, "lengths": 3.0, "sums": 18.0}, {**expected, "lengths": 1.0, "sums": 8.0}]


def test_a_column_of_that_name_wins(process: RewardProcess) -> None:
    scores = process.score(["p"] * 2, ["a", "b"], {"completion_ids": [[1], [1, 2]]}, IDS)
    assert [part["lengths"] for part in scores.parts] == [1.0, 2.0]


def test_where_nothing_is_tokenized(process: RewardProcess) -> None:
    scores = process.score(["p"] * 2, ["a", "b"], {}, skip=["spoils", "by_name"])
    assert [error.name for error in scores.errors] == ["lengths", "sums"]
    assert "lengths needs the completions' token ids, and here is no tokenizer" in scores.errors[0].message
    assert scores.parts == [{"lengths": None, "sums": None, "plain": 1.0, "optional": 1.0}] * 2


def test_what_trl_alone_gives_is_named(tmp_path: Path) -> None:
    """Before a run: a keyword that only TRL's trainer has, and a column that is misspelt."""
    check(specs(tmp_path, "lengths", "optional"), ["answer"])
    with pytest.raises(InputError, match=r"needs the argument 'log_metric', which TRL.*`log_metric=None`"):
        check(specs(tmp_path, "needs"), ["answer"])
    with pytest.raises(InputError, match=r"needs the column 'log_metrics'.*the data has: answer"):
        check(specs(tmp_path, "logs"), ["answer"])


def test_a_run_sends_them_only_where_a_reward_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DAPO Eq. 13 with 4 tokens and a cache of 2, TRL's (L_max - L_cache - length) / L_cache: 3 tokens -1/2, 2 tokens 0."""
    sent: list[Any] = []
    score = RewardProcess.score
    monkeypatch.setattr(RewardProcess, "score", lambda self, *given: sent.append(given[3]) or score(self, *given))
    rollouts = [Rollout((5, 6, 7), (-1.0,) * 3, "stop", "ab"), Rollout((8, 9), (-1.0,) * 2, "stop", "a")]
    example = Example(1, (Message("user", "?"),), None, "a")
    found = []
    for reward in (RewardConfig(name="soft_overlong", options={"max_tokens": 4, "cache": 2}), RewardConfig(name="answer")):
        judge = Judge([reward], lambda *_, **__: None, lambda tokens: "")
        try:
            (group,) = judge.groups([Prompt(0, (1,), "?", "a")], [example], [rollouts], 1)
        finally:
            judge.close()
        found.append(group.rewards)
    assert found == [(-0.5, 0.0), (0.0, 1.0)]
    assert sent == [[[5, 6, 7], [8, 9]], None]
