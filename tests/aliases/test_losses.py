"""The objective of a loss by its name in another tool is the one that the tool computes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.aliases.support import FLAT, GRPO, SFT, load

PLAIN = {"minibatches": 1, "truncated": "keep", "soft_overlong": 0.0, "dynamic_sampling": 0, "surrogate": "clip"}
LOSSES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "trl grpo": ({"loss_type": "grpo"}, "grpo", {"aggregate": "seq_mean", "advantage": "group", "ratio": "token"}),
    "trl dr_grpo": ({"loss_type": "dr_grpo"}, "dr_grpo", {"aggregate": "constant", "advantage": "group", "ratio": "token"}),
    "trl dr_grpo of the paper": (
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        "dr_grpo",
        {"aggregate": "constant", "advantage": "none"},
    ),
    "trl dapo": ({"loss_type": "dapo"}, "dapo", {"aggregate": "token_mean", "advantage": "group", "ratio": "token"}),
    "trl cispo": (
        {"loss_type": "cispo", "epsilon_high": 5.0},
        "cispo",
        {"aggregate": "token_mean", "surrogate": "cispo", "epsilon_low": None, "epsilon_high": 4.0},
    ),
    "trl gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "gspo",
        {"aggregate": "seq_mean", "ratio": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "trl gspo of 4": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "steps_per_generation": 4,
            "per_device_train_batch_size": 8,
        },
        "gspo",
        {"ratio": "sequence", "minibatches": 4},
    ),
    "trl dapo by sequence": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        "dapo",
        {"aggregate": "token_mean", "ratio": "sequence"},
    ),
    "trl luspo": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        "gspo",
        {"aggregate": "seq_sum", "ratio": "sequence"},
    ),
    "trl luspo by token": ({"loss_type": "luspo"}, "gspo", {"aggregate": "seq_sum", "ratio": "token"}),
    "trl without a loss": ({"num_generations": 4}, "grpo", {"aggregate": "seq_mean", "advantage": "group"}),
    "mlx grpo": ({"train_mode": "grpo"}, "grpo", {"aggregate": "seq_mean", "advantage": "group_ddof0", "ratio": "token"}),
    "mlx dr_grpo": (
        {"train_mode": "grpo", "grpo_loss_type": "dr_grpo"},
        "dr_grpo",
        {"aggregate": "constant", "advantage": "group_ddof0"},
    ),
    "mlx gspo": (
        {"train_mode": "grpo", "importance_sampling_level": "sequence"},
        "gspo",
        {"aggregate": "seq_mean", "advantage": "group_ddof0", "ratio": "sequence"},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_its_name_in_the_tool_is_what_the_tool_computes(name: str) -> None:
    """Options that the row bears beside the loss (DAPO's refilled groups, GSPO's mini-batches) are off, as in the tool."""
    added, method, wanted = LOSSES[name]
    config = load({**FLAT, **added}).config
    objective = asdict(config.resolved_objective())
    assert config.method == method
    assert {key: objective[key] for key in {**PLAIN, **wanted}} == {**PLAIN, **wanted}


def test_what_trl_means_by_sft() -> None:
    flat = {"model": "demo", "data": {"train": "rows.jsonl"}}
    for added in ({"loss_type": "nll"}, {"assistant_only_loss": True}, {"max_length": 256, "packing": False}):
        assert load({**flat, **added}).config.method == "sft"
    assert load({**flat, "max_length": 256}).config.sampling.max_completion_tokens == 256


def test_options_of_the_other_kind_are_named_and_have_no_effect() -> None:
    loaded = load({**SFT, "beta": 0.1, "group_size": 4, "top_p": 0.5})
    assert loaded.notes == ("ignored: beta, group_size, top_p: sft has no use for it",)
    assert load({**GRPO, "mask_prompt": True}).config.data.targets == "assistant"
