"""What a run's bits depend on besides its config: machine, versions, and the files that it reads. Said when it changes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine import config as configs
from engine.config import RunConfig
from engine.data.rows import file_sha256
from engine.data.sources import training_files
from engine.model_files import PLANNED

_PACKAGES = ("droid-tune", "mlx", "mlx-cpu", "mlx-cuda-13", "mlx-cuda-12", "mlx-lm", "numpy", "tokenizers", "transformers")


def describe(config: RunConfig, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The `started` event's account. Data and reward files are told by their hash, model files by size and time of change."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "blas": environment.get("blas"),
        "threads": environment.get("threads"),
        "tf32": environment.get("tf32"),
        "device": str(mx.default_device()),
        "files": dict(_files(config)),
    }


def changes(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the run began, a sentence each. Only what both accounts hold is compared."""
    found = [
        f"{name} was {first[name]!r} when this run began and is {now[name]!r} now"
        for name in ("host", "platform", "blas", "threads", "tf32", "device")
        if name in first and first[name] != now[name]
    ]
    for kind, what in (("versions", "{} was version {} when this run began and is {} now"), ("files", "{} is not as it was")):
        old, new = first.get(kind, {}), now[kind]
        found += [what.format(key, old[key], new.get(key)) for key in old if old[key] != new.get(key)]
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _files(config: RunConfig) -> Iterator[tuple[str, str]]:
    data = config.data
    train, held_out = training_files(data)
    yield data.train, file_sha256(train)
    if held_out is not None:
        yield data.valid or f"{data.train}, held out", file_sha256(held_out)
    for name in dict.fromkeys(reward.file for reward in config.rewards):
        if name is not None:
            with Path(name).open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()
    folder = Path(config.model)
    paths = [folder] if configs.is_gguf(folder) else []
    if not paths:
        folder = configs.model_folder(config.model)
        is_here = not (folder / PLANNED).is_file()  # else the name of the model says which bits it will have
        paths = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]) if is_here else []
    for path in paths:
        info = path.stat()
        yield str(path), f"{info.st_size} bytes, {info.st_mtime_ns}"
