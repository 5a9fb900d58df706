"""Rewards for reasoning chains: which of the reference's steps a completion takes, and what its domain asks for.

Both look for values and words; neither understands them. What is mentioned must stand in a sentence of its own size, and a
completion much longer than the reference is scaled down, so that listing numbers or terms does not pay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from engine.rewards.answers import extract_answer, numbers
from engine.rewards.failed import Failed, by_row
from engine.rewards.marks import mark_weight, step_marks
from engine.rewards.texts import step_texts, texts
from engine.rewards.words import sentences, words

_RATIO, _SENTENCE_SLACK, _TEXT_SLACK = 4, 12, 40  # allowed: 4 x the reference's words, and so many more
_COMMON_WORDS = """about after again all also and any are because been before both but can could does each for from had has have
her his how into its let may more most must not now our out over same she should since some such than that the their them then
there these they this those thus under use used using was were what when where which while who will with would you your
step first second third next finally therefore hence gives get got equals equal"""
_COMMON = frozenset(_COMMON_WORDS.split())
_ASKED = ("required_terms", "units", "required_elements")
_ALIASES = {"terms": "required_terms", "elements": "required_elements", "unit": "units"}
_TAG = re.compile(r"</?[A-Za-z_]+>")
_UNIT_END = r"(?![^\W\d_]|\s*[/^·*])"  # mg is not mg/kg


@dataclass(frozen=True, slots=True)
class _Key:
    """What a sentence must hold to take a step."""

    result: Fraction | None
    others: frozenset[Fraction]
    terms: frozenset[str]
    words: int
    weight: float


def step_coverage(
    prompts: list[str],
    completions: list[str],
    reasoning_steps: list[Any],
    sparse_indicators: list[Any] | None = None,
) -> list[float | Failed | None]:
    """The weighted share, 0 to 1, of the reference's steps that the completion takes.

    A step is taken where one sentence or line has its last number and at least half of its others; of a step without numbers,
    at least half of its telling words that the prompt does not have. A step weighs 1 + 2 x its mark in `sparse_indicators`, a
    number from 0 to 1 for each step (or texts: steps that contain one weigh 3); 1 without marks. A sentence of more than 4 x
    the step's words + 12 takes none; a completion of more than 4 x the steps' words + 40 is scaled by that over its own.
    `reasoning_steps` is a list of texts, or one text with a step on each line. Not applicable to rows without steps.
    """
    marks = sparse_indicators or [None] * len(completions)
    return by_row("reasoning chain", _coverage, prompts, completions, reasoning_steps, marks)


def domain(
    prompts: list[str],
    completions: list[str],
    domain_context: list[Any] | None = None,
    required_terms: list[Any] | None = None,
    units: list[Any] | None = None,
    required_elements: list[Any] | None = None,
) -> list[float | Failed | None]:
    """The mean, 0 to 1, of what the row asks for: share of required terms said, a right unit, share of required elements said.

    The unit is right where the answer's last number is followed by one of `units`. A term or element is said where it stands
    word for word in a sentence that has half as many words again as the terms or elements in it: a bare list says nothing.
    Each is a text or a list of texts, as a column or by that name in `domain_context`; a `domain_context` that is a list holds
    required terms, one that is a text asks for nothing. Not applicable to rows that ask for nothing; data with none of these
    columns fails the call.
    """
    columns = {"required_terms": required_terms, "units": units, "required_elements": required_elements}
    if domain_context is None and not any(column is not None for column in columns.values()):
        raise LookupError("domain needs the column domain_context, required_terms, units or required_elements; the data has none")

    def score(row: int, completion: str) -> float | None:
        asked = _asked(domain_context[row] if domain_context else None)
        asked |= {name: _texts(column[row], name) for name, column in columns.items() if column and column[row] is not None}
        parts = [_met(name, found, completion) for name, found in asked.items() if found]
        return sum(parts) / len(parts) if parts else None

    return by_row("domain", score, range(len(completions)), completions)


def said_steps(steps: Any) -> list[str]:
    """The steps of a row that have text. ValueError for what is neither a text nor a list of texts."""
    return [text for text in step_texts(steps) if text.strip()]


def step_weights(steps: Sequence[str], indicators: Any) -> list[float]:
    """Each step's weight, 1 to 3, by `sparse_indicators`: a mark from 0 to 1 for each step (true and false do as well), or texts
    that a decisive step contains. All 1 without them. ValueError for anything else, and for texts that no step contains."""
    return [mark_weight(mark) for mark in step_marks(steps, indicators)]


def _coverage(prompt: str, completion: str, given: Any, indicators: Any) -> float | None:
    if given is None:
        return None
    steps = said_steps(given)
    asked = frozenset(words(prompt))
    keys = [_key(step, weight, asked) for step, weight in zip(steps, step_weights(steps, indicators), strict=True)]
    keys = [key for key in keys if key.result is not None or key.terms]
    if not keys:
        return None
    said = [(numbers(sentence), frozenset(words(sentence)), len(words(sentence))) for sentence in sentences(completion)]
    taken = sum(key.weight for key in keys if any(_takes(key, *sentence) for sentence in said))
    return taken / sum(key.weight for key in keys) * _scale(words(completion), sum(key.words for key in keys))


def _key(step: str, weight: float, asked: frozenset[str]) -> _Key:
    found = numbers(step)
    said = words(step)
    telling = frozenset(word for word in said if len(word) > 2 and word not in _COMMON and not word[0].isdigit())
    terms = (telling - asked or telling) if not found else frozenset()
    result = found[-1] if found else None
    return _Key(result, frozenset(found) - {result}, terms, len(said), weight)


def _takes(key: _Key, values: list[Fraction], said: frozenset[str], length: int) -> bool:
    if length > _RATIO * key.words + _SENTENCE_SLACK:
        return False
    if key.result is None:
        return 2 * len(key.terms & said) >= len(key.terms)
    return key.result in values and 2 * len(key.others & set(values)) >= len(key.others)


def _scale(said: list[str], reference_words: int) -> float:
    return min(1.0, (_RATIO * reference_words + _TEXT_SLACK) / max(1, len(said)))


def _asked(context: Any) -> dict[str, list[str]]:
    if context is None or isinstance(context, str):
        return {}
    if isinstance(context, list):
        return {"required_terms": _texts(context, "domain_context")}
    if not isinstance(context, Mapping):
        raise ValueError(
            f"domain_context is {type(context).__name__}: write a text, or {{required_terms, units, required_elements}}"
        )
    named = {_ALIASES.get(str(key), str(key)): value for key, value in context.items() if value is not None}
    return {name: _texts(named[name], name) for name in _ASKED if name in named}


def _texts(value: Any, name: str) -> list[str]:
    return [text for text in texts(value, name) if text.strip()]


def _met(name: str, wanted: list[str], completion: str) -> float:
    if name == "units":
        return float(_has_unit(extract_answer(completion), wanted))
    phrases = {text: f" {' '.join(words(text))} " for text in wanted}
    said: set[str] = set()
    for piece in sentences(_TAG.sub("\n", completion)):  # a tag is no word, and no sentence goes on over it
        sentence = f" {' '.join(words(piece))} "
        inside = [text for text, phrase in phrases.items() if phrase in sentence]
        if 3 * sum(len(words(text)) for text in inside) <= 2 * len(sentence.split()):
            said.update(inside)
    return len(said) / len(phrases)


def _has_unit(answer: str, units: list[str]) -> bool:
    """Whether the answer's last number is followed by one of the units, as written: 5 mg, 5mg, 5 \\text{ mg}, 5\\,mg."""
    flat = re.sub(r"\^\s*\{\s*(-?\d+)\s*\}", r"^\1", answer)
    bare = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}|\\[,; ]|~|[${}]", lambda match: f" {match[1] or ''}", flat)
    last = max((match.end() for match in re.finditer(r"(?<![\w^])[0-9]+(?:[.,][0-9]+)*", bare)), default=None)
    if last is None:
        return False
    tail = bare[last:].lstrip(" \\")
    return any(re.match(re.escape(unit.strip()) + _UNIT_END, tail) for unit in units)
