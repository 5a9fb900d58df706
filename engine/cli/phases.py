"""What a worker is at, as one moving line on stderr; nothing where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

OnPhase = Callable[[str, int, int], None]


@contextmanager
def shown(hidden: bool = False) -> Iterator[OnPhase]:
    """Gives the function that is told (what, how much is done, of how much: 0 where that is not known)."""
    if hidden or not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def told(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total or None)

        yield told
