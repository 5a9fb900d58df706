"""What watching costs: `python -m tests.bench.follow` prints JSON. Nothing is asserted: the figures are the machine's.

opening    a journal of 100,000 events: seconds to the first painted screen, and until all of it is read and shown
following  a journal that another process grows by 5,000 events a second: CPU seconds of the app's process per second, with
           the overview open, painted twice a second; and the longest time the event loop was late
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.api import Engine
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord
from tests.tui.support import Tape, make_run, painted_text, worker_lock
from tui.app import DroidTuneApp
from tui.screens.live import LiveScreen

PER_STEP = 5  # events of a step: three phases, its samples, its metrics


def write_step(writer: JournalWriter, step: int) -> None:
    """The events of one step, as a worker writes them."""
    for phase in ("rollout", "reward", "update"):
        writer.write("phase", step=step, name=phase)
    writer.write("samples", step=step, split="train", file="samples/step-000001.jsonl")
    wave = math.sin(step / 300)
    metrics = {
        "step": step, "loss": wave / 100, "grad_norm": 1.5 + wave, "lr": 1e-5, "updates": 1, "tokens": 4096,
        "reward": 0.5 + wave / 3, "reward_std": 0.31, "parts": {"answer": 0.4 + wave / 3, "format": 0.9},
        "length": 143.25,
        "truncated": 0.01, "zero_std_groups": 4, "groups": 32, "excluded": 0, "entropy": 0.62, "kl": 0.011, "ratio": 1.0,
        "clip_low": 0.02, "clip_high": 0.03, "mismatch": 1e-4,
        "seconds": {"rollout": 29.0, "reward": 0.4, "update": 7.0, "total": 37.0},
        "bytes": {"peak": 19_300_000_000, "active": 4_000_000_000, "cache": 900_000_000},
    }  # fmt: skip
    writer.write("step", step=step, metrics=metrics)


def write_samples(record: RunRecord, groups: int = 8, size: int = 8, tokens: int = 128) -> None:
    """A samples file of the usual size."""
    rows = [
        {
            "step": 1, "prompt_id": group, "member": member, "prompt": "What is 17+24-9?", "answer": "32", "text": "so " * tokens,
            "token_ids": list(range(tokens)), "logprobs": [-0.123456789] * tokens, "finish": "stop",
            "parts": {"answer": 1.0, "format": 1.0}, "reward": 1.2, "advantage": 0.5,
        }
        for group in range(groups) for member in range(size)
    ]  # fmt: skip
    (record.samples_dir / "step-000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def grow(journal: Path, events_per_second: float, seconds: float, first: int) -> None:
    """Append steps at a steady rate (run in a process of its own)."""
    with JournalWriter(journal) as writer:
        start, step = time.monotonic(), first
        while (elapsed := time.monotonic() - start) < seconds:
            while (step - first) * PER_STEP < elapsed * events_per_second:
                write_step(writer, step)
                step += 1
            time.sleep(0.01)


async def opening(home: Path, events: int) -> dict[str, Any]:
    """Open a journal of `events` events."""
    record = make_run(home, "long", steps=events)
    write_samples(record)
    tape = Tape(record)
    tape.close()
    with worker_lock(record), JournalWriter(record.journal_file) as writer:
        for step in range(1, events // PER_STEP + 1):
            write_step(writer, step)
        start = time.monotonic()
        app = DroidTuneApp(Engine(home), open_run=record.id)
        async with app.run_test(size=(120, 40)) as pilot:
            first = None
            while True:
                await asyncio.sleep(0.01)
                screen = app.screen
                if isinstance(screen, LiveScreen) and screen.snapshot is not None:
                    if first is None and "long" in painted_text(app):
                        first = time.monotonic() - start
                    if screen.snapshot.seq >= events:
                        await pilot.pause()
                        break
            whole = time.monotonic() - start
    size = record.journal_file.stat().st_size
    return {
        "events": events,
        "megabytes": round(size / 1e6, 1),
        "first_paint_seconds": round(first or whole, 3),
        "all_seconds": round(whole, 2),
    }


async def following(home: Path, events_per_second: float, seconds: float) -> dict[str, Any]:
    """Follow a growing journal for `seconds`."""
    record = make_run(home, "fast", steps=10**6)
    write_samples(record)
    tape = Tape(record)
    tape.write("started", pid=os.getpid(), resumed=False)
    tape.close()
    app = DroidTuneApp(Engine(home), open_run=record.id)
    app.refresh_seconds = 0.5
    with worker_lock(record):
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause(1.0)
            script = (
                f"import sys; sys.path.insert(0, {os.getcwd()!r}); from tests.bench import follow; from pathlib import Path; "
            )
            script += f"follow.grow(Path({str(record.journal_file)!r}), {events_per_second}, {seconds}, 1)"
            writer = subprocess.Popen([sys.executable, "-c", script])
            screen = app.screen
            assert isinstance(screen, LiveScreen)
            while screen.feed is None or screen.feed.snapshot().seq < PER_STEP:
                await asyncio.sleep(0.05)
            start, cpu, seq, worst = time.monotonic(), time.process_time(), screen.feed.snapshot().seq, 0.0
            while writer.poll() is None:
                tick = time.monotonic()
                await asyncio.sleep(0.02)
                worst = max(worst, time.monotonic() - tick - 0.02)
            wall, cpu = time.monotonic() - start, time.process_time() - cpu
            await asyncio.sleep(1.0)
            snapshot = screen.feed.snapshot()
    with JournalWriter(record.journal_file) as journal:
        written = journal.seq
    return {
        "events_per_second": round((snapshot.seq - seq) / wall),
        "seconds": round(wall, 1),
        "cores": round(cpu / wall, 3),
        "longest_loop_delay_seconds": round(worst, 3),
        "missed": written - snapshot.seq,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=5_000.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "opening": asyncio.run(opening(Path(folder), options.events)),
            "following": asyncio.run(following(Path(folder), options.rate, options.seconds)),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
