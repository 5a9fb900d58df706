"""The verb `sample-data`: rows to try a method with, before there is data of one's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, cast

import typer

from engine.api import Engine
from engine.data.samples import Topic


def sample_data(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new .jsonl file.")],
    method: Annotated[str, typer.Option("--method", "-m", help="The method that will use it.")] = "grpo",
    rows: Annotated[int, typer.Option("--rows", help="How many rows, each of them different.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other rows.")] = 0,
    topic: Annotated[str, typer.Option("--topic", help="arithmetic (the embedded model reads it) or words.")] = "arithmetic",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Generate rows to try a method with: short problems with computed answers.

    For supervised fine-tuning they carry worked steps, for the reward methods the answer alone.
    """
    made = asyncio.run(Engine().sample_data(method, out, rows, seed, topic=cast(Topic, topic), overwrite=force))
    if as_json:
        print(json.dumps({"path": str(made), "method": method, "rows": rows, "seed": seed, "topic": topic}, indent=1))
    else:
        print(made)
