"""The draft of a new run: a method, and what was typed over the values that the method's recipe starts from.

Only what differs from the starting point is kept, as the text that was typed, right or wrong; nothing typed is lost. A profile
types the rewards, a config file everything that it says; both can be typed over. How a draft is kept: draft_file.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from engine import config as configs
from engine import methods, profiles, share
from engine.config import LoadedConfig, RunConfig
from engine.data.samples import Topic
from engine.errors import InputError
from engine.profiles import Profile
from tui import forms
from tui.forms import MODEL, REWARDS, TRAIN

DEMO = "demo"
FIRST_METHOD = "grpo"
_EXPECTED_KEY = re.compile(r"^(?:unknown key )?'?([\w.]+)'?")


@dataclass(frozen=True, slots=True)
class Checked:
    """A draft as a config. `errors` by the key of the field that has to change; "" where none can be named."""

    config: RunConfig | None  # with the fields in `errors` at their starting values; None where that cannot be either
    errors: Mapping[str, InputError]
    origin: Mapping[str, str] = field(default_factory=dict)  # key -> default | recipe | typed | profile NAME | file | "TOOL: KEY"

    @property
    def ready(self) -> RunConfig | None:
        """The config, where nothing is wrong with it."""
        return None if self.errors else self.config


@dataclass(frozen=True, slots=True)
class Opened:
    """A config file that was opened into the draft."""

    file: str
    method: str  # what it is a config of
    origin: Mapping[str, str]  # slot -> file | default | "TOOL: KEY", where the value is still the file's
    notes: tuple[str, ...]  # what of another tool's file has no effect, or another default


@dataclass(frozen=True, slots=True)
class Draft:
    """Immutable; every change gives a new one. `typed` is text by slot: a key with the methods that share what was typed."""

    method: str = FIRST_METHOD
    typed: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)  # kind of method -> the profile that was chosen for it
    rewards_before: str | None = None  # the rewards that were typed before a profile's took their place; None: the recipe's
    opened: Opened | None = None

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
        keys = (*forms.FILE_KEYS, *(each.key for each in forms.fields(self.method)))
        return tuple(key for key in keys if self.changed(key))

    def with_text(self, key: str, text: str) -> Draft:
        """The draft with that text typed into the field."""
        own, opened = self._slot(key), self.opened
        typed = {slot: value for slot, value in self.typed.items() if slot != own}
        if text != self.start(key):
            typed[own] = text
        if opened is not None and own in opened.origin and text != self.text(key):
            opened = replace(opened, origin={slot: said for slot, said in opened.origin.items() if slot != own})
        return replace(self, typed=typed, opened=opened)

    def with_method(self, method_id: str) -> Draft:
        """The draft for another method; what was typed for this one is kept for coming back to it."""
        return replace(self, method=method_id)

    @property
    def profile(self) -> Profile | None:
        """The kind of data that was chosen to try the method on."""
        return profiles.PROFILES.get(self.profiles.get(self._kind, ""))

    def with_profile(self, name: str | None) -> Draft:
        """The draft with that profile's rewards, where the method has any, and its sample rows; with None as it was before."""
        chosen = {kind: each for kind, each in self.profiles.items() if kind != self._kind}
        if name is not None:
            chosen[self._kind] = name
        if self._kind != "rl":
            return replace(self, profiles=chosen)
        typed, present = self.typed.get(self._slot(REWARDS)), self.profile
        is_own = present is None or typed != rewards_of(present)
        before = typed if is_own else self.rewards_before
        draft = replace(self, profiles=chosen, rewards_before=None if name is None else before)
        if name is None:
            return draft.with_text(REWARDS, draft.start(REWARDS) if before is None else before)
        return draft.with_text(REWARDS, rewards_of(profiles.profile(name)))

    @property
    def beyond_model(self) -> str:
        """What to say where the profile's rows are more than the draft's model can read; else empty."""
        if self.profile is None or self.profile.topic == "arithmetic" or self.text(MODEL) != DEMO:
            return ""
        return "⚠ the embedded model reads arithmetic; choose a model of yours for this"

    def came_with_file(self, key: str) -> bool:
        """Whether the value is still the one that an opened config file gave."""
        return self.opened is not None and self.opened.origin.get(self._slot(key), "default") != "default"

    def sample(self) -> tuple[Topic, str | None]:
        """Topic and format of generated rows: the profile's; without one what the model can read, as the method has it."""
        if self.profile is not None:
            return cast(Topic, self.profile.topic), self.profile.format
        return "arithmetic" if self.text(MODEL) == DEMO else "words", None

    def with_config(self, loaded: LoadedConfig, file: str) -> Draft:
        """The draft with everything that a config file says typed in, and the file's defaults where the recipe has others."""
        values = values_of(loaded)
        draft = replace(self.with_method(loaded.config.method), rewards_before=None, opened=None)
        slots = {key: draft._slot(key) for key in values}
        typed = {slot: text for slot, text in self.typed.items() if slot not in slots.values()}
        draft = replace(draft, typed=typed, profiles={kind: name for kind, name in self.profiles.items() if kind != draft._kind})
        origin = {"method": loaded.origin["method"]}
        for key, (text, said) in values.items():
            draft = draft.with_text(key, text)
            if said != "default":  # stays when the recipe's value, for another model, is another one
                draft = replace(draft, typed={**draft.typed, slots[key]: text})
            origin[slots[key]] = said
        return replace(draft, opened=Opened(file, draft.method, origin, loaded.notes))

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
                loaded = _parsed(base, folder, values)
            except InputError as error:
                key = _culprit(error)
                errors.setdefault(key, error)
                if key not in values:  # the field is at its start: another one has to follow it
                    return Checked(None, errors)
                del values[key]
            else:
                return Checked(loaded.config, errors, {key: self._origin(key, loaded) for key in forms.all_fields()})

    def _origin(self, key: str, loaded: LoadedConfig) -> str:
        """Where the value of a key that is no longer wrong comes from."""
        slot, opened = self._slot(key), self.opened
        if key == "method":
            return opened.origin["method"] if opened is not None and opened.method == self.method else "chosen"
        if opened is not None and slot in opened.origin and (slot in self.typed or MODEL in opened.origin):
            return opened.origin[slot]
        if key == REWARDS and self.profile is not None and self.text(REWARDS) == rewards_of(self.profile):
            return f"profile {self.profile.title}"
        if slot in self.typed:
            return "typed"
        return "recipe" if _loaded_origin(loaded, key) == "file" else "default"

    @property
    def _kind(self) -> str:
        return methods.method(self.method).kind

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
        owner = self.method if key.startswith("objective.") else self._kind
        return f"{owner}/{key}"


def rewards_of(profile: Profile) -> str:
    """A profile's rewards as the text of their field."""
    return forms.show([dict(reward) for reward in profile.rewards])


@cache
def _recipe(method_id: str) -> Mapping[str, Any]:
    text = (share.share_root("configs") / f"{method_id}.yaml").read_text(encoding="utf-8")
    tree = configs.flag_value(text)
    assert isinstance(tree, dict), f"the recipe of {method_id} is no mapping"
    return tree


def values_of(loaded: LoadedConfig) -> dict[str, tuple[str, str]]:
    """The text and the origin of every value that the config's method uses, by key; the starting values of later ones follow
    those of earlier ones."""
    tree = yaml.safe_load(configs.dump(loaded.config))
    tree["rewards"] = [{"name": r.name, "weight": r.weight, **r.model_dump(exclude_defaults=True)} for r in loaded.config.rewards]
    values = {}
    for key in (*forms.FILE_KEYS, *(each.key for each in forms.fields(loaded.config.method))):
        node = tree
        for part in key.split("."):
            node = node[part]
        values[key] = (forms.show(node), _loaded_origin(loaded, key))
    return values


def _loaded_origin(loaded: LoadedConfig, key: str) -> str:
    """Where the loaded value is from, a mapping's from its first entry."""
    return next((said for name, said in loaded.origin.items() if name == key or name.startswith(f"{key}.")), "default")


def _parsed(base: str, folder: Path, values: Mapping[str, Any]) -> LoadedConfig:
    try:
        return configs.parse(base, base=folder, where="config", overrides=values)
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
