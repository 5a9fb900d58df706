"""Would the tests notice? Deliberate faults, one at a time, each in a copy of the repository with the test that has to fail.

    python -m tests.mutations [NAME ...] [--list] [--json] [-j N]

Exit status 0 only where every fault is caught; 1 where one is missed or a test is broken; 2 for a name that there is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from .fault import Fault
from .faults import FAULTS
from .trial import ROOT, Copy, Result, failing, tried


def try_all(faults: Sequence[Fault], jobs: int, folder: Path) -> list[Result]:
    """Every fault's result, in the table's order; progress goes to stderr. `folder` holds a copy for each of `jobs` workers."""
    tests = list(dict.fromkeys(fault.test for fault in faults))
    stop = threading.Event()
    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(jobs):
        copies.put(Copy(folder / str(number), stop))

    def sound(share: Sequence[str]) -> dict[str, str]:
        copy = copies.get()
        try:
            return failing(copy, share) if share else {}
        finally:
            copies.put(copy)

    def trial(fault: Fault) -> Result:
        if fault.test in not_passing:
            return Result(fault, "broken", fault.test, 0.0, not_passing[fault.test])
        copy = copies.get()
        try:
            return tried(copy, fault)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            say(f"{len(tests)} tests without a fault, in {jobs} copies of the repository")
            not_passing: dict[str, str] = {}
            for found in pool.map(sound, [tests[start::jobs] for start in range(jobs)]):
                not_passing |= found
            places: dict[Future[Result], int] = {pool.submit(trial, fault): place for place, fault in enumerate(faults)}
            results: dict[int, Result] = {}
            for done in as_completed(places):
                result = results[places[done]] = done.result()
                detail = f"  ({result.detail})" if result.detail else ""
                say(f"[{len(results)}/{len(faults)}] {result.verdict}  {result.fault.name}  {result.seconds:.1f} s{detail}")
        except KeyboardInterrupt:
            stop.set()  # the tests under way were interrupted too
            pool.shutdown(cancel_futures=True)
            raise
    return [results[place] for place in range(len(faults))]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(results: Sequence[Result]) -> str:
    """Fault, verdict, seconds, and the test that failed."""
    width = max(len(result.fault.name) for result in results)
    lines = [f"{'fault':<{width}}  verdict  seconds  test"]
    for result in results:
        lines.append(f"{result.fault.name:<{width}}  {result.verdict:<7}  {result.seconds:7.1f}  {result.test}")
    return "\n".join(lines)


def main(arguments: Sequence[str], faults: Sequence[Fault] = FAULTS) -> int:
    """The command, on a table of faults; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="Deliberate faults and the tests that notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try (default: all)")
    parser.add_argument("--list", action="store_true", help="name every fault, what it stands for and its test; try none")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("-j", dest="jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="trials side by side")
    asked = parser.parse_args(arguments)
    known = {fault.name: fault for fault in faults}
    unknown = [name for name in asked.names if name not in known]
    if unknown or asked.jobs < 1:
        parser.error(f"there is no fault {unknown[0]}; --list names all" if unknown else "-j wants a number above 0")
    chosen = [known[name] for name in dict.fromkeys(asked.names)] or list(faults)
    if asked.list:
        for fault in chosen:
            print(f"{fault.name}\n    {fault.why}\n    {fault.file}\n    {fault.test}")
        return 0
    stale = [problem for fault in chosen if (problem := fault.problem(ROOT)) is not None]
    if stale:
        parser.error("; ".join(stale))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="droid-tune-mutations-") as folder:
        results = try_all(chosen, min(asked.jobs, len(chosen)), Path(folder))
    caught = sum(result.verdict == "caught" for result in results)
    if asked.json:
        print(json.dumps([{**asdict(result), "fault": asdict(result.fault)} for result in results], indent=1))
    else:
        print(table(results))
    say(f"{caught} of {len(results)} faults caught in {time.perf_counter() - start:.0f} s")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
