"""Which tokens of a reply belong to its decisive steps, and what they weigh in the loss of supervised training.

A step's place is known where the completion was written (engine/data/chains.py), but a chat template may trim the completion,
part it or write it anew. So the template writes it a second time, with signs around the marked steps: where the signs come out
the steps are, whatever other text is like theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.errors import InputError
from engine.rewards.marks import mark_weight

Mark = tuple[int, int, float]  # (start, end, mark): characters [start, end), mark above 0, up to 1
REMEDY = "set data.decisive_weight: 1 to learn all tokens alike"
_SIGNS = range(0xF0000, 0x110000)  # planes 15 and 16, private use: no template or tokenizer knows them


def signed(completion: str, marks: Sequence[Mark], written: str) -> tuple[str, Mapping[str, float]]:
    """The completion with one character before each marked step and one behind it, and what mark each of these begins: one sign
    for each value, 0 for the sign that ends a step. `marks` are ascending and apart; no sign is in either text."""
    taken = {*completion, *written}
    free = (sign for code in _SIGNS if (sign := chr(code)) not in taken)
    signs = dict(zip(dict.fromkeys([0.0, *(mark for _, _, mark in marks)]), free, strict=False))
    pieces, done = [], 0
    for start, end, mark in marks:
        pieces += [completion[done:start], signs[mark], completion[start:end], signs[0.0]]
        done = end
    return "".join([*pieces, completion[done:]]), {sign: mark for mark, sign in signs.items()}


def marked_places(with_signs: str, signs: Mapping[str, float], written: str) -> list[Mark]:
    """Where the marked steps are in `written`, from the same text with signs; a step that the template leaves out is nowhere.

    InputError where the two differ in more than the signs: then nothing is known of the places.
    """
    places: list[Mark] = []
    kept: list[str] = []
    start, mark = 0, 0.0
    for character in with_signs:
        if character not in signs:
            kept.append(character)
            continue
        if mark:
            places.append((start, len(kept), mark))
        start, mark = len(kept), signs[character]
    if "".join(kept) != written:
        what = "the chat template changes a reply with marked steps: which tokens are theirs cannot be told"
        raise InputError(what, where="data.decisive_weight", remedy=REMEDY)
    return places


def token_weights(length: int, offsets: Sequence[tuple[int, int]], places: Sequence[Mark], decisive_weight: float) -> list[float]:
    """The weight of each token of a text of `length` characters: 1 + (decisive_weight - 1) x the largest mark among the steps
    that the token has a character of; 1 where it has none.

    A token's characters are those from the end of the token before it, or from its own start where that comes first, to its own
    end: tokenizers may leave blanks around a word out of its offsets. Each part of a character that is several tokens has it.
    """
    marks = [0.0] * length
    for start, end, mark in places:
        marks[start:end] = [mark] * (end - start)
    weights: list[float] = []
    before = 0
    for start, end in offsets:
        first = min(start, before)
        weights.append(mark_weight(max(marks[first : max(end, first + 1)], default=0.0), decisive_weight))
        before = end
    return weights
