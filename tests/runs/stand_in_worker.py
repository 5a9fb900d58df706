"""A worker without a model: it journals steps and obeys commands. Arguments: run RUN_DIR --lock-fd N [--resume]."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from engine.runs.control import ControlInbox
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.record import RunRecord


def main() -> None:
    record = RunRecord(Path(sys.argv[2]))
    os.fstat(int(sys.argv[4]))  # the lock's descriptor is open here
    resumed = "--resume" in sys.argv
    summary = record.summary()
    assert summary.launched is not None
    print(json.dumps({"cwd": os.getcwd(), "session": os.getsid(0), "pid": os.getpid(), "stdin": sys.stdin.read()}), flush=True)
    inbox = ControlInbox(record.control_dir, summary.launched)
    step = max((e.fields["step"] for e in JournalReader(record.journal_file).read(1 << 30) if e.type == "step"), default=0)
    with JournalWriter(record.journal_file) as journal:
        journal.write("started", pid=os.getpid(), threads=os.environ["OPENBLAS_NUM_THREADS"], resumed=resumed)
        if resumed:
            journal.write("resumed", from_step=step)
        record.update(state="running", pid=os.getpid())
        paused = False
        while step < summary.steps:
            for command in inbox.poll():
                refused = command.verb == "resume" and not paused
                status = "expired" if command.expired else "refused" if refused else "accepted"
                journal.write("command", id=command.id, verb=command.verb, status=status, reason="not paused" if refused else "")
                inbox.done(command)
                if status != "accepted":
                    continue
                if command.verb == "stop":
                    journal.write("stopped", step=step, reason="asked")
                    record.update(state="stopping")
                    record.update(state="stopped")
                    return
                if command.verb == "pause":
                    paused = True
                    record.update(state="pausing")
                    journal.write("paused", step=step)
                    record.update(state="paused")
                if command.verb == "resume":
                    paused = False
                    journal.write("resumed", from_step=step)
                    record.update(state="running")
            if not paused:
                step += 1
                journal.write("step", step=step, metrics={"reward": step / 10, "seconds": {"total": 0.5}})
                record.update(step=step)
            time.sleep(0.002)  # the pace of its steps
        journal.write("finished", step=step, summary={"tuned": 1.0})
        record.update(state="finished")


main()
