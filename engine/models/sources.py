"""From a config's `model` to a folder, and from that to a folder with weights.

A path that exists is that path; else the hub's cache on this machine, LM Studio's folders, and the hub are looked at, in that
order. A folder of a model whose weights are still to come has their header in their place (engine.model_files.PLANNED):
estimates and token counts need no more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import home, share
from engine.cache_folders import source
from engine.errors import InputError
from engine.model_files import PLANNED, read_json
from engine.model_names import model_id
from engine.models import families, places

Progress = Callable[[int, int], None]  # bytes that are here, bytes of all; whatever it raises ends the work


def model_path(value: str, base: Path) -> str:
    """A folder's or a .gguf file's absolute path, `demo` as it is, and a name that is no path as it is."""
    if value == "demo":
        return value
    path = share.resolve(value, base)
    return value if model_id(value) is not None and not path.exists() else str(path)


def is_gguf(path: Path) -> bool:
    """Whether the path is that of a .gguf file, there or not."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def model_folder(value: str) -> Path:
    """The folder that a resolved config's `model` stands for. Of a .gguf file, and of a model on the hub, it has all but the
    weights until `with_weights` was there. Raises InputError where there is no model."""
    folder = share.demo_model() if value == "demo" else Path(value)
    if not folder.is_absolute():
        named = model_id(value)
        if named is None:
            raise InputError("is neither a folder nor a model's name", where=value, remedy="write owner/name, or a path")
        found = places.local(named)
        if found is None:
            from engine.models import remote  # deferred: 0.2 s that only these need

            return remote.described(named, home.models()).folder
        folder = found
    if is_gguf(folder):
        from engine.gguf.folder import description  # deferred: only these files need it

        return description(folder, home.models())
    lacking = places.missing(folder)
    if lacking:
        remedy = "give a folder that mlx_lm can load, or `demo`"
        raise InputError(f"is not a model folder: no {lacking}", where=str(folder), remedy=remedy)
    return folder


def fixed(value: str) -> str:
    """A resolved config's `model` with its commit where it is a name, or the path that the name has in LM Studio's folder: it
    means the same for ever. Raises InputError where there is no such model."""
    named = model_id(value)
    if value == "demo" or named is None or Path(value).is_absolute():
        return value
    found = places.local(named)
    if found is None:
        from engine.models import remote  # deferred: 0.2 s that only these need

        return str(remote.described(named, home.models()).id)
    return f"{named.repo}@{found.name}" if found == places.snapshot(named) else str(found)


def check_fetch(folder: Path) -> None:
    """InputError where a run with this folder could not fetch its weights: nobody gives them, or the disk has no room."""
    if fetched_bytes(folder):
        from engine.models import remote

        remote.check_fetch(folder)


def check_family(folder: Path) -> None:
    """InputError where the installed mlx_lm does not have the family of the model in `folder`, or that brings its own code."""
    refused = families.refusal(read_json(folder / "config.json"), str(folder))
    if refused is not None:
        raise refused


def present(value: str) -> Path:
    """`model_folder`, and InputError where its weights would have to be fetched: for what shows no progress."""
    folder = model_folder(value)
    if fetched_bytes(folder):
        raise InputError("is not on this machine", where=value, remedy=f"`hf download {value}`, or train with it first")
    return folder


def with_weights(folder: Path, progress: Progress | None = None) -> Path:
    """`folder`, or, where its weights are still to come, the folder that has them: converted, or fetched. Raises InputError."""
    if not (folder / PLANNED).is_file():
        return folder
    if "gguf" in source(folder):
        from engine.gguf import folder as converted  # deferred: only these need it

        return converted.described(folder, progress)
    from engine.models import remote

    return remote.fetch(folder, progress)


def fetched_bytes(folder: Path) -> int:
    """The bytes of the weights that a run with this folder has to fetch; 0 where they are here."""
    is_planned = (folder / PLANNED).is_file()
    return source(folder)["bytes"] if is_planned and "hub" in source(folder) else 0
