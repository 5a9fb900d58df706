"""The training loop of every method: begin a step, its updates, its metrics; evaluations, checkpoints, the end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine.config import RunConfig
from engine.errors import InputError
from engine.methods import method
from engine.runs import record as records
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord
from engine.worker import checkpoint, summary
from engine.worker.canaries import Canaries
from engine.worker.companion import Companion, StopRequested
from engine.worker.guard import MemoryGuard
from engine.worker.history import Finding, History
from engine.worker.model import Policy
from engine.worker.sample_lines import sample_lines
from engine.worker.step_times import StepTimes
from engine.worker.task import Evaluation, Task, Watch
from engine.worker.trainer import Trainer, UpdateResult
from engine.worker.work import StepWork

_SUMMARY_SECONDS = 1.0  # run.json is replaced no more often than this while steps go by


@dataclass(slots=True)
class Cursor:
    """Where the run is: all that a checkpoint must hold besides weights and optimizer."""

    done: int = 0  # finished steps
    work: StepWork | None = None  # the step under way, once some of its updates are done
    base: dict[str, Any] | None = None  # evaluation before step 1: step, score, rows, counts
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    nonfinite: int = 0  # updates in a row, up to now, that were skipped

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        work = self.work.as_dict() if self.work is not None else None
        state = {"done": self.done, "work": work, "base": self.base, "best": self.best, "last": self.last}
        return {**state, "nonfinite": self.nonfinite}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Cursor:
        """The inverse of as_dict; checkpoints of older versions do not count what was skipped."""
        work = StepWork.from_dict(tree["work"]) if tree["work"] is not None else None
        return cls(tree["done"], work, tree["base"], tree["best"], tree["last"], tree.get("nonfinite", 0))

    @property
    def place(self) -> tuple[int, int]:
        """(finished steps, finished updates of the next one, or -1 before its rollouts)."""
        return self.done, len(self.work.updates) if self.work is not None else -1


@dataclass(slots=True)
class Loop:
    """One run, from its first or its last checkpoint to its end."""

    config: RunConfig
    record: RunRecord
    journal: JournalWriter
    companion: Companion
    policy: Policy
    trainer: Trainer
    task: Task
    guard: MemoryGuard
    times: StepTimes | None = None  # None: later estimates learn nothing from this run
    cursor: Cursor = field(default_factory=Cursor)
    _saved: tuple[int, int] | None = None
    _saved_t: float = field(default_factory=time.monotonic)
    _summary_t: float = 0.0
    _watch: Watch = field(init=False)
    _canaries: Canaries = field(init=False)

    def __post_init__(self) -> None:
        is_reward = method(self.config.method).kind == "rl"
        over_batch = is_reward and self.config.resolved_objective().advantage == "global"
        self._canaries = Canaries(self.policy.is_exact, batch_baseline=over_batch)
        self._watch = Watch(self._phase, self.companion.attend, self.companion.warn, self.companion.clock)
        self.companion.save = self._save

    def restore(self, folder: Path) -> None:
        """Go back to the checkpoint `folder`: weights, optimizer, cursor, and the best adapter of that moment."""
        state = checkpoint.load(folder, self.policy, self.trainer)
        self.cursor = Cursor.from_dict(state["cursor"])
        if "history" in state:  # checkpoints of older versions have none
            self._canaries.history = History.from_dict(state["history"])
        self._saved = self.cursor.place
        checkpoint.restore_best(folder, self.record.adapters_dir)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary. Raises StopRequested after the checkpoint that a stop leaves."""
        self.companion.step = self.cursor.done
        try:
            self.companion.go_live()
            if self.cursor.base is None:
                self._evaluate(0)
                self._save("start")
            self._evaluate_if_due(self.cursor.done)
            while self.cursor.done < self.config.run.steps:
                self._step(self.cursor.done + 1)
        except StopRequested:
            if self.cursor.base is not None:
                self._save("stop")
            raise
        finally:
            self.task.close()
        return self._summary()

    def _step(self, step: int) -> None:
        self.companion.step = step - 1
        start, before = self.companion.clock(), 0.0
        self.guard.begin()
        self.companion.attend()
        if self.cursor.work is None:
            work = self.task.begin(step, self._watch)
            self._write_samples("train", step, self.task.samples(work))
        else:
            work, self.cursor.work = self.cursor.work, None
            before = work.seconds.get("total", 0.0)
        self._watch.seconds = work.seconds
        while len(work.updates) < self.task.updates_per_step:
            self._between_updates(work)
            self._update(work)
            work.seconds["total"] = before + self.companion.clock() - start
        self.cursor.work = None
        self.cursor.done = self.companion.step = step
        self._report(replace(self.task.metrics(work), bytes=self._bytes()))
        if self.times is not None:
            self.times.stepped(work)
        self._evaluate_if_due(step)
        due = time.monotonic() - self._saved_t >= 60 * self.config.run.checkpoint_minutes
        if due or step % self.config.run.checkpoint_every == 0 or step == self.config.run.steps:
            self._save("schedule")
            if self.times is not None:
                self.times.keep()

    def _evaluate_if_due(self, step: int) -> None:
        """Evaluate after step `step`, unless that is not due or was done before a stop."""
        due = step % self.config.run.eval_every == 0 or step == self.config.run.steps
        if due and (self.cursor.last is None or self.cursor.last["step"] != step):
            self._evaluate(step)

    def _between_updates(self, work: StepWork) -> None:
        """A checkpoint, a pause or a stop may fall here; the checkpoint holds the step's rollouts, rewards and scores."""
        self.cursor.work = work
        if time.monotonic() - self._saved_t >= 60 * self.config.run.checkpoint_minutes:
            self._save("schedule")
        self.companion.attend()

    def _update(self, work: StepWork) -> None:
        number = (work.step - 1) * self.task.updates_per_step + len(work.updates)
        if broken := self.task.broken(work):
            result = self.trainer.not_computed(number)
            self._skipped(work, result, broken)
        else:
            with self._watch.timed(work.step, "update", len(work.updates)):
                batches, result = self.guard.update(
                    lambda: self.task.batches(work), lambda made: self.trainer.update(number, made, self.task.loss)
                )
            if self.times is not None:
                self.times.updated(batches)
            if result.applied:
                self.cursor.nonfinite = 0
            else:
                self._skipped(work, result, self.trainer.blame(number, batches, self.task.loss))
        work.updates.append(result)

    def _skipped(self, work: StepWork, result: UpdateResult, rows: Sequence[int]) -> None:
        """Name the rows to blame and keep a checkpoint from before the update, with the step's rollouts. Raises InputError where
        this is the last skipped update in a row that the config allows."""
        self._save("non-finite")
        kept = f"checkpoints/{checkpoint.folder_name(*self.cursor.place)}"
        checkpoint.keep(self.record.folder / kept, "non-finite")
        self.cursor.nonfinite += 1
        broken = "" if self.trainer.weights_are_finite() else "; the weights themselves hold values that are not finite"
        self.companion.warn(
            "non-finite",
            f"loss {result.loss} with gradient norm {result.grad_norm}: the update was skipped{broken}",
            "lower optim.learning_rate, or look at the rows named here (of a reward method: among the step's samples)",
            update=len(work.updates),
            rows=list(rows),  # of the step
            checkpoint=kept,
            **self.task.named(work, rows),
        )
        if self.cursor.nonfinite >= self.config.optim.max_nonfinite:
            raise InputError(
                f"{self.cursor.nonfinite} updates in a row had a loss, gradient or score that is not finite{broken}; "
                f"{kept} has weights, optimizer and rollouts from before the last of them",
                where=f"step {work.step}",
                remedy="start again with a lower optim.learning_rate, and check the rows that the warnings name",
            )

    def _report(self, metrics: Any) -> None:
        self.journal.write("step", step=metrics.step, metrics=asdict(metrics))
        self._tell(self._canaries.step(metrics))
        now = time.monotonic()
        if now - self._summary_t >= _SUMMARY_SECONDS or metrics.step == self.config.run.steps:
            self._summary_t = now
            self.record.update(step=metrics.step, reward=metrics.reward)

    def _evaluate(self, step: int) -> None:
        self._watch.seconds = {}
        found = self.task.evaluate(step, self._watch)
        self.cursor.last = evaluation_state(step, found)
        if self.cursor.base is None:
            self.cursor.base = self.cursor.last
        best = self.cursor.best is None or not math.isfinite(self.cursor.best["score"]) or found.score > self.cursor.best["score"]
        self._write_samples("held_out", step, found.samples)
        if best:
            self.cursor.best = self.cursor.last
            checkpoint.write_adapter(self.record.adapters_dir, self.policy)
        metrics = {**found.metrics, "seconds": self._watch.seconds}
        self.journal.write("eval", step=step, split="held_out", metrics=metrics, best=best)
        self.record.update(held_out=found.metrics.get("reward", found.metrics.get("loss")))
        if math.isfinite(found.score):
            self._tell(self._canaries.evaluated(step, found.score, summary.standard_error(found.rows, found.counts)))

    def _tell(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.companion.warn(finding.kind, finding.message, finding.remedy)

    def _write_samples(self, split: str, step: int, rows: Any) -> None:
        """A step's samples are one file, replaced as a whole when a resumed run replays the step."""
        if not rows:
            return
        name = f"{'step' if split == 'train' else 'eval'}-{step:06d}.jsonl"
        records.write_atomic(self.record.samples_dir / name, sample_lines(rows))
        self.journal.write("samples", step=step, split=split, file=f"samples/{name}")

    def _save(self, reason: str) -> None:
        place = self.cursor.place
        if place == self._saved:
            return
        phase, self.companion.phase = self.companion.phase, "checkpoint"
        start = time.perf_counter()
        name = checkpoint.folder_name(*place)
        state = {
            "cursor": self.cursor.as_dict(),
            "micro_batch_rows": self.guard.micro_batch_rows,
            "decode_rows": self.guard.decode_rows,
            "recomputes": self.policy.recomputes,
            "history": self._canaries.history.as_dict(),
        }
        checkpoint.save(self.record.checkpoints_dir / name, self.policy, self.trainer, state, self.record.adapters_dir)
        checkpoint.prune(self.record.checkpoints_dir, self.config.run.keep_checkpoints)
        self._saved, self._saved_t = place, time.monotonic()
        self.companion.phase = phase
        self.journal.write(
            "checkpoint",
            step=place[0],
            update=max(place[1], 0),
            path=f"checkpoints/{name}",
            reason=reason,
            seconds=time.perf_counter() - start,
        )

    def _summary(self) -> dict[str, Any]:
        base, best, last = self.cursor.base, self.cursor.best, self.cursor.last
        if base is None or best is None or last is None:
            raise RuntimeError("a finished run has no evaluation")
        sign = -1.0 if self.config.method == "sft" else 1.0
        found = summary.summarise(base, best, last, sign)
        found["adapter"] = str(self.record.adapters_dir)
        found["command"] = summary.generate_command(self.config, self.record, self.policy.folder, self.task.example)
        return found

    def _bytes(self) -> dict[str, int]:
        """MLX's own counters: the peak since the step began, what is in use, and what it keeps for reuse."""
        return {"peak": self.guard.peak(), "active": mx.get_active_memory(), "cache": mx.get_cache_memory()}

    def _phase(self, step: int, name: str, update: int | None) -> None:
        self.companion.phase = name
        self.companion.bytes = self._bytes()
        self.journal.write("phase", step=step, name=name, **({} if update is None else {"update": update}))


def evaluation_state(step: int, found: Evaluation) -> dict[str, Any]:
    """What comparing two evaluations later needs, JSON-able."""
    return {"step": step, "score": found.score, "rows": list(found.rows), "counts": list(found.counts)}
