"""The embedded model as a repository of the hub, whole or in shards, and what can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from engine import share
from tests.support.hub import Repo

WEIGHTS = "model.safetensors"
DROPPED = "model.layers.0.self_attn.rotary_emb.inv_freq"  # a tensor that mlx_lm and the estimate leave out, however large


def demo_files(changes: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The embedded model's files; `changes` to its config.json, None takes a key out."""
    files = {path.name: path.read_bytes() for path in share.demo_model().iterdir()}
    config = {**json.loads(files["config.json"]), **(changes or {})}
    files["config.json"] = json.dumps({key: value for key, value in config.items() if value is not None}).encode()
    return files


def demo_repo(*, without: tuple[str, ...] = (), changes: Mapping[str, Any] | None = None, **more: bytes) -> Repo:
    """The embedded model among files that a run has no use for; `more` files have _ for the dot."""
    files = demo_files(changes) | {
        "README.md": b"# A model\n",
        "modeling_demo.py": b"raise SystemExit\n",
        "onnx/config.json": b"{}",
    }
    files |= {name.replace("_", "."): content for name, content in more.items()}
    return Repo({name: content for name, content in files.items() if name not in without}, kind="model")


def sharded_repo() -> Repo:
    """The same in two shards and their index."""
    tensors = load_file(share.demo_model() / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    places = {name: shard for shard, held in shards.items() for name in held}
    files = demo_files() | {shard: save({name: tensors[name] for name in held}) for shard, held in shards.items()}
    del files[WEIGHTS]
    index = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return Repo(files | {"model.safetensors.index.json": index}, kind="model")


def heavy_repo(megabytes: int) -> Repo:
    """The embedded model with a tensor beside it that nobody loads, so that its file takes a while."""
    tensors = load_file(share.demo_model() / WEIGHTS)
    tensors[DROPPED] = np.arange(megabytes << 18, dtype=np.float32)
    return Repo(demo_files() | {WEIGHTS: save(tensors, metadata={"format": "mlx"})}, kind="model")


def header_bytes(weights: bytes) -> int:
    """Where the data of a safetensors file begins."""
    return 8 + int.from_bytes(weights[:8], "little")
