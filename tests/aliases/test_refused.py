"""What cannot be translated exactly is refused, with the key, the figures and a remedy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config as configs
from engine.aliases.table import ROWS
from engine.aliases.unused import REFUSED
from engine.errors import InputError
from tests.aliases.support import FLAT, GRPO, SFT, load

# name -> (what is added to GRPO or, with "model", the tree itself; words of the message; the key that it names)
ERRORS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "beside its canonical key": ({"iters": 5, "run": {"steps": 5}}, ("iters and run.steps",), "iters"),
    "two aliases": ({"iters": 5, "max_steps": 5}, ("iters and max_steps both set run.steps",), "max_steps"),
    "two aliases of a group": ({"group_size": 4, "num_generations": 4}, ("both set sampling.group_size",), "num_generations"),
    "two batches": ({"batch_size": 4, "per_device_train_batch_size": 8}, ("one setting",), "per_device_train_batch_size"),
    "two meanings": ({"delta": 4.0}, ("mlx-lm-lora", "DPOP", "TRL", "two-sided clip"), "delta"),
    "alpha": ({"alpha": 16}, ("XPO", "lora_alpha"), "alpha"),
    "method beside train_mode": ({"train_mode": "grpo"}, ("train_mode and method",), "train_mode"),
    "method beside loss_type": ({"loss_type": "dapo"}, ("loss_type and method",), "loss_type"),
    "bnpo of trl": ({**FLAT, "loss_type": "bnpo"}, ("Beta Normalization", "micro-batch"), "loss_type"),
    "bnpo of mlx": ({**FLAT, "train_mode": "grpo", "grpo_loss_type": "bnpo"}, ("Beta Normalization",), "grpo_loss_type"),
    "a loss that is not there": ({**FLAT, "loss_type": "sapo"}, ("no loss 'sapo'", "luspo"), "loss_type"),
    "dapo of mlx": ({**FLAT, "train_mode": "grpo", "grpo_loss_type": "dapo"}, ("no loss 'dapo'",), "grpo_loss_type"),
    "a mode that is not there": ({**FLAT, "train_mode": "orpo"}, ("no method for train_mode 'orpo'",), "train_mode"),
    "a loss without a mode": ({**FLAT, "grpo_loss_type": "grpo"}, ("no train_mode",), "grpo_loss_type"),
    "rewards without a mode": ({**FLAT, "group_size": 4}, ("trains by sft", "train_mode: grpo"), "group_size"),
    "no trainer": ({**FLAT, "max_steps": 4}, ("which trainer",), "method"),
    "no method": ({**FLAT, "epsilon": 0.1}, ("'method' is missing",), "method"),
    "a level of null": ({"importance_sampling_level": None}, ("without a policy gradient",), "importance_sampling_level"),
    "another level": ({"importance_sampling_level": "word"}, ("token, sequence",), "importance_sampling_level"),
    "scale_rewards of numbers": ({"scale_rewards": 1}, ("one of: group",), "scale_rewards"),
    "completions that are no groups": (
        {"per_device_train_batch_size": 12},
        ("12 x 1 = 12 completions", "groups of 8"),
        "per_device",
    ),
    "rollouts that are no updates": (
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 3},
        ("a rollout of 3", "updates of 2"),
        "steps_per_generation",
    ),
    "batches without a size": (
        {"gradient_accumulation_steps": 4},
        ("batch_size (mlx-lm: prompts)", "TRL: completions"),
        "gradient_acc",
    ),
    "steps that are no rollouts": ({"max_steps": 7, "num_iterations": 2}, ("7 max_steps", "2 updates"), "max_steps"),
    "iterations that are no updates": (
        {"iters": 9, "batch_size": 1, "gradient_accumulation_steps": 2},
        ("9 iters", "2 iterations"),
        "iters",
    ),
    "a reference between steps": (
        {"sync_ref_model": True, "ref_model_sync_steps": 5, "num_iterations": 2},
        ("every 5 updates", "steps of 2"),
        "ref_model_sync_steps",
    ),
    "epochs": ({"epochs": 3}, ("depends on the data", "give iters"), "epochs"),
    "epochs of trl": ({"num_train_epochs": 3, "max_steps": -1}, ("depends on the data", "max_steps"), "num_train_epochs"),
    "a corrected kl of sequences": (
        {"importance_sampling_level": "sequence", "use_bias_correction_kl": True, "beta": 0.1},
        ("sequence's ratio",),
        "use_bias_correction_kl",
    ),
    "a bonus that is not the loss's": ({"entropy_coef": 0.01}, ("a mean over the trained tokens",), "entropy_coef"),
    "a bonus of some tokens": (
        {"method": "dapo", "entropy_coef": 0.01, "top_entropy_quantile": 0.2},
        ("a mean over the trained tokens",),
        "entropy_coef",
    ),
    "a cap that shrinks": ({"method": "cispo", "epsilon_high": 0.2}, ("0.2 would shrink",), "epsilon_high"),
    "epsilon for a cap": ({"method": "cispo", "epsilon": 0.2}, ("all shrink",), "epsilon"),
    "alpha without r": ({"lora_alpha": 16}, ("gives no r",), "lora_alpha"),
    "alpha in mlx": ({"lora_parameters": {"rank": 8, "alpha": 16}}, ("scale",), "lora_parameters.alpha"),
    "a slip in lora_parameters": ({"lora_parameters": {"rnk": 8}}, ("'rank'",), "lora_parameters.rnk"),
    "modules of another model": ({"target_modules": ["c_attn"]}, ("c_attn", "self_attn.q_proj"), "target_modules"),
    "an optimizer that is not there": ({"optimizer": "qhadam"}, ("qhadam", "adamw"), "optimizer"),
    "an optimizer of trl": ({"optim": "galore_adamw"}, ("galore_adamw",), "optim"),
    "no bias correction": (
        {"optimizer": "adam", "optimizer_config": {"adam": {"bias_correction": False}}},
        ("corrected for bias",),
        "optimizer_config.adam.bias_correction",
    ),
    "momentum": (
        {"optimizer": "sgd", "optimizer_config": {"sgd": {"momentum": 0.9}}},
        ("no momentum",),
        "optimizer_config.sgd.momentum",
    ),
    "options of no optimizer": ({"optimizer_config": {"adam": {"eps": 1e-6}}}, ("add optimizer: adam",), "optimizer_config"),
    "a schedule": ({"lr_scheduler_type": "polynomial"}, ("polynomial",), "lr_scheduler_type"),
    "constant with warm-up": ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, ("constant_with_warmup",), "warmup_ratio"),
    "two warm-ups": ({"warmup_steps": 3, "warmup_ratio": 0.1, "max_steps": 9}, ("one setting",), "warmup_ratio"),
    "a warm-up of no run": ({"warmup_steps": 10}, ("needs the steps",), "warmup_steps"),
    "a warm-up of the whole run": ({"warmup_steps": 10, "max_steps": 10}, ("leaves none",), "warmup_steps"),
    "a decay beyond the run": (
        {"iters": 50, "lr_schedule": {"name": "cosine_decay", "arguments": [1e-4, 500]}},
        ("500", "50"),
        "lr_schedule",
    ),
    "a decay that ends high": (
        {"iters": 50, "lr_schedule": {"name": "cosine_decay", "arguments": [1e-4, 50, 5e-5]}},
        ("ends at 5e-05",),
        "lr_schedule",
    ),
    "a decay in steps": (
        {"iters": 5, "lr_schedule": {"name": "step_decay", "arguments": [1, 2, 3]}},
        ("step_decay",),
        "lr_schedule",
    ),
    "two rates": (
        {"iters": 50, "learning_rate": 2e-4, "lr_schedule": {"name": "cosine_decay", "arguments": [1e-4, 50]}},
        ("0.0002", "0.0001"),
        "learning_rate",
    ),
    "weights of no functions": (
        {**FLAT, "train_mode": "grpo", "reward_weights": [1]},
        ("no reward_functions",),
        "reward_weights",
    ),
    "weights and functions": (
        {"model": "demo", "data": "d", "train_mode": "grpo", "reward_functions": "a,b", "reward_weights": "[1]", "group_size": 2},
        ("1 weights for 2",),
        "reward_weights",
    ),
    "a function of the tool": (
        {"model": "demo", "data": {"train": "d"}, "loss_type": "grpo", "reward_funcs": ["accuracy_reward"]},
        ("of TRL", "math or number"),
        "reward_funcs",
    ),
    "the tool's own rewards": (
        {"model": "demo", "data": "d", "train_mode": "grpo"},
        ("mlx-lm-lora would use all", "r1_int_reward_func, "),
        "reward_functions",
    ),
    "two data sets": ({"data": None, "hf_dataset": [{"path": "o/a"}, {"path": "o/b"}]}, ("2 data sets",), "hf_dataset"),
    "two splits at once": (
        {"data": None, "dataset_name": "o/rows", "dataset_train_split": "train+test"},
        ("'train+test' is not one split",),
        "dataset_train_split",
    ),
    "a configuration of a path": (
        {"data": None, "dataset_name": "rows.jsonl", "dataset_config": "en"},
        ("'rows.jsonl' is a path",),
        "dataset_config",
    ),
    "a split of nothing": ({"dataset_train_split": "test"}, ("names no data set",), "dataset_train_split"),
    "options of a loader": (
        {"data": None, "hf_dataset": {"path": "o/rows", "config": {"data_files": "x"}}},
        ("'data_files'",),
        "hf_dataset.config.data_files",
    ),
    "a slip in a data set": ({"data": None, "hf_dataset": {"path": "o/r", "train_spilt": "a"}}, ("train_split",), "hf_dataset"),
    "data twice": ({"dataset_name": "o/rows"}, ("dataset_name and data.train are one setting",), "dataset_name"),
    "full training of some layers": ({"fine_tune_type": "full", "num_layers": 4}, ("full training of 4",), "num_layers"),
    "rewards beside reward_funcs": ({"reward_funcs": ["answer"]}, ("reward_funcs and rewards",), "reward_funcs"),
    "a slip": ({"learning_rat": 1e-4}, ("unknown key", "did you mean 'learning_rate', optim.learning_rate here?"), ""),
    "a value out of bounds": ({"temperature": -1.0}, ("sampling.temperature (mlx-lm-lora, TRL: temperature)",), ""),
}


NO_DATA = ("data", None)  # the section is taken out


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_translated_is_refused_and_named(name: str) -> None:
    added, words, key = ERRORS[name]
    with pytest.raises(InputError) as caught:
        load(added if "model" in added else {key: given for key, given in {**GRPO, **added}.items() if (key, given) != NO_DATA})
    for word in words:
        assert word in str(caught.value)
    assert key in caught.value.where and caught.value.remedy


def test_delta_has_one_meaning_in_a_file_of_one_tool() -> None:
    assert load({**GRPO, "delta": 4.0, "max_steps": 5}).config.resolved_objective().delta == 4.0
    loaded = load({**GRPO, "delta": 50.0, "group_size": 4})
    assert loaded.config.resolved_objective().delta is None
    assert loaded.notes == (
        "ignored: delta: an option of a method that is not the one here (DPOP's penalty, with dpo_cpo_loss_type)",
    )


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row.tools[0]} {row.key}")
def test_what_would_train_otherwise_is_refused_unless_it_is_neutral(row: Any) -> None:
    base = SFT if row.only == "sft" else GRPO
    sure = {"disable_tqdm": True} if len(ROWS[row.key]) > 1 else {}
    with pytest.raises(InputError) as caught:
        load({**base, **sure, row.key: "something else"})
    assert caught.value.where.endswith(row.key) and row.meaning in caught.value.what and caught.value.remedy
    plain = configs.dump(load({**base, **sure}).config)
    for neutral in (None, *row.neutral):
        assert configs.dump(load({**base, **sure, row.key: neutral}).config) == plain


REFUSED_VALUES = {
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "load_in_mxfp4": True,
    "shuffle_dataset": False,
}
NEUTRAL_VALUES = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "load_in_mxfp4": False,
    "shuffle_dataset": True,
}


@pytest.mark.parametrize("key", REFUSED_VALUES)
def test_neutral_values_are_the_tools_own(key: str) -> None:
    load({**GRPO, key: NEUTRAL_VALUES[key]})
    with pytest.raises(InputError, match=key):
        load({**GRPO, key: REFUSED_VALUES[key]})


NUMBERS = (True, False, 0, 1, -1, 8, 0.5, 1e-5, float("nan"), 10**30)
WORDS = ("", "a, b", "[1, 2]", "grpo", "sequence", "linear", "adamw", "full")
NESTED = ([], ["a"], [1], {}, {"a": 1}, {"rank": 8}, {"adam": {"eps": 1}}, {"name": "cosine_decay", "arguments": [1e-4, 10]})


@settings(max_examples=200, deadline=None)
@given(
    base=st.sampled_from([GRPO, SFT, FLAT, {**GRPO, "method": "cispo"}, {**GRPO, "method": 5}, {**FLAT, "objective": 3}]),
    keys=st.dictionaries(
        st.sampled_from(sorted(ROWS)), st.sampled_from([*NUMBERS, *WORDS, *NESTED, None]), min_size=1, max_size=4
    ),
)
def test_whatever_a_known_key_has_is_a_config_or_one_error(base: dict[str, Any], keys: dict[str, Any]) -> None:
    try:
        configs.dump(load({**base, **keys}).config)
    except InputError as error:
        assert error.what and error.where and error.remedy
