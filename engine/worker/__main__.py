"""`python -P -m engine.worker VERB`: the door through which everything outside reaches mlx.

run RUN_DIR --lock-fd N [--resume]   train the run in RUN_DIR; the lock's descriptor was handed over by the launcher
facts                                the device and what it can do, as JSON
selftest MODEL                       checks of the numerics on the device: a JSON line for the subject and one for each check
blank OUT [SIZES]                    write an untrained model with a byte-level tokenizer

These read a request as one line of JSON from stdin and answer in JSON lines:

export      write what a run takes home: adapter, fused model, GGUF file
verify      read exports back with mlx_lm, and compare them with the run's own policy
generate    answer prompts in one batch, by the base and by the tuned model
serve       stay, and answer one chat after the other, token by token
bench       time rollouts, updates and the record of a run against a bare loop
rates       how fast this machine does each kind of work that a step is made of
measure     one real step of a config, timed, outside any run
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord

# verbs that are asked over stdin: the module under engine.worker, whose function has the verb's name
_ASKED = {
    "export": "exporting",
    "verify": "verifying",
    "generate": "generating",
    "serve": "serving",
    "bench": "benching",
    "rates": "rates",
    "measure": "measuring",
}


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("run")
    train.add_argument("folder", type=Path)
    train.add_argument("--lock-fd", type=int, required=True)
    train.add_argument("--resume", action="store_true")
    verbs.add_parser("facts")
    verbs.add_parser("selftest").add_argument("model")
    blank = verbs.add_parser("blank")
    blank.add_argument("out", type=Path)
    for name, default in (("hidden-size", 64), ("layers", 2), ("intermediate-size", 192), ("heads", 4), ("seed", 0)):
        blank.add_argument(f"--{name}", type=int, default=default)
    for name in _ASKED:
        verbs.add_parser(name)
    chosen = parser.parse_args(arguments)
    if chosen.verb in _ASKED:
        return _answer(chosen.verb)
    if chosen.verb == "run":
        try:
            from engine.worker.run import run  # deferred: each verb loads only what it needs
        except ImportError as error:  # a broken installation: the run must not just vanish
            return _cannot_load(RunRecord(chosen.folder), error)
        return run(chosen.folder, chosen.lock_fd, chosen.resume)
    if chosen.verb == "selftest":
        from engine.worker.selftest import selftest

        try:
            for part in selftest(chosen.model):
                print(part.model_dump_json(), flush=True)
        except InputError as error:
            print(json.dumps(error.as_dict()))
            return 2
        return 0
    if chosen.verb == "blank":
        from engine.worker.blank import Shape, write_blank_model

        shape = Shape(chosen.hidden_size, chosen.layers, chosen.intermediate_size, chosen.heads, chosen.heads)
        write_blank_model(chosen.out, shape, chosen.seed)
        return 0
    from engine.worker.facts import facts

    print(json.dumps(facts()))
    return 0


def _answer(verb: str) -> int:
    """Do what the request on stdin asks for; stdout is for answers alone, whatever libraries print goes to stderr."""
    answers = sys.stdout

    def tell(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    with contextlib.redirect_stdout(sys.stderr):
        try:
            request = json.loads(sys.stdin.readline())
            getattr(importlib.import_module(f"engine.worker.{_ASKED[verb]}"), verb)(request, tell)
        except InputError as error:
            tell(error.as_dict())
            return 2
        except BrokenPipeError:  # whoever asked is gone
            return 1
    return 0


def _cannot_load(record: RunRecord, error: ImportError) -> int:
    """Fail the run with what could not be imported."""
    with JournalWriter(record.journal_file) as journal:
        remedy = "`droid-tune doctor` shows what is installed; mend it, then resume the run"
        journal.write("failed", step=record.summary().step, error=f"cannot load: {error}", remedy=remedy, kind="import")
    record.update(state="failed", pid=os.getpid())
    traceback.print_exception(error)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
