"""Which model families the installed mlx_lm knows, read from its source: loading it would load mlx."""

from __future__ import annotations

import ast
import difflib
import functools
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import InputError

_MODEL = re.compile(r"^(?:class Model\b|from .*\bimport .*\bModel\b)", re.MULTILINE)  # written there, or another family's
_UPDATE = "update mlx-lm, or take a model of another family"


def module(config: Mapping[str, Any]) -> str | None:
    """The name of mlx_lm's module for a config.json; None where it has none."""
    family = config.get("model_type")
    if not isinstance(family, str):
        return None
    architectures = config.get("architectures") or ()
    named = (architectures,) if isinstance(architectures, str) else tuple(a for a in architectures if isinstance(a, str))
    by_architecture, by_family = _tables()
    found = next((by_architecture[family, a] for a in named if (family, a) in by_architecture), by_family.get(family, family))
    return found if found in names() else None


def refusal(config: Mapping[str, Any], where: str) -> InputError | None:
    """Why mlx_lm cannot load a model with that config.json; None where it can, and where no mlx_lm is installed to ask."""
    family = config.get("model_type")
    if not isinstance(family, str):
        return InputError("its config.json has no model_type", where=where, remedy="give a folder that mlx_lm can load")
    if "model_file" in config:
        what = "brings its own code (model_file), and code from a model is never run"
        return InputError(what, where=where, remedy=_UPDATE)
    if module(config) is not None or not names():
        return None
    what = f"is a {family[:60]!r} model, a family that the installed mlx_lm does not have"
    if "auto_map" in config:
        what += "; its own code (auto_map) is never run"
    near = difflib.get_close_matches(family, sorted(names()), n=1, cutoff=0.6)
    return InputError(what, where=where, remedy=f"{_UPDATE}{f' ({near[0]}?)' if near else ''}")


@functools.cache
def names() -> frozenset[str]:
    """The modules of mlx_lm that are families; empty where mlx_lm is not installed."""
    folder = _folder()
    files = () if folder is None else sorted((folder / "models").glob("*.py"))
    return frozenset(path.stem for path in files if _MODEL.search(path.read_text(encoding="utf-8")))


@functools.cache
def _tables() -> tuple[Mapping[tuple[str, str], str], Mapping[str, str]]:
    """mlx_lm's own renaming: by family and architecture, and by family."""
    folder, found = _folder(), {"MODEL_ARCHITECTURE_REMAPPING": {}, "MODEL_REMAPPING": {}}  # type: ignore[var-annotated]
    text = "" if folder is None else (folder / "utils.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in found:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["MODEL_ARCHITECTURE_REMAPPING"], found["MODEL_REMAPPING"]


def _folder() -> Path | None:
    spec = find_spec("mlx_lm")  # of a package itself: nothing is loaded
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else None
