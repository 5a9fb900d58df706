"""tokenizer.json and tokenizer_config.json from a GGUF file's own vocabulary: ids are those of the model's first tokenizer.

Byte-level BPE: the file names how texts are parted before merges ("pre"); those of the families that are read are known here,
another is refused rather than guessed. SentencePiece: its BPE merges follow from the tokens' scores, as the converters of
transformers derive them.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from engine.gguf.header import GgufHeader
from engine.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(splits_words: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits_words}


# How a text is parted before merges, by the name that the file gives: as in the tokenizers that these names stand for;
# "default" as in llama.cpp (llama-vocab.cpp, llm_tokenizer_bpe), whose own it is.
_PARTINGS = {
    "llama-bpe": [_split(_LLAMA3), _bytes(False)],
    "qwen2": [_split(_LLAMA3.replace("{1,3}", "")), _bytes(False)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "gpt-2": [_bytes(True)],
    "default": [*map(_split, (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), _bytes(False)],
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
_SPACE = "▁"  # what SentencePiece writes for a space
_MOST_PIECE_CHARACTERS = 512
_AGAIN = "convert the model again with a current converter"


def tokenizer_files(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """The two files' contents by name. Raises InputError where the vocabulary makes no tokenizer."""
    parts = _sentencepiece(header, vocabulary) if vocabulary.is_sentencepiece else _byte_level(header, vocabulary)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _around(header, vocabulary, adds_bos=parts.pop("adds_bos")),
        **parts,
    }
    try:
        Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the library raises nothing narrower
        raise header.refuse(f"has a vocabulary that makes no tokenizer: {error}", "fetch the file again") from error
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.integer(f"{header.architecture}.context_length"),
    }
    config |= {
        name: vocabulary.tokens[index] for name, index in vocabulary.special.items() if name not in ("eot_token", "eom_token")
    }
    if "tokenizer.chat_template" in header.metadata:
        config["chat_template"] = header.text("tokenizer.chat_template")
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def _added(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in a text before anything else is done with it."""
    kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": text, **rest, "special": kinds[int(vocabulary.kinds[index])]}
        for text, index in vocabulary.ids.items()
        if vocabulary.kinds[index] in kinds
    ]


def _around(header: GgufHeader, vocabulary: Vocabulary, adds_bos: bool) -> dict[str, Any] | None:
    """What the tokenizer puts around a text by itself; None for nothing."""
    names = ["bos_token"] if header.flag("tokenizer.ggml.add_bos_token", adds_bos) else []
    names += ["eos_token"] if header.flag("tokenizer.ggml.add_eos_token", False) else []
    if not names:
        return None
    missing = next((name for name in names if name not in vocabulary.special), None)
    if missing is not None:
        raise header.refuse(f"wants a {missing} around a text, but names none", _AGAIN)
    texts = {name: vocabulary.tokens[vocabulary.special[name]] for name in names}

    def template(type_id: int, sequence: str) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        for name, text in texts.items():
            pieces.insert(0 if name == "bos_token" else len(pieces), {"SpecialToken": {"id": text, "type_id": type_id}})
        return pieces

    special = {text: {"id": text, "ids": [vocabulary.special[name]], "tokens": [text]} for name, text in texts.items()}
    pair = template(0, "A") + template(1, "B")
    return {"type": "TemplateProcessing", "single": template(0, "A"), "pair": pair, "special_tokens": special}


def _byte_level(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, Any]:
    named = header.text("tokenizer.ggml.pre")
    pre = _SAME.get(named, named)
    if pre not in _PARTINGS:
        what = f"parts texts in the way {named[:40]!r} (tokenizer.ggml.pre); known are {', '.join(_PARTINGS)}"
        raise header.refuse(what, "give a folder that mlx_lm can load")
    if header.architecture == "qwen2" and pre != "qwen2":
        what = f"is a qwen2 model that parts texts as {pre!r}; transformers parts those of every qwen2 model as 'qwen2'"
        raise header.refuse(what, "give another model")
    merges = []
    for line in header.texts("tokenizer.ggml.merges"):
        place = line.find(" ", 1)
        left, right = line[:place], line[place + 1 :]
        if place < 0 or not all(text in vocabulary.ids for text in (left, right, left + right)):
            raise header.refuse(f"has the merge {line[:40]!r} of what are no tokens", "fetch the file again")
        merges.append([left, right])
    is_llama3 = pre == "llama-bpe"
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PARTINGS[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**_BPE, "ignore_merges": is_llama3, "vocab": vocabulary.ids, "merges": merges},
        "adds_bos": is_llama3,
    }


_BPE: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
}


def _sentencepiece(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, Any]:
    if header.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        raise header.refuse(
            "drops spaces (tokenizer.ggml.remove_extra_whitespaces), which is not read", "give a folder that mlx_lm can load"
        )
    has_bytes = any(kind == BYTE for kind in vocabulary.kinds)
    adds_space = header.flag("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    first = [{"type": "Prepend", "prepend": _SPACE}] if adds_space else []
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if adds_space else [])]
    unknown = vocabulary.tokens[vocabulary.special["unk_token"]]
    model = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": has_bytes, "ignore_merges": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, replace]},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**_BPE, **model, "vocab": vocabulary.ids, "merges": _merges(header, vocabulary)},
        "adds_bos": True,
    }


def _merges(header: GgufHeader, vocabulary: Vocabulary) -> list[list[str]]:
    """Every way to make a token of two others, the best scores first; among equals the longer parts (as transformers has it)."""
    if vocabulary.scores is None:
        raise header.refuse("has no tokenizer.ggml.scores", _AGAIN)
    normal = {text: index for text, index in vocabulary.ids.items() if vocabulary.kinds[index] == NORMAL}
    longest = max(map(len, normal), default=0)
    if longest > _MOST_PIECE_CHARACTERS:
        raise header.refuse(f"has a piece of {longest} characters", "fetch the file again")
    if len({vocabulary.scores[index] for index in normal.values()}) < 2 < len(normal):
        raise header.refuse("has the same score for every token, so its merges cannot be known", _AGAIN)
    found = []
    for text, index in normal.items():
        pairs = [(text[:place], text[place:]) for place in range(1, len(text))]
        made = [(left, right) for left, right in pairs if left in normal and right in normal]
        made.sort(key=lambda pair: (normal[pair[0]], normal[pair[1]]))
        found += [(vocabulary.scores[index], left, right) for left, right in made]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]
