"""The list of runs says the same time to go as every other view."""

from __future__ import annotations

from pathlib import Path

from engine.runs import record as records
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.state import fold
from engine.runs.summary import summarise
from tests.support.live import small_config
from tui.run_rows import TAIL_BYTES, RowReader

from .support import worker_lock


def test_evaluations_count_though_the_journals_beginning_is_not_read(tmp_path: Path) -> None:
    """40 steps, an evaluation every 15: 15 steps of 1 s and evaluations of 4 s and 6 s are done. To go: 25 x 1 + 2 x 6 = 37 s.
    What says how often it evaluates lies more than the journal's end away."""
    made = records.create(small_config("grpo", run__steps=40), tmp_path)
    with JournalWriter(made.journal_file) as journal:
        journal.write("created", id=made.id, name=made.id, method="grpo", model="demo", steps=40, eval_every=15)
        journal.write("started", pid=1)
        journal.write("eval", step=0, metrics={"reward": 0.5, "seconds": {"eval": 4.0}})
        journal.write("warning", kind="long", message="x" * TAIL_BYTES, remedy="", step=0)
        for step in range(1, 16):
            journal.write("step", step=step, metrics={"reward": 0.5, "seconds": {"total": 1.0}})
        journal.write("eval", step=15, metrics={"reward": 0.5, "seconds": {"eval": 6.0}})
    made.update(state="starting")
    made.update(state="running", step=15)
    reader, whole = JournalReader(made.journal_file), []
    while events := reader.read():
        whole += events
    with worker_lock(made):
        row = RowReader(tmp_path).rows([summarise(made)])[0]
    assert row.state == "running" and row.eta_seconds == fold(whole).eta_seconds() == 37.0
