"""Charts as text: goldens for each glyph set, and the promises that hold for any input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from engine.plot import Glyphs, plot, sparkline

GLYPHS: tuple[Glyphs, ...] = ("braille", "block", "ascii")

# A reward that rises from 0.3 to 0.8 in 40 steps, falls once to 0 (step 20), and has no value at steps 28 to 31.
STEPS = list(range(41))
REWARD = [0.3 + 0.5 * step / 40 for step in STEPS]
REWARD[20] = 0.0
REWARD[28:32] = [math.nan] * 4
HELD_OUT = ([0, 10, 20, 30, 40], [0.31, 0.42, 0.5, 0.64, 0.7], "held-out")

GOLDEN = {
    "braille": """
─ reward 0.8   o held-out 0.7
1.0┤
   │                                        ⢀⣀
   │                                 ⣀⠤⠤⠔⠒⠊⠉⠁o
   │                      ⣀⣀⠤⠤⠤⠒⠂  o
0.5┤            ⢀⣀⡠⠤⠤⠔⠒⢺o ⡇
   │   ⣀⣀⠤⠤⠒⠒⠒o⠉⠁       ⡇⢰⠁
   │o⠉⠉                 ⢣⢸
   │                    ⢸⡜
  0┤                     ⡇
   └┬─────────┬─────────┬──────────┬─────────┬
    0        10        20         30        40
""",
    "block": """
─ reward 0.8   o held-out 0.7
1.0┤
   │                                         ▗
   │                                 ▄▄▄▞▀▀▀▀o
   │                      ▄▄▄▄▄▀▘  o
0.5┤            ▗▄▄▄▞▀▀▜o ▌
   │  ▄▄▄▄▄▀▀▀o▀▘       ▌▐
   │o▀                  ▚▐
   │                    ▐▞
  0┤                     ▌
   └┬─────────┬─────────┬──────────┬─────────┬
    0        10        20         30        40
""",
    "ascii": """
: reward 0.8   o held-out 0.7
1.0+
   |                                         .
   |                                 ...'''''o
   |                      .....''  o
0.5+            ....''':o :
   |  .....'''o'       : :
   |o'                 '.:
   |                    :'
  0+                    :
   ++---------+---------+----------+---------+
    0        10        20         30        40
""",
}


@pytest.mark.parametrize("glyphs", GLYPHS)
def test_golden(glyphs: Glyphs) -> None:
    drawn = plot([(STEPS, REWARD, "reward"), HELD_OUT], 46, 12, glyphs=glyphs, y_min=0.0)
    assert "\n".join(drawn) == GOLDEN[glyphs].strip("\n")


def test_a_spike_of_one_step_among_thousands_is_drawn() -> None:
    """10,000 points in 40 columns: the one at 9 reaches the top row, those at 1 fill the bottom one."""
    y = [1.0] * 10_000
    y[4321] = 9.0
    rows = plot([(range(10_000), y, "")], 42, 8, glyphs="ascii", y_min=1.0, y_max=9.0)[:6]
    top, bottom = rows[0][2:], rows[5][2:]
    assert top.strip() and len(top) == 1 + round(4321 / 9_999 * 39) and bottom == "." * 17 + ":" + "." * 22


def test_a_gap_is_not_joined() -> None:
    """The line from 0 to 1 is drawn, and nothing between x = 1 and x = 3, where y is missing at 2."""
    for missing in (math.nan, math.inf, -math.inf):
        rows = plot([([0, 1, 2, 3, 4], [5.0, 5.0, missing, 5.0, 5.0], "")], 43, 3, glyphs="ascii", y_min=0, y_max=5)
        assert rows[0] == "5+" + "'" * 11 + " " * 19 + "'" * 11


def test_values_beyond_a_fixed_bound_lie_on_the_edge() -> None:
    rows = plot([([0, 1, 2], [-7.0, 0.5, 7.0], "")], 20, 4, glyphs="ascii", y_min=0, y_max=1)
    assert rows[0].startswith("1.0+") and rows[0].endswith("'") and rows[1].startswith("0.5+.")


def test_one_point_and_equal_values_have_an_axis() -> None:
    assert plot([([3], [0.5], "")], 24, 6) == ["0.55┤", "    │", "0.50┤⠁", "0.45┤", "    └┬──────────────────", "     3"]
    assert plot([([1, 2], [0.0, 0.0], "")], 20, 5, glyphs="ascii")[1] == " 0+'''''''''''''''''"


def test_ticks_have_the_decimals_that_they_need() -> None:
    """Learning rates of 1e-4 to 3e-4, and a thousand steps of two values near a million."""
    small = plot([([0, 1], [1e-4, 3e-4], "")], 30, 8)
    assert [row.split("┤")[0].strip() for row in small if "┤" in row] == ["3e-4", "2e-4", "1e-4"]
    large = plot([([0, 1], [1_000_000.0, 1_000_020.0], "")], 30, 8)
    assert [row.split("┤")[0].strip() for row in large if "┤" in row] == ["1.00002e6", "1.00001e6", "1.00000e6"]


def test_what_there_is_no_room_for_goes_in_order() -> None:
    """Legend, then the x axis, then the y axis: 5 lines, 3 lines, 9 columns."""
    series = [([0, 1], [0.0, 1.0], "reward")]
    assert "reward" in plot(series, 30, 6)[0] and "reward" not in "".join(plot(series, 30, 5))
    assert "└" in "".join(plot(series, 30, 4)) and "└" not in "".join(plot(series, 30, 3))
    assert "┤" in plot(series, 12, 3)[0] and "┤" not in plot(series, 9, 3)[0]


def test_empty_series_say_so() -> None:
    assert plot([([], [], "reward")], 20, 3) == ["", "      no data", ""]
    assert plot([([1], [math.nan], "reward")], 5, 1) == ["no da"]
    assert plot([], 20, 2) == ["", "      no data"]


def test_a_label_cannot_reach_the_terminal() -> None:
    assert plot([([0], [1.0], "a\x1b[31mb\n")], 40, 8)[0] == "─ a?[31mb? 1"


def test_series_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'loss': 2 x but 1 y"):
        plot([([1, 2], [1.0], "loss")], 20, 5)


@settings(max_examples=150, deadline=None)
@given(
    y=st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, math.nan]), max_size=60),
    other=st.lists(st.floats(-10, 10), max_size=10),
    width=st.integers(0, 60),
    height=st.integers(0, 12),
    glyphs=st.sampled_from(GLYPHS),
    label=st.text(max_size=8),
)
def test_any_input_gives_height_lines_within_width(
    y: list[float], other: list[float], width: int, height: int, glyphs: Glyphs, label: str
) -> None:
    rows = plot([(range(len(y)), y, label), (range(len(other)), other, "b")], width, height, glyphs=glyphs)
    assert len(rows) == height and all(cell_len(row) <= width for row in rows)
    assert len(sparkline(y, width, glyphs)) == min(width, len(y))


def test_sparkline() -> None:
    assert [sparkline(range(8), 8, glyphs) for glyphs in GLYPHS] == ["⡀⡀⡄⡄⡆⡆⡇⡇", "▁▂▃▄▅▆▇█", "_.-==+*#"]
    assert sparkline([1, 1, 9, 1, 1, 1, 1, math.nan], 4) == "▁█▁▁"  # pairs: the value furthest from the mean of 2.1
    assert sparkline([5, math.nan, 5], 3) == "▁ ▁" and sparkline([], 5) == "" and sparkline([math.inf], 5) == " "
