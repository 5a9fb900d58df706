"""What a GGUF file says besides its weights: sizes, the scaling of rotary embeddings, vocabulary, chat template.

Values only; gguf_out.py writes them. Written are families and tokenizers that engine/gguf/ reads back to the same model:
llama (with mistral, where it has no sliding window), qwen2 and qwen3, with byte-level BPE. Another one is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.errors import InputError
from engine.gguf import rope
from engine.gguf.header import GgufHeader
from engine.gguf.tokenizer import tokenizer_files
from engine.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_PARTINGS = ("llama-bpe", "qwen2", "smollm", "gpt-2", "default")  # ways to part texts before merges that have a name
# Where the named ways differ: runs of digits, contractions, spaces before words, lines, punctuation, other scripts.
_TEXT = "I'll say it's 12345+67=12412.\n\n  If x>=3:\tprint('½ café')\r\n 東京は日本。 ¿Qué?? …don't   stop_now! "
_OTHER = "use --to fused: LM Studio and mlx_lm load that"

Words = dict[str, Any]


def check_family(config: Mapping[str, Any]) -> str:
    """GGUF's name for the model's family. InputError for one that is not written, or whose forward pass files cannot describe."""
    family = str(config.get("model_type"))
    if family not in ARCHITECTURES:
        raise InputError(
            f"{family} models are not written as GGUF; {', '.join(ARCHITECTURES)} are", where="--to gguf", remedy=_OTHER
        )
    windows = ARCHITECTURES[family] == "llama" and "sliding_attention" in (config.get("layer_types") or ())
    kind = _rope_kind(config)
    for refused, what in (
        (windows, "attention in a sliding window"),
        (bool(config.get("rope_traditional")), "rope_traditional"),
        (kind not in (None, "default", "linear", "yarn", "llama3"), f"{kind!r} scaling of rotary embeddings"),
        (kind == "llama3" and not _is_llama3s_own(config), "llama3 scaling with factors that are not Llama 3's"),
    ):
        if refused:
            raise InputError(f"a {family} model with {what} is not written as GGUF", where="--to gguf", remedy=_OTHER)
    return ARCHITECTURES[family]


def sizes(architecture: str, config: Mapping[str, Any]) -> Words:
    """The keys that describe the transformer, and its divisors of rotary frequencies under rope.DIVISORS where it has them."""
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    found: Words = {
        "context_length": int(config.get("max_position_embeddings") or 2048),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config.get("rope_theta") or 10000.0),
        "vocab_size": int(config["vocab_size"]),
    }
    scaling = config.get("rope_scaling") or {}
    if _rope_kind(config) in ("linear", "yarn"):
        found |= {"rope.scaling.type": _rope_kind(config), "rope.scaling.factor": float(scaling["factor"])}
    if _rope_kind(config) == "yarn":
        original = scaling.get("original_max_position_embeddings") or found["context_length"]
        found["rope.scaling.original_context_length"] = int(original)
        found |= {f"rope.scaling.yarn_{name}": float(scaling[name]) for name in ("beta_fast", "beta_slow") if name in scaling}
    return {f"{architecture}.{key}": value for key, value in found.items()}


def divisors(config: Mapping[str, Any]) -> list[float] | None:
    """What rotary frequencies are divided by (llama3 scaling), None where they are not."""
    if _rope_kind(config) != "llama3":
        return None
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return rope.llama3_divisors(head_dim, float(config.get("rope_theta") or 10000.0), float(config["rope_scaling"]["factor"]))


def _rope_kind(config: Mapping[str, Any]) -> str | None:
    scaling = config.get("rope_scaling") or {}
    found = scaling.get("type") or scaling.get("rope_type")
    return None if found is None else str(found)


def _is_llama3s_own(config: Mapping[str, Any]) -> bool:
    scaling = config["rope_scaling"]
    own = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return all(float(scaling.get(key, value)) == value for key, value in own.items())


def vocabulary(folder: Path, tokenizer: Any, template: str | None, stop_ids: Sequence[int], rows: int) -> Words:
    """The keys of the tokenizer that mlx_lm loaded from `folder`, filled up to the embedding's `rows`. `stop_ids` end a reply,
    `template` is the chat template (None: the tokenizer's own, where it has one).

    InputError for anything but byte-level BPE that parts texts in a way that has a name.
    """
    tree = read_tokenizer(folder)
    known = {index: (text, NORMAL) for text, index in tree["model"]["vocab"].items()}
    known |= {entry["id"]: (entry["content"], CONTROL if entry["special"] else USER_DEFINED) for entry in tree["added_tokens"]}
    if max(known) >= rows:
        what = f"has a token with the id {max(known)}, and the model {rows} embeddings"
        raise InputError(what, where=str(folder / "tokenizer.json"), remedy=_OTHER)
    words = [known.get(index, (f"[PAD{index}]", UNUSED)) for index in range(rows)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    found: Words = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _parting(folder, tokenizer),
        "tokenizer.ggml.tokens": [text for text, _ in words],
        "tokenizer.ggml.token_type": [kind for _, kind in words],
        "tokenizer.ggml.merges": merges,
        **_special(tokenizer, stop_ids),
    }
    template = tokenizer.chat_template if template is None else template
    if isinstance(template, str):
        found["tokenizer.chat_template"] = template
    return found


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json. InputError for a kind that is not written."""
    path = folder / "tokenizer.json"
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = tree["model"].get("type")
    if kind != "BPE" or '"ByteLevel"' not in json.dumps(tree.get("pre_tokenizer")):
        what = f"has a tokenizer of the kind {kind}: GGUF files are written with byte-level BPE only"
        raise InputError(what, where=str(path), remedy=_OTHER)
    if not tree["model"].get("merges"):
        what = "has a tokenizer without merges, whose tokens are bytes: GGUF files want merges"
        raise InputError(what, where=str(path), remedy=_OTHER)
    return tree


def _special(tokenizer: Any, stop_ids: Sequence[int]) -> Words:
    """Ids with a meaning. A model that stops at several names its tokenizer's own end first, the others as ends of a turn and of
    a message."""
    ids = {"bos": tokenizer.bos_token_id, "padding": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    own = tokenizer.eos_token_id
    ends = ([own] if own is not None else []) + sorted(index for index in stop_ids if index != own)
    ids |= dict(zip(("eos", "eot", "eom"), ends, strict=False))
    around = [int(index) for index in tokenizer.encode("a", add_special_tokens=True)]
    alone = [int(index) for index in tokenizer.encode("a", add_special_tokens=False)]
    bos, eos = around[: len(around) - len(alone)] == [ids["bos"]], around != alone and around[-1] == own
    added = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    return {**{f"tokenizer.ggml.{name}_token_id": int(index) for name, index in ids.items() if index is not None}, **added}


def _parting(folder: Path, tokenizer: Any) -> str:
    """The name of the way in which the tokenizer parts texts, by what it does to one that shows the differences. It is the loaded
    one's: of some families transformers has its own way, whatever tokenizer.json says."""
    fast = getattr(tokenizer, "is_fast", False)
    own = tokenizer.backend_tokenizer if fast else Tokenizer.from_file(str(folder / "tokenizer.json"))
    wanted = own.pre_tokenizer.pre_tokenize_str(_TEXT)
    for name in _PARTINGS:
        if _reader(name).pre_tokenizer.pre_tokenize_str(_TEXT) == wanted:
            return name
    what = f"the tokenizer parts texts in a way that has no name in GGUF files; known are {', '.join(_PARTINGS)}"
    raise InputError(what, where=str(folder / "tokenizer.json"), remedy=_OTHER)


def _reader(name: str) -> Tokenizer:
    """A tokenizer as engine/gguf/ reads it from a file that names this way."""
    words = {"general.architecture": "llama", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": ()}
    header = GgufHeader(Path(name), 3, {**words, "tokenizer.ggml.add_bos_token": False, "llama.context_length": 1}, (), 0, 0, 0)
    empty = Vocabulary(ids={"a": 0}, tokens=("a",), kinds=[NORMAL], scores=None, special={}, is_sentencepiece=False)
    return Tokenizer.from_str(json.dumps(tokenizer_files(header, empty)["tokenizer.json"]))
