"""Reward functions by name: the built-in ones, and functions in users' Python files.

The signature is the one that TRL and mlx-lm-lora users write: `def f(prompts, completions, **columns)`, all strings; it
returns one number or None (not applicable) per completion. Columns of the data arrive as lists, by keyword; `completion_ids`,
by TRL's name, are each completion's token ids, the one that ends it included. A column of that name wins. What else TRL's
trainer gives (trainer_state, log_extra, log_metric, environments) is not there: take it with a default, or by **kwargs.

A process reward (`steps` in its config) returns for each completion a list of such values, one for each piece that
engine.rewards.steps.split_steps finds, or None for the whole completion. It gets those pieces' texts by the keyword
`steps`, a list of strings per completion, unless the data has a column of that name: then `steps` is the column.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from engine.errors import InputError
from engine.rewards import chains, code, correctness, judge, length, mathematics, r1, shape
from engine.rewards import options as tunable
from engine.rewards.options import Option
from engine.rewards.registering import DECORATOR, registered, stand_in

Reward = Callable[..., list[Any]]  # numbers, None and Failed; of a process reward list[list[float | None] | None]

_GIVEN = ("prompts", "completions")
TOKEN_IDS = ("completion_ids", "completions_ids")  # TRL's name, and what some of its pages called it

answer = correctness.answer  # by this name, too

BUILT_IN: Mapping[str, Reward] = {
    function.__name__: function
    for function in (
        correctness.answer,
        correctness.exact,
        correctness.number,
        mathematics.math,
        correctness.integer,
        correctness.multiple_choice,
        correctness.regex,
        correctness.json_schema,
        shape.format,
        shape.think_answer_strict,
        shape.think_answer_soft,
        shape.tag_count,
        length.length_target,
        length.soft_overlong,
        shape.repetition,
        shape.language,
        chains.step_coverage,
        chains.domain,
        r1.r1_accuracy_reward_func,
        r1.r1_int_reward_func,
        r1.r1_strict_format_reward_func,
        r1.r1_soft_format_reward_func,
        r1.r1_count_xml,
    )
}

# Rewards that have options, and need more than the completion: a sandbox that works here, a server that answers.
LOADED: Mapping[str, tuple[Reward, Callable[[Mapping[str, Any]], Reward]]] = {
    "code_tests": (cast(Reward, code.code_tests), cast(Callable[[Mapping[str, Any]], Reward], code.load)),
    "llm_judge": (cast(Reward, judge.llm_judge), cast(Callable[[Mapping[str, Any]], Reward], judge.load)),
}

OPTIONS: Mapping[str, tuple[Option, ...]] = {**tunable.OPTIONS, "code_tests": code.OPTIONS, "llm_judge": judge.OPTIONS}

# What a faultless completion gets; 1 where it is not here.
_FULL_MARKS = {"repetition": 0.0, "soft_overlong": 0.0, "r1_accuracy_reward_func": 2.0} | {
    name: 0.5 for name in BUILT_IN if name.startswith("r1_") and name != "r1_accuracy_reward_func"
}
_TWINS = (("type", "types"), ("types", "type"), TOKEN_IDS[::-1])
_LIBRARIES = {"math": ("math_verify", "math"), "json_schema": ("jsonschema", "json")}  # (module, extra that brings it)


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """A built-in reward as a list shows it."""

    name: str
    summary: str  # what it gives, in a sentence
    details: str  # the rest of what there is to know; may be empty
    columns: tuple[str, ...]  # that the data must have
    optional: tuple[str, ...]  # that it looks at where they are
    full_marks: float  # what a faultless completion gets
    extra: str  # of droid-tune, that brings a library it needs; "" for none
    options: tuple[Option, ...]  # that a config can set


def describe() -> tuple[RewardInfo, ...]:
    """The built-in rewards."""
    return tuple(_info(name, reward) for name, reward in (*BUILT_IN.items(), *((n, pair[0]) for n, pair in LOADED.items())))


def full_marks(name: str) -> float:
    """What a faultless completion gets from the built-in reward."""
    return _FULL_MARKS.get(name, 1.0)


def _info(name: str, reward: Reward) -> RewardInfo:
    summary, _, details = (inspect.getdoc(reward) or "").partition("\n\n")
    known = OPTIONS.get(name, ())
    needed = tuple(column for column in needed_columns(reward) if not tunable.is_plain(column, known))
    optional = tuple(
        parameter
        for parameter in inspect.signature(reward).parameters
        if parameter not in (*_GIVEN, *TOKEN_IDS, *needed) and not tunable.is_plain(parameter, known)
    )
    extra = _LIBRARIES.get(name, ("", ""))[1]
    texts = " ".join(summary.split()), " ".join(details.split())
    return RewardInfo(name, *texts, needed, optional, full_marks(name), extra, known)


def resolve(name: str, file: Path | None, options: Mapping[str, Any] | None = None) -> Reward:
    """The function called `name`, from `file` or built in, with its options set. InputError as built_in, load_user, the loaders
    and options.read raise it."""
    options = options or {}
    if file is not None:
        tunable.read(name, (), options)  # a user's own has none
        return load_user(file, name)
    if name in LOADED:
        return LOADED[name][1](options)
    reward = built_in(name)
    known = OPTIONS.get(name, ())
    return tunable.bound(reward, known, tunable.read(name, known, options))


def built_in(name: str) -> Reward:
    """The built-in reward. InputError for an unknown name, with the nearest one, and for a library that is not installed."""
    if name not in BUILT_IN:
        known = [*BUILT_IN, *LOADED]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"built in: {', '.join(known)}."
        raise InputError(f"unknown reward {name!r}", where="rewards", remedy=f"{hint} Give `file` for a function of your own")
    module, extra = _LIBRARIES.get(name, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        what = f"the reward {name!r} needs the library {module}, which is not installed"
        raise InputError(what, where="rewards", remedy=f'pip install "droid-tune[{extra}]"')
    return BUILT_IN[name]


def load_user(file: Path, name: str) -> Reward:
    """The function `name` of the user's Python file, which is run once per process.

    `name` is what the file calls it, or what mlx-lm-lora's decorator registered it as. The file may import its neighbours:
    its folder is put at the end of the module search path, where it can shadow nothing. InputError for a missing file, an
    error while it is imported (naming the line), a name that is not there and one that is not callable.
    """
    module = _import(file)
    decorated = registered(module)
    if not hasattr(module, name) and name not in decorated:
        named = vars(module).items()
        public = [key for key, value in named if callable(value) and not key.startswith("_") and key != DECORATOR]
        public += [key for key in decorated if key not in public]
        nearest = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has: {', '.join(public) or 'no functions'}"
        raise InputError(f"has no function {name!r}", where=str(file), remedy=hint)
    reward = decorated[name] if name in decorated else getattr(module, name)
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
    """Columns that the function cannot be called without: parameters without a default, besides those that every call has."""
    return tuple(name for name in _required(reward) if name not in (*_GIVEN, *TOKEN_IDS))


def takes_token_ids(reward: Reward) -> bool:
    """Whether the function looks at `completion_ids`, or may: it has **kwargs."""
    parameters = inspect.signature(reward).parameters.values()
    return any(parameter.name in TOKEN_IDS or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def needs_token_ids(reward: Reward) -> bool:
    """Whether the function cannot be called without them."""
    return any(name in TOKEN_IDS for name in _required(reward))


def _required(reward: Reward) -> tuple[str, ...]:
    return tuple(
        name
        for name, parameter in inspect.signature(reward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def arguments(
    reward: Reward, prompts: list[str], completions: list[str], columns: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """The keyword arguments of one call: everything for a function with **kwargs, else what its parameters name.

    A parameter `types` also takes a column `type`, and the other way round, as both names are in use; `columns` holds the token
    ids, too, where there are some.
    """
    given: dict[str, list[Any]] = {**columns, "prompts": prompts, "completions": completions}
    parameters = inspect.signature(reward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    twins = {ours: columns[theirs] for ours, theirs in _TWINS if theirs in columns}
    return {name: value for name, value in {**twins, **given}.items() if name in parameters}


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
        with stand_in():
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
