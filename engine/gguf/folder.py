"""The cache of converted files: CACHE/NAME-KEY/ is a folder that mlx_lm loads, made once, whole or not at all.

KEY is a hash of the file's size, time of change, header and the first bytes of every tensor (not of all its bytes: at some
500 MB a second that would take longer than reading the header does each time the estimate is asked for). What needs no
weights gets a description instead, in under two seconds: config, tokenizer and the header of the weights to come.
"""

from __future__ import annotations

import array
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import figures
from engine.cache_folders import DESCRIBED, SOURCE, aside, finish, is_made, source, write
from engine.errors import InputError
from engine.gguf import rope
from engine.gguf.header import GgufHeader, read_header
from engine.gguf.plan import Plan, check_kind, plan
from engine.gguf.shards import ShardWriter, table
from engine.gguf.tokenizer import tokenizer_files
from engine.gguf.vocabulary import read_vocabulary
from engine.model_files import PLANNED

FORMAT = 1  # of what is written: another number, another folder
_SAMPLE_BYTES = 4096
_SPARE_BYTES = 64 << 20  # disk that is left free
_WAIT_SECONDS = 0.2

Progress = Callable[[int, int], None]  # bytes written, bytes to write; whatever it raises ends the conversion


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A conversion in the cache: its folder, the .gguf file that it was made from, its size, and when it was made (unix)."""

    folder: Path
    source: Path
    bytes: int
    made: float


def mlx_folder(path: Path, cache: Path, progress: Progress | None = None) -> Path:
    """The folder that mlx_lm loads instead of the file at `path`, converted the first time. Raises InputError."""
    header, name = _known(path)
    done = cache / name
    if is_made(done):
        return done
    told = progress or _untold
    planned, small = _contents(header)
    total = sum(written.bytes for written in planned.written())
    with _cache_errors(cache), _locked(cache, name, lambda: told(0, total)):
        if is_made(done):  # another process made it while this one waited
            return done
        _check_disk(cache, total)
        for left in cache.glob(f".{name}.*.part"):  # of a process that was killed
            shutil.rmtree(left)
        with aside(cache, name) as folder:
            _write_small(folder, small)
            _write_weights(header, planned, folder, told, total)
            _check_unchanged(header)
            finish(folder, done, _origin(header))
    return done


def description(path: Path, cache: Path) -> Path:
    """A folder with all that mlx_folder's has but the weights, whose header stands for them (engine.model_files.PLANNED); the
    converted folder itself where it is there. Raises InputError."""
    header, name = _known(path)
    if is_made(cache / name):
        return cache / name
    done = cache / DESCRIBED / name
    with _cache_errors(cache):
        if is_made(done):
            if source(done)["gguf"] != str(header.path):  # the same file at another place: the weights are to come from there
                note = done / f".{SOURCE}.{secrets.token_hex(4)}"
                write(note, _origin(header))
                os.replace(note, done / SOURCE)
            return done
        planned, small = _contents(header)
        with aside(done.parent, name) as folder:
            _write_small(folder, {**small, PLANNED: table(planned.written())})
            finish(folder, done, _origin(header))
    return done


def described(folder: Path, progress: Progress | None = None) -> Path:
    """The converted folder that `folder` is a description of. Raises InputError."""
    return mlx_folder(Path(source(folder)["gguf"]), folder.parent.parent, progress)


def cached_folders(cache: Path) -> list[CachedModel]:
    """Every conversion in the cache, the newest first. Half-made ones are not among them."""
    found = []
    for folder in cache.iterdir() if cache.is_dir() else ():
        if folder.name.startswith(".") or not is_made(folder):
            continue
        size = sum(file.stat().st_size for file in folder.iterdir())
        found.append(CachedModel(folder, Path(source(folder)["gguf"]), size, (folder / SOURCE).stat().st_mtime))
    return sorted(found, key=lambda model: model.made, reverse=True)


def _known(path: Path) -> tuple[GgufHeader, str]:
    """The header, and the name of the folder that the file becomes."""
    try:
        info = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="give the path of a .gguf file") from error
    return _read(path.absolute(), info.st_size, info.st_mtime_ns, (info.st_dev, info.st_ino, info.st_ctime_ns))


@functools.lru_cache(maxsize=2)  # screens ask at every key that is pressed
def _read(path: Path, size: int, mtime_ns: int, _identity: tuple[int, ...]) -> tuple[GgufHeader, str]:
    header = read_header(path)
    check_kind(header)
    digest = hashlib.sha256(f"{FORMAT} {size} {mtime_ns} ".encode())
    with path.open("rb") as file:
        digest.update(file.read(header.header_bytes))
        for tensor in header.tensors:
            file.seek(tensor.offset)
            digest.update(file.read(min(_SAMPLE_BYTES, tensor.bytes)))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.")[:80] or "model"
    return header, f"{stem}-{digest.hexdigest()[:16]}"


def _contents(header: GgufHeader) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """What the weights become, and every other file by name."""
    vocabulary = read_vocabulary(header)
    planned = plan(header, _divisors(header), vocabulary.special_ids())
    special = {key: value for key, value in vocabulary.special_ids().items() if value is not None}
    files = {"config.json": planned.config, "generation_config.json": special, **tokenizer_files(header, vocabulary)}
    return planned, files


def _divisors(header: GgufHeader) -> list[float] | None:
    """The numbers of the tensor that scales rotary embeddings, the only weights that config.json depends on."""
    tensor = header.by_name.get(rope.DIVISORS)
    if tensor is None:
        return None
    if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.bytes > 4096:
        raise header.refuse(f"{rope.DIVISORS} is no short list of 32-bit numbers", "fetch the file again")
    numbers = array.array("f")
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        numbers.frombytes(file.read(tensor.bytes))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _write_small(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, content in files.items():
        write(folder / name, content)


def _write_weights(header: GgufHeader, planned: Plan, folder: Path, told: Progress, total: int) -> None:
    from engine.gguf.blocks import converted  # deferred: numpy, which only this needs

    done = 0
    told(done, total)
    with header.path.open("rb") as file, ShardWriter(folder, planned.written()) as writer:
        for part in planned.parts:
            for name, first, rows in converted(header, file, part):
                writer.put(name, first, rows.tobytes())
                done += rows.nbytes
                told(done, total)


def _origin(header: GgufHeader) -> dict[str, Any]:
    return {"gguf": str(header.path), "bytes": header.file_bytes, "mtime_ns": header.mtime_ns, "format": FORMAT}


def _check_unchanged(header: GgufHeader) -> None:
    info = header.path.stat()
    if (info.st_size, info.st_mtime_ns) != (header.file_bytes, header.mtime_ns):
        raise header.refuse("changed while it was converted", "start again")


def _check_disk(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE_BYTES:
        what = f"{figures.size(free)} are free, and the converted model takes {figures.size(needed)}"
        raise InputError(what, where=str(cache), remedy="free the disk, or point DROID_TUNE_HOME at another one")


@contextmanager
def _locked(cache: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of one conversion. `waiting` is called now and then while another process holds it."""
    locks = cache / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()  # may raise: a stop was asked for
                time.sleep(_WAIT_SECONDS)  # a lock cannot be awaited together with that
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
        what = f"the converted model cannot be made: {error.strerror}"
        raise InputError(what, where=str(error.filename or cache), remedy=remedy) from error


def _untold(done: int, total: int) -> None:
    """Progress that nobody asked for."""
