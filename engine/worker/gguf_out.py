"""A GGUF file of a plain model: F16, or Q8_0 for matrices. Weights are written one after the other, none is held twice."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.gguf import rope
from engine.worker import gguf_words
from engine.worker.trees import flat

Told = Callable[[int, int], None]
Array = npt.NDArray[Any]

_BLOCK = 32  # weights that share a scale in Q8_0
_FILE_TYPES = {"F16": 1, "Q8_0": 7}


def library() -> Any:
    """The package `gguf`. InputError where it is not installed."""
    try:
        return importlib.import_module("gguf")  # by name: an extra, and only this verb needs it
    except ImportError as error:
        remedy = "pip install 'droid-tune[gguf]'"
        raise InputError(f"writing GGUF files needs the package gguf: {error}", where="--to gguf", remedy=remedy) from error


def write_gguf(
    path: Path,
    name: str,
    model: nn.Module,
    config: Mapping[str, Any],
    folder: Path,
    tokenizer: Any,
    template: str | None,
    stop_ids: Sequence[int],
    packs: bool,
    told: Told,
) -> str:
    """Write the plain `model` to `path`, matrices as Q8_0 where `packs`; returns the file's type. `folder` has tokenizer.json,
    and `template` takes the place of its chat template.

    Raises InputError for what GGUF files of these families cannot say, and OSError where the disk does.
    """
    gguf = library()
    args: Any = model.args
    config = {**config, **asdict(args)}  # as the family read it, its defaults included
    architecture = gguf_words.check_family(config)
    words = gguf_words.sizes(architecture, config)
    words |= gguf_words.vocabulary(folder, tokenizer, template, stop_ids, int(config["vocab_size"]))
    kind = "Q8_0" if packs else "F16"
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in words.items():
        _add(writer, key, value)
    arrays = dict(_named(gguf, architecture, model, config))
    types = {key: _type(gguf, value.shape, packs) for key, value in arrays.items()}
    for key, value in arrays.items():
        shape, itemsize = value.shape, 4 if types[key] == gguf.GGMLQuantizationType.F32 else 2
        if types[key] == gguf.GGMLQuantizationType.Q8_0:
            shape, itemsize = gguf.quants.quant_shape_to_byte_shape(shape, types[key]), 1
        dtype = {4: np.float32, 2: np.float16, 1: np.uint8}[itemsize]
        writer.add_tensor_info(key, shape, np.dtype(dtype), int(np.prod(shape)) * itemsize, raw_dtype=types[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for done, (key, value) in enumerate(arrays.items()):
            told(done, len(arrays))
            writer.write_tensor_data(_written(gguf, key, value, types[key], config))
    finally:
        writer.close()
    return kind


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _named(gguf: Any, architecture: str, model: nn.Module, config: Mapping[str, Any]) -> Iterator[tuple[str, mx.array]]:
    """The model's arrays under GGUF's names, those of rotary embeddings first."""
    scaling = gguf_words.divisors(config)
    if scaling is not None:
        yield rope.DIVISORS, mx.array(scaling)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, int(config["num_hidden_layers"]))
    for name, value in flat(model.parameters()).items():
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if named is None:
            raise InputError(f"GGUF has no name for {name}", where="--to gguf", remedy="use --to fused")
        yield named, value


def _type(gguf: Any, shape: tuple[int, ...], packs: bool) -> Any:
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32  # norms and biases, as llama.cpp's converter has them
    return types.Q8_0 if packs and shape[-1] % _BLOCK == 0 else types.F16


def _written(gguf: Any, key: str, value: mx.array, kind: Any, config: Mapping[str, Any]) -> Array:
    array = np.array(value.astype(mx.float32))
    if gguf_words.ARCHITECTURES[str(config["model_type"])] == "llama":
        module = key.split(".")[-2]
        if module in ("attn_q", "attn_k"):
            heads = config["num_attention_heads"] if module == "attn_q" else config["num_key_value_heads"]
            array = interleaved(array, int(heads))
    if kind == gguf.GGMLQuantizationType.F16:
        halved = array.astype(np.float16)
        if not np.isfinite(halved).all():
            what = f"{key} holds numbers that F16 cannot"
            raise InputError(what, where="--to gguf", remedy="use --bits 8, or --to fused")
        return halved
    packed: Array = gguf.quants.quantize(array, kind)
    return packed


def interleaved(rows: Array, heads: int) -> Array:
    """Rows of a llama's queries or keys in GGUF's order: row j * half + i of a head, j 0 or 1, becomes row 2 i + j. Its rotary
    embedding turns neighbours, and mlx_lm's (as transformers') the two halves."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)
