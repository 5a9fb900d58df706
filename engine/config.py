"""RunConfig: the YAML that describes a run, read strictly.

An unknown key is an error that names the nearest one, a key given twice one that names its line; a value's origin
(default, file or flag) is kept beside it; a run folder's `config.yaml` has every default written out, every path absolute.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import methods, share
from engine.errors import InputError


class Section(BaseModel):
    """Base of every section: immutable, strict about types; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


class DataConfig(Section):
    train: str = Field(description="data file (.jsonl)")
    valid: str | None = Field(None, description="held-out file; without one a seeded split of up to run.eval_rows rows")
    format: str = Field("auto", description="row format; auto detects it from the rows")
    columns: dict[str, str] = Field({}, description="our field name: the name in your file")
    system: str | None = Field(None, description="system message put before every prompt that has none")


class AdapterConfig(Section):
    type: Literal["lora", "dora", "full"] = Field("lora", description="what is trained: low-rank adapters or every weight")
    rank: int = Field(16, ge=1, description="columns of the low-rank factors")
    scale: float = Field(20.0, gt=0, description="factor of the adapter's output (mlx_lm's scale; alpha / rank elsewhere)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input; must be 0 for reward methods")
    layers: int = Field(-1, ge=-1, description="how many layers from the last get adapters, 1 or more; -1: all")
    keys: list[str] | None = Field(None, description="module paths inside a layer, such as self_attn.q_proj; null: all linear")


class SamplingConfig(Section):
    prompts_per_step: int = Field(4, ge=1, description="prompts of one step (supervised: rows of one update)")
    group_size: int = Field(8, ge=1, description="completions sampled for each prompt")
    max_prompt_tokens: int = Field(512, ge=1, description="longer prompts are left out and counted")
    max_completion_tokens: int = Field(512, ge=1, description="completions are cut here")
    temperature: float = Field(1.0, gt=0, description="of the sampling distribution, which is also the one that is scored")


class ObjectiveConfig(Section):
    """Overrides of the method's row; an entry that is left out, or null, keeps the row's value."""

    advantage: methods.Advantage | None = None
    ratio: methods.Ratio | None = None
    surrogate: methods.Surrogate | None = None
    aggregate: methods.Aggregate | None = None
    epsilon_low: float | None = Field(None, gt=0, description="ratios clip below 1 - this; left out or null: the row's value")
    epsilon_high: float | None = Field(None, gt=0, description="ratios clip above 1 + this; left out or null: the row's value")
    delta: float | None = Field(None, gt=1)
    beta: float | None = Field(None, ge=0)
    kl: methods.Kl | None = None
    minibatches: int | None = Field(None, ge=1)
    updates_per_rollout: int | None = Field(None, ge=1)


class RewardConfig(Section):
    name: str = Field(description="a built-in reward, or a function in `file`")
    weight: float = Field(1.0, description="factor in the weighted sum")
    file: str | None = Field(None, description="Python file that defines the function")
    timeout: float = Field(60.0, gt=0, allow_inf_nan=True, description="seconds of one call over a step's completions, or .inf")


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(1.0e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="over all updates, after the warm-up")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of all updates with a linearly rising rate")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients with a larger global norm are scaled down to it")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), strict=False, description="decay of Adam's two moments, each in [0, 1)")
    eps: float = Field(1.0e-8, gt=0)
    micro_batch_rows: int | None = Field(None, ge=1, description="rows of one forward and backward pass; null: as many as fit")


class RunSection(Section):
    steps: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    eval_every: int = Field(25, ge=1, description="steps between evaluations on held-out prompts")
    eval_rows: int = Field(64, ge=1, description="held-out rows, at most")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints; one is also due every checkpoint_minutes")
    checkpoint_minutes: float = Field(10.0, gt=0)
    keep_checkpoints: int = Field(3, ge=1, description="older checkpoints are deleted")
    name: str | None = Field(None, description="the run's name; null: made from method and model")


class RunConfig(Section):
    model: str = Field(description="a local folder, an HF id that is on this machine, or `demo` (the embedded model)")
    method: str
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rewards: list[RewardConfig] = []
    optim: OptimConfig = OptimConfig()
    run: RunSection = RunSection()

    def resolved_objective(self) -> methods.Objective:
        """The method's row with this config's overrides; InputError for an illegal combination."""
        return methods.resolve_objective(self.method, self.objective.model_dump(exclude_none=True))


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and where each value came from: dotted key -> default | file | flag."""

    config: RunConfig
    origin: Mapping[str, str]


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
    origin = dict.fromkeys(_leaves(raw), "file")
    for key, value in (overrides or {}).items():
        _set(raw, key, value, where)
        origin[key] = "flag"
    config = _validate(raw, where)
    _check(config, where)
    config = _absolute(config, base)
    effective = {key: origin.get(key, "default") for key in _leaves(config.model_dump())}
    return LoadedConfig(config, effective)


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


def _validate(raw: dict[str, Any], where: str) -> RunConfig:
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(str(first["loc"][-1]), _known(first["loc"][:-1]), n=1, cutoff=0.5)
            known = ", ".join(sorted(_known(first["loc"][:-1])))
            remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {known}"
            raise InputError(f"unknown key {key!r}", where=where, remedy=remedy) from error
        if first["type"] == "missing":
            raise InputError(f"{key!r} is missing", where=where, remedy="add it; every recipe in configs/ has it") from error
        value = "" if isinstance(first["input"], dict | list) else f" (got {first['input']!r})"
        raise InputError(f"{key}: {first['msg']}{value}", where=where, remedy="correct the value") from error


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


def _check(config: RunConfig, where: str) -> None:
    """What no single field can say, or can say in plain words."""
    if config.adapter.layers == 0:
        remedy = "use -1 for all layers, 1 or more for as many from the last"
        raise InputError("0 stands for no number of layers", where=f"{where}: adapter.layers", remedy=remedy)
    try:
        method = methods.method(config.method)
        if method.kind == "sft":
            if config.objective.model_dump(exclude_none=True):
                config.resolved_objective()
            if config.rewards:
                raise InputError("sft has no rewards", where="rewards", remedy="remove the section, or choose a reward method")
            return
        objective = config.resolved_objective()
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from None
    if not config.rewards:
        raise InputError(
            f"{config.method} needs at least one reward", where=f"{where}: rewards", remedy="add `rewards: [{name: answer}]`"
        )
    if config.sampling.group_size < 2:
        raise InputError(
            "a group of one has no baseline: every advantage is 0",
            where=f"{where}: sampling.group_size",
            remedy="use 2 or more",
        )
    if objective.minibatches > config.sampling.prompts_per_step:
        raise InputError(
            f"{objective.minibatches} mini-batches of whole groups need as many prompts, "
            f"but there are {config.sampling.prompts_per_step}",
            where=f"{where}: sampling.prompts_per_step",
            remedy="raise it, or set objective.minibatches lower",
        )
    if config.adapter.dropout:
        raise InputError(
            "dropout makes the scored policy differ from the sampled one",
            where=f"{where}: adapter.dropout",
            remedy="set it to 0 for reward methods",
        )
    names = [reward.name for reward in config.rewards]
    if len(set(names)) < len(names):
        raise InputError("two rewards have the same name", where=f"{where}: rewards", remedy="each part is reported by its name")


def _absolute(config: RunConfig, base: Path) -> RunConfig:
    def full(value: str | None) -> str | None:
        return None if value is None else str(share.resolve(value, base))

    data = config.data.model_copy(update={"train": full(config.data.train), "valid": full(config.data.valid)})
    rewards = [reward.model_copy(update={"file": full(reward.file)}) for reward in config.rewards]
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
