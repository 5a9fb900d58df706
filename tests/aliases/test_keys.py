"""Each key that is a setting here: what it sets, alone and with others; the names of fields; data and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.aliases.parts import R1
from engine.aliases.table import ALIASES, FEATURES
from engine.errors import InputError
from engine.rewards.registry import BUILT_IN
from tests.aliases.support import GRPO, SFT, load, value

# Every row that converts a value by itself: key -> (value, our key, what it becomes there).
CONVERTED: dict[str, tuple[Any, str, Any]] = {
    "model_name_or_path": ("owner/name", "model", "owner/name"),
    "system_prompt": ("Think.", "data.system", "Think."),
    "chat_template_kwargs": ({"enable_thinking": False}, "chat.variables", {"enable_thinking": False}),
    "mask_prompt": (False, "data.targets", "all"),
    "completion_only_loss": (True, "data.targets", "last"),
    "assistant_only_loss": (True, "data.targets", "assistant"),
    "train_type": ("dora", "adapter.type", "dora"),
    "fine_tune_type": ("full", "adapter.type", "full"),
    "group_size": (5, "sampling.group_size", 5),
    "num_generations": (6, "sampling.group_size", 6),
    "max_completion_length": (77, "sampling.max_completion_tokens", 77),
    "max_prompt_length": (78, "sampling.max_prompt_tokens", 78),
    "temperature": (0.5, "sampling.temperature", 0.5),
    "beta": (0.3, "objective.beta", 0.3),
    "scale_rewards": ("batch", "objective.advantage", "batch"),
    "num_iterations": (3, "objective.updates_per_rollout", 3),
    "mask_truncated_completions": (True, "objective.truncated", "mask"),
    "top_entropy_quantile": (0.25, "objective.entropy_quantile", 0.25),
    "adam_epsilon": (1e-06, "optim.eps", 1e-06),
    "weight_decay": (0.2, "optim.weight_decay", 0.2),
    "max_grad_norm": (0.7, "optim.max_grad_norm", 0.7),
    "grad_checkpoint": (True, "optim.grad_checkpoint", True),
    "gradient_checkpointing": (False, "optim.grad_checkpoint", False),
    "seed": (9, "run.seed", 9),
    "run_name": ("mine", "run.name", "mine"),
    "save_total_limit": (5, "run.keep_checkpoints", 5),
    "delta": (4.0, "objective.delta", 4.0),
}


def test_the_examples_cover_every_row_that_converts_a_value() -> None:
    assert set(CONVERTED) == {row.key for row in ALIASES if row.value is not None}


@pytest.mark.parametrize("row", [row for row in ALIASES if row.value is not None], ids=lambda row: row.key)
def test_a_key_sets_ours_and_says_so(row: Any) -> None:
    given, to, ours = CONVERTED[row.key]
    base = dict(SFT if row.only == "sft" else GRPO)
    if row.key == "model_name_or_path":
        del base["model"]
    sure = {"disable_tqdm": True} if row.key == "delta" else {}  # delta alone means two things
    loaded = load({**base, **sure, row.key: given})
    assert value(loaded.config, to) == ours
    assert loaded.origin[to].endswith(f": {row.key}")
    assert all(tool in loaded.origin[to] for tool in row.tools)


# Each: what is added to GRPO above (or to the tree itself where it has a model), and what that sets.
COMBINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon for both": ({"epsilon": 0.1}, {"objective.epsilon_low": 0.1, "objective.epsilon_high": 0.1}),
    "epsilon_high alone": ({"epsilon_high": 0.3}, {"objective.epsilon_low": 0.2, "objective.epsilon_high": 0.3}),
    "the cap of cispo": ({"method": "cispo", "epsilon_high": 5.0}, {"objective.epsilon_high": 4.0}),
    "the level": ({"importance_sampling_level": "sequence"}, {"objective.ratio": "sequence"}),
    "scale_rewards true": ({"scale_rewards": True}, {"objective.advantage": "group"}),
    "scale_rewards false": ({"scale_rewards": False}, {"objective.advantage": "none"}),
    "kl corrected": ({"beta": 0.1, "use_bias_correction_kl": True}, {"objective.kl": "k3_ratio"}),
    "kl not corrected": ({"beta": 0.1, "use_bias_correction_kl": False}, {"objective.kl": "k3"}),
    "no kl to correct": ({"beta": 0.0, "use_bias_correction_kl": True}, {"objective.kl": "k3", "objective.beta": 0.0}),
    "an entropy bonus": ({"method": "dapo", "entropy_coef": 0.01}, {"objective.entropy_bonus": 0.01}),
    "no entropy bonus": ({"entropy_coef": 0.0}, {"objective.entropy_bonus": 0.0}),
    "a reference that moves": (  # 4 updates a step: every 8 updates is every 2 steps
        {"sync_ref_model": True, "ref_model_sync_steps": 8, "ref_model_mixup_alpha": 1.0, "num_iterations": 4},
        {"objective.ref_sync_every": 2, "objective.ref_sync_mix": 1.0},
    ),
    "a reference by TRL's own figures": (
        {"sync_ref_model": True, "use_peft": False},
        {"objective.ref_sync_every": 512, "objective.ref_sync_mix": 0.6, "adapter.type": "full"},
    ),
    "a reference that does not": ({"sync_ref_model": False, "ref_model_sync_steps": 8}, {"objective.ref_sync_every": 0}),
    "peft": ({"r": 8, "lora_alpha": 16}, {"adapter.rank": 8, "adapter.scale": 2.0}),
    "rslora": ({"lora_r": 16, "lora_alpha": 8, "use_rslora": True}, {"adapter.scale": 2.0}),
    "all linear": ({"target_modules": "all-linear"}, {"adapter.keys": None}),
    "a path": ({"target_modules": "self_attn.q_proj, up_proj"}, {"adapter.keys": ["self_attn.q_proj", "mlp.up_proj"]}),
    "layers": ({"num_layers": 3}, {"adapter.layers": 3}),
    "layers of full training": ({"train_type": "full", "num_layers": 3}, {"adapter.layers": -1, "adapter.type": "full"}),
    "dora": ({"use_dora": True}, {"adapter.type": "dora"}),
    "constant": ({"lr_scheduler_type": "constant"}, {"optim.schedule": "constant", "optim.warmup": 0.0}),
    "constant with warm-up": (
        {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.2},
        {"optim.schedule": "constant", "optim.warmup": 0.2},
    ),
    "warm-up in updates": ({"warmup_steps": 5, "max_steps": 50}, {"optim.warmup": 0.1, "run.steps": 50}),
    "warm-up in updates of ours": ({"warmup_steps": 5, "num_iterations": 2, "run": {"steps": 25}}, {"optim.warmup": 0.1}),
    "a linear schedule": (
        {"iters": 50, "lr_schedule": {"name": "linear_schedule", "arguments": [1e-4, 0.0, 50]}},
        {"optim.schedule": "linear", "optim.learning_rate": 1e-4, "optim.warmup": 0.0},
    ),
    "adafactor": ({"optim": "adafactor"}, {"optim.name": "adafactor"}),
    "paged": ({"optim": "paged_adamw_32bit"}, {"optim.name": "adamw"}),
    "muon": ({"optimizer": "Muon"}, {"optim.name": "muon"}),
    "one beta": ({"adam_beta1": 0.8}, {"optim.betas": (0.8, 0.999)}),
    "evaluations and checkpoints": (
        {"eval_steps": 7, "save_steps": 0.1, "max_steps": 100},
        {"run.eval_every": 7, "run.checkpoint_every": 10},
    ),
    "epochs beside steps": ({"num_train_epochs": 3, "max_steps": 7}, {"run.steps": 7}),
    "a generation batch": (  # 16 / 4 = 4 micro-batches, of 2 an update
        {"per_device_train_batch_size": 4, "generation_batch_size": 16, "gradient_accumulation_steps": 2, "num_generations": 4},
        {"sampling.prompts_per_step": 4, "objective.minibatches": 2},
    ),
    "rows of sft": (
        {"method": "sft", "rewards": [], "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
        {"sampling.prompts_per_step": 12},
    ),
    "an own file": ({"data": "rows.jsonl"}, {"data.train": "/somewhere/rows.jsonl"}),
    "a configuration and a split": (
        {"data": None, "dataset_name": "o/rows", "dataset_config": "main", "dataset_train_split": "train_sft[:80%]"},
        {"data.train": "o/rows:main#train_sft[:80%]", "data.valid": None},
    ),
    "a configuration by itself": ({"data": None, "dataset_name": "o/rows", "dataset_config": "en"}, {"data.train": "o/rows:en"}),
    "what every data set has": (
        {"data": None, "dataset_name": "o/rows", "dataset_config": "default", "dataset_train_split": "train"},
        {"data.train": "o/rows"},
    ),
    "a data set of mlx_lm.lora": (
        {
            "data": None,
            "hf_dataset": {
                "path": "o/rows",
                "config": {"name": "en", "revision": "v2"},
                "train_split": "train[:90%]",
                "valid_split": "train[-10%:]",
                "prompt_feature": "question",
            },
        },
        {"data.train": "o/rows:en@v2#train[:90%]", "data.valid": "o/rows:en@v2#train[-10%:]", "data.columns.prompt": "question"},
    ),
    "a data set in a list": ({"data": None, "hf_dataset": [{"path": "o/rows", "config": "en"}]}, {"data.train": "o/rows:en"}),
    "a folder as a data set": ({"data": None, "hf_dataset": {"path": "/"}}, {"data.train": "/"}),
    "a list of rewards": ({"rewards": None, "reward_functions": ["answer", "format"], "reward_weights": [1, 2]}, {}),
}


@pytest.mark.parametrize("name", COMBINED)
def test_keys_that_are_read_together(name: str) -> None:
    added, ours = COMBINED[name]
    tree = {key: given for key, given in {**GRPO, **added}.items() if given is not None}
    config = load(tree).config
    for key, wanted in ours.items():
        assert value(config, key) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key
    if "reward_functions" in added:
        assert [(reward.name, reward.weight, reward.file) for reward in config.rewards] == [
            ("answer", 1, None),
            ("format", 2, None),
        ]


FIELDS = {
    "prompt_feature": "prompt",
    "completion_feature": "completion",
    "chat_feature": "messages",
    "answer_feature": "answer",
    "system_feature": "system",
    "type_feature": "type",
    "dataset_prompt_column": "prompt",
    "text_feature": "text",
    "dataset_text_field": "text",
}


def test_fields_go_by_their_names_in_the_file() -> None:
    assert {key: ours for key, (ours, _) in FEATURES.items()} == FIELDS
    for key, ours in FIELDS.items():
        method = SFT if ours == "text" else GRPO
        loaded = load({**method, key: "theirs"})
        assert loaded.config.data.columns == {ours: "theirs"}
        assert loaded.origin[f"data.columns.{ours}"].endswith(f": {key}")
        assert load({**method, key: ours}).config.data.columns == {}  # a column that has our name may be missing


def test_data_is_a_path_that_is_there_before_it_is_an_id(tmp_path: Path) -> None:
    flat = {"model": "demo", "train_mode": "sft", "data": "owner/rows"}
    assert load(flat, tmp_path).config.data.train == "owner/rows"
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    assert load(flat, tmp_path).config.data.train == str(tmp_path / "owner" / "rows")
    assert load({**flat, "data": "owner/rows.jsonl"}, tmp_path).config.data.train == str(tmp_path / "owner" / "rows.jsonl")


def test_mlx_lm_loras_own_rewards_are_built_in_beside_those_of_a_file() -> None:
    flat = {"model": "demo", "data": "d", "train_mode": "grpo", "reward_functions_file": "mine.py"}
    config = load({**flat, "reward_functions": "r1_count_xml, mine"}).config
    assert [(reward.name, reward.file) for reward in config.rewards] == [("r1_count_xml", None), ("mine", "/somewhere/mine.py")]
    assert set(R1) == {name for name in BUILT_IN if name.startswith("r1_")}


def test_a_data_set_without_splits_is_taken_whole_and_the_notes_say_what_the_tool_takes() -> None:
    loaded = load({"model": "demo", "train_mode": "sft", "hf_dataset": {"path": "o/rows", "test_split": "test"}})
    assert (loaded.config.data.train, loaded.config.data.valid) == ("o/rows", None)
    said = "\n".join(loaded.notes)
    assert "train[:80%] there" in said and "train[-10%:] there" in said and "hf_dataset.test_split" in said


def test_an_adapter_to_go_on_from_and_a_model_to_quantise(tmp_path: Path) -> None:
    found = load({**SFT, "resume_adapter_file": str(tmp_path / "adapters.safetensors")})
    assert found.config.adapter.start_from == str(tmp_path / "adapters.safetensors")
    assert found.origin["adapter.start_from"].endswith("resume_adapter_file")
    assert load({**SFT, "resume_adapter_file": ""}).config.adapter.start_from is None
    for bits in (4, 6, 8):
        found = load({**GRPO, f"load_in_{bits}bits": True})
        assert found.config.quantize.bits == bits and any("reference" in note for note in found.notes)
        assert load({**GRPO, f"load_in_{bits}bits": False}).config.quantize.bits is None
    with pytest.raises(InputError, match=r"both set quantize\.bits"):
        load({**GRPO, "load_in_4bits": True, "load_in_8bits": True})
    with pytest.raises(InputError, match="no mapping"):
        load({**GRPO, "chat_template_kwargs": "thinking"})
    assert load({**GRPO, "chat_template_kwargs": '{"enable_thinking": true}'}).config.chat.variables == {"enable_thinking": True}
