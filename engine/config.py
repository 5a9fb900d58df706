"""RunConfig: the YAML that describes a run, read strictly.

An unknown key is an error that names the nearest one, a key given twice one that names its line; a value's origin
(default, file, flag or another tool's key) is kept beside it; a run folder's `config.yaml` has every default written out, every
path absolute. Keys of other tools are translated by engine/aliases/ first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from engine import aliases, data_names, method_rules, methods, model_rules, optim_rules, reward_rules, share
from engine.errors import InputError
from engine.models.sources import is_gguf, model_folder, model_path
from engine.sections import (
    AdapterConfig,
    ChatConfig,
    DataConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizeConfig,
    RewardConfig,
    RunConfig,
    RunSection,
    SamplingConfig,
    Section,
)

__all__ = [
    "AdapterConfig",
    "ChatConfig",
    "DataConfig",
    "LoadedConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "QuantizeConfig",
    "RewardConfig",
    "RunConfig",
    "RunSection",
    "SamplingConfig",
    "Section",
    "is_gguf",
    "model_folder",
    "model_path",
]


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and where each value came from: dotted key -> default | file | flag | "TOOL: KEY" of another tool.

    `notes` say what of another tool's file has no effect here, and which of its defaults are not the ones that apply.
    """

    config: RunConfig
    origin: Mapping[str, str]
    notes: tuple[str, ...] = ()


# What reading YAML raises: for its grammar, for a date that is none, for hundreds of nested brackets.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers and keys: PyYAML alone reads 1e-5 as a string, and takes the last of two equal keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> LoadedConfig:
    """Read, check and resolve the YAML at `path`; `overrides` are dotted keys from flags. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            "no such config file", where=str(path), remedy="`droid-tune methods` lists the packaged recipes"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy="give a YAML file in UTF-8") from error
    return parse(text, base=path.resolve().parent, where=str(path), overrides=overrides)


def parse(text: str, *, base: Path, where: str = "config", overrides: Mapping[str, Any] | None = None) -> LoadedConfig:
    """The config in `text`; relative paths resolve against `base`, then the packaged data. Raises InputError."""
    try:
        raw = yaml.load(text, Loader=_Loader)
    except _YAML_ERRORS as error:
        raise InputError(f"not valid YAML: {_said(error)}", where=where, remedy="mend the line it names") from error
    if not isinstance(raw, dict):
        raise InputError("expected `key: value` lines", where=where, remedy="start from a recipe in configs/")
    read = aliases.read(raw, where, lambda path: share.resolve(path, base).exists())
    raw = read.tree
    origin = {**dict.fromkeys(_leaves(raw), "file"), **read.origin}
    for key, value in (overrides or {}).items():
        aliases.refuse_flag(key, where)
        _set(raw, key, value, where)
        origin[key] = "flag"
    config = _validate(raw, where, origin)
    if "sampling.prompts_per_step" not in origin:
        config = _enough_prompts(config, where)
    _check(config, where)
    config = _absolute(config, base)
    leaves = list(_leaves(config.model_dump()))
    effective = {key: _origin(key, origin) for key in leaves}
    effective |= {key: said for key, said in origin.items() if any(leaf.startswith(f"{key}.") for leaf in leaves)}
    return LoadedConfig(config, effective, (*read.notes, *aliases.differing(read.tools, config, effective)))


def _origin(key: str, origin: Mapping[str, str]) -> str:
    """Of the key, or of the mapping that it stands in."""
    while key:
        if key in origin:
            return origin[key]
        key = key.rpartition(".")[0]
    return "default"


def dump(config: RunConfig) -> str:
    """The config as YAML with every default written out, the method's own objective included."""
    tree = config.model_dump(mode="json")
    if methods.method(config.method).kind == "rl":
        tree["objective"] = {key: getattr(config.resolved_objective(), key) for key in tree["objective"]}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def flag_value(text: str) -> Any:
    """What TEXT in `--set key=TEXT` means: TEXT read as YAML. Raises yaml.YAMLError, ValueError (a date that is none) or
    RecursionError (hundreds of nested brackets) for text that is none; `setting` makes one InputError of them."""
    return yaml.load(text, Loader=_Loader)


def setting(text: str) -> tuple[str, Any]:
    """The dotted key and the value of a flag `--set KEY=VALUE`. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} is not KEY=VALUE", where="--set", remedy="for example --set run.steps=20")
    try:
        return key, flag_value(value)
    except _YAML_ERRORS as error:
        remedy = "quote it for the shell; lists are [a, b], pairs are {name: value}"
        raise InputError(f"{value[:80]!r} is not valid YAML: {_said(error)}", where=f"--set {key}", remedy=remedy) from error


def _said(error: Exception) -> str:
    """What the YAML reader complains of, and the line where it does."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem is not None:
        return f"{error.problem}{'' if error.problem_mark is None else f', line {error.problem_mark.line + 1}'}"
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put `value` at the dotted `key` of `raw`, making sections on the way."""
    *sections, last = key.split(".")
    for name in sections:
        node = raw.setdefault(name, {})
        if not isinstance(node, dict):
            raise InputError(f"{name} is not a section", where=f"{where}: {key}", remedy="see `droid-tune schema`")
        raw = node
    raw[last] = value


def _validate(raw: dict[str, Any], where: str, origin: Mapping[str, str]) -> RunConfig:
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = _telling(error.errors())
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = sorted(_known(first["loc"][:-1]))
            candidates = known if len(first["loc"]) > 1 else [*known, *aliases.names()]
            nearest = difflib.get_close_matches(str(first["loc"][-1]), candidates, n=1, cutoff=0.5)
            hint = "" if not nearest or nearest[0] in known else aliases.hint(nearest[0])
            remedy = f"did you mean {nearest[0]!r}{hint}?" if nearest else f"known here: {', '.join(known)}"
            raise InputError(f"unknown key {key!r}", where=where, remedy=remedy) from error
        if first["type"] == "missing":
            raise InputError(f"{key!r} is missing", where=where, remedy="add it; every recipe in configs/ has it") from error
        value = "" if isinstance(first["input"], dict | list) else f" (got {first['input']!r})"
        what = f"{aliases.named(key, origin)}: {first['msg']}{value}"
        raise InputError(what, where=where, remedy="correct the value") from error


def _telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first error; for a missing key an unknown one beside it: a misspelt key is both."""
    first = errors[0]
    beside = [each for each in errors if each["type"] == "extra_forbidden" and each["loc"][:-1] == first["loc"][:-1]]
    if first["type"] != "missing" or not beside:
        return first
    missing = str(first["loc"][-1])
    return next((each for each in beside if difflib.get_close_matches(str(each["loc"][-1]), [missing], cutoff=0.5)), beside[0])


def _known(sections: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at that place."""
    model: type[BaseModel] = RunConfig
    for part in sections:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _objective(config: RunConfig, where: str) -> methods.Objective | None:
    """The resolved objective, None for supervised training; an InputError says where in the file it stands."""
    try:
        if methods.method(config.method).objective is None and not config.objective.model_dump(exclude_none=True):
            return None
        return config.resolved_objective()
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from None


def _enough_prompts(config: RunConfig, where: str) -> RunConfig:
    """The config with a prompt for each of the method's mini-batches, where the file does not say how many prompts."""
    objective = _objective(config, where)
    needed = 0 if objective is None else objective.minibatches
    sampling = config.sampling.model_copy(update={"prompts_per_step": max(config.sampling.prompts_per_step, needed)})
    return config.model_copy(update={"sampling": sampling})


def _check(config: RunConfig, where: str) -> None:
    """What no single field can say, or can say in plain words."""
    for refusal in (model_rules.refusal(config), optim_rules.refusal(config.optim)):
        if refusal is not None:
            raise InputError(refusal.what, where=f"{where}: {refusal.where}", remedy=refusal.remedy)
    objective = _objective(config, where)
    if objective is None:
        if config.rewards:
            remedy = "remove the section, or choose a reward method"
            raise InputError("sft has no rewards", where=f"{where}: rewards", remedy=remedy)
        return
    refused = method_rules.refusal(config, objective)
    if refused is not None:
        raise InputError(refused.what, where=f"{where}: {refused.where}", remedy=refused.remedy)


def _absolute(config: RunConfig, base: Path) -> RunConfig:
    def full(value: str | None) -> str | None:
        return None if value is None else str(share.resolve(value, base))

    valid = None if config.data.valid is None else data_names.resolve(config.data.valid, base)
    data = config.data.model_copy(update={"train": data_names.resolve(config.data.train, base), "valid": valid})
    rewards = reward_rules.placed(config.rewards, config.sampling, full)
    adapter = config.adapter.model_copy(update={"start_from": full(config.adapter.start_from)})
    template = config.chat.template
    chat = config.chat.model_copy(update={"template": full(template) if template and template.endswith(".jinja") else template})
    changed = {"data": data, "chat": chat, "adapter": adapter, "rewards": rewards, "model": model_path(config.model, base)}
    return config.model_copy(update=changed)
