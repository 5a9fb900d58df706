"""What no other test noticed, or one by chance alone, when the source was broken on purpose (tests/mutations)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.config import AdapterConfig, OptimConfig
from engine.worker.batching import Row, pack
from engine.worker.model import Policy, load_policy
from engine.worker.sampler import sample
from engine.worker.trainer import Trainer

from .rows import prompts_of
from .test_keys_trainer_summary import nll


def test_every_position_of_a_completion_draws_anew(make_policy: Callable[..., Policy]) -> None:
    """At T = 1e6 all V tokens are as good as equally likely: 32 draws hold V (1 - (1 - 1/V)^32) = 30 different ones in the mean
    for a V near 260. With one key for all positions a completion is one token, 32 times."""
    policy = make_policy("lora")
    policy.stop_ids = frozenset()
    (members,) = sample(policy, prompts_of(policy, "Hi"), 8, max_tokens=32, temperature=1e6, seed=0, step=1)
    different = [len(set(rollout.token_ids)) for rollout in members]
    assert min(different) > 20 and np.mean(different) == pytest.approx(30, abs=2)


def test_every_stop_token_of_the_model_ends_a_completion(blank_folder: Path, tmp_path: Path) -> None:
    """34 ids are stops by generation_config.json, one by the tokenizer, of 272. Drawn all alike, 24 tokens hold none of them with
    probability (237 / 272)^24 = 0.04: nearly all of 64 completions end on a stop, on many different ones, and none goes on after
    one."""
    folder = tmp_path / "model"
    shutil.copytree(blank_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(34))}))
    policy = load_policy(folder, AdapterConfig(), seed=0)
    assert policy.stop_ids == {*range(34), policy.tokenizer.eos_token_id}
    (members,) = sample(policy, prompts_of(policy, "Hi"), 64, max_tokens=24, temperature=1e6, seed=0, step=1)
    stopped = [rollout.token_ids[-1] for rollout in members if rollout.finish == "stop"]
    assert len(stopped) > 50 and len(set(stopped)) > 15
    assert not any(policy.stop_ids & set(rollout.token_ids[:-1]) for rollout in members)


def test_micro_batches_add_up_in_the_trainer(make_policy: Callable[..., Policy]) -> None:
    """Four rows in 4, 2 and 1 micro-batches, far below the limit of clipping: one loss, one norm, one step of SGD, whose length
    is rate x norm. (Means over micro-batches would have a quarter, a half and all of it.)"""
    rows = [Row(n, (5, 6, 7 + n), tuple(range(8, 12 + n)), weight=0.1) for n in range(4)]
    options = {"name": "sgd", "learning_rate": 0.5, "schedule": "constant", "warmup": 0, "max_grad_norm": 1e9}
    losses, norms, lengths = [], [], []
    for micro_batch_rows in (1, 2, 4):
        policy = make_policy("full")
        trainer = Trainer(policy, OptimConfig.model_validate(options), total_updates=1, seed=0)
        before = {name: np.array(value, dtype=np.float64) for name, value in policy.trainable().items()}
        result = trainer.update(0, pack(rows, micro_batch_rows), nll(policy))
        moved = [np.array(value, dtype=np.float64) - before[name] for name, value in policy.trainable().items()]
        losses.append(result.loss)
        norms.append(result.grad_norm)
        lengths.append(np.sqrt(sum(float(np.square(step).sum()) for step in moved)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)
    assert lengths == pytest.approx([0.5 * norms[0]] * 3, rel=1e-4)
