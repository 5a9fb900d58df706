"""From a GGUF header to the folder that it becomes: config.json and, for each tensor, what is written under which name.

The families are llama (which covers Mistral and SmolLM), qwen2 and qwen3. A file with any tensor or key that changes what
these compute is refused by its name. Everything that is not quantised is held in one type, so that mlx computes in that type:
bfloat16 or float32 where all matrices have it, else float16. What that costs: a number that float16 cannot hold (a float32
norm, say) is rounded, by 2^-11 of it at most. Quantised blocks lose nothing: scales are float16 in the file too.

Embedding and head may be Q6_K, which llama-quantize makes of them in files of other types. Its scales hold for 16 weights, and
mlx's affine layout has groups of 32 and more: so these two are unpacked, exactly, and held as float16, rounded by 2^-11 as
above. 8 bits in groups of 32 would be smaller by half, but would round by up to 2^-9 of the largest weight of a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.gguf import rope
from engine.gguf.header import GgufHeader, GgufTensor
from engine.gguf.tensor_types import BITS, FLOATS, READ, UNPACKED
from engine.model_files import TensorHeader

GROUP = 32  # weights that share a scale, in a GGUF block and in what is written
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TORCH_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "U32": 4}
# Keys (after "llama." and the like) of what the families' usual forward pass does not do, with the values that ask for nothing.
_STRANGE: dict[str, tuple[float, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "pooling_type": (0,),
}
_TABLES = ("token_embd.weight", "output.weight")  # which may be Q6_K
_AGAIN = "convert the model again with a current converter"


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor and what becomes of it: the module's path and weight | bias, and the type of what is written where it is not
    quantised. `heads`: the rows of each are put back from GGUF's order (0: they stand as they should)."""

    source: GgufTensor
    module: str
    leaf: str
    dtype: str
    heads: int

    @property
    def bits(self) -> int:
        """0 where it is not quantised."""
        return BITS.get(self.source.type, 0)

    def written(self) -> list[TensorHeader]:
        """The arrays that it becomes: one, or weight, scales and biases."""
        if not self.bits:
            return [_array(f"{self.module}.{self.leaf}", self.dtype, self.source.shape)]
        rows, columns = self.source.shape
        groups = (rows, columns // GROUP)
        packed = _array(f"{self.module}.weight", "U32", (rows, columns * self.bits // 32))
        return [packed, *(_array(f"{self.module}.{name}", "F16", groups) for name in ("scales", "biases"))]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the folder holds besides its tokenizer."""

    config: dict[str, Any]
    parts: tuple[Part, ...]

    def written(self) -> list[TensorHeader]:
        return [array for part in self.parts for array in part.written()]

    @property
    def note(self) -> str:
        """What of the file is not held as it is packed there; "" where all is."""
        found = [part for part in self.parts if part.source.type == UNPACKED]
        names = " and ".join(part.source.name for part in found)
        return f"{names} ({UNPACKED}) is held as {_TORCH_TYPES[found[0].dtype]}" if found else ""


def plan(header: GgufHeader, divisors: Sequence[float] | None, special: dict[str, Any]) -> Plan:
    """The plan for a file. `divisors` are those of rope.DIVISORS, where it has them; `special` are the ids of special tokens,
    as config.json names them. Raises InputError for what is not read."""
    check_kind(header)
    config = _config(header)
    modules = list(_modules(header, config))
    named = {name for name, *_ in modules} | ({rope.DIVISORS} if header.architecture == "llama" else set())
    strange = next((tensor.name for tensor in header.tensors if tensor.name not in named), None)
    if strange is not None:
        raise header.refuse(f"has the tensor {strange}, which {header.architecture} models do not have", "take another model")
    sources = [header.by_name[name] for name, *_ in modules]
    _check_types(header, sources)
    dtype = _float_type([tensor.type for tensor in sources if len(tensor.shape) == 2])
    parts = tuple(Part(header.by_name[name], module, leaf, dtype, heads) for name, module, leaf, _, heads in modules)
    config["rope_scaling"] = rope.scaling(header, config["rope_theta"], divisors)
    config |= {"torch_dtype": _TORCH_TYPES[dtype], **special, **_quantisation(parts)}
    return Plan({key: value for key, value in config.items() if value is not None}, parts)


def check_kind(header: GgufHeader) -> None:
    """InputError for what is no text model of the three families in one file."""
    family = header.architecture
    if family not in FAMILIES:
        read = ", ".join(FAMILIES)
        raise header.refuse(f"is a {family[:40]!r} model; read are {read}", "give a folder that mlx_lm can load, or another file")
    kind = header.text("general.type", "model")
    if kind != "model":
        raise header.refuse(f"is no model but of the type {kind[:40]!r}", "give the file of the model itself")
    if header.integer("split.count", 1) > 1:
        raise header.refuse("is one part of several", "join them: llama-gguf-split --merge FIRST OUT.gguf")
    for key, value in header.metadata.items():
        harmless = _STRANGE.get(key.removeprefix(f"{family}."))
        if harmless is not None and value not in harmless:
            raise header.refuse(f"has {key} = {str(value)[:40]}, which mlx_lm's {family} does not do", "take another model")
        if key.startswith(("clip.", f"{family}.vision.", f"{family}.rope.dimension_sections")):
            raise header.refuse(f"has {key}: models that see images are not read", "give a text model")


def _config(header: GgufHeader) -> dict[str, Any]:
    """config.json as far as sizes go."""

    def size(name: str, default: int | None = None) -> int:
        found = header.integer(f"{family}.{name}", default)
        if not 0 < found < 1 << 31:
            raise header.refuse(f"{family}.{name} is {found}", _AGAIN)
        return found

    family = header.architecture
    heads, hidden = size("attention.head_count"), size("embedding_length")
    head_dim = size("attention.key_length", hidden // heads or None)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := size(name, head_dim)) != head_dim:
            raise header.refuse(
                f"{family}.{name} is {found}, but its heads have {head_dim}: mlx_lm wants one size", "take another model"
            )
    if head_dim % 2 or (family == "qwen2" and head_dim * heads != hidden):
        raise header.refuse(f"has {heads} heads of {head_dim} for a width of {hidden}: no {family} model", _AGAIN)
    layers = size("block_count")
    if layers > len(header.tensors):
        raise header.refuse(f"claims {layers} layers, but has {len(header.tensors)} tensors", "fetch the file again")
    embedding = header.by_name.get("token_embd.weight")
    if embedding is None:
        raise header.refuse("has no tensor token_embd.weight", "fetch the file again")
    config = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": header.number(f"{family}.attention.layer_norm_rms_epsilon"),
        "rope_theta": header.number(f"{family}.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in header.by_name,
        "hidden_act": "silu",
    }
    if family == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.by_name
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.by_name
    return config


def _modules(header: GgufHeader, config: dict[str, Any]) -> Iterator[tuple[str, str, str, tuple[int, ...], int]]:
    """(name in the file, module in mlx_lm, weight | bias, shape, heads) of every tensor that the model must have; each is
    there with its shape."""
    for entry in _expected(config):
        tensor, shape = header.by_name.get(entry[0]), entry[3]
        if tensor is None:
            raise header.refuse(f"has no tensor {entry[0]}", "fetch the file again")
        if tensor.shape != shape:
            what = f"{entry[0]} has the shape {list(tensor.shape)}, and by its metadata {list(shape)}"
            raise header.refuse(what, "fetch the file again")
        yield entry


def _expected(config: dict[str, Any]) -> Iterator[tuple[str, str, str, tuple[int, ...], int]]:
    family, hidden, inner, head_dim = (config[key] for key in ("model_type", "hidden_size", "intermediate_size", "head_dim"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    permuted = (heads, kv_heads) if family == "llama" else (0, 0)
    queries, keys = heads * head_dim, kv_heads * head_dim
    attention_bias = ("q", "k", "v", "output") if config.get("attention_bias") else ("q", "k", "v") if family == "qwen2" else ()
    yield "token_embd.weight", "model.embed_tokens", "weight", (config["vocab_size"], hidden), 0
    for layer in range(config["num_hidden_layers"]):
        source, module = f"blk.{layer}", f"model.layers.{layer}"
        yield f"{source}.attn_norm.weight", f"{module}.input_layernorm", "weight", (hidden,), 0
        for name, own, shape, order in (
            ("q", "q_proj", (queries, hidden), permuted[0]),
            ("k", "k_proj", (keys, hidden), permuted[1]),
            ("v", "v_proj", (keys, hidden), 0),
            ("output", "o_proj", (hidden, queries), 0),
        ):
            yield f"{source}.attn_{name}.weight", f"{module}.self_attn.{own}", "weight", shape, order
            if name in attention_bias:
                yield f"{source}.attn_{name}.bias", f"{module}.self_attn.{own}", "bias", shape[:1], order
        for name in ("q_norm", "k_norm") if family == "qwen3" else ():
            yield f"{source}.attn_{name}.weight", f"{module}.self_attn.{name}", "weight", (head_dim,), 0
        yield f"{source}.ffn_norm.weight", f"{module}.post_attention_layernorm", "weight", (hidden,), 0
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{source}.ffn_{name}.weight", f"{module}.mlp.{name}_proj", "weight", shape, 0
            if config.get("mlp_bias"):
                yield f"{source}.ffn_{name}.bias", f"{module}.mlp.{name}_proj", "bias", shape[:1], 0
    yield "output_norm.weight", "model.norm", "weight", (hidden,), 0
    if not config["tie_word_embeddings"]:
        yield "output.weight", "lm_head", "weight", (config["vocab_size"], hidden), 0


def _check_types(header: GgufHeader, sources: Sequence[GgufTensor]) -> None:
    unread = [tensor for tensor in sources if tensor.type not in READ and (tensor.type != UNPACKED or tensor.name not in _TABLES)]
    if unread:
        counts = Counter(tensor.type for tensor in unread)
        read = f"read are {', '.join(READ)}, and {UNPACKED} in {' and '.join(_TABLES)}"
        remedy = f"take the Q8_0, Q4_0 or F16 file; or llama-quantize --pure to one of these types; {read}"
        raise header.refuse(f"has {', '.join(f'{n} {kind}' for kind, n in counts.items())} tensors ({unread[0].name})", remedy)
    packed = next((tensor.name for tensor in sources if len(tensor.shape) != 2 and tensor.type not in FLOATS), None)
    if packed is not None:
        raise header.refuse(f"{packed} is quantised, but no matrix", _AGAIN)


def _float_type(types: Sequence[str]) -> str:
    return next((kind for kind in ("F32", "BF16") if set(types) == {kind}), "F16")


def _quantisation(parts: Sequence[Part]) -> dict[str, Any]:
    """config.json's quantization: the commonest bits, and every module that has others."""
    bits = Counter(part.bits for part in parts if part.bits)
    if not bits:
        return {}
    common = bits.most_common(1)[0][0]
    others = {part.module: {"group_size": GROUP, "bits": part.bits} for part in parts if part.bits not in (0, common)}
    return {"quantization": {"group_size": GROUP, "bits": common, **others}}


def _array(name: str, dtype: str, shape: tuple[int, ...]) -> TensorHeader:
    return TensorHeader(name, dtype, shape, math.prod(shape) * _ITEM_BYTES[dtype])
