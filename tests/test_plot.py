"""Charts as text: goldens for each glyph set, and the promises that hold for any input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from engine.plot import Glyphs, plot, sparkline

GLYPHS: tuple[Glyphs, ...] = ("braille", "block", "ascii")

# A reward that rises from 0.3 to 0.8 in 40 steps, dips once to 0 (step 20), and has no value at steps 28 to 31.
STEPS = list(range(41))
REWARD = [0.3 + 0.5 * step / 40 for step in STEPS]
REWARD[20] = 0.0
REWARD[28:32] = [math.nan] * 4
HELD_OUT = ([0, 10, 20, 30, 40], [0.31, 0.42, 0.5, 0.64, 0.7], "held-out")

GOLDEN = {
    "braille": """
─ reward 0.8   o held-out 0.7
1.0┤
   │
   │                                 ⢀⣀⣀⡠⠤⠤⠒
   │                     ⢀⡠⠤⠤⠒⠒  o⠐⠒⠉⠁      o
0.5┤           ⢀⣀⣀⡠⠤⠤⢲⢲⠒o⠁
   │⣀⣀⡠⠤⠤⠒⠒⠒⠉⠉o⠁      ⠈⡎
   │o                 ⡇
   │                  ⡇
  0┤                  ⠁
   └┬─────────┬─────────┬─────────┬─────────┬
    0        10        20        30        40
""",
    "block": """
─ reward 0.8   o held-out 0.7
1.0┤
   │
   │
""",
    "ascii": """
""",
}


@pytest.mark.parametrize("glyphs", GLYPHS)
def test_golden(glyphs: Glyphs) -> None:
    drawn = plot([(STEPS, REWARD, "reward"), HELD_OUT], 46, 12, glyphs=glyphs, y_min=0.0)
    assert "\n".join(drawn) == GOLDEN[glyphs].strip("\n")
