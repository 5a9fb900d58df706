"""A named model on this machine: whole in the hub's cache, or in LM Studio's folders."""

from __future__ import annotations

from pathlib import Path

from engine.errors import InputError
from engine.model_files import check_index
from engine.model_names import ModelId

_SMALL = ("config.json", "tokenizer.json")


def local(named: ModelId) -> Path | None:
    """The model's folder (in the hub's cache before LM Studio's) or .gguf file; None where it is not here, or not whole.

    InputError where LM Studio's folder has several .gguf files.
    """
    return snapshot(named) or (None if named.revision else _of_lm_studio(named))


def snapshot(named: ModelId) -> Path | None:
    """The newest whole snapshot in the hub's cache, the named revision's where one is named, else its main branch's first."""
    storage = _cache() / f"models--{named.repo.replace('/', '--')}"
    commit = named.commit or _branch(storage, named.revision or "main")
    folders = [storage / "snapshots" / commit] if commit else []
    if not named.revision:
        folders += _newest_first(storage)
    return next((folder for folder in folders if is_whole(folder)), None)


def snapshots() -> list[tuple[str, list[Path]]]:
    """Every model in the hub's cache by its name, with its snapshots, the newest first."""
    found = sorted(_cache().glob("models--*--*"))
    return [(storage.name.removeprefix("models--").replace("--", "/", 1), _newest_first(storage)) for storage in found]


def missing(folder: Path) -> str:
    """The first file that the folder lacks to be a model's; empty where it has all that can be seen without reading."""
    lacking = next((name for name in _SMALL if not (folder / name).is_file()), "")
    return lacking or ("" if _weights(folder) else "model*.safetensors")


def is_whole(folder: Path) -> bool:
    """Whether the folder is a model's, with every file that its index of weights names."""
    try:
        check_index(folder, _weights(folder))
    except InputError:
        return False
    return not missing(folder)


def lm_studio_folders() -> tuple[Path, ...]:
    """Where LM Studio keeps models as PUBLISHER/NAME, now and in earlier versions."""
    return (Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models")


def gguf_files(folder: Path) -> list[Path]:
    """A folder's .gguf files that are models, by name; the part of one that sees images is none."""
    found = (path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    return sorted(path for path in found if not path.name.lower().startswith("mmproj"))


def _cache() -> Path:
    from huggingface_hub import constants  # deferred: 0.2 s that only names need

    return Path(constants.HF_HUB_CACHE)


def _newest_first(storage: Path) -> list[Path]:
    folders = (path for path in storage.glob("snapshots/*") if path.is_dir())
    return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)


def _weights(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("model*.safetensors") if path.is_file()}  # a link to nothing is no file


def _branch(storage: Path, revision: str) -> str:
    """The commit that the cache has for a branch or tag; empty where it has none, or something else is written there."""
    path = storage / "refs" / revision
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    return ModelId("", text).commit


def _of_lm_studio(named: ModelId) -> Path | None:
    for models in lm_studio_folders():
        folder = models / named.repo
        if not folder.is_dir():
            continue
        if is_whole(folder):
            return folder
        files = gguf_files(folder)
        if len(files) > 1:
            remedy = f"give the path of one: {folder}/{files[0].name}"
            raise InputError(f"has {len(files)} .gguf files in LM Studio's folder", where=named.repo, remedy=remedy)
        if files:
            return files[0]
    return None
