"""Files of the hub into its own cache, a few at a time; each is taken up where it broke off, whatever ended it, and checked.

huggingface_hub begins a file anew once its process has ended. Here what has come of a file stays in the cache's `blobs` as
KEY.droid-tune.incomplete, locked while somebody writes it, and the rest alone is asked for. Its name in the cache it gets from
huggingface_hub. A file that is listed with its SHA-256 (each that git-lfs holds: weights, and most large files) is read once
more when it is whole; another hash, and it is deleted. Left out: hf_xet's protocol, which cannot take up a file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants, errors
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

from engine import figures
from engine.errors import InputError
from engine.hub.repository import Bar, Repository

OnProgress = Callable[[int, int], None]  # bytes that are here, bytes of all files; whatever it raises ends the fetching
_AT_ONCE = 4  # files
_SPARE_BYTES = 64 << 20  # that a full disk still needs for everything else
_TOLD_SECONDS = 0.2
_PATIENCE_SECONDS = (1, 2, 4, 8, 15, 30, 30, 30, 30)  # after each time that a network which was there gave nothing
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # of a disk in a network; there the hash tells of a second writer
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # git's hash of a small file, the SHA-256 of a large one
_SHA256_DIGITS = 64
_PROXY = "try again; if it stays so, a proxy or HF_ENDPOINT changes the files"


class _Stopped(Exception):
    """The fetching has ended: this thread goes no further."""


def fetch(repository: Repository, names: Sequence[str], on_progress: OnProgress | None = None) -> None:
    """Fetch what of the files is not here, whole. `on_progress` is called in this thread, five times a second.

    InputError where there is no room, and for a file that is not as it is listed; else what huggingface_hub raises: call it
    inside `refusals.asking`.
    """
    missing = [name for name in names if not repository.is_whole(name)]
    if not missing:
        return
    if repository.refusal is not None:
        raise repository.refusal
    require_space(repository, missing)
    told = on_progress or _untold
    total = sum(repository.files[name] for name in names)
    transfer = _Transfer(repository, missing)
    before = total - sum(repository.files[name] for name in missing)
    told(min(before + transfer.done, total), total)
    with transfer.running():
        for _ in missing:
            while (outcome := transfer.next_outcome()) is None:
                told(min(before + transfer.done, total), total)
            if isinstance(outcome, Exception):
                raise outcome
    told(total, total)


def remaining_bytes(repository: Repository, names: Sequence[str]) -> int:
    """How many bytes of the files are still to come."""
    missing = [name for name in names if not repository.is_whole(name)]
    return sum(repository.files[name] - min(_begun(repository, name), repository.files[name]) for name in missing)


def require_space(repository: Repository, names: Sequence[str]) -> None:
    """InputError where the disk has no room for what of the files is not here."""
    needed = remaining_bytes(repository, names)
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed + _SPARE_BYTES > free:
        what = f"{figures.size(needed)} are to be fetched, and the disk of {folder} has {figures.size(free)} free"
        raise InputError(what, where=repository.id, remedy="free the disk, or point HF_HOME at another one")


def check(repository: Repository, names: Sequence[str]) -> None:
    """Raise what `fetch` would raise before its first byte: where a file is missing and the user wants no network, the hub does
    not answer for it or does not give it to this user, or the disk has no room. Call it inside `refusals.asking`."""
    missing = [name for name in names if not repository.is_whole(name)]
    if not missing:
        return
    if constants.is_offline_mode():
        raise errors.OfflineModeIsEnabled
    if repository.refusal is not None:
        raise repository.refusal
    require_space(repository, missing)
    hf.get_hf_file_metadata(_url(repository, missing[-1]), endpoint=constants.ENDPOINT)  # weights come last, and are guarded most


def part(repository: Repository, name: str, first: int, count: int) -> bytes:
    """`count` bytes of a file from byte `first` on, and no others where the hub gives ranges; fewer where the file ends."""
    headers = {**_headers(), "Range": f"bytes={first}-{first + count - 1}"}
    options: dict[str, Any] = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "max_retries": 2}
    with http_stream_backoff("GET", _url(repository, name), **options) as response:
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else first
        found = bytearray()
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= skipped + count:
                break
    return bytes(found[skipped : skipped + count])


class _Transfer:
    """Files on their way in threads. `done`: bytes of them that are here."""

    def __init__(self, repository: Repository, names: Sequence[str]) -> None:
        self._repository = repository
        self._bytes = {name: _begun(repository, name) for name in names}
        self._waiting = list(reversed(names))
        self._outcomes: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._received = 0  # bytes, by all threads
        self._stop = threading.Event()

    @property
    def done(self) -> int:
        return sum(self._bytes.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, threads fetch; at the end they are told to stop, which each does at its next chunk. They are not waited for:
        one may be waiting for the network."""
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            threading.Thread(target=self._work, name="fetch", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def next_outcome(self) -> str | Exception | None:
        """The name of a file that is whole now, or why one cannot be; None where nothing came to its end for a while."""
        try:
            return self._outcomes.get(timeout=_TOLD_SECONDS)
        except queue.Empty:
            return None

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                name = self._waiting.pop()
            except IndexError:
                return
            try:
                self._fetch_patiently(name)
            except _Stopped:
                return
            except Exception as error:  # noqa: BLE001 - raised by the thread that waits for the outcome
                self._outcomes.put(error)
                return
            self._bytes[name] = self._repository.files[name]
            self._outcomes.put(name)

    def _fetch_patiently(self, name: str) -> None:
        """Fetch it, whatever the network does meanwhile. One that was never there is not waited for."""
        waits = iter(_PATIENCE_SECONDS)
        while True:
            received = self._received
            try:
                return self._fetch(name)
            except (httpx2.TransportError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
                is_refusal = isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500
                waits = iter(_PATIENCE_SECONDS) if self._received > received else waits
                seconds = next(waits, None)
                if is_refusal or not self._received or seconds is None:
                    raise
                if self._stop.wait(seconds):
                    raise _Stopped from None

    def _fetch(self, name: str) -> None:
        repository = self._repository
        partial = _partial(repository, name)
        digest = hf.get_hf_file_metadata(_url(repository, name), endpoint=constants.ENDPOINT).etag or ""
        if not _DIGEST.fullmatch(digest):  # it becomes the name of a file
            raise InputError(f"{name} comes without a hash ({digest[:20]!r})", where=repository.id, remedy="check HF_ENDPOINT")
        blob = partial.with_name(digest)
        pointer = repository.folder / name
        if pointer.exists():  # and is not whole
            pointer.resolve().unlink()
            pointer.unlink(missing_ok=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(partial, name) as file:
            if blob.exists() and blob.stat().st_size == repository.files[name]:
                partial.unlink()
            else:
                self._complete(name, file, partial, digest)
                os.replace(partial, blob)
        hf.hf_hub_download(  # finds the blob, and gives it its name in the commit's folder
            repository.id, name, repo_type=repository.kind, revision=repository.commit, endpoint=constants.ENDPOINT
        )

    def _complete(self, name: str, file: BufferedRandom, partial: Path, digest: str) -> None:
        """The file's missing bytes, and the check of all of them."""
        transfer, listed = self, self._repository.files[name]

        class Told(Bar):
            def update(self, n: float | None = 1) -> None:
                if transfer._stop.is_set():
                    raise _Stopped
                transfer._bytes[name] += int(n or 0)
                transfer._received += int(n or 0)

        begun = self._bytes[name] = file.seek(0, os.SEEK_END)
        if begun < listed:
            options: dict[str, Any] = {"resume_size": begun, "displayed_filename": name, "tqdm_class": Told}
            try:
                http_get(_url(self._repository, name), file, headers=_headers(), **options)
            except BaseException:
                if not file.seek(0, os.SEEK_END):
                    partial.unlink()
                raise
        file.flush()
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        wrong = f"{size} bytes, and {listed} are listed" if size != listed else ""
        if not wrong and len(digest) == _SHA256_DIGITS:
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            wrong = f"the SHA-256 {found[:12]}…, and {digest[:12]}… is listed" if found != digest else ""
        if wrong:
            partial.unlink()
            raise InputError(f"{name} came with {wrong}: it is deleted", where=self._repository.id, remedy=_PROXY)

    @contextmanager
    def _alone(self, partial: Path, name: str) -> Iterator[BufferedRandom]:
        """The partial file, while nobody else of this product writes it."""
        while True:
            with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
                self._lock(file, name)
                try:
                    is_it = os.path.samestat(os.fstat(file.fileno()), partial.stat())
                except FileNotFoundError:
                    is_it = False  # it became the blob, or was deleted, while this waited
                if is_it:
                    yield file
                    return

    def _lock(self, file: BufferedRandom, name: str) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._bytes[name] = os.fstat(file.fileno()).st_size
                if self._stop.wait(_TOLD_SECONDS):  # flock has no wait with an end
                    raise _Stopped from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return


def _partial(repository: Repository, name: str) -> Path:
    """Where the beginning of a file lies."""
    key = hashlib.sha256(f"{repository.commit} {name}".encode()).hexdigest()[:40]
    return repository.folder.parents[1] / "blobs" / f"{key}.droid-tune.incomplete"


def _begun(repository: Repository, name: str) -> int:
    partial = _partial(repository, name)
    return partial.stat().st_size if partial.exists() else 0


def _url(repository: Repository, name: str) -> str:
    where: dict[str, Any] = {"repo_type": repository.kind, "revision": repository.commit, "endpoint": constants.ENDPOINT}
    return hf.hf_hub_url(repository.id, name, **where)


def _headers() -> dict[str, str]:
    """With the user's token; without compression, whose ranges would be others."""
    return {**build_hf_headers(), "Accept-Encoding": "identity"}


def _untold(done: int, total: int) -> None:
    """Progress that nobody asked for."""
