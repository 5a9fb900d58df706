"""The verb `models`: what is on this machine that a config can name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from engine.api import Engine
from engine.cli.screens import table
from engine.figures import size
from engine.model_list import ModelRow
from engine.safe_text import safe_text

_HEAD = ["model", "where", "family", "parameters", "disk", "weights", "chat", "trains", "a LoRA run"]
_RIGHT = (3, 4)
_HOW = [
    "get one: name it in a config, as in `model: mlx-community/Qwen2.5-0.5B-Instruct-4bit`; the run fetches it first",
    "         (`droid-tune estimate CONFIG` says before that what it needs), or `hf download OWNER/NAME`",
]


def models(
    everything: Annotated[
        bool, typer.Option("--all", help="Also older snapshots, and models that cannot be trained here.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List the models on this machine: the hub's cache, LM Studio's folders, converted .gguf files and the embedded one.

    The first column is what a config's `model` says. The last is the memory of a GRPO run with a LoRA adapter and every default.
    """
    found = asyncio.run(Engine().models())
    shown = [row for row in found if everything or _is_shown(row)]
    if as_json:
        print(json.dumps([row.as_dict() for row in shown], indent=1, ensure_ascii=False))
    else:
        print("\n".join(lines(shown, len(found) - len(shown))))


def _is_shown(row: ModelRow) -> bool:
    """What a run could start with, and what is damaged."""
    return bool(row.problem) or (bool(row.trains) and not row.is_older)


def lines(rows: Sequence[ModelRow], hidden: int = 0) -> list[str]:
    """The table, what is amiss, and how to get a model where there is none but the embedded one."""
    found = table([_HEAD, *([safe_text(cell) for cell in _cells(row)] for row in rows)], right=_RIGHT)
    for row in rows:
        why = row.problem or row.obstacle or row.no_peak
        if why:
            found.append(f"{'!' if row.problem else '–'} {safe_text(row.name)}: {safe_text(why)}")
    if hidden:
        found.append(f"{hidden} more (older snapshots, or not to be trained here): --all")
    if all(row.place == "demo" for row in rows):
        found += ["", *_HOW]
    return found


def _cells(row: ModelRow) -> list[str]:
    chat = "–" if row.chat_template is None else "yes" if row.chat_template else "no"
    peak = "–" if row.peak_bytes is None else f"{size(row.peak_bytes)} {'✓ fits' if row.fits else '✕ too large'}"
    trains = ", ".join(row.trains) or ("–" if row.problem else "no")
    return [row.name, row.place, row.family or "–", _count(row.parameters), size(row.bytes), _weights(row), chat, trains, peak]


def _weights(row: ModelRow) -> str:
    if row.bits is None:
        return row.dtype or "–"
    return f"{row.bits} bits" if row.group_size is None else f"{row.bits} bits / {row.group_size}"


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "–"
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)
