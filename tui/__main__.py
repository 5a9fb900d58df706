"""The console script `droid-tune`: every verb belongs to the headless command line; without one the runs are listed."""

from __future__ import annotations

import sys

from engine.cli import main as command_line


def main() -> None:
    """Run the verb in sys.argv; without one show the runs, or how to start the first."""
    if len(sys.argv) == 1:
        sys.argv.append("runs")
    command_line()


if __name__ == "__main__":
    main()
