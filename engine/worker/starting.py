"""Going on from an adapter that was trained before: its file, checked against the config, onto the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from engine import start_rules
from engine.config import AdapterConfig
from engine.errors import InputError
from engine.worker import added_rows
from engine.worker.trees import flat


def take_over(model: nn.Module, adapter: AdapterConfig, added_tokens: Sequence[str] = ()) -> None:
    """Put the arrays of `adapter.start_from` in place of the fresh ones. The rows of `added_tokens` stay fresh where the adapter
    was trained without added tokens.

    InputError where there is no such file, where its adapter_config.json says another type, rank or scale than the config, or
    other added tokens, and where names or shapes are not those of the model with this adapter: nothing of it may be left out in
    silence.
    """
    file, known = start_rules.adapter_file(adapter, added_tokens)
    where = str(file)
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
            remedy = "set adapter.layers and adapter.keys as it was trained with; or it belongs to another model"
            raise InputError(f"the adapter {says} {shown}, unlike this model with this config", where=where, remedy=remedy)
    for name, value in wanted.items():
        if value.shape != arrays[name].shape:
            what = f"{name} has the shape {tuple(arrays[name].shape)}, and this model needs {tuple(value.shape)}"
            raise InputError(what, where=where, remedy="it belongs to another model, or another rank")
    model.load_weights([(name, arrays[name].astype(value.dtype)) for name, value in wanted.items()], strict=False)
