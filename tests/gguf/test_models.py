"""A converted model computes what the first one did: tiny random models of each family, written as a converter does."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from engine.errors import InputError
from engine.gguf.folder import description, mlx_folder
from engine.gguf.rope import llama3_divisors
from engine.model_files import linear_modules, read_headers, read_json, read_shape
from tests.support.gguf_files import (
    TINY,
    Tensor,
    Typed,
    file_bytes,
    gguf_name,
    model_metadata,
    model_tensors,
    tiny_tokenizer_metadata,
    tiny_weights,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
YARN = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "llama F16": ({"model_type": "llama"}, "F16", {}),
    "llama BF16, own head": ({"model_type": "llama", "tie_word_embeddings": False}, "BF16", {}),
    "llama with biases": ({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, "F16", {}),
    "llama 3.2": ({"model_type": "llama", "rope_theta": 500000.0, "head_dim": 64, "rope_scaling": LLAMA3}, "F16", {}),
    "llama, linear": (
        {"model_type": "llama", "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
        "F16",
        {},
    ),
    "llama Q4_0": ({"model_type": "llama"}, "Q4_0", {"token_embd.weight": "Q8_0", "blk.1.ffn_up.weight": "F16"}),
    "llama Q4_1": ({"model_type": "llama", "tie_word_embeddings": False}, "Q4_1", {"output.weight": "F16"}),
    "qwen2 F16": ({"model_type": "qwen2"}, "F16", {}),
    "qwen2 yarn, F32": ({"model_type": "qwen2", "rope_scaling": YARN}, "F32", {}),
    "qwen2 Q8_0": ({"model_type": "qwen2"}, "Q8_0", {"blk.0.attn_q.weight": "Q4_0"}),
    "qwen3 F16": ({"model_type": "qwen3", "head_dim": 32}, "F16", {}),
    "qwen3 Q4_0": ({"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False}, "Q4_0", {"output.weight": "Q8_0"}),
}


def random_weights(model: Any, seed: int, precision: Any) -> dict[str, np.ndarray]:
    """Norms near 1, everything else near 0, rounded to what the file will hold."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    found = {}
    for index, (name, value) in enumerate(tree_flatten(model.parameters())):
        draw = mx.random.normal(value.shape, key=mx.random.key(seed + index)) * 0.3
        found[name] = np.array((draw + ("norm" in name)).astype(precision).astype(mx.float32))
    return found


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    words = [chr(97 + number) for number in range(26)]
    tokenizer = tiny_tokenizer_metadata() | {
        "tokenizer.ggml.tokens": [*words, "ab", *(f"<|{number}|>" for number in range(13))],
        "tokenizer.ggml.token_type": [1] * 27 + [3] * 13,
        "tokenizer.ggml.eos_token_id": 27,
    }
    scaling, family = config.get("rope_scaling") or {}, config["model_type"]
    tokenizer["tokenizer.ggml.pre"] = "qwen2" if family == "qwen2" else "gpt-2"
    keys = {f"{family}.rope.scaling.type": scaling["type"], f"{family}.rope.scaling.factor": 4.0} if "type" in scaling else {}
    if scaling.get("type") == "linear":
        keys[f"{family}.rope.scaling.factor"] = 2.0
    if scaling.get("type") == "yarn":
        keys[f"{family}.rope.scaling.original_context_length"] = 16
    return model_metadata(config) | tokenizer | keys


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_first_model(name: str, tmp_path: Path) -> None:
    """Exactly, on a CPU in float32: on the rounded weights where floats are stored, on gguf.quants' numbers where blocks are.
    The description says the same of the folder before its weights are there."""
    import mlx.core as mx
    from mlx_lm import load

    changes, kind, kinds = CASES[name]
    config = {**SIZES, **changes}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    first = module.Model(module.ModelArgs.from_dict(config))
    weights = random_weights(first, len(name), mx.bfloat16 if kind == "BF16" else mx.float16)
    path = tmp_path / "m.gguf"
    tensors = model_tensors(weights, config, kind, kinds)
    if config.get("rope_scaling") == LLAMA3:
        divisors = np.array(llama3_divisors(config["head_dim"], config["rope_theta"], 32.0), np.float32)
        tensors.append(Tensor("rope_freqs.weight", "F32", divisors.shape, divisors.tobytes()))
    path.write_bytes(file_bytes(metadata(config), tensors))

    for key, numbers in weights.items():
        own = kinds.get(gguf_name(key), kind) if numbers.ndim == 2 else "F32"
        if own.startswith("Q"):
            quantised = GGMLQuantizationType[own]
            weights[key] = quants.dequantize(quants.quantize(numbers, quantised), quantised)
    first.load_weights([(key, mx.array(value)) for key, value in weights.items()])

    described = description(path, tmp_path / "cache")
    folder = mlx_folder(path, tmp_path / "cache")
    model, _ = load(str(folder))
    stored = read_headers(folder)
    held = {header.dtype for header in stored}
    assert held - {"U32"} == {kind if kind in ("BF16", "F32") else "F16"}
    model.set_dtype(mx.float32)
    tokens = mx.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]])
    ours, theirs = model(tokens), first(tokens)
    assert ours.shape == theirs.shape == (1, 15, 40)
    gap = mx.abs(ours - theirs).max().item()
    assert gap <= (2e-5 if kind.startswith("Q") else 0.0), gap  # quantised matmul sums in another order
    assert mx.std(theirs).item() > 0.3

    assert sorted(stored, key=lambda h: h.name) == sorted(read_headers(described), key=lambda h: h.name)
    written = read_json(folder / "config.json")
    assert written == read_json(described / "config.json")
    assert read_shape(written) == read_shape(config)
    modules = {module.path: (module.inputs, module.outputs) for module in linear_modules(stored, written, "")}
    assert modules["model.layers.1.mlp.down_proj"] == (96, 64)


def test_rope_divisors_of_no_known_scaling_are_refused(tmp_path: Path) -> None:
    for divisors, said in (([1.0, 1.5, 7.0, 32.0], "no scaling that is known"), ([1.0, 1.0, 1.0, float("nan")], "no scaling")):
        tensors = model_tensors(tiny_weights(TINY), TINY, "F16", {})
        tensors.append(Tensor("rope_freqs.weight", "F32", (4,), np.array(divisors, np.float32).tobytes()))
        path = tmp_path / "m.gguf"
        path.write_bytes(file_bytes(model_metadata(TINY) | tiny_tokenizer_metadata(), tensors))
        with pytest.raises(InputError, match=said):
            description(path, tmp_path / "cache")


def test_divisors_are_those_of_mlx_lm() -> None:
    """What mlx_lm's Llama3RoPE multiplies its wavelengths by, for Llama 3.1 (factor 8) and 3.2 (32)."""
    import mlx.core as mx
    from mlx_lm.models.rope_utils import Llama3RoPE

    for factor in (8.0, 32.0):
        rope = Llama3RoPE(128, base=500000.0, scaling_config={**LLAMA3, "factor": factor})
        plain = 500000.0 ** (mx.arange(0, 128, 2) / 128)
        own = mx.array(llama3_divisors(128, 500000.0, factor))
        assert mx.abs(rope._freqs / plain / own - 1).max().item() < 1e-5
        assert sum(1 < value < factor for value in own.tolist()) > 4
        assert own.max().item() == factor and own.min().item() == 1.0


def test_config_names_the_bits_of_every_module_that_differs(tmp_path: Path) -> None:
    config = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5}
    weights = tiny_weights(config)
    kinds = {"token_embd.weight": "Q8_0", "blk.1.ffn_up.weight": "F16"}
    path = tmp_path / "m.gguf"
    ends = {"tokenizer.ggml.eot_token_id": 29, "tokenizer.ggml.bos_token_id": Typed("u32", 28)}
    path.write_bytes(file_bytes(metadata(config) | ends, model_tensors(weights, config, "Q4_1", kinds)))
    folder = description(path, tmp_path / "cache")
    written = json.loads((folder / "config.json").read_text())
    assert written["quantization"] == {"group_size": 32, "bits": 4, "model.embed_tokens": {"group_size": 32, "bits": 8}}
    assert (written["bos_token_id"], written["eos_token_id"], written["rms_norm_eps"]) == (28, [27, 29], 1e-5)
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 28, "eos_token_id": [27, 29]}
