"""What rewards and the other sections of a config say together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import config as configs
from engine.errors import InputError
from engine.objective import Objective
from engine.reward_rules import placed, refusal
from engine.sections import RewardConfig, SamplingConfig


def test_paths_and_the_runs_own_limit() -> None:
    """Files, a judge's cache and a schema's file are paths; a number of tokens and JSON text are none."""
    rewards = [
        RewardConfig(name="mine", file="r.py"),
        RewardConfig(name="llm_judge", options={"cache": "c.jsonl", "model": "m"}),
        RewardConfig(name="json_schema", options={"schema": "s.json"}),
        RewardConfig(name="json_schema", options={"schema": '{"type": "array"}'}),
        RewardConfig(name="soft_overlong", options={"cache": 9}),
        RewardConfig(name="soft_overlong", options={"max_tokens": 7}),
        RewardConfig(name="soft_overlong", file="r.py"),
    ]
    made = placed(rewards, SamplingConfig(max_completion_tokens=64), lambda path: None if path is None else f"/base/{path}")
    assert [(reward.file, dict(reward.options)) for reward in made] == [
        ("/base/r.py", {}),
        (None, {"cache": "/base/c.jsonl", "model": "m"}),
        (None, {"schema": "/base/s.json"}),
        (None, {"schema": '{"type": "array"}'}),
        (None, {"cache": 9, "max_tokens": 64}),
        (None, {"max_tokens": 7}),
        ("/base/r.py", {}),
    ]


def test_overlong_is_punished_once() -> None:
    reward, own = RewardConfig(name="soft_overlong"), RewardConfig(name="soft_overlong", file="mine.py")
    refused = refusal([reward], Objective(soft_overlong=0.2))
    assert refused is not None and refused.where == "rewards" and "objective.soft_overlong is 0.2" in refused.what
    assert refusal([reward], Objective()) is refusal([own], Objective(soft_overlong=0.2)) is None


def test_a_config_goes_through_them(tmp_path: Path) -> None:
    """The schema lies beside the config; the limit is the run's, also when config.yaml is read again."""
    tree = {
        "model": "demo",
        "method": "grpo",
        "data": {"train": "datasets/arithmetic.jsonl"},
        "sampling": {"max_completion_tokens": 64},
        "rewards": [
            {"name": "soft_overlong", "options": {"cache": 9}},
            {"name": "json_schema", "options": {"schema": "s.json"}},
        ],
    }
    config = configs.parse(json.dumps(tree), base=tmp_path).config
    expected = [{"cache": 9, "max_tokens": 64}, {"schema": str(tmp_path / "s.json")}]
    assert [dict(reward.options) for reward in config.rewards] == expected
    assert configs.parse(configs.dump(config), base=Path("/")).config.rewards == config.rewards
    with pytest.raises(InputError, match="rewards: overlong completions would be punished twice"):
        configs.parse(json.dumps({**tree, "method": "dapo"}), base=tmp_path)
