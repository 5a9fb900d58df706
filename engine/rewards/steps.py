"""Parts a completion into its reasoning steps. Users' reward files may import this: it needs nothing but Python.

Left out: patterns. A separator is plain text, and stands for itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning step: `completion[start:end]`, indices in characters (code points), as Python's strings count."""

    start: int  # index of its first character that is not white space
    end: int  # exclusive: one more than the index of its last character that is not white space
    text: str


def split_steps(text: str, separator: str) -> list[Step]:
    """The pieces of `text` between separators, in order, without the white space around them; blank pieces are no steps.

    * Without a separator in it the whole text is one step; an empty or blank text has none.
    * Separators at the ends, or several in a row, make no empty steps. A separator belongs to no step.
    * A separator of several characters is looked for from the left and does not overlap: "a\\n\\n\\nb" is parted by
      "\\n\\n" into a and b, whose own line break at the start is white space.
    * White space is what `str.strip` removes, no-break spaces and "\\r" among it; zero-width spaces and combining marks
      are characters of a step.

    ValueError for an empty separator.
    """
    steps: list[Step] = []
    position = 0
    for piece in text.split(separator):
        body = piece.strip()
        if body:
            start = position + len(piece) - len(piece.lstrip())
            steps.append(Step(start, start + len(body), body))
        position += len(piece) + len(separator)
    return steps
