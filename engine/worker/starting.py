"""Going on from an adapter that was trained before: its file, checked against the config, onto the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from engine.config import AdapterConfig
from engine.errors import InputError
from engine.model_files import read_json
from engine.worker import added_rows
from engine.worker.trees import flat

FILE = "adapters.safetensors"


def take_over(model: nn.Module, adapter: AdapterConfig, added_tokens: Sequence[str] = ()) -> None:
    """Put the arrays of `adapter.start_from` in place of the fresh ones. The rows of `added_tokens` stay fresh where the adapter
    was trained without added tokens.

    InputError where there is no such file, where its adapter_config.json says another type, rank or scale than the config, or
    other added tokens, and where names or shapes are not those of the model with this adapter: nothing of it may be left out in
    silence.
    """
    path = Path(str(adapter.start_from))
    file = path / FILE if path.is_dir() else path
    where = str(file)
    if not file.is_file():
        remedy = "adapter.start_from: the folder of an adapter as a run leaves it, or its .safetensors file"
        raise InputError("no such adapter", where=where, remedy=remedy)
    described = read_json(file.parent / "adapter_config.json")
    own = described.get("lora_parameters") or {}
    if adapter.type == "full":
        own = {}
    for key, theirs, ours in (
        ("type", described.get("fine_tune_type", "lora"), adapter.type),
        ("rank", own.get("rank", adapter.rank), adapter.rank),
        ("scale", own.get("scale", adapter.scale), adapter.scale),
    ):
        if theirs != ours:
            what = f"the adapter has {key} {theirs}, and adapter.{key} is {ours}"
            raise InputError(what, where=where, remedy=f"set adapter.{key}: {theirs}")
    known = list(described.get("added_tokens", []))
    if known != list(added_tokens) and (known or adapter.type == "full"):
        what = f"it was trained with the added tokens {known}, and chat.add_tokens is {list(added_tokens)}"
        raise InputError(what, where=where, remedy=f"set chat.add_tokens: {json.dumps(known, ensure_ascii=False)}")
    wanted = flat(model.trainable_parameters())
    files = [file]
    if known and adapter.type != "full":
        files.append(file.parent / added_rows.FILE)
    elif added_tokens and adapter.type != "full":
        wanted = added_rows.split(wanted)[0]
    arrays: dict[str, mx.array] = {}
    for each in files:
        try:
            arrays |= cast("dict[str, mx.array]", mx.load(str(each)))
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"cannot be read: {error}", where=str(each), remedy="fetch or export it again") from error
    for names, says in ((sorted(set(wanted) - set(arrays)), "lacks"), (sorted(set(arrays) - set(wanted)), "has")):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            remedy = "set adapter.layers and adapter.keys as it was trained with"
            raise InputError(f"the adapter {says} {shown}, unlike this model with this config", where=where, remedy=remedy)
    for name, value in wanted.items():
        if value.shape != arrays[name].shape:
            what = f"{name} has the shape {tuple(arrays[name].shape)}, and this model needs {tuple(value.shape)}"
            raise InputError(what, where=where, remedy="it belongs to another model, or another rank")
    model.load_weights([(name, arrays[name].astype(value.dtype)) for name, value in wanted.items()], strict=False)
