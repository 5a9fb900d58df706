"""Colours, glyphs and words: one accent for what has focus, one for reward, amber and red for warnings and failures only.

A colour never speaks alone: a glyph and a word stand beside it, so that a terminal without colour loses nothing.
"""

from __future__ import annotations

import locale
import os
from collections.abc import Mapping

from textual.theme import Theme

from engine.figures import STATE_GLYPHS
from engine.plot import Glyphs, glyph_set

DARK = Theme(
    name="droid-dark",
    primary="#6ca8e0",
    accent="#6ca8e0",
    secondary="#8fa3b8",
    success="#8fbf7f",
    warning="#e0a94a",
    error="#e5675f",
    foreground="#d6dbe1",
    background="#14171b",
    surface="#14171b",
    panel="#1d2127",
    dark=True,
    variables={"reward": "#8fd0b0", "input-selection-background": "#6ca8e0 35%"},
)
LIGHT = Theme(
    name="droid-light",
    primary="#1f66a8",
    accent="#1f66a8",
    secondary="#52667a",
    success="#3d7a2e",
    warning="#8f5f00",
    error="#b3261e",
    foreground="#20252b",
    background="#fbfbf9",
    surface="#fbfbf9",
    panel="#eeeeea",
    dark=False,
    variables={"reward": "#0f7a55", "input-selection-background": "#1f66a8 25%"},
)
THEMES = (DARK.name, LIGHT.name, "ansi-dark", "ansi-light")  # the order in which `t` goes through them
COLOURLESS = THEMES[2:]  # under NO_COLOR
VARIABLES = {"reward": "ansi_green"}  # where a theme has none of its own

# What colours a state; those that are not here have the colour of text.
STATE_STYLES: Mapping[str, str] = {
    "running": "bold",
    "stopped": "$text-muted",
    "finished": "$text-muted",
    "stalled": "$text-warning",
    "lost": "$text-warning",
    "failed": "$text-error",
    "damaged": "$text-error",
}

SELFTEST_STYLES = {  # sign and style of the last self-test's line, by how it ended
    "passed": ("", "$text-muted"),
    "skipped": ("", "$text-muted"),
    "warning": ("⚠ ", "$text-warning"),
    "failed": ("✕ ", "$text-error"),
}
_ASCII_STATES = {
    "queued": ".",
    "starting": ".",
    "running": "*",
    "pausing": "=",
    "paused": "=",
    "stopping": "#",
    "stopped": "#",
    "finished": "+",
    "failed": "x",
    "stalled": "?",
    "lost": "?",
    "damaged": "!",
}
_ASCII = str.maketrans(
    {"▸": ">", "›": ">", "–": "-", "…": "~", "⚠": "!", "▲": "^", "▼": "v", "·": ".", "✓": "+", "✕": "x", "●": "*"}
)


def first_theme(environment: Mapping[str, str]) -> str:
    """The theme to start with: TEXTUAL_THEME where it is set, the terminal's own colours under NO_COLOR, else dark."""
    if environment.get("NO_COLOR"):
        return "ansi-dark"
    return environment.get("TEXTUAL_THEME") or DARK.name


def terminal_glyphs() -> Glyphs:
    """The glyph set for this process's terminal."""
    return glyph_set(locale.getencoding(), os.environ)


def state_glyph(state: str, glyphs: Glyphs) -> str:
    """The one-cell sign of a run state."""
    return (_ASCII_STATES if glyphs == "ascii" else STATE_GLYPHS).get(state, " ")


def drawn(text: str, glyphs: Glyphs) -> str:
    """The app's own text with its signs as ASCII where the terminal has no others."""
    return text.translate(_ASCII) if glyphs == "ascii" else text
