"""The adapter that a run goes on from: whether it is there, and what its own description says against the config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine.errors import InputError
from engine.model_files import read_json
from engine.sections import AdapterConfig

FILE = "adapters.safetensors"


def adapter_file(adapter: AdapterConfig, added_tokens: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """The file that `adapter.start_from` stands for, and the tokens that its run added.

    InputError where there is no such file, and where its adapter_config.json says another type, rank or scale than the config,
    or other added tokens.
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
    return file, known
