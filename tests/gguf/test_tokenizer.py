"""Ids of a tokenizer made from a GGUF file's vocabulary are those of the tokenizer that the file was written from."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.config import model_folder
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.gguf.folder import description
from engine.types import Message
from tests.support.gguf_files import TINY, file_bytes, model_metadata, model_tensors, tiny_file, tiny_weights, tokenizer_metadata

TEXT = """It's the 1st of 23 tests, and we'll see: they've 1234567 words, don't they? THEY'LL SAY "I'M".
def f(x):\n    return x ** 2 + 3.14159  # naïve café, Ünïcödé, straße, ﬁn\n\n\n\t\tprint(f(10))\r\n
Привет, мир! Это 42-й тест. 你好，世界：这是一个测试。こんにちは世界。 한국어 텍스트 ١٢٣ ४५६ ²³ Ⅷ ½
<think>1 + 1 == 2</think> a=b; c!=d && e||f {"key": [1, 2, 3]} https://x.org/a_b?c=d&e=f%20 🙂👩‍👩‍👧🏽
"""
PIECES = [
    *TEXT.split(" "),
    *" \n\t\r\u00a0\u3000\u200b\u0301\x00\x7f'\"{}[]()<>|\\/~^`$",
    "  ",
    "\n\n",
    "\r\n",
    " \n ",
    "e\u0301",
    "ﬁ",
    "𝕏",
    "\U0010ffff",
]
PIECES += [
    "<|im_end|>",
    "<|im_start|>",
    "<tool>",
    "<|im_end|",
    "'s",
    "'S",
    "'Ll",
    "'ſ",
    "00",
    "1.5e-3",
    "ĠĊ",
    "▁",
    "<0x41>",
    "Ⅷ",
    "٣٤",
    "a" * 70,
]
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UNREACHABLE = "Ġxqzj"
ADDED = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def nasty_texts(count: int) -> list[str]:
    """Words, spaces of all kinds, digits of all scripts, marks, special tokens whole and broken, in random order."""
    draw = random.Random(7)
    return [TEXT, "", " ", *("".join(draw.choices(PIECES, k=draw.randrange(1, 24))) for _ in range(count))]


def parted(pattern: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def llama_cpp_default() -> Any:
    """llama.cpp's own: each pattern within what the one before has parted (llama-vocab.cpp)."""
    patterns = (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        "[0-9][0-9][0-9]",
    )
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


KINDS = {  # as in the tokenizer.json of Llama 3, Qwen 2, SmolLM 2 and GPT-2
    "llama-bpe": lambda: parted(_LLAMA3),
    "qwen2": lambda: parted(_QWEN2),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "default": llama_cpp_default,
}


def first_tokenizer(folder: Path, pre: str) -> Tokenizer:
    """A trained byte-level tokenizer that parts texts in that way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = KINDS[pre]()
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=ADDED, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    whole = json.loads(tokenizer.to_str())
    whole["model"]["ignore_merges"] = pre == "llama-bpe"
    whole["model"]["vocab"][UNREACHABLE] = len(whole["model"]["vocab"])  # Llama 3 has words that no merges make
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("  \n", normalized=False)])
    if pre == "llama-bpe":
        start = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def model_of(path: Path, tokenizer: dict[str, Any], family: str = "llama") -> Path:
    """A one-layer model with that vocabulary, five rows of embeddings more than it has tokens."""
    config = {**TINY, "model_type": family, "vocab_size": len(tokenizer["tokenizer.ggml.tokens"]) + 5}
    weights = tiny_weights(config)
    if family == "qwen2":
        weights |= {
            f"model.layers.0.self_attn.{name}_proj.bias": np.zeros(size) for name, size in (("q", 32), ("k", 16), ("v", 16))
        }
    if family == "qwen3":
        weights |= {f"model.layers.0.self_attn.{name}_norm.weight": np.ones(8) for name in "qk"}
    path.write_bytes(file_bytes(model_metadata(config) | tokenizer, model_tensors(weights, config, "F16", {})))
    return path


@pytest.mark.parametrize("pre", KINDS)
def test_byte_level_ids_and_texts_are_the_same(pre: str, tmp_path: Path) -> None:
    """With and without what the tokenizer puts around a text, and back to text."""
    first = first_tokenizer(tmp_path / "first", pre)
    path = model_of(tmp_path / "m.gguf", tokenizer_metadata(tmp_path / "first", pre))
    own = Tokenizer.from_file(str(description(path, tmp_path / "cache") / "tokenizer.json"))
    assert len(first.encode(TEXT).ids) < 0.8 * len(TEXT.encode())  # merges are used
    for text in nasty_texts(300):
        for special in (False, True):
            ids = first.encode(text, add_special_tokens=special).ids
            assert own.encode(text, add_special_tokens=special).ids == ids, text
        assert own.decode(ids, skip_special_tokens=False) == first.decode(ids, skip_special_tokens=False)
    assert own.get_vocab() == first.get_vocab()
    assert (len(own.encode(UNREACHABLE.replace("Ġ", " "), add_special_tokens=False).ids) == 1) == (pre == "llama-bpe")


def test_the_kinds_part_texts_differently() -> None:
    """Else the test above would not tell them apart."""
    words = {pre: str(make().pre_tokenize_str("It's 1234 x==y  'LL\n\nz ")) for pre, make in KINDS.items()}
    assert len(set(words.values())) == len(KINDS)


def test_fillers_are_no_tokens_and_control_tokens_are_whole(tmp_path: Path) -> None:
    first_tokenizer(tmp_path / "first", "qwen2")
    metadata = tokenizer_metadata(tmp_path / "first", "qwen2")
    count = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += ["[PAD1]", "<|late|>", "[PAD2]"]
    metadata["tokenizer.ggml.token_type"] += [5, 3, 5]
    folder = description(model_of(tmp_path / "m.gguf", metadata), tmp_path / "cache")
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert own.token_to_id("[PAD1]") is None and own.token_to_id("<|late|>") == count + 1
    assert own.encode("a<|late|>b[PAD1]").ids[1] == count + 1 and count not in own.encode("[PAD1]").ids


def test_the_demo_model_s_tokenizer_and_chat_template_come_through(tmp_path: Path) -> None:
    demo = model_folder("demo")
    folder = description(model_of(tmp_path / "m.gguf", tokenizer_metadata(demo, "gpt-2")), tmp_path / "cache")
    first, own = ChatTokenizer(demo), ChatTokenizer(folder)
    turns = (Message("system", "Be brief."), Message("user", "1 + 1?\n<|end|> <think>é"))
    assert own.render(turns, True) == first.render(turns, True)
    assert (own.eos_id, own.encode(own.render(turns, True))) == (first.eos_id, first.encode(first.render(turns, True)))
    for text in nasty_texts(100):
        assert own.encode(text) == first.encode(text)


def test_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    """It builds some tokenizers anew by the model's family (every qwen2 model's, so that only files that part texts as qwen2
    are read there): ids must be those of the first tokenizer all the same, special tokens and what is put around included."""
    from transformers import AutoTokenizer

    for family, pre in (("llama", "smollm"), ("llama", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2"), ("qwen3", "gpt-2")):
        name = f"{family}-{pre}"
        first = first_tokenizer(tmp_path / name, pre)
        path = model_of(tmp_path / f"{name}.gguf", tokenizer_metadata(tmp_path / name, pre), family)
        own = AutoTokenizer.from_pretrained(str(description(path, tmp_path / "cache")))
        for text in nasty_texts(60):
            ids = first.encode(text).ids
            assert own.encode(text) == ids, (name, text)
            assert own.decode(ids) == first.decode(ids, skip_special_tokens=False)
        assert (own.bos_token, own.eos_token) == ("<|im_start|>", "<|im_end|>")
    with pytest.raises(InputError, match="parts texts as 'gpt-2'; transformers"):
        description(model_of(path, tokenizer_metadata(tmp_path / name, pre), "qwen2"), tmp_path / "cache")


def sentencepiece_metadata(pieces: int) -> tuple[Any, dict[str, Any]]:
    """A trained SentencePiece model with byte fallback, as Llama 2 has it, and what a converter writes of it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXT * 3).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = own.get_piece_size()
    kinds = [2 if own.is_unknown(n) else 3 if own.is_control(n) else 6 if own.is_byte(n) else 1 for n in range(count)]
    found = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [own.id_to_piece(number) for number in range(count)],
        "tokenizer.ggml.scores": [own.get_score(number) for number in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": own.bos_id(),
        "tokenizer.ggml.eos_token_id": own.eos_id(),
        "tokenizer.ggml.unknown_token_id": own.unk_id(),
    }
    return own, found


def test_sentencepiece_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """A space before, digits apart, bytes for characters that are no tokens; control tokens' texts are left out, since to
    SentencePiece they are plain text and to every chat model tokens."""
    from transformers import AutoTokenizer

    first, metadata = sentencepiece_metadata(520)
    folder = description(model_of(tmp_path / "m.gguf", metadata), tmp_path / "cache")
    own, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(str(folder))
    checked = 0
    for text in nasty_texts(300):
        if not text or "\x00" in text or "▁" in text or "<" in text:
            continue
        ids = first.encode(text)
        assert own.encode(text, add_special_tokens=False).ids == ids, text
        assert own.encode(text).ids == loaded.encode(text) == [first.bos_id(), *ids]
        assert own.decode(ids) == first.decode(ids).removeprefix(" " if not text.startswith(" ") else "")
        checked += 1
    assert checked > 50
    assert own.encode("a</s>b", add_special_tokens=False).ids[1] == first.eos_id()


def test_no_space_before_where_the_file_says_so(tmp_path: Path) -> None:
    _, metadata = sentencepiece_metadata(520)
    metadata |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    folder = description(model_of(tmp_path / "m.gguf", metadata), tmp_path / "cache")
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert own.encode("the").tokens[0] == "the" or not own.encode("the").tokens[0].startswith("▁")
    assert own.decode(own.encode("the words").ids) == "the words"


def test_scores_that_say_nothing_are_refused(tmp_path: Path) -> None:
    """Some converters write -1000 for every token: the merges cannot be known from that."""
    _, metadata = sentencepiece_metadata(520)
    metadata["tokenizer.ggml.scores"] = [-1000.0] * len(metadata["tokenizer.ggml.tokens"])
    with pytest.raises(InputError, match="same score for every token"):
        description(model_of(tmp_path / "m.gguf", metadata), tmp_path / "cache")


def test_every_token_that_ends_a_turn_ends_a_generation(tmp_path: Path) -> None:
    """The file's eos first, its eot, then control tokens by their names; not a word that happens to look like one."""
    words = ["a", "b", "ab", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>"]
    path = tmp_path / "m.gguf"
    config = {**TINY, "vocab_size": 8}
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 3, 1, 4],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.eom_token_id": 5,
        "tokenizer.ggml.add_bos_token": False,
    }
    path.write_bytes(file_bytes(model_metadata(config) | keys, model_tensors(tiny_weights(config), config, "F16", {})))
    folder = description(path, tmp_path / "cache")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [4, 5, 3]
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|eot_id|>"
    with pytest.raises(InputError, match="wants a bos_token around a text"):
        description(tiny_file(tmp_path / "n.gguf", tokenizer__ggml__add_bos_token=True), tmp_path / "cache")
