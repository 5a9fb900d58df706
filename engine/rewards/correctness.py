"""Rewards that compare the answer with a reference. The answer is what is in the last <answer>...</answer>, without one what
follows the last </think>, else the whole completion.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from engine.rewards.answers import extract_answer, is_integer, same_number, same_text
from engine.rewards.choices import labelled, named, reference_letter

_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)


def answer(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer is the reference, word for word (case, white space and a final period aside), else 0."""
    return [None if r is None else float(same_text(c, r)) for c, r in zip(completions, answer, strict=True)]


def exact(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer is the reference, character for character but for white space around it, else 0."""
    pairs = zip(completions, answer, strict=True)
    return [None if r is None else float(extract_answer(c) == extract_answer(r)) for c, r in pairs]


def number(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer's last number equals the reference's, else 0; not applicable where the reference has no number."""
    found = [None if r is None else same_number(c, r) for c, r in zip(completions, answer, strict=True)]
    return [None if same is None else float(same) for same in found]


def integer(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where the answer is an integer and nothing else (-12, +7, 1,000; digits 0 to 9), right or wrong; else 0."""
    return [float(is_integer(extract_answer(completion))) for completion in completions]


def multiple_choice(
    prompts: list[str], completions: list[str], answer: list[str | None], choices: list[Any] | None = None
) -> list[float | None]:
    """1 where the answer names the reference's choice and no other, else 0; an answer that names two is 0.

    The answer is what is boxed, else in <answer>, else the last line (after "the answer is", where it says so). A choice is
    named by a capital letter that stands alone, or, where there is none, by its text. `answer` is the letter, or the text of
    one of `choices`: a list of texts (A, B, ...) or {letter: text}. Not applicable where the reference is neither.
    """
    scores: list[float | None] = []
    for completion, reference, row in zip(completions, answer, choices or [None] * len(completions), strict=True):
        options = {} if row is None else labelled(row)
        wanted = None if reference is None else reference_letter(extract_answer(reference), options)
        scores.append(None if wanted is None else float(named(completion, options) == {wanted}))
    return scores


def regex(prompts: list[str], completions: list[str], pattern: list[str | None]) -> list[float | None]:
    """1 where the row's `pattern` matches the whole answer, else 0; not applicable to rows without one.

    Python's regular expressions; begin with .* to allow text before. An answer with digits other than 0 to 9 is 0, unless
    the pattern itself has characters beyond ASCII. A pattern that is none fails the call.
    """
    return [None if p is None else float(_matches(p, extract_answer(c))) for c, p in zip(completions, pattern, strict=True)]


def json_schema(prompts: list[str], completions: list[str], schema: list[Any]) -> list[float | None]:
    """1 where the answer is one JSON value that the row's `schema` allows, else 0; not applicable to rows without one.

    A ```json fence around the whole answer is taken off; text beside the JSON, NaN and a key given twice are 0. `schema` is a
    mapping or its JSON text; `format` is not checked, and nothing is fetched for `$ref`. A schema that is none fails the call.
    """
    pairs = zip(completions, schema, strict=True)
    return [None if s is None else float(_is_allowed(extract_answer(c), as_text(s))) for c, s in pairs]


def _matches(pattern: str, text: str) -> bool:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern[:80]!r} is not a regular expression: {error}") from error
    odd_digit = any(character.isdigit() and not character.isascii() for character in text)
    return compiled.fullmatch(text) is not None and not (odd_digit and pattern.isascii())


def as_text(schema: Any) -> str:
    """A schema as JSON text."""
    return schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=256)
def validator(schema: str) -> Any:
    """A checked validator, which fetches nothing. ValueError for a text that is no schema."""
    validators: Any = import_module("jsonschema").validators
    exceptions: Any = import_module("jsonschema").exceptions
    registry: Any = import_module("referencing").Registry()
    try:
        tree = json.loads(schema)
        kind = validators.validator_for(tree, default=validators.Draft202012Validator)
        kind.check_schema(tree)
    except (ValueError, exceptions.SchemaError) as error:
        raise ValueError(f"schema {schema[:80]!r} is not a JSON schema: {str(error).splitlines()[0]}") from error
    return kind(tree, registry=registry)


def _is_allowed(text: str, schema: str) -> bool:
    checked = validator(schema)
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        return bool(checked.is_valid(value))
    except (ValueError, RecursionError):  # no JSON, or nested a thousand deep
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
