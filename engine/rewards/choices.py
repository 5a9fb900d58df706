"""Finds which choices of a multiple-choice question an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engine.rewards.answers import boxed, extract_answer, normalise

_SAID = re.compile(r"\b(?:answer|option|choice)s?\b(?:\s+(?:is|are|would\s+be|must\s+be))?\s*[:=]?", re.IGNORECASE)
# A letter that stands alone: C, (C), C., **C**, \text{C}. In "A dog" and "I think" it is a word; in "A or B" a letter.
_LETTER = re.compile(r"(?<![^\W_])(?<!['’])(?P<letter>[A-Z])(?![^\W_])(?!['’])(?!(?<=[AI])\s+(?!(?:and|n?or)\b)[a-z]{2,})")
_WHOLE = re.compile(r"\W*([A-Za-z])\W*")


def labelled(choices: object) -> dict[str, str]:
    """Letter -> text of a row's `choices`: a list gets A, B, C...; a mapping has its own letters. ValueError for else."""
    if isinstance(choices, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in choices.items()}
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        return {chr(ord("A") + place): str(text) for place, text in enumerate(choices)}
    raise ValueError(f"choices is {type(choices).__name__}: write a list of texts, or {{letter: text}}")


def reference_letter(reference: str, choices: Mapping[str, str]) -> str | None:
    """The letter that a reference means: itself, (C), C), C. text, or the text of a choice; None for anything else."""
    letter = _alone(reference, choices)
    if letter:
        return letter
    same = [letter for letter, text in choices.items() if normalise(text) == normalise(reference)]
    if len(same) == 1:
        return same[0]
    led = re.match(r"\(?([A-Z])[).:]", reference.strip())
    return led[1] if led else None


def named(completion: str, choices: Mapping[str, str]) -> set[str]:
    """The letters of all choices that the answer names, by letter or, where it has no letter, by a choice's whole text.

    The answer is what is boxed, else in <answer>, else the last line; of a line that says "the answer is", what follows.
    """
    region = extract_answer(completion)
    in_boxes = boxed(region)
    if in_boxes:
        region = " ; ".join(in_boxes)
    elif "<answer>" not in completion:
        region = next((line for line in reversed(region.splitlines()) if line.strip()), "")
    region = _SAID.split(region)[-1]
    letter = _alone(region, choices)
    if letter:
        return {letter}
    known = set(choices) or {chr(ord("A") + place) for place in range(10)}
    letters = {match["letter"] for match in _LETTER.finditer(region)} & known
    if letters:
        return letters
    said = f" {normalise(region)} "
    texts = {letter: normalise(text) for letter, text in choices.items() if normalise(text)}
    return {letter for letter, text in texts.items() if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said)}


def _alone(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of a text that is one letter; None for other texts, and for a letter that is no label, or a choice's own text."""
    whole = _WHOLE.fullmatch(text)
    if whole is None or any(text.strip() == choice.strip() for choice in choices.values()):
        return None
    letter = whole[1].upper()
    return letter if not choices or letter in choices else None
