"""What a data file holds for a method, without loading a model: usable rows, problems, lengths in tokens, duplicates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine import methods
from engine.data.formats import scan
from engine.data.rows import BROKEN_FILE, Problem
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.types import Example

Verdict = Literal["ready", "ready with warnings", "unusable"]


@dataclass(frozen=True, slots=True)
class ProblemGroup:
    """Rows that cannot be used for the same kind of reason; reason and remedy are the first row's."""

    kind: str
    count: int
    lines: tuple[int, ...]  # all of them, ascending
    field: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Lengths in tokens of the usable rows' prompts or completions."""

    min: int
    median: float
    p95: int  # the smallest length that at least 95% of the rows do not exceed
    max: int
    limit: int
    over_limit: int  # rows longer than limit


@dataclass(frozen=True, slots=True)
class DataReport:
    """What validate found. "unusable": training could not start; "ready with warnings": it could, but see what is listed."""

    path: str
    method: str
    format: str
    rows: int
    usable: int
    problems: tuple[ProblemGroup, ...]  # most frequent first
    prompt_tokens: TokenLengths | None  # None without a tokenizer
    completion_tokens: TokenLengths | None  # None without a tokenizer and for reward methods, which sample their completions
    duplicates: int  # rows that repeat an earlier one's prompt, completion and answer
    duplicate_lines: tuple[int, ...]  # all of them, ascending
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for `--json`."""
        return asdict(self)


def validate(
    path: Path,
    method_id: str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    tokenizer: Path | None = None,
    max_prompt_tokens: int = 512,
    max_completion_tokens: int = 512,
) -> DataReport:
    """Check every row of `path` for the method. With `tokenizer`, a model folder, lengths are measured as well.

    A completion's length includes the token that ends it. Prompts that the chat template refuses are problems. InputError
    for an unknown method, a format that the method cannot use, and whatever makes the file unreadable as a whole; a
    damaged line is a problem and makes the file unusable.
    """
    method = methods.method(method_id)
    data = scan(path, kind=method.kind, format=format, columns=columns, system=system)
    if data.format != "unknown" and data.format not in method.formats:
        remedy = f"it uses: {', '.join(method.formats)}"
        raise InputError(f"{method_id} cannot use {data.format} rows", where=str(path), remedy=remedy)
    usable: Sequence[Example] = data.examples
    problems = list(data.problems)
    prompt_tokens = completion_tokens = None
    if tokenizer is not None:
        reader = ChatTokenizer(tokenizer)
        lengths, refused = _prompt_lengths(data.examples, reader)
        usable = [example for example, _ in lengths]
        problems += refused
        prompt_tokens = token_lengths((length for _, length in lengths), max_prompt_tokens)
        if method.kind == "sft":
            texts = [example.completion for example in usable if example.completion is not None]
            completion_tokens = token_lengths((len(reader.encode(text)) + 1 for text in texts), max_completion_tokens)
    duplicates = duplicate_lines(usable)
    over = sum(lengths.over_limit for lengths in (prompt_tokens, completion_tokens) if lengths is not None)
    all_too_long = prompt_tokens is not None and prompt_tokens.over_limit == len(usable)
    verdict: Verdict = "ready"
    if not usable or all_too_long or any(problem.kind in BROKEN_FILE for problem in problems):
        verdict = "unusable"
    elif problems or duplicates or over:
        verdict = "ready with warnings"
    return DataReport(
        path=str(path),
        method=method_id,
        format=data.format,
        rows=data.rows,
        usable=len(usable),
        problems=grouped(problems),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        duplicates=len(duplicates),
        duplicate_lines=tuple(duplicates),
        verdict=verdict,
    )


def grouped(problems: Sequence[Problem]) -> tuple[ProblemGroup, ...]:
    """Problems by kind and field, most frequent first, then in file order."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.line):
        groups.setdefault((problem.kind, problem.field), []).append(problem)
    return tuple(
        ProblemGroup(kind, len(found), tuple(problem.line for problem in found), field, found[0].reason, found[0].remedy)
        for (kind, field), found in sorted(groups.items(), key=lambda item: -len(item[1]))
    )


def require_one_within(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    *,
    max_prompt_tokens: int,
    max_completion_tokens: int | None,
    where: str,
) -> None:
    """InputError unless some example is within the limits, measured as in validate; reads no further than the first that is.

    `max_completion_tokens` None: the completions are sampled, not given.
    """
    refusal: InputError | None = None
    shortest: int | None = None
    for example in examples:
        try:
            prompt = len(tokenizer.encode(tokenizer.render(example.messages, add_generation_prompt=True)))
        except InputError as error:
            refusal = refusal or error
            continue
        shortest = prompt if shortest is None else min(shortest, prompt)
        if prompt > max_prompt_tokens:
            continue
        if max_completion_tokens is None or len(tokenizer.encode(example.completion or "")) < max_completion_tokens:
            return
    if shortest is None and refusal is not None:
        raise InputError(f"none of its {len(examples)} prompts can be used: {refusal.what}", where=where, remedy=refusal.remedy)
    what = f"none of its {len(examples)} rows is within the token limits; the shortest prompt has {shortest} tokens"
    limit = "max_prompt_tokens" if max_completion_tokens is None else "max_prompt_tokens and max_completion_tokens"
    raise InputError(what, where=where, remedy=f"raise {limit} in sampling")


def token_lengths(lengths: Iterable[int], limit: int) -> TokenLengths | None:
    """The distribution of `lengths`; None where there are none."""
    ordered = sorted(lengths)
    if not ordered:
        return None
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    over = sum(length > limit for length in ordered)
    return TokenLengths(ordered[0], statistics.median(ordered), p95, ordered[-1], limit, over)


def duplicate_lines(examples: Sequence[Example]) -> list[int]:
    """Lines of the examples that repeat an earlier one's prompt, completion and answer."""
    seen: set[object] = set()
    lines = []
    for example in examples:
        key = (example.messages, example.completion, example.answer)
        if key in seen:
            lines.append(example.line)
        seen.add(key)
    return lines


def _prompt_lengths(examples: Sequence[Example], tokenizer: ChatTokenizer) -> tuple[list[tuple[Example, int]], list[Problem]]:
    """Each example with the tokens of its prompt, and a Problem for each that the chat template refuses."""
    lengths: list[tuple[Example, int]] = []
    refused: list[Problem] = []
    for example in examples:
        try:
            text = tokenizer.render(example.messages, add_generation_prompt=True)
        except InputError as error:
            refused.append(Problem(example.line, "refused-by-template", "", error.what, error.remedy))
        else:
            lengths.append((example, len(tokenizer.encode(text))))
    return lengths, refused
