"""The draft in a file: draft.yaml in the app's home folder, there again when the screens of a new run are opened again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from engine import methods, profiles
from engine.errors import InputError
from tui.draft import Draft, Opened


def draft_file(home: Path) -> Path:
    """Where the draft is kept."""
    return home / "draft.yaml"


def save(draft: Draft, home: Path) -> None:
    """Write the draft, whole or not at all. Raises InputError."""
    path = draft_file(home)
    part = path.with_suffix(".part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump(_tree(draft), sort_keys=False), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"the draft cannot be saved: {error.strerror}", where=str(path), remedy="make room there") from error


def load(home: Path) -> Draft | None:
    """The draft that was saved; None where there is none. A damaged one is set aside. Raises InputError."""
    path = draft_file(home)
    try:
        return _draft(yaml.safe_load(path.read_text(encoding="utf-8")))
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


def _tree(draft: Draft) -> dict[str, Any]:
    """Plain values; what a draft does not have is left out."""
    tree: dict[str, Any] = {"method": draft.method, "typed": dict(draft.typed)}
    if draft.profiles:
        tree["profiles"] = dict(draft.profiles)
    if draft.rewards_before is not None:
        tree["rewards_before"] = draft.rewards_before
    if (opened := draft.opened) is not None:
        notes, origin = list(opened.notes), dict(opened.origin)
        tree["opened"] = {"file": opened.file, "method": opened.method, "origin": origin, "notes": notes}
    return tree


def _draft(tree: Any) -> Draft:
    before, opened = tree.get("rewards_before"), tree.get("opened")
    return Draft(
        methods.method(tree["method"]).id,
        _texts(tree["typed"]),
        {kind: profiles.profile(name).id for kind, name in _texts(tree.get("profiles", {})).items()},
        None if before is None else str(before),
        None
        if opened is None
        else Opened(str(opened["file"]), str(opened["method"]), _texts(opened["origin"]), tuple(map(str, opened["notes"]))),
    )


def _texts(values: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in values.items()}
