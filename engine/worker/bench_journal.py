"""What keeping a record costs a run: the share of its CPU time that journal, samples and checkpoints take.

The embedded model is trained as `droid-tune demo` trains it (its evaluations and checkpoints, but fewer steps), in this process,
by the loop itself. Every call that writes is timed on the clock of its own thread, so that other processes and threads do not
count, and the sum is held against the CPU time of the whole process, which the reward process is not part of: the share is
rather too large. Two runs, one with and one without a record, differ by less than such runs differ from each other.

companion   the thread that writes heartbeats and looks for commands, all of it
adapter     what an evaluation that is the best so far writes: one more such writing is timed, and counted for each
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import config as configs
from engine import machine_load, share
from engine.config import RunConfig
from engine.data import formats
from engine.runs import record as records
from engine.runs.journal import Event, JournalReader, JournalWriter
from engine.runs.record import RunRecord
from engine.worker import checkpoint
from engine.worker.bench_model import guard
from engine.worker.bench_timing import Told
from engine.worker.companion import Companion
from engine.worker.loop import Loop
from engine.worker.model import Policy, load_policy
from engine.worker.rewarding import Judge
from engine.worker.step import RewardTask
from engine.worker.trainer import Trainer


class Meter:
    """CPU and wall seconds by what they went into; within a part that is being timed, another does not count again."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self._within = threading.local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done inside, on this thread's clock."""
        if getattr(self._within, "busy", False):
            yield
            return
        self._within.busy = True
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            self._within.busy = False
            self.cpu[name] += time.thread_time() - cpu
            self.wall[name] += time.perf_counter() - wall

    def whole_thread(self) -> Any:
        """Inside, nothing counts on this thread: it is counted as a whole."""
        self._within.busy = True


class _Journal(JournalWriter):
    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(path)
        self._meter = meter

    def write(self, type: str, /, **fields: Any) -> Event:
        with self._meter.part("journal"):
            return super().write(type, **fields)


class _Companion(Companion):
    def __init__(self, record: RunRecord, journal: JournalWriter, meter: Meter) -> None:
        super().__init__(record, journal, time.time())
        self._meter = meter

    def _run(self) -> None:
        self._meter.whole_thread()
        super()._run()
        self._meter.cpu["companion"] = time.thread_time()


class _Loop(Loop):
    """The loop with its writings timed; the meter hangs on its journal."""

    @property
    def _meter(self) -> Meter:
        assert isinstance(self.journal, _Journal)
        return self.journal._meter

    def _save(self, reason: str) -> None:
        with self._meter.part("checkpoints"):
            super()._save(reason)

    def _write_samples(self, split: str, step: int, rows: Any) -> None:
        with self._meter.part("samples"):
            super()._write_samples(split, step, rows)

    def _report(self, metrics: Any) -> None:
        with self._meter.part("journal"):  # with run.json and the canaries
            super()._report(metrics)


def journal(steps: int, told: Told) -> dict[str, Any]:
    """The shares of CPU time and of wall time, in all and by part, over `steps` steps of the demo."""
    with tempfile.TemporaryDirectory(prefix="droid-tune-bench-") as home:
        config = configs.load(share.share_root("configs") / "demo.yaml", {"run.steps": steps}).config
        record = records.create(config, Path(home))
        policy = load_policy(configs.model_folder(config.model), config.adapter, config.run.seed)
        meter = Meter()
        start = machine_load.mark()
        cpu, wall = _trained(config, record, policy, meter, told)
        load = machine_load.since(start)
        events = _events(record)
        best = sum(event.type == "eval" and bool(event.fields["best"]) for event in events)
        with meter.part("adapter"):
            checkpoint.write_adapter(Path(home) / "adapter", policy)
        meter.cpu["adapter"] *= best
        meter.wall["adapter"] *= best
        return {
            "steps": steps,
            "evaluations": sum(event.type == "eval" for event in events),
            "checkpoints": sum(event.type == "checkpoint" for event in events),
            "events": len(events),
            "written_bytes": sum(file.stat().st_size for file in record.folder.rglob("*") if file.is_file()),
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "parts_cpu_seconds": dict(meter.cpu),
            "parts_wall_seconds": dict(meter.wall),
            "share_of_cpu": sum(meter.cpu.values()) / cpu,
            "share_of_wall": sum(meter.wall.values()) / wall,
            "load": load.as_dict(),
        }


def _trained(config: RunConfig, record: RunRecord, policy: Policy, meter: Meter, told: Told) -> tuple[float, float]:
    """CPU and wall seconds of the whole run, once everything is loaded."""
    own = guard(config)
    data = formats.load_training_data(config)
    with _Journal(record.journal_file, meter) as writer, _Companion(record, writer, meter) as companion:
        columns = {name for example in (*data.train, *data.held_out) for name in example.columns}
        judge = Judge(config.rewards, companion.warn, policy.decode, columns)
        task = RewardTask(policy, config, data.train, data.held_out, judge, own)
        trainer = Trainer(policy, config.optim, config.run.steps * task.updates_per_step, config.run.seed)
        record.update(state="starting")
        loop = _Loop(config, record, writer, companion, policy, trainer, task, own)
        told(f"{config.run.steps} steps of the demo")
        cpu, wall = time.process_time(), time.perf_counter()
        loop.run()
        seconds = time.perf_counter() - wall
    return time.process_time() - cpu, seconds  # the companion's thread is at its end: its clock is read


def _events(record: RunRecord) -> list[Event]:
    reader = JournalReader(record.journal_file)
    found: list[Event] = []
    while events := reader.read():
        found += events
    return found
