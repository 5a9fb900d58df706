"""What keys do while a run is watched. Capital letters reach the worker; all others only change what is shown."""

from __future__ import annotations

from tui.actions.base import Action

_VIEWS = (
    ("overview", "Is it learning? Figures, the curve, warnings, the newest group."),
    ("curves", "One metric on the whole screen, or four of them."),
    ("groups", "The newest step's answers side by side, one in full."),
    ("system", "Speed, memory, where the time goes, the machine."),
    ("log", "The journal in lines, and the last words of a failed worker."),
    ("config", "The run's config.yaml."),
)

ACTIONS: tuple[Action, ...] = (
    *(
        Action(f"live.{name}", str(number), name, help, name, "live", shown=number == 1, rank=10 + number)
        for number, (name, help) in enumerate(_VIEWS, 1)
    ),
    Action(
        "live.resume",
        "r",
        "resume",
        "Start a lost, stopped or failed run again from its last checkpoint.",
        "resume",
        "live",
        rank=20,
    ),
    Action(
        "live.next",
        "right_square_bracket",
        "next",
        "The next metric (curves), the next prompt (groups).",
        "next",
        "live",
        rank=30,
    ),
    Action(
        "live.previous",
        "left_square_bracket",
        "previous",
        "The metric or prompt before.",
        "previous",
        "live",
        shown=False,
        rank=31,
    ),
    Action("live.down", "j,down", "down", "The next answer (groups), a line down (elsewhere).", "down", "live", rank=32),
    Action("live.up", "k,up", "up", "The answer before, a line up.", "up", "live", shown=False, rank=33),
    Action(
        "live.later",
        "right,l",
        "step",
        "The next step's groups; from the last one on the newest is followed.",
        "later",
        "live",
        rank=34,
    ),
    Action("live.earlier", "left,h", "earlier", "The groups of the step before.", "earlier", "live", shown=False, rank=35),
    Action("live.fold", "v", "fold think", "Fold what the answer thinks, or open it again.", "fold", "live", rank=36),
    Action("live.page_down", "ctrl+d,pagedown", "page", "A page down.", "page_down", "live", shown=False, rank=37),
    Action("live.page_up", "ctrl+u,pageup", "page up", "A page up.", "page_up", "live", shown=False, rank=38),
    Action("live.first", "g,home", "first", "To the first answer or line.", "first", "live", shown=False, rank=39),
    Action(
        "live.last",
        "G,end",
        "last",
        "To the last answer or line; the log follows its end again.",
        "last",
        "live",
        shown=False,
        rank=40,
    ),
    Action(
        "live.pause",
        "P",
        "pause",
        "Pause training, or go on; takes effect between two tokens or updates.",
        "pause",
        "live",
        rank=50,
    ),
    Action("live.checkpoint", "K", "checkpoint", "Write a checkpoint now.", "checkpoint", "live", rank=51),
    Action("live.stop", "S", "stop", "Stop training after a checkpoint; asks for the run's name.", "stop", "live", rank=52),
    Action("live.leave", "q,escape", "leave it", "Stop watching; the run goes on training.", "back", "live", rank=99),
)
