"""A model on the hub: refused before anything large is fetched, described by the headers of its weights alone, or fetched.

What is fetched is what mlx_lm reads: weights, JSON, chat templates and the tokenizer's words; never code.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.cache_folders import DESCRIBED, aside, finish, is_made, source, write
from engine.errors import InputError
from engine.gguf.shards import table
from engine.hub import fetching
from engine.hub.fetching import OnProgress
from engine.hub.refusals import asking
from engine.hub.repository import Repository, repository
from engine.model_files import PLANNED, TensorHeader, check_index, header_bytes, parse_header, read_json
from engine.model_names import ModelId
from engine.models import families

_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model[^/]*\.safetensors")  # those that mlx_lm loads
_SMALL = re.compile(r"[^/]+\.(json|jinja)|additional_chat_templates/[^/]+\.jinja|tokenizer\.model|(merges|vocab)\.txt")
_PICKLED = re.compile(r"[^/]+\.(bin|pt|pth|ckpt)")
_AT_ONCE = 8  # headers
_ANOTHER = "take a repository that mlx_lm can load, such as one of mlx-community"


@dataclass(frozen=True, slots=True)
class Described:
    """A model by its description: `folder` has all but the weights, `bytes` are those of the weights."""

    id: ModelId  # with its commit
    folder: Path
    bytes: int


def described(named: ModelId, models: Path) -> Described:
    """The model's description, made in the folder `models` where it is not there: its small files and the headers of its
    weights are fetched, nothing else. Raises InputError: also for a model that could not be trained."""
    folder = models / DESCRIBED / _name(named, named.commit)
    if named.commit and is_made(folder):
        return _made(folder)
    with asking("model", named.repo, named.revision, str(named)):
        found = repository("model", named.repo, named.revision, _CONFIG)
        folder = models / DESCRIBED / _name(named, found.commit)
        if not is_made(folder):
            _describe(found, folder, str(named))
    return _made(folder)


def fetch(folder: Path, on_progress: OnProgress | None = None) -> Path:
    """The whole model that a description is of, in the hub's cache: what is not there is fetched. Raises InputError."""
    wanted = _made(folder).id
    with asking("model", wanted.repo, wanted.revision, str(wanted)):
        found = repository("model", wanted.repo, wanted.revision, _CONFIG)
        fetching.fetch(found, _names(found, str(wanted)), on_progress)
    return found.folder


def check_fetch(folder: Path) -> None:
    """InputError where a file is missing and `fetch` could not be: offline by the user's wish, from a hub that does not answer,
    or without room on the disk."""
    wanted = _made(folder).id
    with asking("model", wanted.repo, wanted.revision, str(wanted)):
        found = repository("model", wanted.repo, wanted.revision, _CONFIG)
        fetching.check(found, _names(found, str(wanted)))


def _made(folder: Path) -> Described:
    origin = source(folder)
    return Described(ModelId(origin["hub"], origin["commit"]), folder, origin["bytes"])


def _name(named: ModelId, commit: str) -> str:
    return f"{named.repo.replace('/', '--')}-{commit}"


def _describe(found: Repository, folder: Path, where: str) -> None:
    small, weights = _small(found), _weights(found)
    if _CONFIG in found.files:
        fetching.fetch(found, [_CONFIG])
        refused = families.refusal(read_json(found.folder / _CONFIG), where)
    else:
        refused = InputError("has no config.json: it is no model that mlx_lm loads", where=where, remedy=_ANOTHER)
    refused = _without_weights(found, where) or refused
    if refused is None and "tokenizer.json" not in found.files:
        refused = InputError("has no tokenizer.json", where=where, remedy=_ANOTHER)
    if refused is not None:
        raise refused
    fetching.fetch(found, small)
    check_index(found.folder, set(weights))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = list(pool.map(lambda name: _headers(found, name, where), weights))
    headers = {header.name: header for each in read for header in each}
    with aside(folder.parent, folder.name) as made:
        for name in small:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(found.folder / name, made / name)
        write(made / PLANNED, table(list(headers.values())))
        total = sum(found.files[name] for name in weights)
        finish(made, folder, {"hub": found.id, "commit": found.commit, "bytes": total})


def _without_weights(found: Repository, where: str) -> InputError | None:
    if _weights(found):
        return None
    if found.refusal is not None:
        raise found.refusal  # what the cache has is all that is known
    names = list(found.files)
    gguf = next((name for name in names if name.lower().endswith(".gguf")), None)
    if gguf is not None:
        remedy = f"fetch one, `hf download {found.id} {gguf}`, and give its path"
        return InputError("has its weights as .gguf files only", where=where, remedy=remedy)
    pickled = next((name for name in names if _PICKLED.fullmatch(name)), None)
    if pickled is not None:
        what = f"has its weights pickled only ({pickled}): reading them would run whatever code is in them"
        return InputError(what, where=where, remedy=_ANOTHER)
    other = next((f", but {name}" for name in names if name.endswith(".safetensors")), "")
    return InputError(f"has no model*.safetensors, which mlx_lm loads{other}", where=where, remedy=_ANOTHER)


def _headers(found: Repository, name: str, where: str) -> list[TensorHeader]:
    """The tensors of a weight file: 8 bytes of it are fetched, and the header whose length they tell."""
    size = found.files[name]
    place = f"{where}: {name}"
    length = header_bytes(fetching.part(found, name, 0, 8), size, place)
    return parse_header(fetching.part(found, name, 8, length), size, place)


def _names(found: Repository, where: str) -> list[str]:
    weights = _weights(found)
    if not weights or _CONFIG not in found.files:
        raise found.refusal or InputError("has no weights any more", where=where, remedy=_ANOTHER)
    return [*_small(found), *weights]


def _small(found: Repository) -> list[str]:
    return _matching(found.files, _SMALL)


def _weights(found: Repository) -> list[str]:
    return _matching(found.files, _WEIGHTS)


def _matching(files: Mapping[str, int], pattern: re.Pattern[str]) -> list[str]:
    return sorted(name for name in files if pattern.fullmatch(name))
