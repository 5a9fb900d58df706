"""Rewards for how long a completion is, whatever it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InputError
from engine.rewards.failed import Failed, by_row
from engine.rewards.words import words as words_of

CACHE_SHARE = 0.2  # of max_tokens: 4,096 of 20,480 in DAPO


def length_target(
    prompts: list[str],
    completions: list[str],
    target_length: list[float | None] | None = None,
    efficiency_markers: list[Any] | None = None,
    completion_ids: list[list[int] | None] | None = None,
    *,
    words: float | None = None,
    characters: float | None = None,
    tokens: float | None = None,
) -> list[float | Failed | None]:
    """1 at the row's target number of words, falling in a straight line to 0 at no words and at twice the target.

    max(0, 1 - |words - target| / target), over the whole completion, thoughts and all. The target is `target_length`, else
    `efficiency_markers`: a number, or {"target_length": number} (target_words, words and length do as well), else the option's;
    with the option `characters` or `tokens` that is what the rows' own targets count, too. Not applicable to rows without one;
    data with neither column fails the call, unless an option gives a target.
    """
    options = {"words": words, "characters": characters, "tokens": tokens}
    unit, fallback = next(((unit, value) for unit, value in options.items() if value is not None), ("words", None))
    if target_length is None and efficiency_markers is None and fallback is None:
        raise LookupError("length_target needs the column target_length or efficiency_markers, and the data has neither")
    missing: list[Any] = [None] * len(completions)

    def score(length: int | None, own: Any, markers: Any) -> float | None:
        target = _target(own if own is not None else markers, unit)
        target = fallback if target is None else target
        return None if target is None or length is None else max(0.0, 1 - abs(length - target) / target)

    lengths = _lengths(unit, completions, completion_ids)
    return by_row("target length", score, lengths, target_length or missing, efficiency_markers or missing)


def soft_overlong(
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int] | None] | None = None,
    *,
    max_tokens: int,
    cache: int | None = None,
) -> list[float | None]:
    """0 up to max_tokens - cache tokens, falling in a straight line to -1 at max_tokens, and -1 beyond.

    DAPO, arXiv 2503.14476, Eq. 13; what TRL's get_soft_overlong_punishment returns. Inside the objective the same is
    objective.soft_overlong, a share of the limit: both at once would punish twice and are refused. A run gives the lengths;
    where nothing is tokenized it is not applicable.
    """
    width = CACHE_SHARE * max_tokens if cache is None else cache
    lengths = _lengths("tokens", completions, completion_ids)
    return [None if n is None else max(-1.0, min(0.0, (max_tokens - width - n) / width)) for n in lengths]


def check_target(options: Mapping[str, Any]) -> None:
    """InputError for a target in two units."""
    given = [name for name in ("words", "characters", "tokens") if name in options]
    if len(given) > 1:
        remedy = f"keep one of {' and '.join(given)}"
        raise InputError("a target has one unit", where="rewards: options of length_target", remedy=remedy)


def check_overlong(options: Mapping[str, Any]) -> None:
    """InputError where the limit is not known, or the fall would begin below 0 tokens."""
    where = "rewards: options of soft_overlong"
    if "max_tokens" not in options:
        remedy = "give it; a run takes its sampling.max_completion_tokens"
        raise InputError("soft_overlong needs the option max_tokens", where=where, remedy=remedy)
    if options.get("cache", 1) > options["max_tokens"]:
        what = f"cache is {options['cache']}, more than max_tokens, {options['max_tokens']}"
        raise InputError(what, where=where, remedy="lower it; a fifth of max_tokens is usual")


def _target(value: Any, unit: str) -> float | None:
    """How long a row wants it; None where it does not say."""
    if isinstance(value, Mapping):
        keys = ("target_length", f"target_{unit}", unit, "length")
        value = next((value[key] for key in keys if value.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{value!r} is not a target length: write a number of {unit} above 0")
    return float(value)


def _lengths(unit: str, completions: Sequence[str], ids: Sequence[Sequence[int] | None] | None) -> Sequence[int | None]:
    if unit == "tokens":
        return [None if own is None else len(own) for own in ids or [None] * len(completions)]
    return [len(words_of(text)) if unit == "words" else len(text.strip()) for text in completions]
