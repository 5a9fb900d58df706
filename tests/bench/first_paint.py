"""Seconds from process start to the app's first paint, and to the list of runs, in a real pseudo-terminal. Prints JSON.

`python -m tests.bench.first_paint [--runs N] [--size 80x24]`. First paint: the last line's keys are on the screen. The list:
what is known of the runs has replaced "looking for runs".
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

FIRST_PAINT = b"help"  # in the last line
LIST = b"demo model"  # in the empty home screen
LIMIT_SECONDS = 60.0


def measure(home: Path, columns: int, rows: int) -> dict[str, float]:
    """One start of the app on an empty home: seconds to each of the two moments."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "DROID_TUNE_HOME": str(home), "TERM": "xterm-256color"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tui"], env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown, moments = b"", {}
    wanted = {"first_paint_seconds": FIRST_PAINT, "list_seconds": LIST}
    try:
        while len(moments) < len(wanted):
            if time.perf_counter() - started > LIMIT_SECONDS:
                raise TimeoutError(f"after {LIMIT_SECONDS:.0f} s only: {shown[-2000:]!r}")
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 1 << 16)
                for name, text in wanted.items():
                    if text in shown:
                        moments.setdefault(name, time.perf_counter() - started)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
    return moments


def main() -> None:
    """The median of several starts; the first, which may read from the disk, is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", default="80x24")
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as home:
        found = [measure(Path(home), columns, rows) for _ in range(options.runs + 1)][1:]
    medians = {name: round(statistics.median(each[name] for each in found), 3) for name in found[0]}
    load = os.getloadavg()[0]
    print(json.dumps({**medians, "runs": options.runs, "size": options.size, "load_1m": round(load, 2), "all": found}))


if __name__ == "__main__":
    main()
