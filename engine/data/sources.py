"""From what a config says to files on this machine: paths are checked, data sets of the hub fetched.

A run names a data set by its commit (`pinned`), so that its worker, which has no network, and a later resume read the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engine.config import RunConfig
from engine.data import files
from engine.data.files import OnProgress
from engine.data_names import HubId, cut, hub_id
from engine.errors import InputError
from engine.sections import DataConfig

Split = Literal["train", "valid", "test"]


def local(source: str, split: Split = "train", on_progress: OnProgress | None = None) -> Path:
    """The path of what `source` names, checked: of a folder or a data set of the hub the files of `split`, fetched where they are
    not here. Several files have one path, with a * in it; rows that `source` ends with stand behind it.

    InputError for what cannot be read, for a split that is not there and for a data set that cannot be fetched.
    """
    return _found(source, split, on_progress)[1]


def check_file(path: Path) -> Path:
    """`local` for a train split: the path itself, a folder's train file, or a data set's files. Raises InputError."""
    return local(str(path))


def training_files(data: DataConfig, on_progress: OnProgress | None = None) -> tuple[Path, Path | None]:
    """The paths of `data.train` and `data.valid`, checked and fetched; without a data.valid that of the validation split of the
    folder or data set, or None. Raises InputError."""
    (_, train), (_, valid) = _training(data, on_progress)
    return train, valid


def pinned(config: RunConfig, on_progress: OnProgress | None = None) -> RunConfig:
    """The config with each data set of the hub named in full, its commit included, and with the validation split that will be
    held out; the files are fetched. Other configs come back as they are. Raises InputError."""
    data = config.data
    if _id(data.train) is None and (data.valid is None or _id(data.valid) is None):
        return config
    (train, _), (valid, _) = _training(data, on_progress)
    return config.model_copy(update={"data": data.model_copy(update={"train": train, "valid": valid})})


def _training(data: DataConfig, on_progress: OnProgress | None) -> tuple[tuple[str, Path], tuple[str | None, Path | None]]:
    """Name and path of what is trained on and of what is held out; the name is what a config says of it, with its commit."""
    train = _found(data.train, "train", on_progress)
    if data.valid is not None:
        return train, _found(data.valid, "valid", on_progress)
    named = _id(train[0])
    if named is not None:
        from engine.data import hub

        whole = HubId(named.repo, named.config, named.revision)
        found = hub.find(whole, "valid", on_progress)
        return train, (None, None) if found is None else (str(found.id), files.check_local(found.path))
    folder = Path(cut(data.train)[0])
    valid = files.part(folder, "valid") if folder.is_dir() else None
    return train, (None, None if valid is None else files.check_local(valid))


def _found(source: str, split: Split, on_progress: OnProgress | None) -> tuple[str, Path]:
    named = _id(source)
    if named is not None:
        from engine.data import hub  # deferred: 0.2 s that only data sets of the hub need

        found = hub.require(named, split, on_progress)
        return str(found.id), files.check_local(found.path)
    folder, rows = cut(source)
    if split == "train" or not Path(folder).is_dir():
        return source, files.check_local(Path(source))
    part = files.part(Path(folder), split)
    if part is None:
        remedy = f"name a file in it, or give it a {split} file such as {split}.jsonl"
        raise InputError(f"is a folder without a {split} file", where=folder, remedy=remedy)
    return source, files.check_local(Path(f"{part}{rows or ''}"))


def _id(source: str) -> HubId | None:
    """The data set that `source` names; None for a path."""
    path = Path(source)
    return None if path.is_absolute() or path.exists() else hub_id(source)
