"""The steps of a completion: where they begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rewards.steps import Step, split_steps


@pytest.mark.parametrize(
    ("text", "separator", "spans"),
    [
        ("1+1=2\n2+3=5", "\n", [(0, 5), (6, 11)]),
        ("no separator", "\n", [(0, 12)]),
        ("  no separator \t", "\n", [(2, 14)]),
        ("", "\n", []),
        (" \n\t\n ", "\n", []),
        ("\n\na\n", "\n", [(2, 3)]),
        ("a\n \n\nb", "\n", [(0, 1), (5, 6)]),
        ("a \r\nb\r\n", "\n", [(0, 1), (4, 5)]),  # the carriage return is white space
        ("a\nb\n\nc", "\n\n", [(0, 3), (5, 6)]),  # one line break alone parts nothing
        ("a\n\n\nb", "\n\n", [(0, 1), (4, 5)]),  # separators do not overlap; the third line break is b's white space
        ("a\n\n\n\nb", "\n\n", [(0, 1), (5, 6)]),
        ("Step 1: a Step 2: b", "Step", [(5, 9), (15, 19)]),  # the separator belongs to no step
        ("StepStep", "Step", []),
        ("a.b.c", ".", [(0, 1), (2, 3), (4, 5)]),  # no pattern: a period is a period
        ("a | b", " | ", [(0, 1), (4, 5)]),
        ("a b  c", " ", [(0, 1), (2, 3), (5, 6)]),
        ("cafe\u0301 \n🎲=6\u00a0\n日本", "\n", [(0, 5), (7, 10), (12, 14)]),  # code points; no-break space is white space
        ("👨‍👩‍👧 ok\nx", "\n", [(0, 8), (9, 10)]),  # three people and two joiners are 5 characters
        ("a\u200b\nb", "\n", [(0, 2), (3, 4)]),  # a zero-width space is a character
        ("a\u2028b\nc", "\n", [(0, 3), (4, 5)]),
    ],
)
def test_spans(text: str, separator: str, spans: list[tuple[int, int]]) -> None:
    assert split_steps(text, separator) == [Step(start, end, text[start:end]) for start, end in spans]


@given(st.text(alphabet="ab \n\t\u00a0🎲\u0301", max_size=30), st.text(alphabet="a \n", min_size=1, max_size=3))
def test_steps_are_the_stripped_pieces_in_order(text: str, separator: str) -> None:
    steps = split_steps(text, separator)
    assert [step.text for step in steps] == [piece.strip() for piece in text.split(separator) if piece.strip()]
    assert [text[step.start : step.end] for step in steps] == [step.text for step in steps]
    bounds = [bound for step in steps for bound in (step.start, step.end)]
    assert bounds == sorted(bounds) and all(step.start < step.end for step in steps)


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(ValueError, match="empty separator"):
        split_steps("a", "")
