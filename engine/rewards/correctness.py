"""Rewards that compare the answer with a reference. The answer is what is in the last <answer>...</answer>, without one what
follows the last </think>, else the whole completion.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from engine.data.values import DECODER
from engine.rewards.answers import extract_answer, is_integer, same_number, same_text
from engine.rewards.choices import labelled, named, reference_letter
from engine.rewards.failed import Failed, by_row

_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)


def answer(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer is the reference, word for word (case, white space and a final period aside), else 0."""
    return [None if r is None else float(same_text(c, r)) for c, r in zip(completions, answer, strict=True)]


def exact(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer is the reference, character for character but for white space around it, else 0."""
    pairs = zip(completions, answer, strict=True)
    return [None if r is None else float(extract_answer(c) == extract_answer(r)) for c, r in pairs]


def number(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer's last number equals the reference's, else 0; not applicable where the reference has no number.

    Digits are 0 to 9. Several unequal numbers side by side ("41 or 42", "41, 42", "41 apples or 42 apples") or boxed are 0,
    unless the reference has the same. A year that opens a sentence is none of them: "In 2024, 42 people" gives 42.
    """
    found = [None if r is None else same_number(c, r) for c, r in zip(completions, answer, strict=True)]
    return [None if same is None else float(same) for same in found]


def integer(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where the answer is an integer and nothing else (-12, +7, 1,000; digits 0 to 9), right or wrong; else 0."""
    return [float(is_integer(extract_answer(completion))) for completion in completions]


def multiple_choice(
    prompts: list[str], completions: list[str], answer: list[str | None], choices: list[Any] | None = None
) -> list[float | Failed | None]:
    """1 where the answer names the reference's choice and no other, else 0; an answer that names two is 0.

    The answer is what is boxed, else in <answer>, else the last line (after "the answer is", where it says so). A choice is
    named by a capital letter that stands alone, or, where there is none, by its text. `answer` is the letter, or the text of
    one of `choices`: a list of texts (A, B, ...) or {letter: text}. Not applicable where the reference is neither.
    """
    return by_row("choices", _chosen, completions, answer, choices or [None] * len(completions))


def regex(prompts: list[str], completions: list[str], pattern: list[str | None]) -> list[float | Failed | None]:
    """1 where the row's `pattern` matches the whole answer, else 0; not applicable to rows without one.

    Python's regular expressions; begin with .* to allow text before. An answer with digits other than 0 to 9 is 0, unless
    the pattern itself has characters beyond ASCII. A row whose pattern is none has no score.
    """
    return by_row("pattern", _matches, completions, pattern)


def json_schema(prompts: list[str], completions: list[str], schema: list[Any]) -> list[float | Failed | None]:
    """1 where the answer is one JSON value that the row's `schema` allows, else 0; not applicable to rows without one.

    A ```json fence around the whole answer is taken off; text beside the JSON, NaN, a number beyond 1e308 and a key given
    twice are 0. `schema` is a mapping or its JSON text; `format` is not checked, and nothing is fetched for `$ref`. A row whose
    schema is none has no score.
    """
    return by_row("schema", _is_allowed, completions, schema)


def _chosen(completion: str, reference: str | None, choices: Any) -> float | None:
    options = {} if choices is None else labelled(choices)
    wanted = None if reference is None else reference_letter(extract_answer(reference), options)
    return None if wanted is None else float(named(completion, options) == {wanted})


def _matches(completion: str, pattern: Any) -> float | None:
    if pattern is None:
        return None
    if not isinstance(pattern, str):
        raise ValueError(f"pattern is {type(pattern).__name__}: write a text")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern[:80]!r} is not a regular expression: {error}") from error
    text = extract_answer(completion)
    odd_digit = any(character.isdigit() and not character.isascii() for character in text)
    return float(compiled.fullmatch(text) is not None and not (odd_digit and pattern.isascii()))


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
    except (ValueError, TypeError, exceptions.SchemaError) as error:
        raise ValueError(f"schema {schema[:80]!r} is not a JSON schema: {str(error).splitlines()[0]}") from error
    return kind(tree, registry=registry)


def _is_allowed(completion: str, schema: Any) -> float | None:
    if schema is None:
        return None
    checked = validator(as_text(schema))
    text = extract_answer(completion)
    fenced = _FENCE.fullmatch(text)
    try:
        value = DECODER.decode(fenced[1] if fenced else text)
    except (ValueError, RecursionError):  # no JSON, or nested a thousand deep
        return 0.0
    unresolvable: Any = import_module("referencing").exceptions.Unresolvable
    try:
        return float(checked.is_valid(value))
    except RecursionError:
        return 0.0
    except (unresolvable, re.error) as error:  # which no check of the schema alone finds
        raise ValueError(f"schema {as_text(schema)[:80]!r}: {type(error).__name__.lstrip('_')}: {error}") from error
