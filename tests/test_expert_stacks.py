"""Experts that a checkpoint keeps as one parameter of a layer: in the plan as mlx_lm's own `sanitize` takes them apart."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from engine.expert_stacks import stacked
from engine.model_files import TensorHeader, linear_modules

E, H, WIDE = 4, 64, 32  # experts, hidden, intermediate
MLP = "model.layers.0.mlp"
TYPES = {mx.bfloat16: "BF16", mx.uint8: "U8", mx.uint32: "U32"}
ARGS = SimpleNamespace(num_hidden_layers=1, num_kv_shared_layers=0, tie_word_embeddings=False, n_routed_experts=E, use_moe=True)
ARGS.text_config = ARGS
INNER = SimpleNamespace(args=ARGS, sanitize=lambda weights: weights)
MODEL = SimpleNamespace(args=ARGS, language_model=INNER)


def plain(prefix: str, up: tuple[int, ...], down: tuple[int, ...], names: tuple[str, str]) -> dict[str, mx.array]:
    return {f"{prefix}.{name}": mx.zeros((E, *shape), mx.bfloat16) for name, shape in zip(names, (up, down), strict=True)}


FUSED, GRANITE = ("experts.gate_up_proj", "experts.down_proj"), ("input_linear.weight", "output_linear.weight")
STRAIGHT, TURNED = ((2 * WIDE, H), (H, WIDE)), ((H, 2 * WIDE), (WIDE, H))
CHECKPOINTS: dict[str, tuple[str, dict[str, mx.array]]] = {  # model_type -> mlx_lm's module, the layer's arrays
    "gpt_oss": (
        "gpt_oss",
        {
            f"{MLP}.experts.gate_up_proj_blocks": mx.zeros((E, 2 * WIDE, H // 32, 16), mx.uint8),
            f"{MLP}.experts.gate_up_proj_scales": mx.zeros((E, 2 * WIDE, H // 32), mx.uint8),
            f"{MLP}.experts.gate_up_proj_bias": mx.zeros((E, 2 * WIDE), mx.bfloat16),
            f"{MLP}.experts.down_proj_blocks": mx.zeros((E, H, WIDE // 32, 16), mx.uint8),
            f"{MLP}.experts.down_proj_scales": mx.zeros((E, H, WIDE // 32), mx.uint8),
            f"{MLP}.experts.down_proj_bias": mx.zeros((E, H), mx.bfloat16),
        },
    ),
    "qwen3_5_moe": ("qwen3_5_moe", plain("model.language_model.layers.0.mlp", *STRAIGHT, FUSED)),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        plain("model.language_model.layers.0.mlp", *TURNED, FUSED) | {"lm_head.weight": mx.zeros((8, H), mx.bfloat16)},
    ),
    "mistral4": ("mistral4", plain(MLP, *STRAIGHT, FUSED)),
    "gemma4_text": ("gemma4_text", plain("model.layers.0", *STRAIGHT, FUSED)),
    "llama4": ("llama4", plain("language_model.model.layers.0.feed_forward", *TURNED, FUSED)),
    "granitemoe": ("granitemoe", plain("model.layers.0.block_sparse_moe", *STRAIGHT, GRANITE)),
    "granitemoehybrid": ("granitemoehybrid", plain("model.layers.0.block_sparse_moe", *STRAIGHT, GRANITE)),
}


def told(headers: list[TensorHeader]) -> dict[str, tuple[Any, ...]]:
    """By the name inside the layer: what is before it is another in mlx_lm."""
    return {each.name.partition("layers.0.")[2]: (each.dtype, each.shape, each.bytes) for each in headers}


def headers_of(weights: dict[str, mx.array]) -> list[TensorHeader]:
    return [TensorHeader(name, TYPES[value.dtype], value.shape, value.nbytes) for name, value in weights.items()]


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_a_layers_experts_are_parted_as_mlx_lm_parts_them(family: str) -> None:
    """Names, types, shapes and bytes of `Model.sanitize`; and each is a stack of experts that an adapter can wrap."""
    module, weights = CHECKPOINTS[family]
    headers = headers_of(weights)
    made = stacked(headers, family)
    sanitized = importlib.import_module(f"mlx_lm.models.{module}").Model.sanitize(MODEL, dict(weights))
    assert told(made) == told(headers_of(sanitized))
    found = {module.key.rpartition(".")[2]: module for module in linear_modules(made, QUANTISED, "x") if module.layer == 0}
    assert {name: (each.experts, each.outputs, each.inputs) for name, each in found.items()} == {
        "gate_proj": (E, WIDE, H), "up_proj": (E, WIDE, H), "down_proj": (E, H, WIDE),
    }  # fmt: skip
    assert {each.quantised for each in found.values()} == {family == "gpt_oss"}


QUANTISED = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}


def test_what_mlx_lm_does_not_part_stays_as_it_is() -> None:
    """Another family's, and gpt-oss's without blocks: mlx_lm refuses those."""
    headers = headers_of(plain(MLP, *STRAIGHT, FUSED))
    assert stacked(headers, "qwen3_moe") == stacked(headers, "gpt_oss") == stacked(headers) == headers
