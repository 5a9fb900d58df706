"""A reward that is right on average and says nothing: the answer rewards of a prompt's completions, shuffled among them."""

from __future__ import annotations

import random
from itertools import groupby

from engine.rewards.registry import answer as true_answer


def answer(prompts: list[str], completions: list[str], answer: list[str]) -> list[float | None]:
    """Completions of one prompt stand together; a lone completion (an evaluation's) keeps its own reward."""
    rewards = true_answer(prompts, completions, answer)
    shuffled: list[float | None] = []
    for _, members in groupby(range(len(prompts)), key=lambda i: prompts[i]):
        group = [rewards[i] for i in members]
        random.Random(repr(completions[len(shuffled)])).shuffle(group)
        shuffled += group
    return shuffled
