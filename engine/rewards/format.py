"""The layout of a reasoned reply: thoughts in one pair of tags, then the answer in another, and nothing else."""

from __future__ import annotations

import re

_LAYOUT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def has_format(completion: str, prompt: str = "") -> bool:
    """Whether the completion is exactly one <think>...</think>, then exactly one <answer>...</answer>, and white space.

    Some chat templates end the prompt with the opening <think>: then the completion starts after it.
    """
    text = "<think>" + completion if prompt.rstrip().endswith("<think>") else completion
    return all(text.count(tag) == 1 for tag in _TAGS) and _LAYOUT.fullmatch(text) is not None
