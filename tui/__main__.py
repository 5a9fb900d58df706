"""The console script `droid-tune`: without a verb it opens the terminal app, with one it is the command line.

The verbs that show a run (demo, train, attach) show it in the app too, where there is a terminal to draw in.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.api import Engine, Run

NO_TERMINAL = """\
droid-tune: there is no terminal here that the app could draw in. Without one:
  droid-tune runs              list all runs
  droid-tune demo --headless   watch the embedded model learn to think, as plain lines
  droid-tune train CONFIG      start a run; --detach leaves it alone, --json is for scripts
  droid-tune attach RUN --headless, status RUN, logs RUN -f, pause|resume|stop|checkpoint RUN
  droid-tune --help            every verb
"""


def main() -> None:
    """Open the app, or run the verb in sys.argv."""
    if len(sys.argv) == 1:
        if not has_terminal():
            sys.stderr.write(NO_TERMINAL)
            raise SystemExit(2)
        raise SystemExit(show(None, None))
    from engine.cli import app as command_line

    if has_terminal():
        command_line.viewer = show
    command_line.main()


def has_terminal() -> bool:
    """Whether keys can be read and a screen can be drawn (Textual draws on stderr)."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM", "dumb") != "dumb"


def show(engine: Engine | None, run: Run | None) -> int:
    """The app until it is left: on the list of runs, or on `run` alone. Returns the exit status."""
    from tui.app import DroidTuneApp

    for name in ("COLUMNS", "LINES"):  # the terminal knows its size; a shell's exported figures would freeze the app's
        os.environ.pop(name, None)
    try:
        app = DroidTuneApp(engine, run.id if run is not None else None)
    except ValueError as error:
        sys.stderr.write(f"droid-tune: {error}\n")
        return 2
    app.once_ready = _spare_the_collector
    app.run(mouse=False)
    return app.return_code or 0


def _spare_the_collector() -> None:
    """What has been loaded by now stays until the end: to look through all of it again and again for rubbish was a fifth of what
    watching a run costs."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
