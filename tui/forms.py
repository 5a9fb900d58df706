"""Form rows from the config's schema: which fields a method uses, what each means, and text to value and back.

A field holds text. Strings are taken as they are typed; everything else is read as YAML, as `--set KEY=TEXT` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from engine import config as configs
from engine import methods
from engine.config import RunConfig
from engine.errors import InputError

MODEL, TRAIN, VALID = "model", "data.train", "data.valid"
COLUMNS, FORMAT, REWARDS = "data.columns", "data.format", "rewards"
FILE_KEYS = (MODEL, TRAIN, VALID)  # asked for on a page of their own
_NOT_FOR_SFT = ("sampling.group_size", "sampling.temperature", "rewards")
_NOT_FOR_REWARDS = ("adapter.dropout", "data.targets", "data.decisive_weight")  # with one legal value there, or no effect


@dataclass(frozen=True, slots=True)
class Field:
    """One key of the config as a row of a form."""

    key: str  # dotted, such as optim.learning_rate
    is_text: bool  # taken as it is typed; else read as YAML
    nullable: bool  # empty means null
    default: Any  # the schema's; None where there is none
    meaning: str  # the schema's description; may be empty
    choices: tuple[str, ...]
    bounds: str  # such as "at least 1"; may be empty

    @property
    def section(self) -> str:
        """The group that it stands in; a key without a dot is its own."""
        return self.key.partition(".")[0]

    @property
    def label(self) -> str:
        """The name within its section."""
        return self.key.rpartition(".")[2].replace("_", " ")

    @property
    def help(self) -> str:
        """Meaning, choices and bounds in one line; empty where the schema says nothing."""
        one_of = f"one of {', '.join(self.choices)}" if self.choices else ""
        return "; ".join(part for part in (self.meaning, one_of, self.bounds) if part)


def fields(method_id: str) -> tuple[Field, ...]:
    """The fields that the method uses, in the schema's order, without model, method and the data files. Raises InputError."""
    left_out: tuple[str, ...]
    if methods.method(method_id).kind == "sft":
        left_out = (*_NOT_FOR_SFT, *(key for key in all_fields() if key.startswith("objective.")))
    else:
        left_out = _NOT_FOR_REWARDS
    hidden = {"method", *FILE_KEYS, *left_out}
    return tuple(field for key, field in all_fields().items() if key not in hidden)


@cache
def all_fields() -> Mapping[str, Field]:
    """Every leaf of the config's schema by its dotted key."""
    schema = RunConfig.model_json_schema()
    return {field.key: field for field in _leaves(schema, schema["$defs"], "")}


def read(field: Field, text: str) -> Any:
    """The value that `text` stands for, not yet checked by the schema. Raises InputError for what is not YAML."""
    stripped = text.strip()
    if field.nullable and stripped in ("", "null", "~"):
        return None
    if field.is_text:
        return stripped
    try:
        return configs.flag_value(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:80] if isinstance(error, ValueError) else "not valid YAML"
        raise InputError(what, where=field.key, remedy="lists are [a, b], pairs are {name: value}") from error


def show(value: Any) -> str:
    """A value as the text of its field; read() gives it back."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, int):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000).strip()


def _leaves(node: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Field]:
    for name, child in node["properties"].items():
        key = f"{prefix}{name}"
        target = definitions[child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        if "properties" in target:
            yield from _leaves(target, definitions, f"{key}.")
        else:
            yield _leaf(key, child)


def _leaf(key: str, node: Mapping[str, Any]) -> Field:
    variants = [variant for variant in node.get("anyOf", [node]) if variant.get("type") != "null"]
    kind = variants[0]
    return Field(
        key=key,
        is_text=kind.get("type") == "string",
        nullable="anyOf" in node and len(variants) < len(node["anyOf"]),
        default=node.get("default"),
        meaning=node.get("description", ""),
        choices=tuple(kind.get("enum", ())),
        bounds=_bounds(kind),
    )


def _bounds(node: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{word} {show(node[name])}" for name, word in words.items() if name in node)
