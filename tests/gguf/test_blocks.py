"""Repacked weights hold the very numbers of the file: bit by bit against the gguf package's own arithmetic."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import load_file

from engine.errors import InputError
from engine.gguf.blocks import converted, in_halves
from engine.gguf.folder import mlx_folder
from engine.gguf.header import GgufHeader, GgufTensor
from engine.gguf.plan import Part
from engine.model_files import read_headers
from tests.support.gguf_files import permuted, tiny_file

ROWS, COLUMNS = 24, 96
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
NO_HEADER = GgufHeader(Path("m.gguf"), 3, {}, (), 0, 0, 0)


def raw_blocks(kind: str) -> np.ndarray:
    """Random blocks [rows, bytes]: every nibble and byte occurs; scales and minima of both signs, subnormal ones too."""
    draw = np.random.default_rng(1)
    blocks = draw.integers(0, 256, (ROWS, COLUMNS // 32, BLOCK_BYTES[kind]), dtype=np.uint8)
    floats = (draw.normal(size=(ROWS, COLUMNS // 32, 2)) * 10.0 ** draw.integers(-7, 2, (ROWS, COLUMNS // 32, 2))).astype("<f2")
    head = 4 if kind == "Q4_1" else 2
    blocks[..., :head] = floats[..., : head // 2].view(np.uint8)
    return blocks.reshape(ROWS, -1)


def raw_q6_k(rows: int, blocks: int) -> np.ndarray:
    """Random Q6_K blocks [rows, bytes]: every low and high bit and every scale occurs, d of both signs."""
    draw = np.random.default_rng(2)
    found = draw.integers(0, 256, (rows, blocks, 210), dtype=np.uint8)
    found[..., 208:] = (draw.normal(size=(rows, blocks, 1)) * 1e-3).astype("<f2").view(np.uint8)
    return found.reshape(rows, -1)


@pytest.mark.parametrize(("wanted", "rows"), [("F32", 5), ("F16", 5), ("F16", 1), ("BF16", 3)])
def test_q6_k_is_unpacked_exactly(wanted: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 what gguf.quants has, to the bit; in 16 bits each number rounded to the nearest. A row at a time."""
    monkeypatch.setattr("engine.gguf.blocks._CHUNK_BYTES", 600)
    raw = raw_q6_k(rows, 2)
    expected = quants.dequantize(raw, GGMLQuantizationType.Q6_K)
    part = Part(GgufTensor("token_embd.weight", "Q6_K", (rows, 512), 3, raw.nbytes), "m", "weight", wanted, 0)
    runs = list(converted(NO_HEADER, io.BytesIO(b"\0" * 3 + raw.tobytes()), part))
    assert [first for _, first, _ in runs] == list(range(rows))
    found = np.concatenate([numbers for _, _, numbers in runs])
    assert [(header.name, header.dtype, header.shape) for header in part.written()] == [("m.weight", wanted, (rows, 512))]
    assert found.nbytes == part.written()[0].bytes and (expected.min() < -1 or expected.max() > 1)
    if wanted == "BF16":
        found = (found.astype("<u4") << 16).view("<f4")
        assert 0 < np.abs(found / np.where(expected == 0, 1, expected) - (expected != 0)).max() <= 2**-8
    else:
        assert np.array_equal(found, expected.astype(found.dtype)) and found.dtype == ("<f4" if wanted == "F32" else "<f2")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 60000.0])
def test_a_q6_k_scale_that_is_none_is_refused(scale: float) -> None:
    raw = raw_q6_k(1, 1)
    raw[:, 208:] = np.array([scale], "<f2").view(np.uint8)
    part = Part(GgufTensor("t", "Q6_K", (1, 256), 0, raw.nbytes), "m", "weight", "F16", 0)
    with pytest.raises(InputError, match="t holds numbers that are none"):
        list(converted(NO_HEADER, io.BytesIO(raw.tobytes()), part))
    part = Part(GgufTensor("t", "Q6_K", (2, 256), 0, 2 * raw.nbytes), "m", "weight", "F16", 0)
    with pytest.raises(InputError, match="shorter"):
        list(converted(NO_HEADER, io.BytesIO(raw.tobytes()), part))


def unpacked(weight: np.ndarray, bits: int) -> np.ndarray:
    """mlx's layout, element by element: the lowest bits of a word come first (mlx's documentation of `quantize`)."""
    per_word = 32 // bits
    shifts = np.arange(per_word, dtype=np.uint32) * bits
    return ((weight[..., None] >> shifts) & (2**bits - 1)).reshape(weight.shape[0], -1)


@pytest.mark.parametrize("kind", BLOCK_BYTES)
@pytest.mark.parametrize("heads", [0, 3])
def test_quantised_blocks_hold_the_same_numbers(kind: str, heads: int) -> None:
    """scale * q + bias, in float32, equals what gguf.quants dequantises, to the bit; with rows put back in order likewise."""
    raw = raw_blocks(kind)
    part = Part(GgufTensor("t", kind, (ROWS, COLUMNS), 5, raw.nbytes), "m", "weight", "F16", heads)
    expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    if heads:  # the file's rows are a converter's permutation of the model's
        raw = quants_rows(raw, heads)
    found: dict[str, np.ndarray] = {}
    for name, first, rows in converted(NO_HEADER, io.BytesIO(b"\0" * 5 + raw.tobytes()), part):
        assert first == 0
        found[name] = rows
    scales, biases = (np.repeat(found[f"m.{name}"].astype(np.float32), 32, axis=1) for name in ("scales", "biases"))
    own = scales * unpacked(found["m.weight"], part.bits).astype(np.float32) + biases
    assert own.dtype == expected.dtype and np.array_equal(own, expected)
    assert [(array.name, array.bytes) for array in part.written()] == [(name, rows.nbytes) for name, rows in found.items()]


def quants_rows(raw: np.ndarray, heads: int) -> np.ndarray:
    return permuted(raw, heads)


def test_rows_are_put_back_for_any_number_of_heads() -> None:
    rows = np.arange(48).reshape(24, 2)
    for heads in (1, 2, 3, 6, 12):
        assert np.array_equal(in_halves(permuted(rows, heads), 24 // heads), rows)
    assert not np.array_equal(permuted(rows, 3), rows)


def test_rows_come_in_runs_of_whole_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 700 bytes at most: 3 rows of 192 bytes where order does not matter, else one head of 8 rows."""
    monkeypatch.setattr("engine.gguf.blocks._CHUNK_BYTES", 700)
    numbers = np.random.default_rng(0).normal(size=(24, 96)).astype(np.float16)
    for heads, firsts in ((0, list(range(0, 24, 3))), (3, [0, 8, 16])):
        data = permuted(numbers, heads) if heads else numbers
        part = Part(GgufTensor("t", "F16", (24, 96), 0, data.nbytes), "m", "weight", "F16", heads)
        runs = list(converted(NO_HEADER, io.BytesIO(data.tobytes()), part))
        assert [first for _, first, _ in runs] == firsts
        assert np.array_equal(np.concatenate([rows for _, _, rows in runs]), numbers)


@pytest.mark.parametrize(
    ("kind", "wanted", "numbers", "expected"),
    [
        ("F32", "F16", [1.0, -0.1, 65504.0, 6e-8], np.array([1.0, -0.1, 65504.0, 6e-8], np.float16).view(np.uint16)),
        ("F32", "BF16", [1.0, 1.00390625, 1.01171875, -3.0], [0x3F80, 0x3F80, 0x3F82, 0xC040]),  # halves go to the even one
        ("F32", "F32", [0.1], np.array([0.1], np.float32).view(np.uint32)),
        ("F16", "F16", [0.1], np.array([0.1], np.float16).view(np.uint16)),
        ("BF16", "BF16", [1.0, -2.0], [0x3F80, 0xC000]),
        ("BF16", "F16", [1.0, -2.0], [0x3C00, 0xC000]),
        ("BF16", "F32", [1.0, -2.0], [0x3F800000, 0xC0000000]),
        ("F16", "F32", [0.5], [0x3F000000]),
    ],
)
def test_floats_are_rounded_to_the_nearest(kind: str, wanted: str, numbers: list[float], expected: list[int]) -> None:
    single = np.array(numbers, np.float32)
    data = {"F32": single, "F16": single.astype(np.float16), "BF16": (single.view(np.uint32) >> 16).astype(np.uint16)}[kind]
    part = Part(GgufTensor("t", kind, (len(numbers),), 0, data.nbytes), "m", "weight", wanted, 0)
    [(_, _, rows)] = converted(NO_HEADER, io.BytesIO(data.tobytes()), part)
    assert rows.reshape(-1).view(np.uint32 if wanted == "F32" else np.uint16).tolist() == list(expected)


@pytest.mark.parametrize(
    ("kind", "wanted", "numbers"),
    [("F32", "F16", [1e5]), ("F32", "F16", [float("nan")]), ("F16", "F16", [float("inf")]), ("F32", "BF16", [float("-inf")])],
)
def test_what_is_no_number_is_refused(kind: str, wanted: str, numbers: list[float]) -> None:
    data = np.array(numbers, np.float32 if kind == "F32" else np.float16)
    part = Part(GgufTensor("t", kind, (1,), 0, data.nbytes), "m", "weight", wanted, 0)
    with pytest.raises(InputError, match="t holds numbers that are none"):
        list(converted(NO_HEADER, io.BytesIO(data.tobytes()), part))


@pytest.mark.parametrize(("kind", "scale"), [("Q8_0", 600.0), ("Q4_0", float("inf")), ("Q4_1", float("nan"))])
def test_a_scale_that_float16_cannot_multiply_is_refused(kind: str, scale: float) -> None:
    """-128 x 600 = -76,800, beyond float16's 65,504: no model has such weights."""
    raw = np.zeros(BLOCK_BYTES[kind], np.uint8)
    raw[:2] = np.array([scale], np.float16).view(np.uint8)
    part = Part(GgufTensor("t", kind, (1, 32), 0, raw.nbytes), "m", "weight", "F16", 0)
    with pytest.raises(InputError, match="too large for F16"):
        list(converted(NO_HEADER, io.BytesIO(raw.tobytes()), part))


def test_a_file_in_several_shards_has_the_same_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_file(tmp_path / "m.gguf", "Q4_0", {"token_embd.weight": "Q8_0"})
    whole = load_file(mlx_folder(path, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr("engine.gguf.shards.SHARD_BYTES", 3000)
    folder = mlx_folder(path, tmp_path / "shards")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) == 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    parts = [load_file(file) for file in files]
    assert {header.name for header in read_headers(folder)} == set(whole)
    assert sum(map(len, parts)) == len(whole)
    for part in parts:
        for name, array in part.items():
            assert array.dtype == whole[name].dtype and np.array_equal(array, whole[name])
