"""What keys do on the screens of a new run."""

from __future__ import annotations

from tui.actions.base import Action

ACTIONS: tuple[Action, ...] = (
    Action(
        "new_run.next",
        "enter,right_square_bracket",
        "next",
        "Go on to the next step; on the last one start.",
        "next",
        "new_run",
        rank=10,
    ),
    Action("new_run.field", "tab", "field", "Go to the next field, to type in it.", "next_field", "new_run", rank=20),
    Action(
        "new_run.field_before",
        "shift+tab",
        "field before",
        "Go to the field before.",
        "previous_field",
        "new_run",
        shown=False,
        rank=21,
    ),
    Action(
        "new_run.sample",
        "g",
        "sample rows",
        "Make a file of sample rows for the method, and use it.",
        "sample",
        "new_run",
        rank=30,
    ),
    Action("new_run.later", "right,l", "change", "The next column or format (columns).", "later", "new_run", rank=15),
    Action("new_run.earlier", "left,h", "change", "The one before.", "earlier", "new_run", shown=False, rank=16),
    Action(
        "new_run.columns",
        "m",
        "columns",
        "Say which column of the data file is the prompt, which the answer, and in which format the rows are.",
        "columns",
        "new_run",
        rank=31,
    ),
    Action(
        "new_run.profile",
        "p",
        "profile",
        "Choose a kind of data to try the method on: its rewards, and what the sample rows are about.",
        "profile",
        "new_run",
        rank=32,
    ),
    Action(
        "new_run.open",
        "c",
        "open config",
        "Open a config file, ours or one of mlx_lm.lora, mlx-lm-lora or TRL.",
        "open_config",
        "new_run",
        rank=33,
    ),
    Action(
        "new_run.origins",
        "o",
        "origins",
        "Show where each value comes from: default, recipe, typed, or another tool's key.",
        "origins",
        "new_run",
        rank=32,
    ),
    Action(
        "new_run.save", "w", "save yaml", "Save the config as a file that `droid-tune train` takes.", "save", "new_run", rank=31
    ),
    Action("new_run.reset", "ctrl+r", "undo", "Put the field back to its starting value.", "reset", "new_run", rank=17),
    Action(
        "new_run.discard",
        "x",
        "start anew",
        "Throw away what was typed before and start from the recipe.",
        "discard",
        "new_run",
        rank=34,
    ),
    Action("new_run.down", "j,down", "down", "Go down a row or a field.", "down", "new_run", shown=False, rank=60),
    Action("new_run.up", "k,up", "up", "Go up a row or a field.", "up", "new_run", shown=False, rank=61),
    Action(
        "new_run.page_down", "ctrl+d,pagedown", "page down", "Go down half a page.", "page_down", "new_run", shown=False, rank=62
    ),
    Action("new_run.page_up", "ctrl+u,pageup", "page up", "Go up half a page.", "page_up", "new_run", shown=False, rank=63),
    Action(
        "new_run.back",
        "escape,left_square_bracket",
        "back",
        "Go back a step, or out of the field; what is typed stays.",
        "step_back",
        "new_run",
        rank=70,
    ),
    Action("new_run.leave", "q", "leave", "Leave; what is typed is kept for the next time.", "leave", "new_run", rank=99),
)
