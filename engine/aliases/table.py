"""The keys of mlx_lm.lora, mlx-lm-lora and TRL that are settings here, and ROWS, every key that is known.

Without `value` a key is read together with others (engine/aliases/: objective, counts, parts). Keys that set nothing are in
unused.py. Read from mlx_lm 0.32.2, mlx-lm-lora 5.10.2, TRL 1.16.0 (GRPOConfig, SFTConfig, ModelConfig, its scripts) and open-r1's
recipes.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.aliases import values
from engine.aliases.rows import ALL, GRPO, LORA, MLL, MLX, TRL, Alias, Row, Tool
from engine.aliases.unused import IGNORED, REFUSED

_as_is = values.as_is

ALIASES: tuple[Alias, ...] = (
    Alias("model_name_or_path", (TRL,), "model", _as_is),
    Alias("data", MLX, "data.train"),
    Alias("dataset_name", (TRL,), "data.train"),
    Alias("dataset_config", (TRL,), "data.train"),
    Alias("dataset_train_split", (TRL,), "data.train"),
    Alias("hf_dataset", MLX, "data.train"),
    Alias("system_prompt", (TRL,), "data.system", _as_is),
    Alias("mask_prompt", MLX, "data.targets", values.one_of({True: "last", False: "all"}), "sft"),
    Alias("completion_only_loss", (TRL,), "data.targets", values.one_of({True: "last", False: "all"}), "sft"),
    Alias("assistant_only_loss", (TRL,), "data.targets", values.one_of({True: "assistant", False: "all"}), "sft"),
    Alias("train_mode", (MLL,), "method"),
    Alias("grpo_loss_type", (MLL,), "method", only="rl"),
    Alias("loss_type", (TRL,), "method"),
    Alias("chat_template_kwargs", (TRL,), "chat.variables", values.mapping),
    *(Alias(f"load_in_{bits}bits", (MLL,), "quantize.bits") for bits in (4, 6, 8)),
    # adapter
    Alias("resume_adapter_file", MLX, "adapter.start_from"),
    Alias("train_type", (MLL,), "adapter.type", _as_is),
    Alias("fine_tune_type", (LORA,), "adapter.type", _as_is),
    Alias("num_layers", MLX, "adapter.layers"),
    Alias("lora_parameters", MLX, "adapter.rank"),
    Alias("use_peft", (TRL,), "adapter.type"),
    Alias("use_dora", (TRL,), "adapter.type"),
    Alias("use_rslora", (TRL,), "adapter.scale"),
    Alias("lora_r", (TRL,), "adapter.rank"),
    Alias("r", (TRL,), "adapter.rank"),
    Alias("lora_alpha", (TRL,), "adapter.scale"),
    Alias("lora_dropout", (TRL,), "adapter.dropout"),
    Alias("lora_target_modules", (TRL,), "adapter.keys"),
    Alias("target_modules", (TRL,), "adapter.keys"),
    # sampling
    Alias("group_size", (MLL,), "sampling.group_size", _as_is, "rl"),
    Alias("num_generations", (TRL,), "sampling.group_size", _as_is, "rl"),
    Alias("batch_size", MLX, "sampling.prompts_per_step"),
    Alias("per_device_train_batch_size", (TRL,), "sampling.prompts_per_step"),
    Alias("gradient_accumulation_steps", GRPO, "sampling.prompts_per_step"),
    Alias("grad_accumulation_steps", (LORA,), "sampling.prompts_per_step"),
    Alias("max_completion_length", GRPO, "sampling.max_completion_tokens", _as_is, "rl"),
    Alias("max_prompt_length", (TRL,), "sampling.max_prompt_tokens", _as_is, "rl"),
    Alias("max_seq_length", ALL, "sampling.max_prompt_tokens"),
    Alias("max_length", (TRL,), "sampling.max_prompt_tokens", only="sft"),
    Alias("temperature", GRPO, "sampling.temperature", _as_is, "rl"),
    # objective
    Alias("beta", GRPO, "objective.beta", _as_is, "rl"),
    Alias("epsilon", GRPO, "objective.epsilon_low", only="rl"),
    Alias("epsilon_high", GRPO, "objective.epsilon_high", only="rl"),
    Alias("delta", (TRL,), "objective.delta", _as_is, "rl", "objective.delta here, the bound of the two-sided clip"),
    Alias("importance_sampling_level", GRPO, "objective.ratio", only="rl"),
    Alias("scale_rewards", (TRL,), "objective.advantage", values.scale_rewards, "rl"),
    Alias("num_iterations", (TRL,), "objective.updates_per_rollout", _as_is, "rl"),
    Alias("steps_per_generation", (TRL,), "objective.minibatches", only="rl"),
    Alias("generation_batch_size", (TRL,), "objective.minibatches", only="rl"),
    Alias("mask_truncated_completions", (TRL,), "objective.truncated", values.one_of({True: "mask", False: "keep"}), "rl"),
    Alias("top_entropy_quantile", (TRL,), "objective.entropy_quantile", _as_is, "rl"),
    Alias("entropy_coef", (TRL,), "objective.entropy_bonus", only="rl"),
    Alias("use_bias_correction_kl", (TRL,), "objective.kl", only="rl"),
    Alias("sync_ref_model", (TRL,), "objective.ref_sync_every", only="rl"),
    Alias("ref_model_sync_steps", (TRL,), "objective.ref_sync_every", only="rl"),
    Alias("ref_model_mixup_alpha", (TRL,), "objective.ref_sync_mix", only="rl"),
    # rewards
    Alias("reward_functions", (MLL,), "rewards", only="rl"),
    Alias("reward_funcs", (TRL,), "rewards", only="rl"),
    Alias("reward_functions_file", (MLL,), "rewards", only="rl"),
    Alias("reward_weights", GRPO, "rewards", only="rl"),
    # optim
    Alias("learning_rate", ALL, "optim.learning_rate"),
    Alias("lr_schedule", MLX, "optim.schedule"),
    Alias("lr_scheduler_type", (TRL,), "optim.schedule"),
    Alias("warmup_ratio", (TRL,), "optim.warmup"),
    Alias("warmup_steps", (TRL,), "optim.warmup"),
    Alias("optimizer", MLX, "optim.name"),
    Alias("optimizer_config", MLX, "optim.betas"),
    Alias("optim", (TRL,), "optim.name"),
    Alias("adam_beta1", (TRL,), "optim.betas"),
    Alias("adam_beta2", (TRL,), "optim.betas"),
    Alias("adam_epsilon", (TRL,), "optim.eps", _as_is),
    Alias("weight_decay", (TRL,), "optim.weight_decay", _as_is),
    Alias("max_grad_norm", (TRL,), "optim.max_grad_norm", _as_is),
    Alias("grad_checkpoint", MLX, "optim.grad_checkpoint", _as_is),
    Alias("gradient_checkpointing", (TRL,), "optim.grad_checkpoint", _as_is),
    # run
    Alias("seed", ALL, "run.seed", _as_is),
    Alias("run_name", (TRL,), "run.name", _as_is),
    Alias("save_total_limit", (TRL,), "run.keep_checkpoints", _as_is),
    Alias("iters", MLX, "run.steps"),
    Alias("epochs", (MLL,), "run.steps"),
    Alias("max_steps", (TRL,), "run.steps"),
    Alias("num_train_epochs", (TRL,), "run.steps"),
    Alias("steps_per_eval", MLX, "run.eval_every"),
    Alias("eval_steps", (TRL,), "run.eval_every"),
    Alias("save_every", MLX, "run.checkpoint_every"),
    Alias("save_steps", (TRL,), "run.checkpoint_every"),
    Alias("val_batches", MLX, "run.eval_rows"),
)

# The names of a row's fields, by ours.
FEATURES: dict[str, tuple[str, tuple[Tool, ...]]] = {
    "prompt_feature": ("prompt", MLX),
    "completion_feature": ("completion", MLX),
    "chat_feature": ("messages", MLX),
    "answer_feature": ("answer", (MLL,)),
    "system_feature": ("system", (MLL,)),
    "type_feature": ("type", (MLL,)),
    "dataset_prompt_column": ("prompt", (TRL,)),
    "text_feature": ("text", MLX),
    "dataset_text_field": ("text", (TRL,)),
}


def _by_key(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    found: dict[str, tuple[Row, ...]] = {}
    for row in rows:
        found[row.key] = (*found.get(row.key, ()), row)
    return found


ROWS: dict[str, tuple[Row, ...]] = _by_key(
    (
        *ALIASES,
        *(
            Alias(key, tools, f"data.columns.{ours}", only="sft" if ours == "text" else None)
            for key, (ours, tools) in FEATURES.items()
        ),
        *IGNORED,
        *REFUSED,
    )
)
