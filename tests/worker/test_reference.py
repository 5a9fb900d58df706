"""The reference: what it is before it moves, how it moves, and that a checkpoint brings it back to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from engine.api import Engine
from engine.config import OptimConfig
from engine.worker import checkpoint
from engine.worker.model import Policy
from engine.worker.trainer import Trainer
from tests.support.live import assert_same_bits, await_event, events, finish, kill, outcome, small_config

from .rows import nudge

TOKENS = mx.array([[1, 2, 3, 200, 65, 66]])
KINDS = [("lora", {}), ("lora", {"layers": 1}), ("dora", {}), ("full", {})]


def logits(policy: Policy) -> np.ndarray:
    return np.array(policy.model(TOKENS))


def reference_logits(policy: Policy) -> np.ndarray:
    with policy.reference():
        return logits(policy)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_before_it_moves_the_reference_is_the_model_as_loaded(
    make_policy: Callable[..., Policy], blank_folder: Path, kind: str, options: dict[str, int]
) -> None:
    """To the bit, though the trained weights have moved; and afterwards the policy is what it was."""
    policy = make_policy(kind, **options)
    if kind == "full":
        policy.keep_initial()
    nudge(policy)
    tuned = logits(policy)
    base = np.array(mlx_lm.load(str(blank_folder))[0](TOKENS))
    assert not np.array_equal(tuned, base)
    assert np.array_equal(reference_logits(policy), base)
    assert np.array_equal(logits(policy), tuned)
    assert policy.reference_arrays() is None


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_synced_reference_is_the_policy_of_that_moment(
    make_policy: Callable[..., Policy], kind: str, options: dict[str, int]
) -> None:
    policy = make_policy(kind, **options)
    if kind == "full":
        policy.keep_initial()
    nudge(policy)
    then = logits(policy)
    policy.sync_reference(1.0)
    assert np.array_equal(reference_logits(policy), then)
    nudge(policy)
    now = logits(policy)
    assert not np.array_equal(now, then)
    assert np.array_equal(reference_logits(policy), then) and np.array_equal(logits(policy), now)
    policy.sync_reference(1.0)
    assert np.array_equal(reference_logits(policy), now)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixed_reference_by_hand(make_policy: Callable[..., Policy], dtype: str) -> None:
    """mix 1/4, twice: r1 = (w1 + 3 w0) / 4, r2 = (w2 + 3 r1) / 4, in the weights' own type."""
    policy = make_policy("full")
    policy.model.set_dtype(getattr(mx, dtype))
    policy.keep_initial()
    expected = {name: np.array(value.astype(mx.float32), np.float64) for name, value in policy.trainable().items()}
    for _ in range(2):
        nudge(policy)
        policy.model.set_dtype(getattr(mx, dtype))
        policy.sync_reference(0.25)
        for name, value in policy.trainable().items():
            expected[name] = 0.25 * np.array(value.astype(mx.float32), np.float64) + 0.75 * expected[name]
    found = policy.reference_arrays()
    assert found is not None and {str(value.dtype) for value in found.values()} == {f"mlx.core.{dtype}"}
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    for name, value in found.items():
        np.testing.assert_allclose(np.array(value.astype(mx.float32)), expected[name], rtol=tolerance, atol=tolerance / 10)


def test_what_cannot_be_mixed(make_policy: Callable[..., Policy]) -> None:
    for policy in (make_policy("lora"), make_policy("full")):  # an adapter; full training without a reference
        with pytest.raises(ValueError, match="mixed"):
            policy.sync_reference(0.5)
    with pytest.raises(ValueError, match="keep_initial"), make_policy("full").reference():
        pass
    policy = make_policy("lora")
    with pytest.raises(ValueError, match="not those of the model"):
        policy.set_reference_arrays({"other": mx.zeros(1)})


@pytest.mark.parametrize(("kind", "mix"), [("lora", 1.0), ("dora", 1.0), ("full", 0.5)])
def test_a_checkpoint_brings_the_reference_back(
    make_policy: Callable[..., Policy], tmp_path: Path, kind: str, mix: float
) -> None:
    """Before it moves there is nothing to save: the base model has it. Moved, then moved on from: all bits come back."""

    def fresh() -> tuple[Policy, Trainer]:
        policy = make_policy(kind)
        if kind == "full":
            policy.keep_initial()
        return policy, Trainer(policy, OptimConfig(), total_updates=1, seed=0)

    policy, trainer = fresh()
    checkpoint.save(tmp_path / "step-000001", policy, trainer, {}, tmp_path / "adapters")
    assert not (tmp_path / "step-000001" / "reference.safetensors").exists()
    nudge(policy)
    policy.sync_reference(mix)
    nudge(policy)
    checkpoint.save(tmp_path / "step-000002", policy, trainer, {}, tmp_path / "adapters")
    resumed, other = fresh()
    checkpoint.load(tmp_path / "step-000002", resumed, other)
    assert np.array_equal(logits(resumed), logits(policy))
    assert np.array_equal(reference_logits(resumed), reference_logits(policy))
    resumed.sync_reference(mix)
    policy.sync_reference(mix)
    assert np.array_equal(reference_logits(resumed), reference_logits(policy))


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_resumes_with_the_reference_that_it_had(tmp_path: Path) -> None:
    """The reference moves at steps 2 and 3; killed between step 3's updates, the run ends with the bits of one that was not."""
    moving = {"beta": 0.1, "ref_sync_every": 1, "ref_sync_mix": 0.5, "minibatches": 2}
    often = {"steps": 3, "eval_every": 3, "eval_rows": 8, "keep_checkpoints": 99, "checkpoint_minutes": 1e-9}
    config = small_config("grpo", adapter={"type": "full"}, objective=moving, optim__learning_rate=1e-3, run=often)
    run = await Engine(tmp_path / "a").start(config)
    in_step_3 = lambda e: e.type == "phase" and (e.fields["step"], e.fields.get("update")) == (3, 1)  # noqa: E731
    await asyncio.to_thread(await_event, run, 0, in_step_3)
    await asyncio.to_thread(kill, run)
    await run.resume()
    assert (await run.wait()).state == "finished"
    whole, _ = await finish(tmp_path / "b", config)
    assert_same_bits(outcome(run), outcome(whole))
    (resumed,) = [event for event in events(run) if event.type == "resumed"]
    assert resumed.fields["from_step"] == 2
    without = {
        folder.name for folder in whole.record.checkpoints_dir.iterdir() if not (folder / "reference.safetensors").exists()
    }
    assert without == {"step-000000", "step-000000.0", "step-000000.1", "step-000001"}
