"""Checkpoints: what is put back is what was saved, and a torn write is never taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from engine.config import OptimConfig
from engine.optim_rules import USES
from engine.types import Group, Prompt, Rollout
from engine.worker import checkpoint
from engine.worker.batching import pack
from engine.worker.model import Policy
from engine.worker.trainer import Trainer, UpdateResult
from engine.worker.work import StepWork

from .rows import nudge
from .test_keys_trainer_summary import ROWS, nll


@pytest.mark.parametrize("optimizer", USES)
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(
    make_policy: Callable[..., Policy], tmp_path: Path, kind: str, optimizer: str
) -> None:
    """Four updates in one go, and two, saved, loaded into a fresh model, and two more: equal weights and moments."""
    config = OptimConfig.model_validate({"name": optimizer, "learning_rate": 0.01})
    batches = pack(ROWS, 2)

    def fresh() -> tuple[Policy, Trainer]:
        policy = make_policy(kind)
        return policy, Trainer(policy, config, total_updates=4, seed=0)

    policy, trainer = fresh()
    for number in range(4):
        trainer.update(number, batches, nll(policy))
    first, before = fresh()
    for number in range(2):
        before.update(number, batches, nll(first))
    checkpoint.save(tmp_path / "step-000002", first, before, {"a": 1}, tmp_path / "adapters")
    second, after = fresh()
    assert checkpoint.load(tmp_path / "step-000002", second, after) == {"a": 1}
    for number in (2, 3):
        after.update(number, batches, nll(second))
    for name, value in policy.trainable().items():
        assert mx.array_equal(value, second.trainable()[name]).item(), name
    assert trainer.state().keys() == after.state().keys()
    for name, value in trainer.state().items():
        assert mx.array_equal(value, after.state()[name]).item(), name


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_an_adapter_loads_in_mlx_lm_with_equal_logits(
    make_policy: Callable[..., Policy], blank_folder: Path, tmp_path: Path, kind: str
) -> None:
    policy = make_policy(kind, layers=1) if kind != "full" else make_policy(kind)
    nudge(policy)
    checkpoint.write_adapter(tmp_path / "adapters", policy)
    model, _ = mlx_lm.load(str(blank_folder), adapter_path=str(tmp_path / "adapters"))[:2]
    tokens = mx.array([[1, 2, 3, 200]])
    assert mx.array_equal(model(tokens), policy.model(tokens)).item()


def test_the_latest_checkpoint_is_the_furthest_and_half_written_ones_do_not_count(tmp_path: Path) -> None:
    names = ["step-000002", "step-000010", "step-000010.0", "step-000010.3", "step-000009.7"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step-000011").mkdir()  # no state: not finished
    (tmp_path / ".tmp-step-000012").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000010.3"
    assert [checkpoint.position(Path(name)) for name in names] == [(2, -1), (10, -1), (10, 0), (10, 3), (9, 7)]
    assert [checkpoint.folder_name(*checkpoint.position(Path(name))) for name in names] == names
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010.0", "step-000010.3", "step-000011"]
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_the_newest_of_those_that_are_kept_outlives_younger_ones(tmp_path: Path) -> None:
    """1 and 2 are kept for a reason, then 3 to 6 come, with room for two: 2, 5 and 6 stay."""
    for number in range(1, 7):
        folder = tmp_path / checkpoint.folder_name(number, -1)
        folder.mkdir()
        (folder / "state.json").write_text("{}")
        if number < 3:
            checkpoint.keep(folder, "non-finite")
        checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000005", "step-000006"]


def test_the_best_adapter_goes_back_to_what_it_was(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Best at the checkpoint, then a later best that the resumed run has not seen: the first comes back."""
    policy = make_policy("lora")
    trainer = Trainer(policy, OptimConfig(), total_updates=1, seed=0)
    adapters = tmp_path / "adapters"
    checkpoint.write_adapter(adapters, policy)
    first = (adapters / "adapters.safetensors").read_bytes()
    checkpoint.save(tmp_path / "step-000001", policy, trainer, {}, adapters)
    nudge(policy)
    checkpoint.write_adapter(adapters, policy)
    assert (adapters / "adapters.safetensors").read_bytes() != first
    checkpoint.restore_best(tmp_path / "step-000001", adapters)
    assert (adapters / "adapters.safetensors").read_bytes() == first


def test_a_step_under_way_survives_json_to_the_bit() -> None:
    import json

    values = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    rollout = Rollout((1, 2, 3), tuple(float(v) for v in values[:3]), "stop", "a\ud800b")
    group = Group(
        Prompt(3, (7, 8), "p", "4"),
        (rollout, rollout),
        ({"a": 1.0}, {"a": None}),
        rewards=(1.0, None),
        advantages=(0.5, 0.0),
    )
    update = UpdateResult(0.1 + 0.2, 1 / 3, 1e-5, {"units": 3.0}, True, 0.9)
    work = StepWork(4, [group], old=[values], updates=[update], seconds={"rollout": 0.25})
    back = StepWork.from_dict(json.loads(json.dumps(work.as_dict())))
    assert back.groups == work.groups and back.updates == work.updates and back.seconds == work.seconds
    assert back.old is not None and np.array_equal(back.old[0], values) and back.ref is None
