"""Lines that are kept: they look as Textual itself would draw them, and nobody is asked for them twice."""

from __future__ import annotations

from textual.app import App, ComposeResult
from textual.content import Content, Span
from textual.geometry import Region
from textual.visual import Visual

from tui.screens.live.text import line
from tui.screens.live.view import Block

LINES = [
    Content("plain"),
    line("a", ("b", "bold $text-accent"), ("", "$text-muted"), "c", ("漢字", "$text-error")),
    Content("one within another", spans=[Span(0, 18, "bold"), Span(4, 10, "$text-warning")]),
    Content(""),
    Content.styled("longer than the widget is wide, by far", "$text-muted"),
]


class _OneBlock(App[None]):
    def compose(self) -> ComposeResult:
        yield Block()


async def test_lines_look_as_textual_draws_them_and_are_made_once() -> None:
    app = _OneBlock()
    app.glyphs = "braille"  # type: ignore[attr-defined]
    async with app.run_test(size=(20, 6)) as pilot:
        block = app.query_one(Block)
        block.put(LINES)
        await pilot.pause()
        for y, content in enumerate(LINES):
            wanted = Visual.to_strips(block, content, 20, 1, block.visual_style)[0].adjust_cell_length(20)
            cells = [
                [(c, s.style and (s.style.color, s.style.bold)) for s in strip for c in s.text]
                for strip in (wanted, block.render_line(y))
            ]
            assert [c for c in cells[0] if c[0] != " "] == [c for c in cells[1] if c[0] != " "], content.plain
        whole = Region(0, 0, 20, 6)
        first, painted = block.render_lines(whole), block.painted
        assert block.render_lines(whole) is first and block.painted == painted
        block.put([Content("other"), *LINES[1:]])
        after = block.render_lines(whole)
        assert block.painted == painted + 1 and after[1] is first[1] and after[0].text.strip() == "other"
