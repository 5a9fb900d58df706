"""Whole configs as users of mlx_lm.lora, mlx-lm-lora and TRL have them: what they become, and what the notes say."""

from __future__ import annotations

import pytest
import yaml

from engine import config as configs
from tests.aliases.support import load

# As in the tool's README, with a file for the reward functions.
MLX_LM_LORA = """
model: Qwen/Qwen2.5-0.5B-Instruct
train: true
train_mode: grpo
train_type: lora
data: ./my_data
seed: 7
num_layers: 16
batch_size: 2
gradient_accumulation_steps: 4
iters: 400
val_batches: 25
learning_rate: 1e-5
optimizer: adamw
optimizer_config: {adamw: {betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01}, adam: {}}
lr_schedule: {name: cosine_decay, warmup: 10, warmup_init: 1e-7, arguments: [1e-5, 100, 1e-7]}
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: adapters
save_every: 100
max_seq_length: 1024
grad_checkpoint: true
lora_parameters: {keys: [self_attn.q_proj, self_attn.v_proj], rank: 8, scale: 10.0, dropout: 0.0}
group_size: 4
beta: 0.1
epsilon: 0.0001
max_completion_length: 256
temperature: 0.8
grpo_loss_type: grpo
importance_sampling_level: token
reward_functions: "accuracy, shape"
reward_functions_file: my_rewards.py
reward_weights: "[0.7, 0.3]"
wandb: my-project
"""

# A recipe of open-r1's kind; the data set is a file.
TRL = """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
data: {train: rows.jsonl}
dataset_prompt_column: problem
system_prompt: Think first.
bf16: true
use_vllm: true
do_eval: false
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
learning_rate: 2.0e-05
log_completions: true
logging_steps: 1
loss_type: dr_grpo
scale_rewards: false
lr_scheduler_type: cosine
max_prompt_length: 512
max_completion_length: 1024
max_steps: 120
num_train_epochs: 1
num_generations: 8
num_iterations: 2
steps_per_generation: 6
output_dir: data/out
per_device_train_batch_size: 16
push_to_hub: true
report_to: [wandb]
reward_funcs: [my_lib.rewards.accuracy, my_lib.rewards.form]
reward_weights: [1.0, 0.2]
save_strategy: steps
save_steps: 12
save_total_limit: 2
seed: 42
warmup_ratio: 0.1
beta: 0.04
epsilon: 0.2
epsilon_high: 0.28
use_bias_correction_kl: true
mask_truncated_completions: true
top_entropy_quantile: 0.2
use_peft: true
lora_r: 32
lora_alpha: 64
lora_dropout: 0.0
lora_target_modules: [q_proj, v_proj, down_proj]
optim: adamw_8bit
adam_beta2: 0.95
weight_decay: 0.1
max_grad_norm: 0.2
"""

MLX_LM = """
model: mlx-community/Llama-3.2-1B-Instruct-4bit
train: true
fine_tune_type: dora
data: my_data
mask_prompt: true
num_layers: -1
batch_size: 4
grad_accumulation_steps: 2
iters: 1000
learning_rate: 1e-4
optimizer: adam
report_to: wandb
project_name: mine
save_every: 150
steps_per_eval: 200
max_seq_length: 2048
lora_parameters: {rank: 4, scale: 20.0, dropout: 0.05}
prompt_feature: question
completion_feature: response
"""

# name -> (text, canonical twin, some of the origins, words of notes)
REAL_LIFE: dict[str, tuple[str, str, dict[str, str], tuple[str, ...]]] = {
    # batch_size 2 x 4 = 8 prompts an update; 400 iterations / 4 = 100 steps; 200 / 4 = 50; 100 / 4 = 25; 25 batches x 2 = 50
    # rows; 10 updates of warm-up of 100 = 0.1.
    "mlx-lm-lora": (
        MLX_LM_LORA,
        """
model: Qwen/Qwen2.5-0.5B-Instruct
method: grpo
data: {train: my_data}
adapter: {type: lora, layers: 16, rank: 8, scale: 10.0, dropout: 0.0, keys: [self_attn.q_proj, self_attn.v_proj]}
sampling: {prompts_per_step: 8, group_size: 4, max_prompt_tokens: 1024, max_completion_tokens: 256, temperature: 0.8}
objective: {advantage: group_ddof0, beta: 0.1, epsilon_low: 1e-4, epsilon_high: 1e-4}
rewards: [{name: accuracy, file: my_rewards.py, weight: 0.7}, {name: shape, file: my_rewards.py, weight: 0.3}]
optim: {name: adamw, learning_rate: 1e-5, schedule: cosine, warmup: 0.1, betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01,
        grad_checkpoint: true}
run: {seed: 7, steps: 100, eval_every: 50, checkpoint_every: 25, eval_rows: 50}
""",
        {
            "run.steps": "mlx-lm-lora: iters",
            "sampling.prompts_per_step": "mlx-lm-lora: batch_size, gradient_accumulation_steps",
            "adapter.scale": "mlx-lm-lora: lora_parameters",
            "method": "mlx-lm-lora: train_mode, grpo_loss_type",
            "rewards": "mlx-lm-lora: reward_functions, reward_weights, reward_functions_file",
            "optim.max_grad_norm": "default",
        },
        (
            "ignored: steps_per_report, wandb: the journal",
            "ignored: adapter_path: ",
            "the rate starts at 0 here, not at 1e-07",
            "reaches its end with the run, after 90 updates, not 100",
            "optim.max_grad_norm: 1.0 applies here (by default; mlx-lm-lora: no clipping)",
            "data.system: none applies here",
            "top_p 0.95 and top_k 20",
        ),
    ),
    # 16 x 6 = 96 completions a rollout = 12 prompts; 6 / 2 = 3 mini-batches, x 2 passes = 6 updates a step; 120 / 6 = 20 steps,
    # 12 / 6 = 2; alpha 64 / r 32 = 2.
    "TRL": (
        TRL,
        """
model: Qwen/Qwen2.5-1.5B-Instruct
method: dr_grpo
data: {train: rows.jsonl, system: Think first., columns: {prompt: problem}}
adapter: {type: lora, rank: 32, scale: 2.0, keys: [self_attn.q_proj, self_attn.v_proj, mlp.down_proj]}
sampling: {prompts_per_step: 12, group_size: 8, max_prompt_tokens: 512, max_completion_tokens: 1024}
objective: {minibatches: 3, updates_per_rollout: 2, beta: 0.04, epsilon_high: 0.28, kl: k3_ratio, truncated: mask,
            entropy_quantile: 0.2}
rewards: [{name: accuracy, file: my_lib/rewards.py, weight: 1.0}, {name: form, file: my_lib/rewards.py, weight: 0.2}]
optim: {learning_rate: 2e-5, schedule: cosine, warmup: 0.1, betas: [0.9, 0.95], weight_decay: 0.1, max_grad_norm: 0.2,
        grad_checkpoint: true}
run: {seed: 42, steps: 20, checkpoint_every: 2, keep_checkpoints: 2}
""",
        {
            "run.steps": "TRL: max_steps",
            "adapter.scale": "TRL: lora_alpha, lora_r",
            "objective.minibatches": "TRL: steps_per_generation",
            "optim.betas": "TRL: adam_beta2",
            "data.train": "file",
        },
        (
            "ignored: torch_dtype, attn_implementation, bf16, use_vllm,",
            "ignored: num_train_epochs: run.steps decides",
            "run.steps: 20, for 120 max_steps in steps of 6 updates",
            "12 prompts of 8 completions; per_device_train_batch_size counts completions",
            "TRL's mix the completions",
            "the state of adamw_8bit is float32 here",
            "accuracy is read from my_lib/rewards.py",
        ),
    ),
    # 4 x 2 = 8 rows an update; 1000 / 2 = 500; 150 / 2 = 75; 200 / 2 = 100
    "mlx_lm.lora": (
        MLX_LM,
        """
model: mlx-community/Llama-3.2-1B-Instruct-4bit
method: sft
data: {train: my_data, targets: last, columns: {prompt: question, completion: response}}
adapter: {type: dora, rank: 4, scale: 20.0, dropout: 0.05, layers: -1}
sampling: {prompts_per_step: 8, max_prompt_tokens: 2048, max_completion_tokens: 2048}
optim: {name: adam, learning_rate: 1e-4}
run: {steps: 500, checkpoint_every: 75, eval_every: 100}
""",
        {"adapter.type": "mlx_lm.lora: fine_tune_type", "method": "mlx_lm.lora: no train_mode"},
        (
            "method: sft, the only one",
            "optim.schedule: cosine applies here (by default; mlx_lm.lora: constant)",
            "optim.warmup: 0.03 applies here (by default; mlx_lm.lora: 0.0)",
            "ignored: report_to, project_name: the journal",
        ),
    ),
}


@pytest.mark.parametrize("name", REAL_LIFE)
def test_a_file_of_another_tool_is_the_config_that_it_would_be_here(name: str) -> None:
    text, twin, origins, notes = REAL_LIFE[name]
    loaded = load(text)
    assert configs.dump(loaded.config) == configs.dump(load(twin).config)
    assert {key: loaded.origin[key] for key in origins} == origins
    said = "\n".join(loaded.notes)
    for words in notes:
        assert words in said


@pytest.mark.parametrize("name", REAL_LIFE)
def test_no_key_of_such_a_file_goes_unmentioned(name: str) -> None:
    """Each is in an origin or in a note, unless it is null, neutral or our own."""
    loaded = load(REAL_LIFE[name][0])
    said = " ".join((*loaded.origin.values(), *loaded.notes))
    silent = [key for key, given in yaml.safe_load(REAL_LIFE[name][0]).items() if given is not None and key not in said]
    assert set(silent) <= {"model", "data", "model_revision"}


def test_what_was_loaded_is_written_in_our_own_keys() -> None:
    for text, *_ in REAL_LIFE.values():
        config = load(text).config
        again = load(configs.dump(config))
        assert again.notes == () and configs.dump(again.config) == configs.dump(config)
