"""What a data check says of the rows that are held out: a run reads their file as it reads the other one, and needs a row of them
to start. Without such a file a run holds back some of its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.data.examples import require_format
from engine.data.formats import split_held_out, stream
from engine.data.measure import require_one_within
from engine.data.report import Groups, HeldOut, ProblemGroup
from engine.data.structure import SAMPLE_ROWS, keys
from engine.data.targets import Targets
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.methods import Method
from engine.types import Example


def look(
    path: Path,
    method: Method,
    *,
    format: str,
    columns: Mapping[str, str] | None,
    system: str | None,
    tokenizer: ChatTokenizer | None,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    targets: Targets,
) -> tuple[HeldOut, frozenset[bytes]]:
    """The file's report, and hashes of its prompts. With a tokenizer one of its first 2,000 rows must be within the limits.

    InputError for a file that cannot be read as a whole.
    """
    chosen, results = stream(path, kind=method.kind, format=format, columns=columns, system=system)
    problems = Groups()
    taken: set[bytes] = set()
    first: list[Example] = []
    usable = 0
    for result in results:
        if not isinstance(result, Example):
            problems.add(result)
            continue
        usable += 1
        taken.add(keys(result)[0])
        if tokenizer is not None and len(first) < SAMPLE_ROWS:
            first.append(result)
    refused: list[ProblemGroup] = []
    try:
        require_format(method, chosen, str(path))
    except InputError as error:
        refused.append(ProblemGroup("refused-format", usable + len(problems), (), "", error.what, error.remedy))
    if tokenizer is not None and first and not refused:
        try:
            require_one_within(
                first,
                tokenizer,
                max_prompt_tokens=max_prompt_tokens,
                max_completion_tokens=max_completion_tokens if method.kind == "sft" else None,
                where=str(path),
                targets=targets,
            )
        except InputError as error:
            refused.append(ProblemGroup("over-limits", usable, (), "", error.what, error.remedy))
    is_unusable = bool(refused) or not usable or problems.is_broken
    groups = (*refused, *problems.groups())
    return HeldOut(str(path), chosen, usable + len(problems), usable, groups, is_unusable), frozenset(taken)


def of_the_split(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    *,
    eval_rows: int,
    seed: int,
    max_prompt_tokens: int,
    max_completion_tokens: int | None,
    targets: Targets,
) -> list[ProblemGroup]:
    """Where all of a file's usable rows are `examples` and there is no held-out file: that no row of the part that a run holds
    back, or of the one that it trains on, is within the limits. Lengths as require_one_within has them."""
    train, held = split_held_out(examples, None, eval_rows, seed)
    found = []
    for part, name in ((train, "trained on"), (held, "held out")):
        try:
            require_one_within(
                part,
                tokenizer,
                max_prompt_tokens=max_prompt_tokens,
                max_completion_tokens=max_completion_tokens,
                where=name,
                targets=targets,
            )
        except InputError as error:
            reason = f"the rows that would be {name}: {error.what}"
            found.append(ProblemGroup("over-limits", len(part), (), "", reason, f"{error.remedy}, or give data.valid"))
    return found
