"""Checkpoints and adapters on disk: written aside, fsynced, renamed, so that a crash leaves the old one or the new one.

A checkpoint folder holds `adapters.safetensors` and `adapter_config.json` (mlx_lm loads the folder as an adapter), beside them
`added_tokens.safetensors` where rows of added tokens are trained (mlx_lm's layout has no place for them, and does not miss them),
`optimizer.safetensors`, `reference.safetensors` where the reference has moved, `state.json` (cursor, an unfinished step's
rollouts and scores, best so far) and `best/`, hard links to the adapter that was best when it was written. `kept`, where it is
there, says why the checkpoint outlives younger ones.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine.runs import record
from engine.worker import added_rows
from engine.worker.model import Policy, adapter_config
from engine.worker.trainer import Trainer
from engine.worker.trees import nested, read_arrays

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json", added_rows.FILE)  # the last where tokens are added
_REFERENCE = "reference.safetensors"
_KEPT = "kept"
_ASIDE = ".tmp-"


def save(folder: Path, policy: Policy, trainer: Trainer, state: Mapping[str, Any], best: Path) -> None:
    """Write the new checkpoint `folder` from the policy, the optimizer and `state`; `best` is the run's adapter folder."""
    aside = folder.parent / f"{_ASIDE}{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_adapter(aside, policy)
    _save_arrays(aside / "optimizer.safetensors", trainer.state())
    reference = policy.reference_arrays()
    if reference is not None:
        _save_arrays(aside / _REFERENCE, reference)
    record.write_atomic(aside / "state.json", json.dumps(state).encode())
    if (best / ADAPTER_FILES[0]).exists():
        (aside / "best").mkdir()
        for name in ADAPTER_FILES:
            if (best / name).exists():
                _link(best / name, aside / "best" / name)
    record.sync_folder(aside)
    os.rename(aside, folder)
    record.sync_folder(folder.parent)


def load(folder: Path, policy: Policy, trainer: Trainer) -> dict[str, Any]:
    """Put weights, optimizer and reference back from the checkpoint `folder`; returns its state."""
    weights = read_adapter(folder)
    missing = set(policy.trainable()) ^ set(weights)
    if missing:
        raise ValueError(f"{folder}: the checkpoint's weights are not those of the model: {sorted(missing)[:3]}")
    policy.model.load_weights(list(weights.items()), strict=False)
    trainer.optimizer.state = nested(read_arrays(folder / "optimizer.safetensors"))
    mx.eval(policy.model.parameters(), trainer.optimizer.state)
    if (folder / _REFERENCE).exists():
        policy.set_reference_arrays(read_arrays(folder / _REFERENCE))
    return read_state(folder)


def read_adapter(folder: Path) -> dict[str, mx.array]:
    """The arrays that `write_adapter` wrote, by name. Raises RuntimeError, ValueError or OSError."""
    arrays = read_arrays(folder / ADAPTER_FILES[0])
    rows = folder / added_rows.FILE
    return arrays | (read_arrays(rows) if rows.exists() else {})


def read_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as state."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def latest(checkpoints: Path) -> Path | None:
    """The checkpoint that is furthest on, or None."""
    found = sorted(_finished(checkpoints), key=position)
    return found[-1] if found else None


def folder_name(step: int, update: int) -> str:
    """step-000012, or step-000012.3 within the step that follows, after three of its updates (.0: after its rollouts)."""
    return f"step-{step:06d}" + (f".{update}" if update >= 0 else "")


def position(folder: Path) -> tuple[int, int]:
    """(steps done, updates done of the next step or -1) of a checkpoint folder's name."""
    step, _, update = folder.name.removeprefix("step-").partition(".")
    return int(step), int(update or -1)


def keep(folder: Path, reason: str) -> None:
    """Let `prune` spare the checkpoint `folder`, until a younger one is kept."""
    record.write_atomic(folder / _KEPT, f"{reason}\n".encode())


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the newest of those that are kept for a reason of their own, and what a
    crash left half-written."""
    found = sorted(_finished(checkpoints), key=position)
    spared = [folder for folder in found if (folder / _KEPT).exists()][-1:]
    for folder in found[:-keep]:
        if folder not in spared:
            shutil.rmtree(folder)
    for folder in checkpoints.glob(f"{_ASIDE}*"):
        shutil.rmtree(folder)


def restore_best(checkpoint: Path, adapters: Path) -> None:
    """Make `adapters` what it was when the checkpoint was written: later evaluations have not happened in the resumed run."""
    for name in ADAPTER_FILES:
        kept = checkpoint / "best" / name
        (adapters / name).unlink(missing_ok=True)
        if kept.exists():
            adapters.mkdir(exist_ok=True)
            _link(kept, adapters / name)


def write_adapter(folder: Path, policy: Policy) -> None:
    """The trained weights in mlx_lm's adapter layout: `mlx_lm.load(model, adapter_path=folder)` uses them. Full training
    writes every weight under the same names, which mlx_lm loads the same way. Each file is replaced as a whole. Rows of added
    tokens have a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays, rows = added_rows.split(policy.trainable())
    if rows:
        _save_arrays(folder / added_rows.FILE, rows)
    _save_arrays(folder / ADAPTER_FILES[0], arrays)
    record.write_atomic(folder / ADAPTER_FILES[1], (json.dumps(adapter_config(policy), indent=1) + "\n").encode())


def _save_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    aside = path.with_name(f"{_ASIDE}{path.name}")  # the ending stays: mlx adds it where it is missing
    mx.save_safetensors(str(aside), dict(arrays), metadata={"format": "mlx"})
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(aside, path)


def _link(source: Path, target: Path) -> None:
    """A hard link: these files are replaced, never changed. A copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(source, target)


def _finished(checkpoints: Path) -> Iterator[Path]:
    return (folder for folder in checkpoints.glob("step-*") if (folder / "state.json").exists())
