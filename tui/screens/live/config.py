"""Config: config.yaml as the run has it, every default written out."""

from __future__ import annotations

from textual.content import Content

from tui.screens.live.text import MUTED, Room, wrapped
from tui.screens.live.view import Lines
from tui.snapshot import RunSnapshot


class Config(Lines):
    """The run's own text."""

    TITLE = "config"

    def lines(self, snapshot: RunSnapshot, room: Room) -> list[Content]:
        text = snapshot.around.config
        if text is None:
            missing = "reading config.yaml" if snapshot.around.loaded < 1 else "the run folder has no config.yaml"
            return [Content.styled(missing, MUTED)]
        return [Content(piece) for each in text.splitlines() for piece in wrapped(each, room.width)]
