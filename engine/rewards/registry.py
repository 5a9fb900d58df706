"""Reward functions by name: the built-in ones, and functions in users' Python files.

The signature is the one that TRL and mlx-lm-lora users write: `def f(prompts, completions, **columns)`, all strings; it
returns one number or None (not applicable) per completion. Columns of the data arrive as lists, by keyword.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from engine.errors import InputError
from engine.rewards.answers import same_number, same_text
from engine.rewards.format import has_format

Reward = Callable[..., list[float | None]]

_GIVEN = ("prompts", "completions")


def answer(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer is the reference, word for word (case, white space and a final period aside), else 0."""
    return [None if r is None else float(same_text(c, r)) for c, r in zip(completions, answer, strict=True)]


def number(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer's last number equals the reference's, else 0; not applicable where the reference has no number."""
    found = [None if r is None else same_number(c, r) for c, r in zip(completions, answer, strict=True)]
    return [None if same is None else float(same) for same in found]


def format(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where the completion is <think>...</think><answer>...</answer> and nothing else, else 0."""
    return [float(has_format(c, p)) for p, c in zip(prompts, completions, strict=True)]


BUILT_IN: Mapping[str, Reward] = {"answer": answer, "number": number, "format": format}


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """A built-in reward as a list shows it."""

    name: str
    summary: str
    columns: tuple[str, ...]  # that the data must have


def describe() -> tuple[RewardInfo, ...]:
    """The built-in rewards."""
    return tuple(RewardInfo(name, inspect.getdoc(reward) or "", needed_columns(reward)) for name, reward in BUILT_IN.items())


def resolve(name: str, file: Path | None) -> Reward:
    """The function called `name`, from `file` or built in. InputError as built_in and load_user raise it."""
    return built_in(name) if file is None else load_user(file, name)


def built_in(name: str) -> Reward:
    """The built-in reward; an unknown name is an InputError that gives the nearest one."""
    if name not in BUILT_IN:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"built in: {', '.join(BUILT_IN)}"
        raise InputError(f"unknown reward {name!r}", where="rewards", remedy=f"{hint} Give `file` for a function of your own")
    return BUILT_IN[name]


def load_user(file: Path, name: str) -> Reward:
    """The function `name` of the user's Python file, which is run once per process.

    The file may import its neighbours: its folder is put at the end of the module search path, where it can shadow
    nothing. InputError for a missing file, an error while it is imported (naming the line), a name that is not there
    and one that is not callable.
    """
    module = _import(file)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        nearest = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has: {', '.join(public) or 'no functions'}"
        raise InputError(f"has no function {name!r}", where=str(file), remedy=hint)
    reward = getattr(module, name)
    if not callable(reward):
        remedy = f"define `def {name}(prompts, completions, **columns)`"
        raise InputError(f"{name!r} is no function but {type(reward).__name__}", where=str(file), remedy=remedy)
    try:
        inspect.signature(reward)
    except (TypeError, ValueError) as error:
        remedy = "wrap it in `def NAME(prompts, completions, **columns)`"
        raise InputError(f"the parameters of {name!r} are unknown: {error}", where=str(file), remedy=remedy) from error
    return cast(Reward, reward)  # what it returns is checked at every call


def needed_columns(reward: Reward) -> tuple[str, ...]:
    """Columns that the function cannot be called without: parameters without a default, besides prompts and completions."""
    return tuple(
        name
        for name, parameter in inspect.signature(reward).parameters.items()
        if name not in _GIVEN
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def arguments(
    reward: Reward, prompts: list[str], completions: list[str], columns: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """The keyword arguments of one call: everything for a function with **kwargs, else what its parameters name."""
    given: dict[str, list[Any]] = {**columns, "prompts": prompts, "completions": completions}
    parameters = inspect.signature(reward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _import(file: Path) -> ModuleType:
    path = file.resolve()
    if path.suffix != ".py":
        raise InputError("is not a Python file", where=str(file), remedy="name a .py file that defines the reward function")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        remedy = "check the path; relative paths start at the config's folder"
        raise InputError("no such reward file", where=str(file), remedy=remedy) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(file), remedy="name a readable .py file") from error
    name = f"droid_tune_reward_{hashlib.sha256(str(path).encode() + content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        # The bytes just read, not a cached .pyc: one is stale when a file changes twice within a second.
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a user's file can raise anything
        del sys.modules[name]
        last_line = traceback.format_exception_only(error)[-1].strip()
        where = f"{file}:{_error_line(error, path)}"
        remedy = "correct the file, or install what it needs"
        raise InputError(f"cannot be imported: {last_line}", where=where, remedy=remedy) from error
    return module


def _error_line(error: BaseException, path: Path) -> int:
    """The line of `path` that failed: the last of its frames, or where its syntax is wrong."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno is not None:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return next((line for line in reversed(lines) if line is not None), 1)
