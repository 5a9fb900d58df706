"""The layout of a reasoned reply: thoughts in one pair of tags, then the answer in another."""

from __future__ import annotations

import re

_LAYOUT = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_SOFT = re.compile(r"<think>(.*)</think>.*<answer>(.*)</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def has_format(completion: str, prompt: str = "") -> bool:
    """Whether the completion is exactly one <think>...</think>, then exactly one <answer>...</answer>, and white space.

    Some chat templates end the prompt with the opening <think>: then the completion starts after it.
    """
    text = opened(completion, prompt)
    return _each_once(text) and _LAYOUT.fullmatch(text) is not None


def has_filled_format(completion: str, prompt: str = "") -> bool:
    """has_format, and thoughts and answer each hold a letter or a digit."""
    text = opened(completion, prompt)
    return _each_once(text) and _both_filled(_LAYOUT.fullmatch(text))


def has_soft_format(completion: str, prompt: str = "") -> bool:
    """Whether one <think>...</think> comes before one <answer>...</answer>, each with a letter or a digit in it.

    Other text may stand before, between and after them.
    """
    text = opened(completion, prompt)
    return _each_once(text) and _both_filled(_SOFT.search(text))


def opened(completion: str, prompt: str) -> str:
    """The completion with the <think> that its prompt ends with, if it does."""
    return "<think>" + completion if prompt.rstrip().endswith("<think>") else completion


def tag_share(text: str, names: list[str]) -> float:
    """Share of the tags <name> and </name> that occur exactly once; a pair that encloses no letter or digit counts for none."""
    good = 0
    for name in names:
        first, last = f"<{name}>", f"</{name}>"
        once = [text.count(tag) == 1 for tag in (first, last)]
        encloses = not all(once) or filled(text[text.find(first) + len(first) : max(text.find(last), 0)])
        good += sum(once) if encloses else 0
    return good / (2 * len(names))


def filled(text: str) -> bool:
    """Whether there is a letter or a digit."""
    return any(character.isalnum() for character in text)


def _each_once(text: str) -> bool:
    return all(text.count(tag) == 1 for tag in TAGS)


def _both_filled(match: re.Match[str] | None) -> bool:
    return match is not None and all(filled(part) for part in match.groups())
