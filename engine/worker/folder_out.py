"""A model folder as mlx_lm and LM Studio load it: weights in shards, config.json, and the base's other files as they are."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import quantize_model

from engine.cache_folders import SOURCE
from engine.data.added_tokens import write_tokenizer
from engine.errors import InputError
from engine.worker.trees import flat

Told = Callable[[int, int], None]

SHARD_BYTES = 5_000_000_000
_INDEX = "model.safetensors.index.json"
_COPIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "LICENSE*")
_OWN = ("config.json", _INDEX, SOURCE, "hf_quant_config.json", "adapter_config.json")  # written anew, or not of this model
_QUANTISATION = ("quantization", "quantization_config")


def quantise(model: nn.Module, config: dict[str, Any], bits: int, group_size: int) -> dict[str, Any]:
    """Quantise a plain model in place as mlx_lm.convert would; returns its config. InputError where no weight's rows divide."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for answers
        quantised: dict[str, Any] = quantize_model(model, config, group_size, bits)[1]
    if not any(name.endswith(".scales") for name in flat(model.parameters())):
        what = f"no weight has rows that {group_size} divides: nothing can be quantised"
        raise InputError(what, where="--group-size", remedy="take a smaller one: 32 or 64")
    return quantised


def write_chat(folder: Path, template: str | None, stop_ids: Sequence[int]) -> None:
    """Give the model in `folder` another chat template and further tokens that end a reply; None and () leave its own."""
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if stop_ids:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        _write_json(path, {**settings, "eos_token_id": list(stop_ids)})


def write_vocabulary(folder: Path, source: Path, texts: Sequence[str], size: int) -> None:
    """Give the model in `folder` the tokenizer of the base in `source` with the texts added, and say in its config that it has
    `size` embeddings."""
    write_tokenizer(source, folder, texts)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = size  # families with a language model inside take it from here or from there
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["vocab_size"] = size
    _write_json(folder / "config.json", config)


def with_variables(template: str, variables: Mapping[str, Any]) -> str:
    """The chat template with its variables set to these values."""
    return "".join(f"{{%- set {name} = {_literal(value)} %}}" for name, value in variables.items()) + template


def _literal(value: Any) -> str:
    """The value as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def write_model(
    folder: Path, source: Path, model: nn.Module, config: dict[str, Any], told: Told, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model into `folder`; `config` is what mlx_lm loaded (its quantization counts), everything else comes from the
    files in `source`. `told` hears (bytes written, bytes). Raises OSError and RuntimeError where the disk does."""
    has_images = "vision_tower" in getattr(model, "model", {})
    written: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    quantisation = config.get(_QUANTISATION[0])
    for name in (*_QUANTISATION, *(() if has_images else ("vision_config",))):
        written.pop(name, None)
        if isinstance(written.get("text_config"), dict):
            written["text_config"].pop(name, None)
    if quantisation is not None:
        written |= dict.fromkeys(_QUANTISATION, quantisation)
    _write_json(folder / "config.json", written)
    for path in sorted(source.iterdir()):
        if path.name not in _OWN and any(fnmatch.fnmatch(path.name, pattern) for pattern in _COPIED):
            shutil.copyfile(path, folder / path.name)
    _write_weights(folder, flat(model.parameters()), told, shard_bytes)


def _write_weights(folder: Path, weights: dict[str, mx.array], told: Told, shard_bytes: int) -> None:
    shards = _shards({name: value.nbytes for name, value in weights.items()}, shard_bytes)
    total, done = sum(value.nbytes for value in weights.values()), 0
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        told(done, total)
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in names}, metadata={"format": "mlx"})
        places |= dict.fromkeys(names, file)
        done += sum(weights[name].nbytes for name in names)
    told(done, total)
    if len(shards) > 1:
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


def _shards(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names of the tensors of each file, in their order; one that is larger than `most` bytes has a file of its own."""
    found: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if found[-1] and filled + size > most:
            found.append([])
            filled = 0
        found[-1].append(name)
        filled += size
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
