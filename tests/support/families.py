"""Tiny folders of the model families that mlx_lm knows, with random weights: small enough to train a step of each in a test.

Weights are drawn wide, so that heads look back at single tokens, and the last norm is scaled until the mean entropy of the next
token is below half of log V: an error of mask, offset or state then shows as nats. Windows are 16 tokens: prompts pass them.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from engine.worker.blank import VOCAB_SIZE, write_tokenizer
from engine.worker.trees import flat

WINDOW = 16
WIDTH = 64
_LAST_NORMS = ("norm", "norm_f", "final_norm", "final_layernorm", "embedding_norm", "ln_f")
_BODIES = ("model", "backbone", "transformer")
_KEPT = ("A_log", "dt_bias", "D", "conv1d", "sinks", "e_score_correction_bias", "x_", "w0", "a0", "v0", "k_k", "k_a", "r_k")

_BASE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_MAMBA2 = {
    "num_heads": 8,
    "head_dim": 16,
    "intermediate_size": 128,
    "state_size": 16,
    "layer_norm_epsilon": 1e-5,
    "conv_kernel": 4,
    "n_groups": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_limit": [0.001, 100.0],
    "time_step_rank": "auto",
    "num_hidden_layers": 3,
}

# what differs from _BASE, by the family's name in mlx_lm; a name with a dash is a variant of what stands before it
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _MIXTURE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": WINDOW},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 10000.0,
    },
    "phi3": {"tie_word_embeddings": False, "num_key_value_heads": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": False,
    },
    "deepseek_v3": {
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "tie_word_embeddings": False,
    },
    "qwen3_next": {
        **_MIXTURE,
        "num_hidden_layers": 2,  # one of each kind
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "shared_expert_intermediate_size": 32,
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
        "tie_word_embeddings": False,
    },
    "mamba2": _MAMBA2,
    "nemotron_h": {
        **_MAMBA2,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "attention_bias": False,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "mlp_bias": False,
        "hybrid_override_pattern": "M*M-",
        "tie_word_embeddings": False,
    },
    "falcon_h1": {
        "mamba_chunk_size": 16,
        "mamba_d_head": 16,
        "mamba_d_ssm": 128,
        "mamba_d_state": 16,
        "mamba_n_heads": 8,
        "lm_head_multiplier": 1.0,
    },
    "granitemoehybrid": {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "attention_bias": False,
        "embedding_multiplier": 4.0,
        "attention_multiplier": 0.25,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 2,
        "mamba_conv_bias": True,
    },
    "granite": {
        "logits_scaling": 1.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 4.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "cohere2": {"layer_norm_eps": 1e-5, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": WIDTH,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 96,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 3,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmo2": {},
    "glm4": {"attention_bias": True, "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "smollm3": {},
}
MIXTURES = frozenset(("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "granitemoehybrid", "jamba"))


def write_family(folder: Path, family: str, seed: int = 0) -> Path:
    """A whole model folder of the family, as mlx_lm loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    stops = {"eos_token_id": tokenizer.token_to_id("<|end|>"), "pad_token_id": tokenizer.token_to_id("<|endoftext|>")}
    config = {**_BASE, **stops, "model_type": family, **FAMILIES[family]}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.load_weights(list(_weights(model, seed).items()))
    _sharpen(model, seed)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    mx.save_safetensors(str(folder / "model.safetensors"), flat(model.parameters()), metadata={"format": "mlx"})
    return folder


def _weights(model: nn.Module, seed: int) -> dict[str, mx.array]:
    """Matrices and stacks drawn with the deviation 1.5 / sqrt(inputs), embeddings with 1; what has a special start keeps it."""
    found = flat(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(found))
    for key, name in zip(keys, sorted(found), strict=True):
        value = found[name]
        if value.ndim < 2 or any(part in name for part in _KEPT):
            continue
        scale = 0.25 if "embed" in name else 1.5 / math.sqrt(value.shape[-1])
        found[name] = mx.random.normal(value.shape, scale=scale, key=key)
    return found


def _sharpen(model: nn.Module, seed: int) -> None:
    """Scale the last norm until the mean entropy is near 0.4 log V."""
    body = model[next(name for name in _BODIES if name in model)]
    norm = body[next(name for name in _LAST_NORMS if name in body)]
    tokens = mx.random.randint(0, 256, (4, 32), key=mx.random.key(seed))
    norm.weight = norm.weight + 0.05
    low, high = 1e-3, 1e3
    start = norm.weight
    for _ in range(24):
        middle = math.sqrt(low * high)
        norm.weight = start * middle
        logits = model(tokens).astype(mx.float32)
        p = mx.softmax(logits, axis=-1)
        entropy = float(-(p * mx.log(mx.maximum(p, 1e-30))).sum(axis=-1).mean().item()) / math.log(VOCAB_SIZE)
        low, high = (middle, high) if entropy > 0.4 else (low, middle)
