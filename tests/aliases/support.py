"""Configs for the tests of other tools' keys: ours, and one with nothing but what no tool says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engine import config as configs

BASE = Path("/somewhere")
GRPO = {"method": "grpo", "model": "demo", "data": {"train": "rows.jsonl"}, "rewards": [{"name": "answer"}]}
SFT = {"method": "sft", "model": "demo", "data": {"train": "rows.jsonl"}}
FLAT: dict[str, Any] = {"model": "demo", "data": {"train": "rows.jsonl"}, "rewards": [{"name": "answer"}]}  # no method


def load(tree: dict[str, Any] | str, base: Path = BASE, **flags: Any) -> configs.LoadedConfig:
    text = tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False)
    return configs.parse(text, base=base, overrides=flags)


def value(config: configs.RunConfig, key: str) -> Any:
    """What a dotted key has, of the objective with the method's row resolved."""
    section, _, name = key.partition(".")
    if section == "objective":
        return getattr(config.resolved_objective(), name)
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found
