"""Small GGUF files for tests: a writer from the format's description, independent of the reader under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants

NUMBERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f")}
NUMBERS |= {"bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
_FAMILY_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Typed:
    """A metadata value of a type that Python's own does not say: a name of NUMBERS; a list of them is an array."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: ggml's type, rows first, and its bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: bytes


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value: Any) -> bytes:
    """The type's number and the value."""
    if isinstance(value, str | bytes):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, Typed) and isinstance(value.value, list):
        number, code = NUMBERS[value.kind]
        return struct.pack("<IIQ", 9, number, len(value.value)) + struct.pack(f"<{len(value.value)}{code}", *value.value)
    if isinstance(value, Typed):
        number, code = NUMBERS[value.kind]
        return struct.pack(f"<I{code}", number, value.value)
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return value_bytes(Typed("f32" if isinstance(value[0], float) else "i32", value))
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return value_bytes(Typed("bool" if isinstance(value, bool) else "f32" if isinstance(value, float) else "u32", value))


def tensor(name: str, numbers: np.ndarray, kind: str) -> Tensor:
    """Numbers as ggml's type `kind`, quantised by the gguf package."""
    own = GGMLQuantizationType[kind]
    data = np.ascontiguousarray(numbers, np.float32) if kind == "F32" else quants.quantize(np.asarray(numbers, np.float32), own)
    return Tensor(name, kind, numbers.shape, data.tobytes())


def file_bytes(metadata: Mapping[str, Any], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32) -> bytes:
    """A whole file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value_bytes(value) for key, value in metadata.items())
    data = b""
    for each in tensors:
        data += b"\0" * (-len(data) % alignment)
        dimensions = struct.pack(f"<I{len(each.shape)}Q", len(each.shape), *reversed(each.shape))
        head += text(each.name) + dimensions + struct.pack("<IQ", GGMLQuantizationType[each.kind].value, len(data))
        data += each.data
    return head + b"\0" * (-len(head) % alignment) + data


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama's q or k as its converter orders them: the two halves of each head in turn."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name: str) -> str:
    """GGUF's name for mlx_lm's, both with .weight or .bias."""
    module, leaf = name.rsplit(".", 1)
    if module in _WHOLE_NAMES:
        return f"{_WHOLE_NAMES[module]}.{leaf}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_FAMILY_NAMES[inner]}.{leaf}"


def model_tensors(
    weights: Mapping[str, np.ndarray], config: Mapping[str, Any], kind: str, kinds: Mapping[str, str]
) -> list[Tensor]:
    """A model's arrays as a converter writes them: matrices as `kind` (or as `kinds` has it for a GGUF name), the rest F32."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found = []
    for name, numbers in weights.items():
        owner = name.split(".")[-2]
        if config["model_type"] == "llama" and owner in heads:
            numbers = permuted(numbers, heads[owner])
        own = gguf_name(name)
        found.append(tensor(own, numbers, kinds.get(own, kind) if numbers.ndim == 2 else "F32"))
    return found


def model_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a converter says of a model's sizes."""
    family = config["model_type"]
    rest = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
    }
    return {"general.architecture": family, "general.type": "model"} | {f"{family}.{key}": value for key, value in rest.items()}


def tokenizer_metadata(folder: Path, pre: str) -> dict[str, Any]:
    """A byte-level tokenizer.json and its config as a converter writes them."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    by_id = {index: (word, 1) for word, index in tokenizer["model"]["vocab"].items()}
    by_id |= {added["id"]: (added["content"], 3 if added["special"] else 4) for added in tokenizer["added_tokens"]}
    words = [by_id.get(index, (f"[PAD{index}]", 5)) for index in range(max(by_id) + 1)]
    ids = {word: index for index, (word, _) in enumerate(words)}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [word for word, _ in words],
        "tokenizer.ggml.token_type": [kind for _, kind in words],
        "tokenizer.ggml.merges": merges,
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")):
        if config.get(name) is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = ids[config[name]]
    if "chat_template" in config:
        found["tokenizer.chat_template"] = config["chat_template"]
    return found


def tiny_tokenizer_metadata() -> dict[str, Any]:
    """The smallest vocabulary that is one: two letters, their merge, an end."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
    }


TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def tiny_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers that float16 holds, for a llama with tied embeddings."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        module = f"model.layers.{layer}"
        shapes |= {f"{module}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {
            f"{module}.self_attn.q_proj.weight": (queries, hidden),
            f"{module}.self_attn.k_proj.weight": (keys, hidden),
            f"{module}.self_attn.v_proj.weight": (keys, hidden),
            f"{module}.self_attn.o_proj.weight": (hidden, queries),
            f"{module}.mlp.gate_proj.weight": (inner, hidden),
            f"{module}.mlp.up_proj.weight": (inner, hidden),
            f"{module}.mlp.down_proj.weight": (hidden, inner),
        }
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}


def tiny_file(path: Path, kind: str = "F16", kinds: Mapping[str, str] | None = None, seed: int = 0, **metadata: Any) -> Path:
    """A one-layer llama; `metadata` are further keys with __ for the dot, None leaves one out."""
    keys = model_metadata(TINY) | tiny_tokenizer_metadata() | {key.replace("__", "."): value for key, value in metadata.items()}
    tensors = model_tensors(tiny_weights(TINY, seed), TINY, kind, kinds or {})
    path.write_bytes(file_bytes({key: value for key, value in keys.items() if value is not None}, tensors))
    return path
