"""What a repository of the hub has at a commit, asked of the hub, or of its cache where the hub does not answer.

HF_ENDPOINT, HF_HOME (or HF_HUB_CACHE), HF_TOKEN and HF_HUB_OFFLINE count, as everywhere. The cache keeps the list of a
repository's files by commit: without a network what is here is used, and what is missing is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants, errors

from engine.hub.refusals import Kind

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Repository:
    kind: Kind
    id: str
    commit: str
    folder: Path  # of the commit's files, those that are here
    files: Mapping[str, int]  # bytes of each, by its path
    refusal: Exception | None  # why the hub did not answer, where the cache alone has

    def is_whole(self, name: str) -> bool:
        """Whether the file is here, with as many bytes as are listed."""
        path = self.folder / name
        return path.is_file() and path.stat().st_size == self.files[name]


class Bar:
    """A progress bar that draws nothing: what huggingface_hub asks of one."""

    def __init__(self, *args: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
        self.n, self.total = initial, total

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: float | None = 1) -> None:
        """So many more of what is counted."""

    def update_transfer(self, n: float | None = 1) -> None:
        """Bytes on the wire, which may be fewer than those of the file."""

    def say(self, *args: Any, **options: Any) -> None:
        """Nothing."""

    close = refresh = set_description = set_description_str = set_postfix_str = set_transfer_postfix_str = say


def repository(kind: Kind, repo: str, revision: str, along: str) -> Repository:
    """The repository at `revision` (a branch, a tag, a commit; empty: its main branch). The file `along`, where it has one, is
    fetched with the list. Raises what huggingface_hub raises: call it inside `refusals.asking`."""
    options: dict[str, Any] = {"repo_type": kind, "revision": revision or None}
    refusal: Exception | None = None
    if not _COMMIT.fullmatch(revision):
        try:
            hf.HfApi(endpoint=constants.ENDPOINT).repo_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT, **options)
        except errors.RevisionNotFoundError:
            raise
        except (httpx2.HTTPError, errors.OfflineModeIsEnabled) as error:
            refusal = error
    asked = {"local_files_only": refusal is not None, "allow_patterns": [along], "tqdm_class": cast(Any, Bar)}
    try:
        folder = Path(hf.snapshot_download(repo, endpoint=constants.ENDPOINT, **asked, **options))
    except errors.LocalEntryNotFoundError as error:
        raise refusal or error from error
    options["revision"] = folder.name
    try:
        listed = hf.get_cached_repo_tree(repo, **options)
    except errors.CachedRepoTreeNotFoundError as error:  # another program has fetched it: what is here is all that is known
        refusal = refusal or error
        here = (path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in here}
    else:
        files = {file.path: file.size for file in listed}
    return Repository(kind, repo, folder.name, folder, files, refusal)
