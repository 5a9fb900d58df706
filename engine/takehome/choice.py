"""Which of a run's adapters is meant: the best by held-out reward, that of the last checkpoint, or that after step N."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError
from engine.runs.record import RunRecord
from engine.runs.state import RunState

WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A folder in mlx_lm's adapter layout, and the steps that were done when it was written (None: the journal does not say)."""

    name: str  # best | last | N
    folder: Path
    step: int | None


def choose(record: RunRecord, state: RunState, name: str) -> Chosen:
    """The adapter that `name` (best, last or a step) stands for. Reads only; a run may be training. Raises InputError."""
    if name == "best":
        if not (record.adapters_dir / WEIGHTS).is_file():
            remedy = "the first one is written by the evaluation before step 1; --checkpoint last takes the newest checkpoint"
            raise InputError("the run has no adapter yet", where=record.id, remedy=remedy)
        return Chosen(name, record.adapters_dir, state.best_step)
    found = checkpoints(record)
    if not found:
        raise InputError(
            "the run has no checkpoint", where=record.id, remedy=f"`droid-tune status {record.id}` says how far it is"
        )
    if name == "last":
        return Chosen(name, found[max(found)], max(found)[0])
    if not name.isdecimal():
        raise InputError(f"{name!r} is no checkpoint", where="--checkpoint", remedy="best, last, or the number of a step")
    step = int(name)
    if (step, -1) not in found:
        kept = ", ".join(str(done) for done, update in sorted(found) if update < 0)
        remedy = f"kept are those after {kept or 'no whole step'}; run.keep_checkpoints says how many"
        raise InputError(f"the run has no checkpoint after step {step}", where=record.id, remedy=remedy)
    return Chosen(name, found[step, -1], step)


def checkpoints(record: RunRecord) -> dict[tuple[int, int], Path]:
    """The run's whole checkpoints by (steps done, updates done of the next step, or -1)."""
    found = {}
    for folder in record.checkpoints_dir.glob("step-*"):
        step, _, update = folder.name.removeprefix("step-").partition(".")
        if step.isdecimal() and (not update or update.isdecimal()) and (folder / "state.json").is_file():
            found[int(step), int(update or -1)] = folder
    return found
