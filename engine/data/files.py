"""Which files a name stands for: itself, a folder's train file, or several files that are read one after the other.

Several files have one path here, with a * for what differs: `train-*-of-00004.parquet`. Of files numbered so (shards) all must be
there. Files that merely look alike (train_0.jsonl, train_1.jsonl) are taken together only where a pattern says so.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from engine import data_names
from engine.data_names import RowRange
from engine.errors import InputError

OnProgress = Callable[[int, int], None]  # bytes that are here, bytes of all files; called while files are fetched
READABLE = (".jsonl", ".json", ".csv", ".parquet")
SUPPORTED = f"supported: {', '.join(READABLE)}, each also as .gz"
PARTS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test", "testing")}
_SHARD = re.compile(r"(?P<stem>.+)(?P<mark>[-.])(?P<number>\d+)-of-(?P<count>\d+)(?P<tail>-[0-9a-f]+)?")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several files that together are a table."""

    stem: str
    mark: str  # between stem and number
    number: int  # from 0
    count: int  # of all shards
    digits: int  # that the count is written with
    has_tail: bool  # a hash behind the count
    width: int  # digits that the number is written with, where it begins with 0; else 0

    @property
    def table(self) -> tuple[str, str, int, int, bool]:
        """What all shards of one table have in common."""
        return self.stem, self.mark, self.count, self.digits, self.has_tail

    def pattern(self, ending: str) -> str:
        """The name of all of them."""
        return self._written("*", ending)

    def name(self, number: int, ending: str) -> str:
        """The name of another one, as far as that can be told."""
        return self._written(f"{number:0{self.width}}", ending)

    def _written(self, number: str, ending: str) -> str:
        return f"{self.stem}{self.mark}{number}-of-{self.count:0{self.digits}}{'-*' if self.has_tail else ''}{ending}"


def ending(name: str) -> str:
    """The kind of a file, in small letters: what stands before .gz, where it has that."""
    return Path(name.lower().removesuffix(".gz")).suffix


def whole_ending(name: str) -> str:
    """The ending as it is written, with .gz."""
    plain = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return name[len(Path(plain).stem) :]


def stem(name: str) -> str:
    """The name without its ending, and without a shard's number."""
    plain = name[: -len(whole_ending(name))] if whole_ending(name) else name
    found = shard(name)
    return plain if found is None else found.stem


def shard(name: str) -> Shard | None:
    """What the name of a file says of it as one of several; None for a file that stands alone."""
    match = _SHARD.fullmatch(name[: len(name) - len(whole_ending(name))])
    if match is None:
        return None
    number, count = match["number"], match["count"]
    width = len(number) if number[0] == "0" else 0
    return Shard(match["stem"], match["mark"], int(number), int(count), len(count), match["tail"] is not None, width)


def one_name(names: Sequence[str], where: str) -> str | None:
    """The pattern of shards, complete and of one kind, or the only name; None for files that are no table together.

    InputError for shards of which some are missing or of another kind.
    """
    shards = [found for found in map(shard, names) if found is not None]
    if len(names) == 1 and (not shards or shards[0].count == 1):
        return names[0]
    if len(shards) < len(names) or len({each.table for each in shards}) > 1:
        return None
    endings = sorted({whole_ending(name) for name in names})
    if len(endings) > 1:
        what = f"the shards of {shards[0].stem} have different endings: {', '.join(endings)}"
        raise InputError(what, where=where, remedy="keep one kind of file")
    _require_all(shards, endings[0], where)
    return shards[0].pattern(endings[0])


def _require_all(shards: Sequence[Shard], kind: str, where: str) -> None:
    first, numbers = shards[0], [each.number for each in shards]
    missing = [first.name(number, kind) for number in range(first.count) if number not in set(numbers)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        what = f"of its {first.count} shards these are missing: {', '.join(missing[:_SHOWN])}{more}"
        raise InputError(what, where=where, remedy="fetch them: the rows of all shards are one table")
    if len(numbers) != first.count or max(numbers) >= first.count:
        what = f"{len(numbers)} files are shards of {first.count}"
        raise InputError(what, where=where, remedy="remove those that are not of this table")


def part(folder: Path, name: str) -> Path | None:
    """The folder's file, or all its shards, for `name` (train, valid or test), under the names that are in use for it; None where
    there is none.

    InputError where several files could be meant, and for shards that are not whole.
    """
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and ending(path.name) in READABLE and stem(path.name).lower() in PARTS[name]
    )
    if not found:
        return None
    one = one_name(found, str(folder))
    if one is None:
        what = f"several files could be the {name} file: {', '.join(found)}"
        raise InputError(what, where=str(folder), remedy="name the one to use")
    return folder / one


def held_out_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's valid and test files, shards one by one, sorted."""
    held = {*PARTS["valid"], *PARTS["test"]}
    names = (path.name for path in folder.iterdir() if path.is_file() and ending(path.name) in READABLE)
    return tuple(sorted(name for name in names if stem(name).lower() in held))


def train_file(folder: Path) -> Path:
    """The folder's train file, or all its shards. Raises InputError."""
    found = part(folder, "train")
    if found is None:
        remedy = f"name a file in it, several as part-*.jsonl, or give it a train file such as train.jsonl; {SUPPORTED}"
        raise InputError("is a folder without a train file", where=str(folder), remedy=remedy)
    return found


def check_local(path: Path) -> Path:
    """The path itself; of a folder its train file. InputError unless all its files are readable, not empty and of a supported
    kind."""
    if path.is_dir():
        return check_local(train_file(path))
    if not path.is_file():
        name, rows = data_names.cut(str(path))
        if rows is not None:
            return Path(f"{check_local(Path(name))}{rows}")
    for file in _expanded(path):
        _check_file(file)
    return path


def opened(path: Path) -> tuple[tuple[Path, ...], RowRange | None]:
    """The files of a checked path, in the order in which they are read, and which of their rows are meant; None: all."""
    if path.is_file():
        return (path,), None
    name, rows = data_names.cut(str(path))
    return _expanded(Path(name)), rows


def _expanded(path: Path) -> tuple[Path, ...]:
    """The files of a pattern, by their names, in which numbers count as such; else the path itself."""
    if "*" not in path.name or path.is_file():
        return (path,)
    wanted = re.compile(".*".join(map(re.escape, path.name.split("*"))))
    names = [each.name for each in _listed(path.parent) if wanted.fullmatch(each.name) and each.is_file()]
    if not names:
        raise InputError("no file has such a name", where=str(path), remedy="check the path; * stands for any characters")
    kinds = sorted({ending(name) for name in names})
    if len(kinds) > 1:
        remedy = f"end the pattern in one of them, as in *{kinds[0]}"
        raise InputError(f"files of different kinds: {', '.join(kinds)}", where=str(path), remedy=remedy)
    if all(shard(name) is not None for name in names) and one_name(names, str(path)) is None:
        raise InputError("the files are shards of several tables", where=str(path), remedy="name one table's shards")
    return tuple(path.parent / name for name in sorted(names, key=_by_number))


def _listed(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(folder), remedy="check the path") from error


def _by_number(name: str) -> tuple[tuple[str, int], ...]:
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))


def _check_file(path: Path) -> None:
    kind = ending(path.name)
    if kind not in READABLE:
        found = f"files ending in {path.suffix!r} are not read" if path.suffix else "the name has no ending"
        raise InputError(found, where=str(path), remedy=f"{SUPPORTED}; or a folder with a train file")
    try:
        with open_file(path) as file:
            first = file.read(2)
    except FileNotFoundError:
        remedy = "check the path; a relative one starts at the config's folder, on the command line at the current folder"
        raise InputError("no such data file", where=str(path), remedy=remedy) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error
    if not first:
        raise InputError("the file is empty", where=str(path), remedy="give at least one row")
    if first in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("the file is UTF-16", where=str(path), remedy="save it as UTF-8")


def damaged_gzip(path: Path, error: Exception) -> InputError:
    """The error for a .gz file that is cut off or none."""
    return InputError(f"not a whole gzip file: {error}", where=str(path), remedy="write or fetch it again")


def open_file(path: Path) -> IO[bytes]:
    """The file's bytes, unzipped."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")
