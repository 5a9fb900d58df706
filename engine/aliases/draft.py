"""The config while it is translated: what the file says in its own words, what that becomes, and where each value came from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from engine.aliases.rows import Row, Tool
from engine.aliases.table import ROWS
from engine.errors import InputError

T = TypeVar("T")


@dataclass
class Draft:
    """`tree` grows from the file's own sections to the whole config; `given` holds the foreign keys that have a value."""

    where: str
    tree: dict[str, Any]
    given: dict[str, Any]
    tools: tuple[Tool, ...]  # whose file it is, as far as its keys tell
    exists: Callable[[str], bool]  # of a path in the config
    rows: dict[str, Row] = field(default_factory=dict)  # of each given key, its meaning here
    origin: dict[str, str] = field(default_factory=dict)  # our dotted key -> "tool: key"
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> keys
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tree = copy.deepcopy(self.tree)
        self._own = set(_paths(self.tree))

    def has(self, *keys: str) -> bool:
        """Whether any of the foreign keys has a value."""
        return any(key in self.given for key in keys)

    def label(self, *keys: str) -> str:
        """The keys with the tools that they belong to."""
        tools = [tool for tool in self.rows[keys[0]].tools if tool in self.tools] or list(self.rows[keys[0]].tools)
        return f"{', '.join(tools)}: {', '.join(keys)}"

    def only(self, *keys: str) -> str | None:
        """Which of names for one thing is given; InputError where two are."""
        found = [key for key in keys if key in self.given]
        if len(found) > 1:
            raise self.error(f"{found[0]} and {found[1]} are one setting", found[0], "keep one of the two")
        return found[0] if found else None

    def read(self, key: str, convert: Callable[[Any], T]) -> T:
        """The key's value, converted; an InputError of `convert` gets its place."""
        return self.checked(key, convert, self.given[key])

    def checked(self, key: str, convert: Callable[[Any], T], value: Any) -> T:
        """A value inside the key's, converted."""
        try:
            return convert(value)
        except InputError as error:
            raise self.error(error.what, key, error.remedy) from None

    def error(self, what: str, key: str, remedy: str) -> InputError:
        """An InputError about a foreign key."""
        return InputError(what, where=f"{self.where}: {key}", remedy=remedy)

    def ignore(self, key: str, why: str) -> None:
        """Say that the key, which is given, has no effect here."""
        self.ignored.setdefault(why, []).append(key)

    def get(self, to: str) -> Any:
        """What the config has at our dotted key so far, None without."""
        node: Any = self.tree
        for name in to.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def put(self, to: str, value: Any, *keys: str) -> None:
        """Set our dotted key from foreign keys; InputError where something else has set it."""
        if to in self._own:
            raise self.error(f"{keys[0]} and {to} are one setting, and the file has both", keys[0], "keep one of the two")
        if to in self.origin:
            other = self.origin[to].partition(": ")[2]
            raise self.error(f"{other} and {keys[0]} both set {to}", keys[0], "keep one of the two")
        self._set(to, value, keys)

    def pin(self, to: str, value: Any, *keys: str) -> None:
        """Set our dotted key to what the foreign keys imply, unless it is set already."""
        if to not in self._own and to not in self.origin:
            self._set(to, value, keys)

    def _set(self, to: str, value: Any, keys: tuple[str, ...]) -> None:
        node = self.tree
        *sections, last = to.split(".")
        for name in sections:
            if not isinstance(node.setdefault(name, {}), dict):
                raise self.error(f"{name} is not a section", keys[0], "see `droid-tune schema`")
            node = cast(dict[str, Any], node[name])
        node[last] = value
        self.origin[to] = self.label(*keys)

    def all_notes(self) -> tuple[str, ...]:
        """What is ignored, a note for each reason, then everything else."""
        ignored = (f"ignored: {', '.join(keys)}: {why}" for why, keys in self.ignored.items())
        return (*ignored, *self.notes)


def meanings(key: str, tools: tuple[Tool, ...]) -> tuple[Row, ...]:
    """The rows of a key that a file of these tools can mean."""
    return tuple(row for row in ROWS[key] if set(row.tools) & set(tools)) or ROWS[key]


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key that holds something, sections without entries left out."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{path}.")
        else:
            yield path
