"""For any figures: a config of another tool and its canonical twin are one config."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config as configs
from tests.aliases.support import FLAT, GRPO, load


@settings(deadline=None)
@given(warmup=st.integers(1, 400), more=st.integers(1, 3000))
def test_a_warm_up_in_updates_is_that_many(warmup: int, more: int) -> None:
    """The trainer warms up for ceil(share x total) updates: 7 / 25 x 25 is 7.000000000000001, which would be 8."""
    total = warmup + more
    config = load({**GRPO, "warmup_steps": warmup, "max_steps": total}).config
    assert math.ceil(config.optim.warmup * total) == warmup


@settings(max_examples=60, deadline=None)
@given(
    group=st.integers(2, 16),
    prompts=st.integers(1, 6),
    accumulate=st.integers(1, 4),
    minibatches=st.integers(1, 3),
    passes=st.integers(1, 3),
    steps=st.integers(1, 50),
    loss=st.sampled_from(["grpo", "dapo", "dr_grpo"]),
    beta=st.sampled_from([0.0, 0.04]),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_a_trl_config_and_its_twin_are_one(
    group: int, prompts: int, accumulate: int, minibatches: int, passes: int, steps: int, loss: str, beta: float, scale: str
) -> None:
    """Per device group x prompts completions: a rollout has accumulate x minibatches of these batches."""
    method = {"aggregate": {"grpo": "seq_mean", "dapo": "token_mean", "dr_grpo": "constant"}[loss]}
    plain = {"truncated": "keep", "soft_overlong": 0.0, "dynamic_sampling": 0}
    theirs = {
        **FLAT,
        "loss_type": loss,
        "num_generations": group,
        "per_device_train_batch_size": group * prompts,
        "gradient_accumulation_steps": accumulate,
        "steps_per_generation": accumulate * minibatches,
        "num_iterations": passes,
        "max_steps": steps * minibatches * passes,
        "beta": beta,
        "scale_rewards": scale,
    }
    ours = {
        **FLAT,
        "method": loss,
        "sampling": {"group_size": group, "prompts_per_step": prompts * accumulate * minibatches},
        "objective": {
            **method,
            **plain,
            "minibatches": minibatches,
            "updates_per_rollout": passes,
            "beta": beta,
            "advantage": scale,
        },
        "run": {"steps": steps},
    }
    assert configs.dump(load(theirs).config) == configs.dump(load(ours).config)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 8),
    accumulate=st.integers(1, 4),
    steps=st.integers(2, 60),
    warmup=st.integers(0, 1),
    scale=st.floats(0.5, 64),
    rank=st.integers(1, 64),
    loss=st.sampled_from(["grpo", "dr_grpo"]),
    epsilon=st.floats(1e-5, 0.5),
)
def test_an_mlx_lm_lora_config_and_its_twin_are_one(
    batch: int, accumulate: int, steps: int, warmup: int, scale: float, rank: int, loss: str, epsilon: float
) -> None:
    theirs = {
        **FLAT,
        "train_mode": "grpo",
        "grpo_loss_type": loss,
        "epsilon": epsilon,
        "batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "iters": steps * accumulate,
        "lora_parameters": {"rank": rank, "scale": scale},
        "lr_schedule": {"name": "linear_schedule", "warmup": warmup, "arguments": [1e-4, 0.0, steps - warmup]},
    }
    ours = {
        **FLAT,
        "method": loss,
        "adapter": {"rank": rank, "scale": scale},
        "sampling": {"prompts_per_step": batch * accumulate},
        "objective": {"advantage": "group_ddof0", "epsilon_low": epsilon, "epsilon_high": epsilon},
        "optim": {"learning_rate": 1e-4, "schedule": "linear", "warmup": warmup / steps},
        "run": {"steps": steps},
    }
    assert configs.dump(load(theirs).config) == configs.dump(load(ours).config)
