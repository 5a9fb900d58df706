"""RunConfig: the YAML that describes a run, read strictly.

An unknown key is an error that names the nearest one, a key given twice one that names its line; a value's origin
(default, file, flag or another tool's key) is kept beside it; a run folder's `config.yaml` has every default written out, every
path absolute. Keys of other tools are translated by engine/aliases/ first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from engine import aliases, methods, optim_rules, share
from engine.errors import InputError
from engine.sections import (
    AdapterConfig,
    DataConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
    RunSection,
    SamplingConfig,
    Section,
)

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "LoadedConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RewardConfig",
    "RunConfig",
    "RunSection",
    "SamplingConfig",
    "Section",
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
    effective = {key: origin.get(key, "default") for key in _leaves(config.model_dump())}
    return LoadedConfig(config, effective, (*read.notes, *aliases.differing(read.tools, config, effective)))


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
        first = error.errors()[0]
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
    if config.adapter.layers == 0:
        remedy = "use -1 for all layers, 1 or more for as many from the last"
        raise InputError("0 stands for no number of layers", where=f"{where}: adapter.layers", remedy=remedy)
    for key in ("layers", "keys") if config.adapter.type == "full" else ():
        if getattr(config.adapter, key) != AdapterConfig.model_fields[key].default:
            what, remedy = "full training is of every weight", "leave it out, or use adapter.type: lora"
            raise InputError(what, where=f"{where}: adapter.{key}", remedy=remedy)
    unused = optim_rules.refusal(config.optim)
    if unused is not None:
        raise InputError(unused.what, where=f"{where}: {unused.where}", remedy=unused.remedy)
    objective = _objective(config, where)
    if objective is None:
        if config.rewards:
            remedy = "remove the section, or choose a reward method"
            raise InputError("sft has no rewards", where=f"{where}: rewards", remedy=remedy)
        return
    for refused, what, key, remedy in (
        (not config.rewards, f"{config.method} needs at least one reward", "rewards", "add `rewards: [{name: answer}]`"),
        (
            config.sampling.group_size < 2 and objective.advantage != "global",
            "a group of one has no baseline: every advantage is 0",
            "sampling.group_size",
            "use 2 or more",
        ),
        (
            objective.minibatches > config.sampling.prompts_per_step,
            f"{objective.minibatches} mini-batches of whole groups need as many prompts, "
            f"but there are {config.sampling.prompts_per_step}",
            "sampling.prompts_per_step",
            "raise it, or set objective.minibatches lower",
        ),
        (
            config.data.targets != "assistant",
            f"targets is for sft: {config.method} learns from completions that it samples",
            "data.targets",
            "leave it out",
        ),
        (
            bool(config.adapter.dropout),
            "dropout makes the scored policy differ from the sampled one",
            "adapter.dropout",
            "set it to 0 for reward methods",
        ),
        (
            objective.ref_sync_mix < 1 and config.adapter.type != "full",
            "a mean of two low-rank adapters is not the adapter of the mean",
            "objective.ref_sync_mix",
            "use 1 (the reference becomes the policy), or adapter.type: full",
        ),
        (
            len({reward.name for reward in config.rewards}) < len(config.rewards),
            "two rewards have the same name",
            "rewards",
            "each part is reported by its name",
        ),
        (
            any(reward.steps for reward in config.rewards) and objective.advantage == "rloo",
            "leave-one-out has no form for rewards of single steps",
            "rewards",
            "use objective.advantage: group, none, batch or global",
        ),
        (
            any(reward.steps for reward in config.rewards) and objective.ratio in ("sequence", "sequence_sum"),
            "rewards of single steps need an advantage for each token, and the ratio is the whole completion's",
            "objective.ratio",
            "use method gspo_token (ratio: sequence_token), or ratio: token",
        ),
    ):
        if refused:
            raise InputError(what, where=f"{where}: {key}", remedy=remedy)


def _absolute(config: RunConfig, base: Path) -> RunConfig:
    def full(value: str | None) -> str | None:
        return None if value is None else str(share.resolve(value, base))

    data = config.data.model_copy(update={"train": full(config.data.train), "valid": full(config.data.valid)})
    rewards = [
        reward.model_copy(
            update={"file": full(reward.file), "options": {k: full(v) if k == "cache" else v for k, v in reward.options.items()}}
        )
        for reward in config.rewards
    ]
    return config.model_copy(update={"data": data, "rewards": rewards, "model": model_path(config.model, base)})


def model_path(value: str, base: Path) -> str:
    """A folder's absolute path, `demo` as it is, and an `owner/name` id that is no folder as it is."""
    if value == "demo":
        return value
    path = share.resolve(value, base)
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None and not value.startswith(".")
    return value if looks_like_id and not path.exists() else str(path)


def model_folder(value: str) -> Path:
    """The folder that a resolved config's `model` stands for; raises InputError where there is no model on this machine."""
    folder = share.demo_model() if value == "demo" else Path(value)
    if not folder.is_absolute():
        folder = _cached_snapshot(value)
    missing = next((name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()), None)
    if missing is None and not any(folder.glob("*.safetensors")):
        missing = ".safetensors file"
    if missing is not None:
        remedy = "give a folder that mlx_lm can load, or `demo`"
        raise InputError(f"is not a model folder: no {missing}", where=str(folder), remedy=remedy)
    return folder


def _cached_snapshot(repo: str) -> Path:
    from huggingface_hub import try_to_load_from_cache  # deferred: 0.2 s that only ids need

    found = cast(object, try_to_load_from_cache(repo, "config.json"))
    if not isinstance(found, str):
        raise InputError("is neither a folder nor a model on this machine", where=repo, remedy=f"`hf download {repo}` fetches it")
    return Path(found).parent
