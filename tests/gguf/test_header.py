"""Reading headers: against the gguf package, refusals by name, and hundreds of hostile files."""

from __future__ import annotations

import math
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from engine.errors import InputError
from engine.gguf.folder import description, mlx_folder
from engine.gguf.header import read_header
from engine.gguf.plan import plan
from engine.gguf.tensor_types import TYPES
from engine.model_files import read_headers
from tests.support.gguf_files import (
    NUMBERS,
    TINY,
    Tensor,
    Typed,
    file_bytes,
    model_metadata,
    model_tensors,
    text,
    tiny_file,
    tiny_tokenizer_metadata,
    tiny_weights,
)

HOSTILE = 400


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    """Names, types, shapes, offsets and sizes of every tensor; every type of value and of array."""
    values = {f"x.{kind}": Typed(kind, True if kind == "bool" else 3) for kind in NUMBERS}
    values |= {f"y.{kind}": Typed(kind, [1, 0]) for kind in NUMBERS if kind != "bool"}
    path = tiny_file(
        tmp_path / "m.gguf", "Q8_0", {"blk.0.ffn_up.weight": "Q4_1"}, **values, z="ünï", empty="", words=["a", "", "漢"]
    )
    header, other = read_header(path), GGUFReader(str(path))
    assert [(t.name, t.type, t.shape, t.offset, t.bytes) for t in header.tensors] == [
        (t.name, t.tensor_type.name, tuple(int(n) for n in t.shape[::-1]), int(t.data_offset), int(t.n_bytes))
        for t in other.tensors
    ]
    own = {
        key: list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
        for key, value in header.metadata.items()
    }
    assert own == {key: field.contents() for key, field in other.fields.items() if not key.startswith("GGUF.")}
    assert (header.architecture, header.version) == ("llama", 3)


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    for version, alignment in ((2, 32), (3, 64), (3, 8)):
        path = tmp_path / "m.gguf"
        metadata = {"general.architecture": "llama", "general.alignment": alignment}
        tensors = [Tensor("a", "F32", (2, 1), data[:2].tobytes()), Tensor("b", "F32", (2, 2), data[2:].tobytes())]
        path.write_bytes(file_bytes(metadata, tensors, version=version, alignment=alignment))
        header = read_header(path)
        assert [tensor.offset % alignment for tensor in header.tensors] == [0, 0]
        found = header.by_name["b"]
        assert np.frombuffer(path.read_bytes()[found.offset :][: found.bytes], np.float32).tolist() == [2, 3, 4, 5]


def test_a_long_vocabulary_is_read_in_time_that_grows_with_it(tmp_path: Path) -> None:
    """200,000 tokens; eight times as many take less than 30 times as long (a quadratic reader takes 64 times)."""
    seconds = {}
    for count in (25_000, 200_000):
        path = tmp_path / f"{count}.gguf"
        path.write_bytes(file_bytes({"tokens": [f"token{number}" for number in range(count)]}, []))
        start = time.process_time()
        assert len(read_header(path).texts("tokens")) == count
        seconds[count] = time.process_time() - start
    assert seconds[200_000] < 30 * max(seconds[25_000], 0.005)


def start_of(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def entry(name: str | bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    head = struct.pack("<I", len(sizes) if dimensions is None else dimensions)
    return text(name) + head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


BIG = (1 << 64) - 1
DAMAGED = {
    "empty": (b"", "claims|no GGUF"),
    "another file": (b"\x93NUMPY" + bytes(40), "no GGUF file"),
    "cut in the start": (b"GGUF\3\0\0", "claims 4 bytes"),
    "version 1": (start_of(version=1) + bytes(64), "version 1; 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "tensors beyond the file": (start_of(tensors=BIG), "number of tensors"),
    "keys beyond the file": (start_of(keys=1 << 40), "number of keys"),
    "too many tensors": (start_of(tensors=200_000) + bytes(24 * 200_000), "more than a model has"),
    "key of 2^64 bytes": (start_of(keys=1) + struct.pack("<Q", BIG) + bytes(32), "claims 18446744073709551615"),
    "key beyond the file": (start_of(keys=1) + struct.pack("<Q", 60_000) + bytes(32), "claims 60000 bytes"),
    "key that is no text": (start_of(keys=1) + text(b"\xff\xfe") + bytes(32), "not UTF-8"),
    "key given twice": (start_of(keys=2) + 2 * (text("a") + struct.pack("<IB", 0, 1)) + bytes(9), "given twice"),
    "unknown type": (start_of(keys=1) + text("a") + struct.pack("<I", 77) + bytes(32), "unknown type 77"),
    "flag of 7": (start_of(keys=1) + text("a") + struct.pack("<IB", 7, 7) + bytes(9), "neither true nor false"),
    "array of arrays": (start_of(keys=1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "array of arrays"),
    "array of 2^60": (start_of(keys=1) + text("a") + struct.pack("<IIQ", 9, 10, 1 << 60) + bytes(64), "length of 'a'"),
    "strings beyond the file": (
        start_of(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 3) + struct.pack("<Q", 1 << 50) + bytes(32),
        "1125899906842624",
    ),
    "string that is no text": (
        start_of(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 1) + text(b"\xc3") + bytes(9),
        "not UTF-8",
    ),
    "alignment 3": (file_bytes({"general.alignment": 3}, []), "alignment 3"),
    "alignment 0": (file_bytes({"general.alignment": 0}, []), "alignment 0"),
    "alignment of 2^31": (file_bytes({"general.alignment": 1 << 31}, []), "alignment"),
    "alignment as text": (file_bytes({"general.alignment": "32"}, []), "alignment"),
    "0 dimensions": (start_of(tensors=1) + entry("a", ()) + bytes(32), "0 dimensions"),
    "2^32 dimensions": (start_of(tensors=1) + entry("a", (), dimensions=(1 << 32) - 1) + bytes(32), "4294967295 dimensions"),
    "size 0": (start_of(tensors=1) + entry("a", (0, 4)) + bytes(32), "shape"),
    "sizes that overflow": (start_of(tensors=1) + entry("a", (1 << 40,) * 4) + bytes(64), "outside the file"),
    "size of 2^63": (start_of(tensors=1) + entry("a", (1 << 63,)) + bytes(64), "shape"),
    "unknown tensor type": (start_of(tensors=1) + entry("a", (4,), kind=5) + bytes(64), "unknown tensor type 5"),
    "half a block": (start_of(tensors=1) + entry("a", (33,), kind=8) + bytes(64), "multiple of Q8_0's 32"),
    "outside": (start_of(tensors=1) + entry("a", (4,), offset=1 << 62) + bytes(64), "outside the file"),
    "not aligned": (start_of(tensors=1) + entry("a", (4,), offset=4) + bytes(64), "no multiple of 32"),
    "overlap": (start_of(tensors=2) + entry("a", (16,)) + entry("b", (4,), offset=32) + bytes(128), "b and a overlap"),
    "one place for two": (start_of(tensors=2) + entry("a", (4,)) + entry("b", (4,)) + bytes(128), "overlap"),
    "one name for two": (
        start_of(tensors=2) + entry("a", (4,)) + entry("a", (4,), offset=32) + bytes(128),
        "two tensors are called a",
    ),
    "a name that climbs": (start_of(tensors=1) + entry("../../a", (4,)) + bytes(64), "no name of a tensor"),
    "an empty name": (start_of(tensors=1) + entry("", (4,)) + bytes(64), "no name of a tensor"),
    "a name with an escape": (start_of(tensors=1) + entry("a\x1b[2J", (4,)) + bytes(64), "no name of a tensor"),
    "a long name": (start_of(tensors=1) + entry("a" * 65, (4,)) + bytes(64), "no name of a tensor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_error_that_says_what(name: str, tmp_path: Path) -> None:
    content, said = DAMAGED[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_header(path)
    assert caught.value.where == str(path) and caught.value.remedy


def test_a_folder_a_pipe_and_nothing_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, said in (("folder", "is not a file"), ("pipe", "is not a file"), ("nothing", "no such file")):
        with pytest.raises(InputError, match=said):
            read_header(tmp_path / f"{name}.gguf")


def test_400_hostile_files_are_read_or_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    """A sound file of 24 kB, each time with some of its header's bytes changed, cut or repeated: lengths and counts become
    huge most of all. The description (config, tokenizer, plan of the weights) is made where the header can be read."""
    sound = wide_file(tmp_path / "sound.gguf", token_embd__weight="Q6_K").read_bytes()
    header_bytes = read_header(tmp_path / "sound.gguf").header_bytes
    lengths = [place for place in range(header_bytes - 8) if 0 < int.from_bytes(sound[place : place + 8], "little") < 1 << 17]
    draw = random.Random(0)
    path, refused, longest = tmp_path / "m.gguf", 0, 0.0
    tracemalloc.start()
    for number in range(HOSTILE):
        path.write_bytes(mutated(bytearray(sound), header_bytes, lengths, draw))
        start = time.process_time()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            description(path, tmp_path / f"cache{number}")
        except InputError as error:
            refused += 1
            assert error.remedy
        assert tracemalloc.get_traced_memory()[1] - before < 8 << 20
        longest = max(longest, time.process_time() - start)
    tracemalloc.stop()
    assert refused > HOSTILE // 2 and longest < 2.0
    assert not list(tmp_path.rglob("*.part"))


def mutated(content: bytearray, header_bytes: int, lengths: list[int], draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 5))):
        kind, place = draw.randrange(6), draw.randrange(4, header_bytes - 8)
        if kind == 0:
            content[place] = draw.randrange(256)
        elif kind == 1:  # a length, a count or a size
            huge = draw.choice((0, 1, 0x7FFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, len(content)))
            at = draw.choice(lengths)
            content[at : at + 8] = huge.to_bytes(8, "little")
        elif kind == 2:
            del content[draw.randrange(8, len(content)) :]
            break
        elif kind == 3:
            span = draw.randrange(1, 64)
            content[place : place + span] = content[place : place + span] * 2
        elif kind == 4:
            del content[place : place + draw.randrange(1, 32)]
        else:
            content[place : place + 4] = draw.randbytes(4)
        header_bytes = max(16, min(header_bytes, len(content)))
        lengths = [at for at in lengths if at + 8 <= len(content)] or [8]
    return bytes(content)


REFUSED = {
    "gemma3": ({"general__architecture": "gemma3"}, "'gemma3' model; read are llama, qwen2, qwen3"),
    "images": ({"general__architecture": "clip"}, "'clip' model"),
    "experts": ({"llama__expert_count": 8}, "llama.expert_count = 8"),
    "images in a text model": ({"clip__vision__image_size": 336}, "images"),
    "an adapter": ({"general__type": "adapter"}, "'adapter'"),
    "a part": ({"split__count": Typed("u16", 3)}, "one part of several"),
    "not causal": ({"llama__attention__causal": False}, "causal = False"),
    "an unknown parting": ({"tokenizer__ggml__pre": "tekken"}, "'tekken'"),
    "no parting": ({"tokenizer__ggml__pre": None}, "has no tokenizer.ggml.pre"),
    "another tokenizer": ({"tokenizer__ggml__model": "t5"}, "'t5'"),
    "no end": ({"tokenizer__ggml__eos_token_id": None}, "no token that ends"),
    "an end outside": ({"tokenizer__ggml__eos_token_id": 4}, "4 as its eos_token"),
    "a token twice": ({"tokenizer__ggml__tokens": ["a", "b", "ab", "a"]}, "'a' twice, as 0 and 3"),
    "a merge of nothing": ({"tokenizer__ggml__merges": ["a x"]}, "merge 'a x'"),
    "too many tokens": ({"tokenizer__ggml__tokens": list("abcde"), "tokenizer__ggml__token_type": [1] * 5}, "embeddings of 4"),
    "kinds that are too few": ({"tokenizer__ggml__token_type": [1]}, "4 tokens, but 1"),
    "a billion layers": ({"llama__block_count": 1 << 30}, "1073741824 layers"),
    "0 heads": ({"llama__attention__head_count": 0}, "head_count is 0"),
    "no width": ({"llama__embedding_length": None}, "no llama.embedding_length"),
    "a width as text": ({"llama__embedding_length": "32"}, "is not a number"),
    "another width": ({"llama__embedding_length": 64, "llama__attention__key_length": 8}, "shape"),
    "rotary dimensions": ({"llama__rope__dimension_count": 4}, "dimension_count is 4"),
    "rope of nothing": ({"llama__rope__freq_base": float("nan")}, "freq_base is not a number above 0"),
    "longrope": ({"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "'longrope'"),
    "another attention scale": ({"llama__attention__scale": 0.5}, "attention.scale"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    path = tiny_file(tmp_path / "m.gguf", **changes)
    with pytest.raises(InputError, match=said) as caught:
        description(path, tmp_path / "cache")
    assert caught.value.where == str(path) and caught.value.remedy
    assert [*tmp_path.rglob("*.json")] == []


def wide_file(path: Path, **others: str) -> Path:
    """A tied llama as wide as a Q6_K block, of Q4_0; `others` are the types of some tensors, . written as __, all zero bytes."""
    config = {**TINY, "hidden_size": 256, "head_dim": 64}
    tensors = {each.name: each for each in model_tensors(tiny_weights(config), config, "Q4_0", {})}
    sizes = {name: (block, size) for name, block, size in TYPES.values()}
    for key, kind in others.items():
        old = tensors[key.replace("__", ".")]
        block, size = sizes[kind]
        tensors[old.name] = Tensor(old.name, kind, old.shape, bytes(math.prod(old.shape) // block * size))
    path.write_bytes(file_bytes(model_metadata(config) | tiny_tokenizer_metadata(), list(tensors.values())))
    return path


def test_types_that_are_not_read_are_named_with_those_that_are(tmp_path: Path) -> None:
    """Q6_K is read in the embedding, where llama-quantize puts it unless it is told otherwise, and nowhere else."""
    assert TYPES[14] == ("Q6_K", 256, 210)
    path = wide_file(tmp_path / "m.gguf", token_embd__weight="Q6_K", blk__0__attn_v__weight="Q6_K")
    with pytest.raises(InputError, match=r"has 1 Q6_K tensors \(blk.0.attn_v.weight\)") as caught:
        description(path, tmp_path / "cache")
    assert "read are Q4_0, Q4_1, Q8_0, F16, BF16, F32, and Q6_K in token_embd.weight" in caught.value.remedy
    folder = description(wide_file(path, token_embd__weight="Q6_K"), tmp_path / "cache")
    [embedding] = [header for header in read_headers(folder) if header.name.startswith("model.embed_tokens.")]
    assert (embedding.dtype, embedding.shape) == ("F16", (4, 256))
    planned = plan(read_header(path), None, {})
    assert planned.note == "token_embd.weight (Q6_K) is held as float16"
    assert plan(read_header(wide_file(path)), None, {}).note == ""
    assert mlx_folder(wide_file(path, token_embd__weight="Q6_K"), tmp_path / "cache").is_dir()


def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    content = tiny_file(tmp_path / "m.gguf").read_bytes()
    for old, new, said in (
        (b"blk.0.ffn_up.weight", b"blk.0.ffn_uq.weight", "has no tensor blk.0.ffn_up.weight"),
        (b"output_norm.weight", b"output.norm.weight", "has no tensor output_norm.weight"),
    ):
        path = tmp_path / f"{said[-12:-7]}.gguf"
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=said):
            description(path, tmp_path / "cache")
