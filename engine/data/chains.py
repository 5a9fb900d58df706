"""Reasoning chains: problem, reasoning_steps, solution, and what marks their steps or describes their domain.

Supervised training imitates the chain in the layout that the `format` reward asks for; rewards compare with its final answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.data.fields import Unusable, required_text
from engine.rewards.answers import boxed
from engine.rewards.format import TAGS
from engine.rewards.marks import MarkError, step_marks
from engine.rewards.texts import TextsError, step_texts, texts

_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_SAID = re.compile(r"[^\n]*\banswer(?:\s+is\s*:?|\s*[:=])\s*(\S[^\n]*)$", re.IGNORECASE)
_OPENING = "<think>\n"
_FOR_THE_REWARD = ("required_terms", "terms", "required_elements", "elements")


def steps(fields: Mapping[str, Any]) -> list[str]:
    """`reasoning_steps`, a list of strings or one string with a step on each line, as a list. Raises Unusable."""
    try:
        found = step_texts(fields["reasoning_steps"])
    except TextsError as error:
        raise Unusable("wrong-type", error.field, error.reason, error.remedy) from error
    for place, step in enumerate(found):
        if not step.strip():
            raise Unusable("empty", f"reasoning_steps[{place}]", "the step has no text", "write it, or remove it")
    if not found:
        raise Unusable("empty", "reasoning_steps", "there is no step", "add steps, or use the columns prompt and answer")
    for step in found:
        _without_tags(step, "reasoning_steps")
    return [step.strip() for step in found]


def check_marks(fields: Mapping[str, Any], chain: Sequence[str]) -> list[float]:
    """Each step's mark, 0 to 1, by `sparse_indicators`; all 0 without them. Raises Unusable where they do not fit the steps."""
    try:
        return step_marks(chain, fields.get("sparse_indicators"))
    except MarkError as error:
        raise Unusable(error.kind, error.field, error.reason, error.remedy) from error


def render(chain: Sequence[str], solution: str, answer: str) -> str:
    """The chain as a completion: <think>, a step on each line, </think>, and the final answer in <answer>...</answer>.

    A solution that says more than the final answer ends the thinking: so the target earns what a right completion earns.
    """
    _without_tags(answer, "answer")
    tagged = _ANSWER.fullmatch(solution)
    if tagged is None:
        _without_tags(solution, "solution")
    said = "" if tagged is not None or answer.strip() == solution.strip() else f"{solution.strip()}\n"
    return f"{_thoughts(chain)[0]}{said}</think>\n<answer>{answer.strip()}</answer>"


def marked_spans(fields: Mapping[str, Any]) -> tuple[tuple[int, int, float], ...]:
    """Where `render` writes the steps whose mark is above 0: (start, end, mark), [start, end) in characters of the completion, in
    the steps' order. Raises Unusable."""
    if fields.get("sparse_indicators") is None:
        return ()
    chain = steps(fields)
    spans = zip(_thoughts(chain)[1], check_marks(fields, chain), strict=True)
    return tuple((start, end, mark) for (start, end), mark in spans if mark)


def _thoughts(chain: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """How the completion begins, a step on each line, and the characters [start, end) that each step has in it."""
    text, spans = _OPENING, []
    for step in chain:
        spans.append((len(text), len(text) + len(step)))
        text += f"{step}\n"
    return text, spans


def final_answer(solution: str) -> str:
    r"""What the solution comes to: inside <answer>, after the last ####, in the last \boxed{}, behind "answer is" or "answer:"
    in its last line, else all of it."""
    tagged = _ANSWER.fullmatch(solution)
    if tagged is not None:
        return tagged[1].strip()
    _, mark, tail = solution.rpartition("####")
    if mark and tail.strip():
        return tail.strip()
    inside = [text for text in boxed(solution) if text]
    if inside:
        return inside[-1]
    said = _SAID.search(solution.strip())
    return (said[1].rstrip() if said else solution.strip()).removesuffix(".").strip() or solution.strip()


def domain_prompt(fields: Mapping[str, Any]) -> str:
    """The system text that `domain`, `expertise_level` and `domain_context` make; empty where there is none. Raises Unusable.

    The terms and elements that a reply must have are for the reward alone: a prompt that lists them would hand them out.
    """
    lines = []
    if fields.get("domain") is not None:
        lines.append(f"You answer questions of this field: {required_text(fields, 'domain').strip()}.")
    if fields.get("expertise_level") is not None:
        lines.append(f"Answer at this level: {required_text(fields, 'expertise_level').strip()}.")
    context = fields.get("domain_context")
    if isinstance(context, list):
        _texts(context, "domain_context")  # required terms
    elif isinstance(context, dict):
        for name, value in context.items():
            found = [] if value is None else _texts(value, f"domain_context.{name}")
            if found and name not in _FOR_THE_REWARD:
                lines.append(f"{name.replace('_', ' ')}: {', '.join(found)}")
    elif context is not None:
        lines.append(required_text(fields, "domain_context").strip())
    return "\n".join(lines)


def _texts(value: Any, field: str) -> list[str]:
    try:
        return texts(value, field)
    except TextsError as error:
        raise Unusable("wrong-type", error.field, error.reason, error.remedy) from error


def _without_tags(text: str, field: str) -> None:
    tag = next((tag for tag in TAGS if tag in text), None)
    if tag is not None:
        raise Unusable("tags-in-text", field, f"{field!r} holds {tag}", "remove the tag: the layout is written around the text")
