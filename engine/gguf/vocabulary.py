"""A GGUF file's own vocabulary: the tokens, what kind each is, and the ids that have a meaning.

Kinds are those of SentencePiece: control tokens (never part of a text) and user-defined ones (always one token where their
text occurs) become added tokens; fillers that converters put behind the vocabulary ([PAD151936]) are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.gguf.header import GgufHeader

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_FILLER = re.compile(r"\[PAD\d+\]")
_AGAIN = "convert the model again with a current converter"
_MOST_CHARACTERS = 4096  # of a token
# Tokens that end a turn or a text by their name, whatever the metadata says of them: those that llama.cpp stops at.
_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
)
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_SENTENCEPIECE = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # where the file names none


@dataclass(frozen=True)
class Vocabulary:
    """`ids` by text in the order of ids; `kinds` by id; `special` has the ids of bos_token and the like, where there are any."""

    ids: dict[str, int]
    tokens: tuple[str, ...]
    kinds: Sequence[float]
    scores: Sequence[float] | None
    special: dict[str, int]
    is_sentencepiece: bool

    @property
    def end_ids(self) -> list[int]:
        """The ids at which a generation ends, that of eos_token first."""
        named = [self.ids[text] for text in _ENDS if text in self.ids and self.kinds[self.ids[text]] == CONTROL]
        given = [self.special[name] for name in ("eos_token", "eot_token", "eom_token") if name in self.special]
        return list(dict.fromkeys([*given, *named]))

    def special_ids(self) -> dict[str, int | list[int] | None]:
        """As config.json names them."""
        ends = self.end_ids
        eos = ends[0] if len(ends) == 1 else ends
        return {"bos_token_id": self.special.get("bos_token"), "eos_token_id": eos, "pad_token_id": self.special.get("pad_token")}


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """The vocabulary of a file. Raises InputError where there is none of a kind that is read, or it contradicts itself."""
    model = header.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        what = f"has a tokenizer of the kind {model[:40]!r}; gpt2 and llama (SentencePiece) are read"
        raise header.refuse(what, "give a folder that mlx_lm can load")
    tokens = header.texts("tokenizer.ggml.tokens")
    kinds = header.numbers("tokenizer.ggml.token_type")
    scores = header.numbers("tokenizer.ggml.scores")
    if kinds is None:
        raise header.refuse("has no tokenizer.ggml.token_type: its control tokens cannot be told from text", _AGAIN)
    for name, numbers in (("token_type", kinds), ("scores", scores)):
        if numbers is not None and len(numbers) != len(tokens):
            raise header.refuse(f"has {len(tokens)} tokens, but {len(numbers)} of tokenizer.ggml.{name}", _AGAIN)
    if scores is not None and not all(map(math.isfinite, scores)):
        raise header.refuse("has scores of tokens that are no numbers", "fetch the file again")
    embedding = header.by_name.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise header.refuse(f"has {len(tokens)} tokens, but embeddings of {embedding.shape[0]}", "fetch the file again")
    is_sentencepiece = model == "llama"
    ids = _ids(header, tokens, kinds)
    special = _special(header, len(tokens), is_sentencepiece)
    return Vocabulary(ids, tokens, kinds, scores, special, is_sentencepiece)


def _ids(header: GgufHeader, tokens: Sequence[str], kinds: Sequence[float]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not text or (kind == UNUSED and _FILLER.fullmatch(text)):
            continue
        if len(text) > _MOST_CHARACTERS:
            raise header.refuse(f"has a token of {len(text)} characters (id {index})", "fetch the file again")
        if text in found:
            raise header.refuse(f"has the token {text[:40]!r} twice, as {found[text]} and {index}", "fetch the file again")
        found[text] = index
    return found


def _special(header: GgufHeader, count: int, is_sentencepiece: bool) -> dict[str, int]:
    found = dict(_SENTENCEPIECE) if is_sentencepiece else {}
    for name, key in (*_SPECIAL.items(), ("eot_token", "eot"), ("eom_token", "eom")):
        if f"tokenizer.ggml.{key}_token_id" in header.metadata:
            found[name] = header.integer(f"tokenizer.ggml.{key}_token_id")
    outside = next((name for name, index in found.items() if index >= count), None)
    if outside is not None:
        raise header.refuse(f"names {found[outside]} as its {outside}, but has {count} tokens", "fetch the file again")
    if "eos_token" not in found:
        raise header.refuse("names no token that ends a text (tokenizer.ggml.eos_token_id)", _AGAIN)
    return found
