"""Fused models of several families, adapters and quantisations, written and read back: each against the run's own policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.utils import load

from engine.config import AdapterConfig
from engine.errors import InputError
from engine.takehome.kinds import EIGHT_BITS, EXACT, HALF
from engine.worker import folder_out, fusing
from engine.worker.model import apply_adapter
from engine.worker.trees import flat
from tests.support.families import write_family

from .support import exported, hand_made, in_type, quantised, with_merges

FUSED = {"kind": "fused"}
DORA_KEYS = ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("llama", {"type": "dora"}),
        ("qwen2", {"type": "full", "rank": 16}),
        ("qwen3_moe", {"type": "lora"}),
        ("gemma2", {"type": "lora", "keys": ["self_attn.v_proj", "model.embed_tokens"]}),
        ("deepseek_v3", {"type": "lora"}),
    ],
)
def test_a_plain_base_fuses_to_the_policy(family: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    """In float32 to the rounding of sums, experts and embeddings included; the adapter itself to the bit."""
    made = hand_made(tmp_path, write_family(tmp_path / "base", family), adapter)
    own, fused = exported(made, tmp_path / "out", {"kind": "adapter"}, FUSED)
    assert own["difference"]["largest"] == 0.0
    assert fused["dtype"] == "float32" and fused["quantization"] is None and fused["reload"] is None
    assert fused["difference"]["kl_90"] < EXACT and fused["difference"]["largest"] < 1e-3


def test_weights_keep_the_models_type(tmp_path: Path) -> None:
    """Of a bfloat16 base, LoRA and full training (whose file is float32) are fused to bfloat16: rounded once."""
    base = in_type(write_family(tmp_path / "base", "llama"), mx.bfloat16)
    for number, adapter in enumerate(({"type": "lora"}, {"type": "full", "rank": 16})):
        made = hand_made(tmp_path, base, adapter)
        (fused,) = exported(made, tmp_path / f"out{number}", FUSED)
        types = {str(value.dtype) for value in mx.load(str(tmp_path / f"out{number}/0/model.safetensors")).values()}
        assert types == {"mlx.core.bfloat16"} and fused["dtype"] == "bfloat16"
        assert 0 < fused["difference"]["kl_90"] < HALF


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """Each fused weight is the bfloat16 nearest to base + scale x (a b), computed here in float64 (but for ties); mlx_lm's own
    sum is rounded twice."""
    model = load(str(in_type(write_family(tmp_path / "base", "llama"), mx.bfloat16)))[0]
    apply_adapter(model, AdapterConfig(rank=4), 0, "here")
    for name, value in flat(model.trainable_parameters()).items():
        model.load_weights([(name, value + 0.02)], strict=False)
    module = model.model.layers[1].mlp.up_proj
    base, a, b = (
        np.array(part.astype(mx.float32), dtype=np.float64) for part in (module.linear.weight, module.lora_a, module.lora_b)
    )
    exact = mx.array(base + module.scale * (a @ b).T).astype(mx.bfloat16)
    theirs = mx.mean(module.fuse().weight == exact).item()
    fusing.fuse(model, False, lambda done, total: None)
    assert mx.mean(model.model.layers[1].mlp.up_proj.weight == exact).item() > 0.999 > 0.98 > theirs


def test_a_quantised_base_is_quantised_again_or_not(tmp_path: Path) -> None:
    """Again: the files hold what was meant, and the cost is told. Unpacked: the policy to rounding; at 8 bits in between."""
    base = quantised(write_family(tmp_path / "plain", "llama"), tmp_path / "base")
    made = hand_made(tmp_path, base, {"type": "lora"})
    unpacked = {**FUSED, "dequantize": True}
    again, plain, eight = exported(made, tmp_path / "out", FUSED, unpacked, {**unpacked, "bits": 8})
    assert again["quantization"]["bits"] == 4
    assert again["reload"]["largest"] == 0.0
    assert plain["quantization"] is None and plain["reload"] is None and plain["difference"]["kl_90"] < EXACT
    assert "quantization" not in json.loads((tmp_path / "out/1/config.json").read_text())
    assert eight["quantization"]["bits"] == 8 and eight["reload"]["largest"] == 0.0
    assert 1e-6 < eight["difference"]["kl"] < again["difference"]["kl"] / 10


def test_experts_and_latent_attention_are_unpacked_too(tmp_path: Path) -> None:
    """mlx_lm's own --dequantize leaves QuantizedMultiLinear packed, and the folder does not load."""
    base = quantised(write_family(tmp_path / "plain", "deepseek_v3"), tmp_path / "base", group_size=32)
    kinds = {type(module).__name__ for _, module in load(str(base))[0].named_modules() if fusing.is_quantised(module)}
    assert kinds >= {"QuantizedSwitchLinear", "QuantizedEmbedding", "QuantizedLinear"}
    made = hand_made(tmp_path, base, {"type": "lora"})
    again, plain = exported(made, tmp_path / "out", FUSED, {**FUSED, "dequantize": True})
    assert again["reload"]["largest"] == 0.0
    assert plain["difference"]["kl_90"] < EXACT
    assert not any(fusing.is_quantised(module) for _, module in load(str(tmp_path / "out/1"))[0].named_modules())


def test_every_packed_kind_is_unpacked_to_its_own_numbers() -> None:
    """A module and its plain twin give the same output; one of a kind that is not known is refused by name."""
    mx.random.seed(0)
    x = mx.random.normal((2, 3, 64))
    for whole, call in (
        (nn.Linear(64, 32), lambda m: m(x)),
        (MultiLinear(64, 32, 3), lambda m: m(x[:, :, None])),
        (SwitchLinear(64, 32, 4), lambda m: m(x[:, :, None], mx.array([[0, 1, 3], [2, 2, 0]]))),
    ):
        packed = whole.to_quantized(group_size=32, bits=4)
        own = fusing.plain(packed, mx.float32)
        assert type(own) is type(whole)
        assert mx.allclose(call(packed), call(own), atol=1e-5).item()

    class Odd(type(packed)):  # type: ignore[misc]
        pass

    packed.__class__ = Odd
    with pytest.raises(InputError, match="Odd cannot be dequantised"):
        fusing.plain(packed, mx.float32)


def test_a_base_that_the_run_quantised_itself(tmp_path: Path) -> None:
    """The adapter fits that base to the bit, which mlx_lm does not load: the difference says so. Fused, it is carried."""
    made = hand_made(tmp_path, write_family(tmp_path / "base", "llama"), {"type": "lora"}, quantize={"bits": 4, "group_size": 32})
    own, fused, plain = exported(made, tmp_path / "out", {"kind": "adapter"}, FUSED, {**FUSED, "dequantize": True})
    assert own["reload"]["largest"] == 0.0 and own["difference"]["largest"] > 0.1
    assert fused["quantization"]["bits"] == 4 and fused["reload"]["largest"] == 0.0
    assert plain["difference"]["kl_90"] < EXACT
    with pytest.raises(InputError, match="quantised already"):
        exported(made, tmp_path / "again", {**FUSED, "bits": 8})


def test_a_chat_template_of_the_run_is_carried(tmp_path: Path) -> None:
    """Fused: template, variables and stop tokens are the run's, as mlx_lm reads them. `verifying` refuses any other."""
    (tmp_path / "own.jinja").write_text(
        "{{ mood }}|{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    )
    chat = {
        "template": str(tmp_path / "own.jinja"),
        "variables": {"mood": 'it\'s "dry"', "deep": [True, None]},
        "stop": ["</answer>"],
    }
    made = hand_made(tmp_path, write_family(tmp_path / "base", "llama"), {"type": "lora"}, chat=chat)
    exported(made, tmp_path / "out", {"kind": "adapter"}, FUSED)
    tokenizer = load(str(tmp_path / "out/1"))[1]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == 'it\'s "dry"|<|user|>Hi<|assistant|>'
    assert {tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "</answer>")} == tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}),
        ("qwen3", {"tie_word_embeddings": False}),
    ],
)
def test_gguf_of_each_family(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Read back by engine/gguf/: with DoRA, rotary scaling and biases; F16 to its rounding, Q8_0 to its own."""
    base = with_merges(write_family(tmp_path / "base", family))
    config = json.loads((base / "config.json").read_text())
    if "tie_word_embeddings" in changes:
        weights = mx.load(str(base / "model.safetensors"))
        head = mx.random.normal(weights["model.embed_tokens.weight"].shape, key=mx.random.key(5)) * 0.25
        mx.save_safetensors(str(base / "model.safetensors"), {**weights, "lm_head.weight": head}, metadata={"format": "mlx"})
    if family == "llama":
        changes["rope_scaling"]["original_max_position_embeddings"] = 8192
    (base / "config.json").write_text(json.dumps(config | changes))
    made = hand_made(tmp_path, base, {"type": "dora", "keys": DORA_KEYS})
    half, eight = exported(made, tmp_path / "out", {"kind": "gguf"}, {"kind": "gguf", "bits": 8})
    assert half["quantization"] is None and 0 < half["difference"]["kl_90"] < HALF / 100
    assert half["difference"]["kl"] < eight["difference"]["kl"] < EIGHT_BITS


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("qwen3_moe", {}, "qwen3_moe models are not written as GGUF; llama, mistral, qwen2, qwen3 are"),
        (
            "llama",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 8},
            "sliding window",
        ),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' scaling"),
        ("llama", {}, "without merges"),
    ],
)
def test_what_gguf_cannot_hold(family: str, changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    base = write_family(tmp_path / "base", family)
    made = hand_made(tmp_path, base, {"type": "lora"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=what):
        exported(made, tmp_path / "out", {"kind": "gguf"})


def test_shards(tmp_path: Path) -> None:
    """Of 100 kB: every file within that but for a tensor that is larger, an index that names all, and mlx_lm loads them."""
    base = write_family(tmp_path / "base", "llama")
    model, _, config = load(str(base), return_config=True)
    (tmp_path / "out").mkdir()
    folder_out.write_model(tmp_path / "out", base, model, config, lambda done, total: None, shard_bytes=100_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert all((tmp_path / "out" / file).stat().st_size < 102_000 for file in files)
    again = flat(load(str(tmp_path / "out"))[0].parameters())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in again.values())
    assert all(mx.array_equal(value, again[name]).item() for name, value in flat(model.parameters()).items())
