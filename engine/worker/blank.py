"""Write a blank model: a byte-level tokenizer, a configuration and random weights, in mlx_lm's own layout.

The embedded model starts from one; it takes any text, since a token is a byte.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from engine.worker.trees import flat

PAD = "<|endoftext|>"
END = "<|end|>"
CONTROL_TOKENS = (PAD, "<|user|>", "<|assistant|>", "<|system|>", END)
MARKUP_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")
VOCAB_SIZE = 272

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Shape:
    """The size of the transformer."""

    hidden_size: int = 64
    num_hidden_layers: int = 2
    intermediate_size: int = 192
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def byte_symbols() -> list[str]:
    """the ByteLevel symbol of each byte, in the order of the byte values."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def build_tokenizer() -> Tokenizer:
    """Build the tokenizer: a byte's id is its value, then the added tokens."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKUP_TOKENS])
    reserved = VOCAB_SIZE - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(f"<|reserved_{i}|>", special=True, normalized=False) for i in range(reserved)])
    return tokenizer


def write_tokenizer(folder: Path) -> Tokenizer:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": Shape.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return tokenizer


def model_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """the content of `config.json`."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        **asdict(shape),
        "head_dim": shape.hidden_size // shape.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def random_weights(config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    """float32 weights: ones for the norms, seeded normal values elsewhere.

    A projection's values have the deviation `1/sqrt(inputs)`, those that write to the
    residual stream that over `sqrt(2 * layers)`, and the embedding's `0.05`.
    """
    shapes = {name: value.shape for name, value in flat(Model(ModelArgs.from_dict(config)).parameters()).items()}
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights: dict[str, mx.array] = {}
    for key, name in zip(keys, sorted(shapes), strict=True):
        size = shapes[name]
        if len(size) == 1:
            weights[name] = mx.ones(size)
            continue
        scale = 0.05 if "embed_tokens" in name else 1 / math.sqrt(size[1])
        if "o_proj" in name or "down_proj" in name:
            scale /= math.sqrt(2 * config["num_hidden_layers"])
        weights[name] = mx.random.normal(size, scale=scale, key=key)
    return weights


def write_blank_model(folder: Path, shape: Shape, seed: int) -> None:
    """Write a whole untrained model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(shape, write_tokenizer(folder))
    _write_json(folder / "config.json", config)
    weights = random_weights(config, seed)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
