"""The verb `generate`: prompts answered by a run's base and tuned model, side by side."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.api import Engine
from engine.cli import phases
from engine.figures import number
from engine.safe_text import safe_text
from engine.takehome.generate import Answer, Ask, Generated, Turns, read_prompts
from engine.types import Message

_WIDE = 80  # columns from which two texts stand side by side


def generate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the start of it.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to answer; quote each.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="A data file too: of each row `prompt`, `question` or `messages`."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="An answer is cut here.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token each time; 1: as trained.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other answers.")] = 0,
    samples: Annotated[int, typer.Option("--samples", help="Answers to each prompt; needs a temperature.")] = 1,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Show the base model's answers beside.")] = True,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="best (by held-out reward), last, or the number of a step that is kept.")
    ] = "best",
    system: Annotated[str | None, typer.Option("--system", help="System message; by default the run's own data.system.")] = None,
    plain: Annotated[
        bool | None, typer.Option("--plain/--chat", help="Go on with the text, without the chat template; by default as trained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Answer prompts with the base and with the tuned model; the run may still be training.

    The chat template is the one the run was trained with; special tokens that the model writes are shown. All prompts are
    answered in one batch.
    """
    asked: list[Turns] = [(Message("user", prompt),) for prompt in prompts or ()]
    asked += [] if file is None else read_prompts(file)
    sides = ("base", "tuned") if base else ("tuned",)
    ask = Ask(max_tokens, temperature, seed, samples, sides, checkpoint, system, plain)  # type: ignore[arg-type]
    with phases.shown(hidden=as_json) as on_phase:
        found = asyncio.run(Engine().generate(run, asked, ask, on_phase))
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    else:
        _show(found)


def _show(found: Generated) -> None:
    columns = shutil.get_terminal_size().columns
    is_wide = sys.stdout.isatty() and columns >= _WIDE and len(found.sides) > 1
    console = Console(highlight=False)
    for place, turns in enumerate(found.prompts):
        if place:
            print()
        for turn in turns:
            print(f"{turn.role}: {safe_text(turn.content, lines=True)}")
        if is_wide:
            console.print(_side_by_side(found, place))
        else:
            for side, answers in found.sides.items():
                for answer in answers.answers[place]:
                    print(f"{side}: {_text(answer)}")
    print()
    print("\n".join(_speed(found)))


def _side_by_side(found: Generated, place: int) -> Table:
    table = Table(expand=True, show_lines=True)
    for side in found.sides:
        table.add_column(side, ratio=1)
    for row in zip(*(answers.answers[place] for answers in found.sides.values()), strict=True):
        table.add_row(*(Text(_text(answer)) for answer in row))
    return table


def _text(answer: Answer) -> str:
    return safe_text(answer.text, lines=True) + (" [cut]" if answer.finish == "length" else "")


def _speed(found: Generated) -> Iterator[str]:
    step = "" if found.checkpoint.step is None else f", after step {found.checkpoint.step}"
    for side, answers in found.sides.items():
        which = f" (checkpoint {found.checkpoint.name}{step})" if side == "tuned" else ""
        yield f"{side}{which}: {answers.tokens} tokens in {answers.seconds:.1f} s, {number(answers.tokens_per_second)} tokens/s"
