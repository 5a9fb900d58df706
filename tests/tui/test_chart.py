"""The chart widget: it paints engine.plot's geometry, no more of it than has changed, and fast."""

from __future__ import annotations

import math
import random
import time
from array import array

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult

from engine.curves import columns, curve
from engine.plot import Glyphs, draw, plot
from tests.tui.support import check_golden, painted_text
from tui.widgets.chart import Chart

STEPS = array("q", range(1, 61))
REWARD = array("d", [0.2 + 0.6 * step / 60 for step in STEPS])
REWARD[29] = 2.5  # one spike
REWARD[40:44] = array("d", [math.nan, math.inf, -math.inf, math.nan])
HELD_OUT = (array("q", [0, 20, 40, 60]), array("d", [0.2, 0.4, 0.6, 0.7]), "held-out")


class ChartApp(App[None]):
    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__()
        self.chart = Chart(glyphs)

    def compose(self) -> ComposeResult:
        yield self.chart


@pytest.mark.parametrize("glyphs", ["braille", "block", "ascii"])
async def test_golden(glyphs: Glyphs) -> None:
    app = ChartApp(glyphs)
    async with app.run_test(size=(60, 14)) as pilot:
        app.chart.show([(STEPS, REWARD, "reward"), HELD_OUT])
        await pilot.pause()
        painted = painted_text(app)
        check_golden(f"chart-{glyphs}", painted)
        assert painted.splitlines()[1:] == plot([(STEPS, REWARD, "reward"), HELD_OUT], 60, 14, glyphs=glyphs)[1:]


async def test_the_same_series_again_cost_nothing_and_new_points_repaint_their_rows_only() -> None:
    app = ChartApp("ascii")
    async with app.run_test(size=(60, 14)) as pilot:
        app.chart.show([(STEPS, REWARD, "reward")])
        await pilot.pause()
        drawings = app.chart.drawings
        app.chart.show([(STEPS, REWARD, "reward")])
        await pilot.pause()
        assert app.chart.drawings == drawings
        app.chart.show([(STEPS, array("d", [*REWARD[:-1], 0.1]), "reward")])
        await pilot.pause()
        assert app.chart.drawings == drawings + 1
        assert "reward 0.1" in painted_text(app)
        await pilot.resize_terminal(40, 10)
        await pilot.pause()
        assert app.chart.drawings > drawings + 1 and all(cell_len(row) <= 40 for row in painted_text(app).splitlines())


async def test_a_chart_without_data_says_what_that_means() -> None:
    app = ChartApp("braille")
    async with app.run_test(size=(60, 14)) as pilot:
        app.chart.show([((), (), "kl")], empty="kl: not computed")
        await pilot.pause()
        assert "kl: not computed" in painted_text(app)


def test_pieces_name_their_series() -> None:
    """The first series is number 0, its marks are told from the second's by sign and number; axes belong to none."""
    lines = draw([(STEPS, REWARD, "reward"), HELD_OUT], 60, 14, glyphs="ascii")
    owners = {owner for line in lines for _, owner in line}
    assert owners == {0, 1, None}
    assert {text for line in lines[1:] for text, owner in line if owner == 1} == {"o"}
    assert lines[0][0] == (": reward 0.8", 0)


def test_every_column_spans_its_lowest_to_its_highest_value() -> None:
    """The dots of a grid of 50 columns against the definition, column by column, with gaps among 3,000 values."""
    random.seed(7)
    x = list(range(3000))
    y = [math.nan if random.random() < 0.05 else random.gauss(0, 1) for _ in x]
    found = curve(x, y, "noise")
    assert found is not None
    rows = 40
    drawn: dict[int, list[int]] = {}
    for column, bits in enumerate(columns(found, (0, 2999), (found.low, found.high), 50, rows, joins=False)):
        drawn[column] = [row for row in range(rows) if bits >> row & 1]
    for column in range(50):
        values = [v for a, v in zip(x, y, strict=True) if round(a / 2999 * 49) == column and not math.isnan(v)]
        top, bottom = (round((found.high - v) / (found.high - found.low) * (rows - 1)) for v in (max(values), min(values)))
        assert (min(drawn[column]), max(drawn[column])) == (top, bottom)


def test_ticks_of_small_equal_values_differ() -> None:
    """0.011 alone has bounds of a tenth around it, in steps of 0.0005: three digits tell them apart."""
    names = [line.split("┤")[0].strip() for line in plot([(range(5), [0.011] * 5, "kl")], 40, 18) if "┤" in line]
    assert names == ["1.25e-2", "1.20e-2", "1.15e-2", "1.10e-2", "1.05e-2", "1.00e-2", "9.5e-3"]


def test_values_at_the_ends_of_float_are_drawn_or_left_out() -> None:
    """Bounds of 1e308 would leave no finite room between them; the smallest differences would leave no tick."""
    for values in ([1.7e308, -1.7e308, 1.0], [0.0, 5e-324], [1.0, 1.0 + 2.3e-16], [1e300, -1e300], [1e-310, 2e-310]):
        lines = plot([(range(len(values)), values, "x")], 40, 8)
        assert len(lines) == 8


def test_a_hundred_thousand_points_stay_within_a_frame() -> None:
    """Budgets are generous for busy machines: the median here is some 8 and 30 ms."""
    random.seed(3)
    for count, budget in ((10_000, 0.06), (100_000, 0.25)):
        x, y = array("q", range(count)), array("d", [math.sin(i / 500) + random.random() / 10 for i in range(count)])
        taken = []
        for _ in range(5):
            start = time.process_time()
            draw([(x, y, "reward")], 120, 30)
            taken.append(time.process_time() - start)
        assert sorted(taken)[2] < budget
