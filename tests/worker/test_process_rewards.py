"""Rewards of single reasoning steps, from the user's function to the advantage of each token, and a run with every option on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.api import Engine
from engine.config import RewardConfig
from engine.objective import Objective
from engine.types import Example, Message, Prompt, Rollout
from engine.worker.credit import with_advantages
from engine.worker.model import Policy
from engine.worker.rewarding import Judge, token_at
from tests.support.live import assert_same_bits, await_event, finish, kill, outcome, small_config

from .test_resume import phase

LETTERS = '''
"""A line is right where it has a capital."""

def capitals(prompts, completions, steps):
    return [[float(line != line.lower()) for line in lines] for lines in steps]

def digits(prompts, completions, steps):
    return [[float(sum(c.isdigit() for c in part)) for part in parts] for parts in steps]

def short(prompts, completions):
    return [float(len(c) < 8) for c in completions]
'''


def test_a_token_is_found_by_the_character_that_it_completes(make_policy: Callable[..., Policy]) -> None:
    """Byte tokens: e-acute takes two, the emoji four; each character ends with its last byte."""
    policy = make_policy("lora")
    text = "aé\U0001f600b"
    tokens = [int(i) for i in policy.tokenizer.encode(text, add_special_tokens=False)]
    assert policy.decode(tokens) == text and len(tokens) == 8
    assert [token_at(policy.decode, tokens, end) for end in (1, 2, 3, 4)] == [0, 2, 6, 7]
    with pytest.raises(ValueError, match="no character 5"):
        token_at(policy.decode, tokens, 5)


def test_step_values_become_token_advantages(tmp_path: Path) -> None:
    """Completions "Ab\\nc" and "d\\nEf\\n": lines right, wrong | wrong, right, each times 2. Centred by the mean of all four, 1:
    steps +1, -1 | -1, +1. Their last tokens are b (1), c (3) | d (0), f (3). `short` gives 1 to both, which is no difference. A
    token's advantage is the sum of the steps that end at or after it."""
    (tmp_path / "r.py").write_text(LETTERS)
    specs = [
        RewardConfig(name="capitals", file=str(tmp_path / "r.py"), weight=2.0, steps="\n"),
        RewardConfig(name="short", file=str(tmp_path / "r.py")),
    ]
    texts = ("Ab\nc", "d\nEf\n")
    rollouts = [Rollout(tuple(map(ord, text)), (-1.0,) * len(text), "length", text) for text in texts]
    judge = Judge(specs, lambda *_, **__: None, lambda tokens: "".join(map(chr, tokens)))
    try:
        example = Example(1, (Message("user", "?"),), None, None)
        (group,) = judge.groups([Prompt(0, (1,), "?", None)], [example], [rollouts], 1)
    finally:
        judge.close()
    assert group.reward_parts == ({"capitals": 0.5, "short": 1.0}, {"capitals": 0.5, "short": 1.0})
    assert group.rewards == (2.0, 2.0) and group.outcomes == (1.0, 1.0)
    assert group.step_rewards == (((1, 2.0), (3, 0.0)), ((0, 0.0), (3, 2.0)))
    (found,) = with_advantages([group], Objective(advantage="none"))
    assert found.token_advantages == ((0, 0, -1, -1), (0, 1, 1, 1, 0))
    assert found.advantages == (-0.5, 0.6)
    (without,) = with_advantages([replace(group, rewards=(2.0, None), outcomes=(1.0, None))], Objective(advantage="none"))
    assert without.token_advantages == ((0, 0, -1, -1), (0,) * 5)


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_with_every_option_on_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Process rewards, dynamic sampling, soft overlong, masked cuts, an entropy mask and bonus, capped weights, a reference that
    follows: killed between two updates, after both kinds of scores and refills were made, and resumed."""
    (tmp_path / "r.py").write_text(LETTERS)
    config = small_config(
        "gspo_token",
        rewards=[
            {"name": "answer", "weight": 1.0},
            {"name": "digits", "file": str(tmp_path / "r.py"), "weight": 0.5, "steps": ">"},
        ],
        objective={
            "minibatches": 4,
            "updates_per_rollout": 2,
            "beta": 0.05,
            "kl": "k3_ratio",
            "ref_sync_every": 1,
            "tis": "token_mask",
            "tis_cap": 2.0,
            "truncated": "mask",
            "soft_overlong": 0.5,
            "entropy_bonus": 0.01,
            "entropy_quantile": 0.5,
            "dynamic_sampling": 2,
        },
        sampling__max_completion_tokens=16,
        run__keep_checkpoints=99,
        run__checkpoint_minutes=1e-9,
    )
    run = await Engine(tmp_path / "a").start(config)
    await asyncio.to_thread(await_event, run, 0, phase("update", 2, 5))
    await asyncio.to_thread(kill, run)
    await run.resume()
    state = await run.wait()
    assert state.state == "finished", state.failure
    whole, other = await finish(tmp_path / "b", config)
    assert other.state == "finished", other.failure
    assert_same_bits(outcome(run), outcome(whole))
    series = state.series
    assert set(series["refills"].values) <= {0, 1, 2} and len(series["discarded"]) == len(series["masked"]) == 3
    assert max(series["kl"].values) > 0 and np.isfinite(series["tis"].values).all()
    rows = [json.loads(line) for line in (run.record.samples_dir / "step-000002.jsonl").read_text().splitlines()]
    trained = [row for row in rows if not row.get("discarded")]
    assert len(trained) == 16 and any(len(set(row.get("token_advantages", [0]))) > 1 for row in trained)
