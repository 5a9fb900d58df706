"""What the journal says of a bad row of the data, by a real reward process."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.types import Example, Message, Prompt, Rollout
from engine.worker.rewarding import Judge


def test_a_bad_row_is_named_by_its_line_and_ends_no_run() -> None:
    warnings: list[dict[str, Any]] = []

    def warn(kind: str, message: str, remedy: str, **more: Any) -> None:
        warnings.append({"kind": kind, "message": message, "remedy": remedy, **more})

    def rewards(patterns: dict[int, str]) -> list[tuple[float | None, ...]]:
        warnings.clear()
        examples = [
            Example(line, (Message("user", "p"),), None, None, {"pattern": pattern}) for line, pattern in patterns.items()
        ]
        prompts = [Prompt(line, (1,), "p", None) for line in patterns]
        rollouts = [[Rollout((65,), (-1.0,), "stop", text) for text in ("a", "b")] for _ in patterns]
        return [group.rewards for group in judge.groups(prompts, examples, rollouts, step=3)]

    judge = Judge([RewardConfig(name="regex")], warn, lambda tokens: "".join(map(chr, tokens)))
    try:
        assert rewards({7: "a", 40: "(", 12: "("}) == [(1, 0), (None, None), (None, None)]
        (warning,) = warnings
        assert warning["lines"] == [12, 40] and warning["rows"] == [2, 3, 4, 5]
        assert "failed on 4 of 6 completions, of the rows at lines 12, 40 of the data: " in warning["message"]
        assert "built in: look at the row" in warning["remedy"] and "mend" not in warning["remedy"]
        # A step that has this row alone learns nothing; one of several rows, all bad, ends the run.
        assert rewards({9: "("}) == [(None, None)]
        assert [warning["kind"] for warning in warnings] == ["reward-failed", "no-reward"]
        assert "of the row at line 9 of the data: its pattern cannot be used" in warnings[0]["message"]
        with pytest.raises(InputError, match="regex failed on every completion of step 3") as caught:
            rewards({1: "(", 2: "("})
        assert caught.value.remedy == "look at the rows and at its options, then resume the run"
    finally:
        judge.close()
