"""A run folder: its paths, its summary (run.json), its states, and the lock that shows whether its worker lives.

run.json has one writer at a time, the holder of run.lock. Deleting a run is left out: it is removing a folder.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import itertools
import os
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import config as configs
from engine.errors import InputError
from engine.home import home as home
from engine.model_names import plain

State = Literal["queued", "starting", "running", "pausing", "paused", "stopping", "stopped", "finished", "failed"]
STATES: tuple[State, ...] = get_args(State)
ENDED: frozenset[str] = frozenset({"stopped", "finished", "failed"})

# What may follow what. Every state but `finished` may go to `starting`: a queued run by its launch, any other by the resume
# of a lost or ended run. A pause or a stop may be asked for while the worker still loads. A pause can be taken back, a stop
# cannot. A run may also finish or fail while it is pausing or stopping, when the step under way was its last.
TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"starting", "failed"}),
    "starting": frozenset({"running", "pausing", "stopping", "stopped", "failed"}),
    "running": frozenset({"starting", "pausing", "stopping", "finished", "failed"}),
    "pausing": frozenset({"starting", "paused", "running", "stopping", "finished", "failed"}),
    "paused": frozenset({"starting", "running", "pausing", "stopping", "failed"}),
    "stopping": frozenset({"starting", "stopped", "finished", "failed"}),
    "stopped": frozenset({"starting"}),
    "failed": frozenset({"starting"}),
    "finished": frozenset(),
}

STALLED_SECONDS = 30.0  # a heartbeat is due every 5 s
GRACE_SECONDS = 5.0  # between the making of a run folder and the launch of its worker

_update_lock = threading.Lock()  # a worker's threads may update run.json at the same time


class Summary(BaseModel):
    """What run.json holds. Times are unix seconds; `reward` and `held_out` are the latest values (held-out loss for sft)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    method: str
    model: str
    state: State
    pid: int | None = None
    step: int = 0
    steps: int
    reward: float | None = None
    held_out: float | None = None
    created: float
    updated: float
    launched: float | None = None  # when the latest worker was started: commands from before it are expired
    environment: dict[str, Any] = Field(default_factory=dict)  # what must be the same on resume: blas (path), threads, tf32


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The folder of one run; properties name what lies in it."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def summary_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def journal_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def samples_dir(self) -> Path:
        return self.folder / "samples"

    @property
    def control_dir(self) -> Path:
        return self.folder / "control"

    @property
    def checkpoints_dir(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapters_dir(self) -> Path:
        return self.folder / "adapters"

    @property
    def lock_file(self) -> Path:
        return self.folder / "run.lock"

    @property
    def log_file(self) -> Path:
        return self.folder / "worker.log"

    def summary(self) -> Summary:
        """run.json as it is now. Raises InputError where it is missing or damaged."""
        try:
            return Summary.model_validate_json(self.summary_file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            what = f"damaged: {key + ': ' if key else ''}{first['msg']}"
            remedy = "events.jsonl in the same folder has the run's history"
            raise InputError(what, where=str(self.summary_file), remedy=remedy) from None
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise InputError(what, where=str(self.summary_file), remedy="is this a run folder?") from error

    def update(self, **changes: Any) -> Summary:
        """Replace run.json with these fields changed and `updated` set to now; returns what was written.

        Raises ValueError for an unknown field or a state that may not follow the present one.
        """
        with _update_lock:
            old = self.summary()
            unknown = changes.keys() - Summary.model_fields.keys()
            if unknown:
                raise ValueError(f"no such field in run.json: {', '.join(sorted(unknown))}")
            if "state" in changes:
                check_transition(old.state, changes["state"])
            new = Summary.model_validate({**old.model_dump(), "updated": time.time(), **changes})
            _write_summary(self.folder, new)
            return new


def check_transition(old: State, new: State) -> None:
    """Raise ValueError unless a run may go from `old` to `new`; staying in a state is no transition and allowed."""
    if new not in TRANSITIONS:
        raise ValueError(f"unknown state {new!r}")
    if new != old and new not in TRANSITIONS[old]:
        raise ValueError(f"a {old} run cannot become {new}")


def slug(text: str) -> str:
    """`text` as a folder name: letters, digits, dot, dash and underscore, 64 at most; may be empty."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].rstrip("-._")


def create(config: configs.RunConfig, home_dir: Path) -> RunRecord:
    """Make the folder of a new queued run under `home_dir`/runs; raises InputError where it cannot be written.

    It is prepared aside and renamed, so that nobody sees a half-made run and two makers never share a name.
    """
    runs = home_dir / "runs"
    aside = runs / f".new-{secrets.token_hex(8)}"
    model = plain(config.model)
    name = config.run.name or f"{config.method}-{Path(model).name}"
    stem = slug(name) or slug(f"{config.method}-{Path(model).name}") or config.method
    try:
        runs.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        for folder in ("samples", "control", "checkpoints", "adapters"):
            (aside / folder).mkdir()
        write_atomic(aside / "config.yaml", configs.dump(config).encode())
        now = time.time()
        for number in itertools.count(1):
            run_id = stem if number == 1 else f"{stem}-{number}"
            if (runs / run_id).exists():
                continue
            summary = Summary(
                id=run_id,
                name=config.run.name or run_id,
                method=config.method,
                model=model,
                state="queued",
                steps=config.run.steps,
                created=now,
                updated=now,
            )
            _write_summary(aside, summary)
            if _rename(aside, runs / run_id):
                break
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
        raise InputError(f"cannot make a run folder: {error.strerror}", where=str(runs), remedy=remedy) from error
    return RunRecord(runs / run_id)


def list_runs(home_dir: Path) -> list[RunRecord]:
    """Every run folder under `home_dir`, damaged ones too, the latest made first."""
    runs = home_dir / "runs"
    if not runs.is_dir():
        return []
    records = [RunRecord(folder) for folder in runs.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted(records, key=lambda record: (_created(record), record.id), reverse=True)


def find(run_id: str, home_dir: Path) -> RunRecord:
    """The run with that id, or the only one whose id starts with it. Raises InputError that names the near ids."""
    records = {record.id: record for record in list_runs(home_dir)}
    if run_id in records:
        return records[run_id]
    matches = [name for name in records if run_id and name.startswith(run_id)]
    if len(matches) == 1:
        return records[matches[0]]
    if matches:
        raise InputError(f"{len(matches)} runs start with {run_id!r}", where="run", remedy=f"one of: {', '.join(matches[:8])}")
    near = difflib.get_close_matches(run_id, records, n=3, cutoff=0.4)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        remedy = f"there are: {', '.join(list(records)[:8])}" if records else f"there is none yet in {home_dir / 'runs'}"
    raise InputError(f"no run {run_id!r}", where="run", remedy=remedy)


def lock_is_held(record: RunRecord) -> bool:
    """Whether a worker (or a launch under way) holds the run's lock; probes with a shared lock, released at once."""
    try:
        descriptor = os.open(record.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # closing releases the lock too
    return False


def derived_state(state: str, *, lock_held: bool, last_sign_t: float, step_seconds: float | None, now: float) -> str:
    """`state` as its lock and its last sign of life tell it: itself, or `stalled`, or `lost`.

    `last_sign_t` is the time of the newest event (of the making of the folder where there is none), `step_seconds` the
    recent duration of a step. The lock must have been probed before the journal was read: what a worker wrote before it
    let go is then known here, and a run that has just ended is not called lost.
    """
    if state in ENDED:
        return state
    age = now - last_sign_t
    if lock_held:
        return "stalled" if age > max(STALLED_SECONDS, 3 * (step_seconds or 0.0)) else state
    return state if state in ("queued", "starting") and age <= GRACE_SECONDS else "lost"


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all, and on the disk before this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_summary(folder: Path, summary: Summary) -> None:
    write_atomic(folder / "run.json", (summary.model_dump_json(indent=1) + "\n").encode())


def _rename(aside: Path, target: Path) -> bool:
    """Whether `aside` got the name `target`; False where another maker was first."""
    try:
        os.rename(aside, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    sync_folder(target.parent)
    return True


def _created(record: RunRecord) -> float:
    try:
        return record.summary().created
    except InputError:  # a damaged run is listed too: by the age of its folder
        return record.folder.stat().st_mtime
