"""What keys do on the list of runs."""

from __future__ import annotations

from tui.actions.base import Action

ACTIONS: tuple[Action, ...] = (
    Action("runs.open", "enter", "open", "Open the marked run: is it learning?", "open", "runs", rank=10),
    Action("runs.new", "n", "new run", "Start a run of your own, from method to launch.", "new", "runs", rank=20),
    Action(
        "runs.resume",
        "r",
        "resume",
        "Start a lost, stopped or failed run again from its last checkpoint.",
        "resume",
        "runs",
        rank=25,
    ),
    Action("runs.demo", "d", "demo", "Watch the demo model learn to think (about a minute, offline).", "demo", "runs", rank=30),
    Action(
        "runs.filter",
        "slash",
        "filter",
        "Show the runs whose name, method, model or state holds a text.",
        "filter",
        "runs",
        rank=40,
    ),
    Action("runs.down", "j,down", "down", "Go to the next run.", "down", "runs", shown=False, rank=60),
    Action("runs.up", "k,up", "up", "Go to the previous run.", "up", "runs", shown=False, rank=61),
    Action("runs.first", "g,home", "first", "Go to the newest run.", "first", "runs", shown=False, rank=62),
    Action("runs.last", "G,end", "last", "Go to the oldest run.", "last", "runs", shown=False, rank=63),
    Action("runs.back", "escape", "all runs", "Take the filter away.", "clear", "runs", rank=5),
    Action("runs.quit", "q", "quit", "Leave the app; every run goes on training.", "quit", "runs", rank=99),
)
