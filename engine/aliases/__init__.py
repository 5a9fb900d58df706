"""Configs that users of mlx_lm.lora, mlx-lm-lora and TRL already have: their keys, read as settings of ours.

`read` translates the top level of a YAML file before it is checked; nothing is dropped without a note, and nothing that would
train otherwise than the tool is accepted. The tools' own defaults are not applied: `differing` names those that are not ours.
The rows of data are in table.py and unused.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.aliases import counts, datasets, objective, parts
from engine.aliases.defaults import differing
from engine.aliases.draft import Draft, meanings
from engine.aliases.rows import ALL, Alias, Ignored, Refused, Tool
from engine.aliases.table import ROWS
from engine.errors import InputError

__all__ = ["Read", "differing", "hint", "named", "names", "read", "refuse_flag"]

_SECTIONS_TOO = ("data", "optim")  # with a plain string they are other tools' keys
_OURS = {"model", "data", "rewards"}  # what a file may have of ours and still be another tool's


@dataclass(frozen=True)
class Read:
    """The file as a tree of ours, and what became of the foreign keys."""

    tree: dict[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)  # our dotted key -> "tool: key"
    notes: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()  # that the file was written for; () where it is ours, with or without foreign keys


def names() -> tuple[str, ...]:
    """Every key that is known."""
    return tuple(ROWS)


def hint(key: str) -> str:
    """What a known key is called here, as words after its name; nothing where it is no setting of ours."""
    row = ROWS[key][0] if key in ROWS else None
    return f", {row.to} here" if isinstance(row, Alias) else ""


def named(key: str, origin: Mapping[str, str]) -> str:
    """Our dotted key as the user wrote it, too, where that was another one."""
    said = origin.get(key, "")
    return f"{key} ({said})" if ": " in said else key


def refuse_flag(key: str, where: str) -> None:
    """InputError for a flag that sets a foreign key: flags speak our names."""
    if key in ROWS and key not in _SECTIONS_TOO:
        row = ROWS[key][0]
        remedy = f"set {row.to}" if isinstance(row, Alias) else row.meaning
        raise InputError(f"{key} is a key of {', '.join(row.tools)}, for files alone", where=f"{where}: {key}", remedy=remedy)


def read(raw: Mapping[str, Any], where: str, exists: Callable[[str], bool]) -> Read:
    """The file with its foreign keys translated; unknown keys stay, for the config's own check. `exists` asks for a path in it.

    Raises InputError for a key that cannot be translated exactly, two keys of one setting, and a name of two meanings.
    """
    foreign = {key: value for key, value in raw.items() if _is_foreign(key, value)}
    if not foreign:
        return Read(dict(raw))
    tree = {key: value for key, value in raw.items() if key not in foreign}
    tools = _recognise(foreign)
    given = {key: value for key, value in foreign.items() if value is not None}
    draft = Draft(where, tree, given, tools, exists)
    if "importance_sampling_level" in foreign and foreign["importance_sampling_level"] is None:
        what = "null left mlx-lm-lora 0.8.1 without a policy gradient, and means token in later versions"
        raise draft.error(what, "importance_sampling_level", "write token or sequence")
    _understand(draft, foreign)
    choice = objective.choose(draft)
    _drop_other_kind(draft, choice.kind)
    for key in list(draft.given):
        row = draft.rows[key]
        if isinstance(row, Alias) and row.value is not None:
            draft.put(row.to, draft.read(key, row.value), key)
    counts.rollout(draft, choice.kind)
    for to, value in choice.implied.items():
        draft.pin(to, value, *choice.keys)
    objective.options(draft)
    counts.counts(draft, choice.kind)
    counts.rate(draft, choice.kind)
    parts.adapter(draft)
    parts.optimizer(draft)
    parts.rewards(draft)
    datasets.data(draft, choice.kind)
    return Read(draft.tree, draft.origin, draft.all_notes(), tools if set(tree) <= _OURS else ())


def _is_foreign(key: Any, value: Any) -> bool:
    return key in ROWS and (key not in _SECTIONS_TOO or isinstance(value, str))


def _recognise(foreign: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools that have every key of the file; else those that alone have some key of it; else all."""
    owners = {key: {tool for row in ROWS[key] for tool in row.tools} for key in foreign}
    sure = {tool for found in owners.values() if len(found) == 1 for tool in found}
    fitting = tuple(tool for tool in ALL if all(tool in found for found in owners.values()))
    return fitting or tuple(tool for tool in ALL if tool in sure) or ALL


def _understand(draft: Draft, foreign: Mapping[str, Any]) -> None:
    """Give every key its one meaning; InputError for one that has two in this file."""
    for key in foreign:
        rows = meanings(key, draft.tools)
        if key in draft.given and len(rows) > 1:
            said = "; ".join(f"in {', '.join(row.tools)}: {row.meaning}" for row in rows)
            ours = next(
                f"write {row.to}" if isinstance(row, Alias) else row.remedy for row in rows if not isinstance(row, Ignored)
            )
            raise draft.error(f"{key} means two things ({said})", key, ours)
        draft.rows[key] = rows[0]


def _drop_other_kind(draft: Draft, kind: str) -> None:
    """Refuse what would train otherwise, and take out what is ignored and what this kind of method has no use for."""
    for key, value in list(draft.given.items()):
        row = draft.rows[key]
        if row.only is not None and row.only != kind:
            draft.ignore(key, f"{draft.get('method')} has no use for it")
        elif isinstance(row, Refused):
            if not _is_neutral(value, row.neutral):
                raise draft.error(f"{row.meaning} ({value!r} is not supported)", key, row.remedy)
        elif isinstance(row, Ignored):
            draft.ignore(key, row.meaning)
        else:
            continue
        del draft.given[key]


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)
