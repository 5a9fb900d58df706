"""The five reward functions of mlx-lm-lora 5.10 under their own names, with its scores, quirks included.

They are here so that its users' configs give the same numbers. For new configs ours are harder to cheat: `exact` or `number`,
`integer`, `think_answer_strict`, `think_answer_soft`, `tag_count`.
"""

from __future__ import annotations

import re

_STRICT = re.compile(r"<think> .*? </think> <answer> .*? </answer>")


def r1_extract_xml_answer(text: str) -> str:
    """What follows the last <answer>, up to the first </answer> after it; without tags the whole text. Stripped."""
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def r1_accuracy_reward_func(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """2 where the answer is the reference, character for character, else 0."""
    answers = [r1_extract_xml_answer(text) for text in completions]
    return [2.0 if found and found == reference else 0.0 for found, reference in zip(answers, answer, strict=True)]


def r1_int_reward_func(prompts: list[str], completions: list[str]) -> list[float | None]:
    """0.5 where the answer has nothing but digits, else 0. Digits of any script count; a sign does not."""
    return [0.5 if r1_extract_xml_answer(text).isdigit() else 0.0 for text in completions]


def r1_strict_format_reward_func(prompts: list[str], completions: list[str]) -> list[float | None]:
    """0.5 where `<think> ... </think> <answer> ... </answer>` occurs on one line with these very spaces, else 0."""
    return [0.5 if _STRICT.search(text) else 0.0 for text in completions]


def r1_soft_format_reward_func(prompts: list[str], completions: list[str]) -> list[float | None]:
    """0.5 where the first <think>, </think>, <answer>, </answer> come in this order with text in both pairs, else 0."""
    return [0.5 if _has_soft_format(text) else 0.0 for text in completions]


def r1_count_xml(prompts: list[str], completions: list[str]) -> list[float | None]:
    """0.125 for each of <think> with a line break, </think>, <answer>, </answer> that occurs once; 0.001 less for each character
    after the last </answer> (of the whole text, where there is none); at least 0."""
    return [_counted(text) for text in completions]


def _has_soft_format(text: str) -> bool:
    places = [text.find(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if places[0] < 0 or not places[0] < places[1] < places[2] < places[3]:
        return False
    thoughts, answer = text[places[0] + len("<think>") : places[1]], text[places[2] + len("<answer>") : places[3]]
    return bool(thoughts.strip() and answer.strip())


def _counted(text: str) -> float:
    if not text:
        return 0.0
    tags = sum(text.count(tag) == 1 for tag in ("<think>\n", "</think>", "<answer>", "</answer>"))
    return max(0.0, 0.125 * tags - 0.001 * len(text.split("</answer>")[-1]))
