"""How fast this machine computes what a step is made of: measured once by a worker (engine/worker/rates.py), kept in a file.

One entry for each machine that shares the home folder, under a key of what the rates depend on. With them is kept how much
longer measured steps took than predicted ones, under keys of engine/corrections.py, so that later predictions begin corrected.
What is left out: rates by temperature or power mode of the chip; `--remeasure` takes new ones.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.hardware import Hardware
from engine.runs.record import write_atomic

FILE = "rates.json"
VERSION = 3  # of what is measured: a file of another version is measured anew
_KEPT = 8  # machines in one file
_LEARNED = 64  # keys of corrections of one machine: the latest
BUSY_CORES = 0.25  # where others used more than this meanwhile, what was measured would not hold on a quiet machine

Table = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Correction:
    """What was measured of one phase. Of a phase that is predicted the factor, of the rewards their seconds."""

    by: str  # in which step: "a measured step", "the run NAME"
    factor: float = 1.0  # measured over predicted seconds
    seconds_per_completion: float = 0.0
    measured_t: float = 0.0  # unix seconds

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Correction:
        """Raises KeyError, TypeError or ValueError for what is none."""
        names = ("factor", "seconds_per_completion", "measured_t")
        found = cls(str(tree["by"]), *(float(tree[name]) for name in names))
        if not (math.isfinite(found.factor) and found.factor > 0 and math.isfinite(found.seconds_per_completion)):
            raise ValueError("a correction is no number above 0")
        return found


@dataclass(frozen=True)
class Rates:
    """Rates of one backend. FLOPs are 2 for each multiplication and addition of a product; numbers are array elements.

    `matmul`: bytes of a number -> width of a square weight -> rows -> FLOP/s. `stream`: bytes that are used in turn -> bytes/s
    of what fetching them adds, where they are more than a cache holds. `numbers`: kind of elementwise work (plain, norm, exp,
    softmax, draw) -> numbers/s.
    """

    matmul: Mapping[int, Mapping[int, Table]]
    quantised: Table  # rows -> FLOP/s of a 4-bit product
    stream: Table
    numbers: Mapping[str, float]
    op_seconds: float  # of one small operation: Python, graph and dispatch
    disk_bytes_per_second: float  # of a file that is written and flushed
    measured_t: float = 0.0  # unix seconds
    others_cores: float | None = None  # cores that other processes kept busy meanwhile; None: not known
    learned: Mapping[str, Mapping[str, Correction]] = field(default_factory=dict)  # key -> phase -> what was measured

    def product(self, rows: float, width: float, item: int) -> float:
        """FLOP/s of a product of `rows` rows with a weight of about that width, in numbers of `item` bytes."""
        tables = self.matmul.get(item) or next(iter(self.matmul.values()))
        widths = sorted(tables)
        if width < widths[0]:  # ever less of a thin product is arithmetic
            return _between(tables[widths[0]], rows) * width / widths[0]
        by_width = {w: _between(tables[w], rows) for w in widths}
        return _between(by_width, width)

    def quantised_product(self, rows: float) -> float:
        """FLOP/s of a product of `rows` rows with a quantised weight."""
        return _between(self.quantised, rows)

    def streamed(self, count: float) -> float:
        """Bytes/s of what fetching adds where `count` bytes are used in turn."""
        return _between(self.stream, count)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Rates:
        """Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
        found = cls(
            matmul={int(i): {int(w): _table(t) for w, t in by.items()} for i, by in tree["matmul"].items()},
            quantised=_table(tree["quantised"]),
            stream=_table(tree["stream"]),
            numbers={str(name): float(value) for name, value in tree["numbers"].items()},
            op_seconds=float(tree["op_seconds"]),
            disk_bytes_per_second=float(tree["disk_bytes_per_second"]),
            measured_t=float(tree.get("measured_t", 0.0)),
            others_cores=tree.get("others_cores"),
            learned={
                str(name): {str(phase): Correction.from_dict(each) for phase, each in by.items()}
                for name, by in tree.get("learned", {}).items()
            },
        )
        all_tables = [found.quantised, found.stream, *(t for by in found.matmul.values() for t in by.values())]
        values = [found.op_seconds, found.disk_bytes_per_second, *found.numbers.values()]
        values += [value for table in all_tables for value in table.values()]
        if not found.matmul or not all(map(bool, all_tables)) or not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError("a rate is missing, or not above 0")
        return found


def key(known: Hardware, threads: int, blas: str | None) -> str:
    """What the rates depend on: the chip, its cores, the backend, mlx, and on a CPU the BLAS with its threads."""
    parts = [known.chip, f"{known.cores} cores", known.backend, f"mlx {known.versions.get('mlx', '?')}"]
    if known.backend == "cpu":
        parts.append(f"{Path(blas).name if blas else 'no BLAS of its own'} with {threads} threads")
    return ", ".join(parts)


def load(home: Path, key: str) -> Rates | None:
    """The rates that are kept for `key`; None where there are none, or none that can be used."""
    try:
        return Rates.from_dict(_entries(home)[key])
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return None


def keep(home: Path, key: str, rates: Rates) -> None:
    """Put them into the file, in place of the older ones of that key; corrections that were learned stay with a machine whose
    rates are measured anew only where `rates` has them. InputError where the file cannot be written."""
    entries = {name: entry for name, entry in _entries(home).items() if name != key}
    latest = sorted(entries.items(), key=lambda pair: _when(pair[1]))[-(_KEPT - 1) :]
    tree = {"version": VERSION, "rates": {**dict(latest), key: rates.as_dict()}}
    try:
        (home / "machine").mkdir(parents=True, exist_ok=True)
        write_atomic(_file(home), json.dumps(tree, indent=1).encode())
    except OSError as error:
        remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
        raise InputError(f"the rates cannot be kept: {error.strerror}", where=str(home), remedy=remedy) from error


def with_learned(rates: Rates, key: str, found: Mapping[str, Correction]) -> Rates:
    """The rates with `found` (by phase) kept under `key`, in place of what was known of these phases; the oldest keys go."""
    learned = {**rates.learned, key: {**rates.learned.get(key, {}), **found}}
    latest = sorted(learned, key=lambda name: max((each.measured_t for each in learned[name].values()), default=0.0))
    return replace(rates, learned={name: learned[name] for name in latest[-_LEARNED:]})


def _file(home: Path) -> Path:
    return home / "machine" / FILE


def _entries(home: Path) -> dict[str, Any]:
    """Every entry as it is in the file; {} where there is no file of this version: what is lost was only measured."""
    try:
        tree = json.loads(_file(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(tree, dict) or tree.get("version") != VERSION or not isinstance(tree.get("rates"), dict):
        return {}
    return {str(name): entry for name, entry in tree["rates"].items() if isinstance(entry, dict)}


def _when(entry: Mapping[str, Any]) -> float:
    value = entry.get("measured_t")
    return value if isinstance(value, float) else time.time()


def _table(tree: Mapping[str, Any]) -> dict[int, float]:
    return {int(size): float(value) for size, value in tree.items()}


def _between(table: Table, place: float) -> float:
    """The table's value at `place`: a straight line between neighbours where both axes are logarithms, the ends beyond."""
    places: Sequence[int] = sorted(table)
    right = bisect.bisect_left(places, place)
    if right == 0 or right == len(places):
        return table[places[min(right, len(places) - 1)]]
    low, high = places[right - 1], places[right]
    share = math.log(place / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(table[low]) + share * math.log(table[high]))
