"""A run's policy as one of its adapters has it, for what comes after training. Reads the run folder, writes nothing there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.models.sources import with_weights
from engine.runs.record import RunRecord
from engine.worker.checkpoint import ADAPTER_FILES, read_adapter
from engine.worker.model import Policy, load_policy

Told = Callable[[int, int], None]


def base_folder(run: Path, told: Told | None = None) -> tuple[RunConfig, Path]:
    """The run's config and the folder of its model. `told` hears of the conversion of a .gguf file. Raises InputError."""
    config = configs.load(RunRecord(run).config_file).config
    return config, with_weights(configs.model_folder(config.model), told)


def base_policy(config: RunConfig, folder: Path) -> Policy:
    """The model with a fresh adapter: the policy that `put` changes. Without the adapter it is the model that the config names,
    also where the run started from an adapter. Raises InputError."""
    adapter = config.adapter.model_copy(update={"start_from": None})  # the run's own adapter holds what it started from, too
    return load_policy(folder, adapter, config.run.seed, config.chat, config.quantize)


def put(policy: Policy, adapter: Path) -> None:
    """Give the policy the weights in the folder `adapter`. InputError where they are not there, or another model's."""
    arrays = adapter_arrays(adapter)
    own = policy.trainable()
    other = sorted(set(own) ^ set(arrays)) or sorted(name for name in own if own[name].shape != arrays[name].shape)
    if other:
        what = f"its weights are not those of the run's model: {', '.join(other[:3])}"
        raise InputError(what, where=str(adapter), remedy="has the model's folder been changed since? Put the run's own back")
    policy.model.load_weights(list(arrays.items()), strict=False)
    mx.eval(policy.model.parameters())


def adapter_arrays(adapter: Path) -> dict[str, mx.array]:
    """The arrays in the folder `adapter` by name. Raises InputError."""
    path = adapter / ADAPTER_FILES[0]
    try:
        return read_adapter(adapter)
    except (RuntimeError, ValueError, OSError) as error:
        remedy = "a run that trains deletes old checkpoints: try again, or take another --checkpoint"
        raise InputError(f"cannot be read: {error}", where=str(path), remedy=remedy) from error
