"""Options of built-in rewards: what there is to set, and how a value from a config becomes an argument of the function.

An option is a parameter of its function. Most stand in for a column of the data: their value is that of every row which has
none of its own. The others are plain keyword-only parameters, which no column of the data can reach.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import InputError
from engine.rewards import choices, correctness, length, shape

Kind = Literal["text", "texts", "number", "whole", "pattern", "schema", "language", "choices"]
Fills = Literal["", "column", "domain_context"]
Function = Callable[..., list[Any]]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a reward. Its bounds are for numbers."""

    name: str  # in the config, and of the function's parameter
    kind: Kind
    meaning: str
    default: str = "none"  # in words
    least: float | None = None
    most: float | None = None
    above: float | None = None
    # "": a plain parameter. Else what holds a row's own value, which wins: the column of that name, or domain_context.
    fills: Fills = "column"


def _of_domain(name: str, meaning: str) -> Option:
    return Option(name, "texts", f"{meaning}, for rows that name none", fills="domain_context")


def _length(unit: str) -> Option:
    meaning = f"target of rows without one, in {unit}; the rows' own targets then count {unit}, too"
    return Option(unit, "number", meaning, above=0, fills="")


OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "regex": (Option("pattern", "pattern", "regular expression, for rows without one"),),
    "json_schema": (
        Option("schema", "schema", "JSON schema for rows without one: a mapping, JSON text, or a .json file beside the config"),
    ),
    "tag_count": (Option("tags", "texts", "names of the tags, for rows that name none", "[think, answer]"),),
    "language": (Option("language", "language", "code of the language (en, de, zh, ...) of rows that name none"),),
    "length_target": (_length("words"), _length("characters"), _length("tokens")),
    "repetition": (Option("ngram", "whole", "words of a run", str(shape.NGRAM), least=2, most=8, fills=""),),
    "multiple_choice": (Option("choices", "choices", "a list of texts, or {letter: text}, for rows without choices"),),
    "domain": (
        _of_domain("required_terms", "terms to be said"),
        _of_domain("units", "units of which one must follow the answer's last number"),
        _of_domain("required_elements", "elements to be said"),
    ),
    "soft_overlong": (
        Option("max_tokens", "whole", "tokens at which it is -1", "sampling.max_completion_tokens", least=1, fills=""),
        Option("cache", "whole", "tokens below max_tokens over which it falls", "20% of max_tokens", least=1, fills=""),
    ),
}
_TOGETHER: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "length_target": length.check_target,
    "soft_overlong": length.check_overlong,
}


def read(name: str, known: Sequence[Option], options: Mapping[str, Any]) -> dict[str, Any]:
    """The reward's options as its function takes them; null is as good as left out. InputError for an unknown name, with the
    nearest one, a value of a wrong kind, and values that contradict each other."""
    if options and not known:
        remedy = "remove its `options` key; `droid-tune rewards` says which have some"
        raise InputError(f"the reward {name!r} has no options", where="rewards", remedy=remedy)
    names = {option.name: option for option in known}
    where = f"rewards: options of {name}"
    for unknown in (given for given in options if given not in names):
        nearest = difflib.get_close_matches(str(unknown), names, n=1)
        hint = f"did you mean {nearest[0]!r}? It has: " if nearest else "it has: "
        raise InputError(f"{name} has no option {unknown!r}", where=where, remedy=hint + ", ".join(names))
    values = {given: value_of(names[given], value, where) for given, value in options.items() if value is not None}
    if name in _TOGETHER:
        _TOGETHER[name](values)
    return values


def value_of(option: Option, value: Any, where: str) -> Any:
    """The value as the function takes it. InputError, at `where`, for one of a wrong kind or out of bounds."""
    try:
        return _READERS[option.kind](option, value)
    except ValueError as error:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InputError(f"{option.name} is {shown}", where=where, remedy=f"give {error}") from error


def bound(reward: Function, known: Sequence[Option], values: Mapping[str, Any]) -> Function:
    """The function with its options set: a parameter that an option fills is no longer required, plain ones are out of reach."""
    if not known:
        return reward
    given = [option for option in known if option.name in values]
    plain = {option.name: values[option.name] for option in given if not option.fills}

    def call(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        for option in given:
            if option.fills:
                at = option.name if option.fills == "column" else option.fills
                rows = columns.get(at) or [None] * len(completions)
                columns[at] = [_filled(option, values[option.name], own) for own in rows]
        return reward(prompts=prompts, completions=completions, **columns, **plain)

    filled = {option.name for option in given if option.fills == "column"}
    parameters = [
        parameter.replace(
            kind=parameter.KEYWORD_ONLY,
            default=None if parameter.name in filled else parameter.default,
        )
        for parameter in inspect.signature(reward).parameters.values()
        if not is_plain(parameter.name, known)
    ]
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def is_plain(parameter: str, known: Sequence[Option]) -> bool:
    """Whether it is an option that no column of the data can fill."""
    return any(option.name == parameter and not option.fills for option in known)


def _filled(option: Option, value: Any, own: Any) -> Any:
    """A row's own value, else the option's; of what is in a domain_context, both together."""
    if option.fills == "column":
        return value if own is None else own
    if own is None or isinstance(own, str):  # a text asks for nothing
        return {option.name: value}
    if isinstance(own, list):  # is one of required terms
        own = {"required_terms": own}
    if not isinstance(own, Mapping):
        return own  # which the reward will refuse
    return {option.name: value, **{name: theirs for name, theirs in own.items() if theirs is not None}}


# ---- what a value of each kind is; ValueError says what to give instead


def _text(option: Option, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _texts(option: Option, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a text or a list of texts")
    return texts


def _number(option: Option, value: Any) -> float:
    wants_whole = option.kind == "whole"
    is_number = isinstance(value, int if wants_whole else int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not _is_within(option, value):
        raise ValueError(f"a {'whole ' if wants_whole else ''}number{_bounds(option)}")
    number: float = value
    return number


def _is_within(option: Option, value: float) -> bool:
    return (
        (option.least is None or value >= option.least)
        and (option.most is None or value <= option.most)
        and (option.above is None or value > option.above)
    )


def _bounds(option: Option) -> str:
    if option.least is not None and option.most is not None:
        return f" from {option.least:g} to {option.most:g}"
    if option.least is not None:
        return f" of at least {option.least:g}"
    return "" if option.above is None else f" above {option.above:g}"


def _pattern(option: Option, value: Any) -> str:
    text = _text(option, value)
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"a regular expression: {error}") from error
    return text


def _schema(option: Option, value: Any) -> str:
    """The schema as JSON text."""
    if isinstance(value, str) and value.endswith(".json"):
        try:
            value = Path(value).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            remedy = "check the path; relative paths start at the config's folder"
            raise InputError("the schema cannot be read", where=value, remedy=remedy) from error
    if not isinstance(value, str | Mapping):
        raise ValueError("a mapping, JSON text, or the path of a .json file")
    text = correctness.as_text(value)
    try:
        correctness.validator(text)
    except ValueError as error:
        raise ValueError(f"a JSON schema: {error}") from error
    return text


def _language(option: Option, value: Any) -> str:
    text = _text(option, value)
    try:
        shape.scripts(text)
    except ValueError as error:
        raise ValueError(f"a code: {error}") from error
    return text


def _choices(option: Option, value: Any) -> Any:
    try:
        choices.labelled(value)
    except ValueError as error:
        raise ValueError("a list of texts, or {letter: text}") from error
    return value


_READERS: Mapping[Kind, Callable[[Option, Any], Any]] = {
    "text": _text,
    "texts": _texts,
    "number": _number,
    "whole": _number,
    "pattern": _pattern,
    "schema": _schema,
    "language": _language,
    "choices": _choices,
}
