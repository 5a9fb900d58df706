"""The draft of a new run: a method, and what was typed over the values that the method's recipe starts from.

Only what differs from the starting point is kept, as the text that was typed, right or wrong; nothing typed is lost. The draft is
written to draft.yaml in the app's home folder and is there again when the screens are opened the next time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engine import config as configs
from engine import methods, share
from engine.config import RunConfig
from engine.data.samples import Topic
from engine.errors import InputError
from tui import forms
from tui.forms import MODEL, TRAIN, VALID

DEMO = "demo"
FIRST_METHOD = "grpo"
_EXPECTED_KEY = re.compile(r"^(?:unknown key )?'?([\w.]+)'?")


@dataclass(frozen=True, slots=True)
class Checked:
    """A draft as a config. `errors` by the key of the field that has to change; "" where none can be named."""

    config: RunConfig | None  # with the fields in `errors` at their starting values; None where that cannot be either
    errors: Mapping[str, InputError]

    @property
    def ready(self) -> RunConfig | None:
        """The config, where nothing is wrong with it."""
        return None if self.errors else self.config


@dataclass(frozen=True, slots=True)
class Draft:
    """Immutable; every change gives a new one. `typed` is text by slot: a key with the methods that share what was typed."""

    method: str = FIRST_METHOD
    typed: Mapping[str, str] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """What the field of that key shows."""
        return self.typed.get(self._slot(key), self.start(key))

    def start(self, key: str) -> str:
        """What the field shows before anything is typed: the recipe's value, else the method's own, else the schema's."""
        node: Any = self._base()
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return forms.show(self._default(key))
            node = node[part]
        return forms.show(node)

    def changed(self, key: str) -> bool:
        """Whether something else was typed than the starting value."""
        return self._slot(key) in self.typed

    def changes(self) -> tuple[str, ...]:
        """The changed keys that the method uses."""
        keys = (MODEL, TRAIN, VALID, *(each.key for each in forms.fields(self.method)))
        return tuple(key for key in keys if self.changed(key))

    def with_text(self, key: str, text: str) -> Draft:
        """The draft with that text typed into the field."""
        typed = {slot: value for slot, value in self.typed.items() if slot != self._slot(key)}
        if text != self.start(key):
            typed[self._slot(key)] = text
        return replace(self, typed=typed)

    def with_method(self, method_id: str) -> Draft:
        """The draft for another method; what was typed for this one is kept for coming back to it."""
        return replace(self, method=method_id)

    def topic(self) -> Topic:
        """What generated rows should be about: what the model can read."""
        return "arithmetic" if self.text(MODEL) == DEMO else "words"

    def checked(self, folder: Path) -> Checked:
        """The draft read and checked as a config; relative paths start at `folder`, else in the packaged data."""
        errors: dict[str, InputError] = {}
        values: dict[str, Any] = {}
        for key in self.changes():
            try:
                values[key] = forms.read(forms.all_fields()[key], self.text(key))
            except InputError as error:
                errors[key] = error
        base = yaml.safe_dump(self._base(), allow_unicode=True)
        while True:
            try:
                return Checked(_parsed(base, folder, values), errors)
            except InputError as error:
                key = _culprit(error)
                errors.setdefault(key, error)
                if key not in values:  # the field is at its start: another one has to follow it
                    return Checked(None, errors)
                del values[key]

    def _base(self) -> dict[str, Any]:
        """The tree that typing starts from: the recipe. Its figures suit the embedded model; another gets the defaults."""
        recipe = dict(_recipe(self.method))
        if self.typed.get(MODEL, DEMO) != DEMO:
            recipe = {key: recipe[key] for key in ("method", "rewards") if key in recipe} | {"data": {"train": ""}}
        if self._slot(TRAIN) in self.typed:
            recipe["data"] = {**recipe["data"], "valid": None}  # the recipe's held-out file belongs to its training file
        return {"model": DEMO, **recipe}

    def _default(self, key: str) -> Any:
        section, _, name = key.partition(".")
        row = methods.method(self.method).objective
        if section == "objective" and row is not None:
            return asdict(row).get(name)
        return forms.all_fields()[key].default

    def _slot(self, key: str) -> str:
        """The model is typed once, the objective once for each method, the rest once for each kind of method."""
        if key == MODEL:
            return key
        owner = self.method if key.startswith("objective.") else methods.method(self.method).kind
        return f"{owner}/{key}"


def draft_file(home: Path) -> Path:
    """Where the draft is kept."""
    return home / "draft.yaml"


def save(draft: Draft, home: Path) -> None:
    """Write the draft, whole or not at all. Raises InputError."""
    path = draft_file(home)
    part = path.with_suffix(".part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump({"method": draft.method, "typed": dict(draft.typed)}), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"the draft cannot be saved: {error.strerror}", where=str(path), remedy="make room there") from error


def load(home: Path) -> Draft | None:
    """The draft that was saved; None where there is none. A damaged one is set aside. Raises InputError."""
    path = draft_file(home)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Draft(methods.method(raw["method"]).id, {str(slot): str(text) for slot, text in raw["typed"].items()})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"the draft cannot be read: {error.strerror}", where=str(path), remedy="a new one is begun") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        aside = path.with_suffix(".damaged.yaml")
        os.replace(path, aside)
        raise InputError("the saved draft is damaged", where=str(aside), remedy="it was set aside; a new one is begun") from error


def discard(home: Path) -> None:
    """Forget the saved draft."""
    draft_file(home).unlink(missing_ok=True)


@cache
def _recipe(method_id: str) -> Mapping[str, Any]:
    text = (share.share_root("configs") / f"{method_id}.yaml").read_text(encoding="utf-8")
    tree = configs.flag_value(text)
    assert isinstance(tree, dict), f"the recipe of {method_id} is no mapping"
    return tree


def _parsed(base: str, folder: Path, values: Mapping[str, Any]) -> RunConfig:
    try:
        return configs.parse(base, base=folder, where="config", overrides=values).config
    except (OSError, ValueError, RuntimeError) as error:  # what the file system says of a name that no path can have
        bad = next((key for key in (*forms.FILE_KEYS, "rewards") if key in values and not _is_path(values[key])), "")
        raise InputError(f"not a path: {error}", where=f"config: {bad}", remedy="type another") from error


def _is_path(value: object) -> bool:
    try:
        Path(str(value)).expanduser().resolve().exists()
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def _culprit(error: InputError) -> str:
    """The key of the field that a config error is about: where it says so, else the key that begins what it says."""
    known = forms.all_fields()
    place = error.where.removeprefix("config").removeprefix(":").strip()
    found = _EXPECTED_KEY.match(error.what)
    for named in (place, found[1] if found else ""):
        while named:
            if named in known:
                return named
            named = named.rpartition(".")[0]
    return ""
