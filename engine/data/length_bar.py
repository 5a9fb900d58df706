"""The distribution of token lengths as one line of signs."""

from __future__ import annotations

from engine.data.report import TokenLengths
from engine.plot import Glyphs, sparkline


def length_bar(found: TokenLengths, glyphs: Glyphs) -> str:
    """A sign for each bin, from the shortest rows to the longest, blank where there are none; between those within the limit and
    those over it, where there are such, an upright line. Empty where all rows are as long."""
    if len(found.bins) < 2:
        return ""
    counts = [float(count) if count else float("nan") for count in found.bins]
    signs = sparkline([*counts, 0.0], len(counts) + 1, "ascii" if glyphs == "ascii" else "block")[:-1]  # heights begin at 0
    if not found.over_limit:
        return signs
    within = max(0, found.limit - found.min + 1) * len(signs) // (found.max - found.min + 1)
    return f"{signs[:within]}{'|' if glyphs == 'ascii' else '│'}{signs[within:]}"
