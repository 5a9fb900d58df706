"""The verb `export`: what a run takes home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from engine.api import Engine
from engine.cli import leaving, phases
from engine.errors import InputError
from engine.figures import size
from engine.safe_text import safe_text
from engine.takehome import card
from engine.takehome.kinds import Exported, Kind


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the start of it.")],
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="KIND", help="adapter, fused, gguf or lmstudio; see above.", show_default="adapter"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new folder; by default RUN-KIND here.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="best (by held-out reward), last, or the number of a step that is kept.")
    ] = "best",
    bits: Annotated[
        int | None, typer.Option("--bits", help="Quantise to 4, 6 or 8 bits what is not quantised; of gguf 8 is Q8_0.")
    ] = None,
    group_size: Annotated[int, typer.Option("--group-size", help="With --bits: weights that share a scale; 32, 64 or 128.")] = 64,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Of a quantised base: leave the fused weights unquantised (exact, larger).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Take a run's result home; the run may still be training.

    \b
    adapter   adapters.safetensors and adapter_config.json, as mlx_lm loads them
    fused     a whole model folder with the adapter in its weights
    gguf      one file for llama.cpp: F16, or Q8_0 with --bits 8 (llama, mistral, qwen2, qwen3)
    lmstudio  the fused model, where LM Studio finds it

    Each comes with a model card, and is checked before it gets its name: mlx_lm loads it in a process of its own, and its logits
    are compared with the run's own policy. What differs leaves nothing behind and is an error.
    """
    kind = _only(to or ["adapter"])
    settings = {"bits": bits, "group_size": group_size, "dequantize": dequantize, "force": force}
    with phases.shown(hidden=as_json) as on_phase:
        work = Engine().export(run, cast(Kind, kind), out, checkpoint=checkpoint, on_phase=on_phase, **settings)
        made = leaving.run(work, "nothing is kept of this export")
    print(json.dumps(made.as_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(said(made)))


def _only(kinds: list[str]) -> str:
    """The one kind that is asked for. InputError for several: each is a folder of its own, with settings of its own."""
    if len(kinds) > 1:
        remedy = f"export {len(kinds)} times, each with one --to"
        raise InputError(f"one export is of one kind, and {' and '.join(kinds)} are asked for", where="--to", remedy=remedy)
    return kinds[0]


def said(made: Exported) -> list[str]:
    """What was made, as lines of text."""
    step = "" if made.step is None else f", after step {made.step}"
    lines = [f"{made.kind:<10}{safe_text(str(made.out))} ({size(made.bytes)})", f"{'from':<10}checkpoint {made.checkpoint}{step}"]
    if made.quantization is not None:
        lines.append(f"{'quantised':<10}{', '.join(f'{key} {value}' for key, value in made.quantization.items())}")
    cost = "" if made.reload is None else " (on the unquantised base)" if made.kind == "adapter" else " (what quantising costs)"
    lines.append(f"{'checked':<10}{card.said(made.difference)}, over {made.difference.tokens} tokens against the run{cost}")
    if made.reload is not None:
        what = "on the base as the run quantised it" if made.kind == "adapter" else "against what was to be written"
        lines.append(f"{'reread':<10}{card.said(made.reload)}, {what}")
    lines += [f"{'note':<10}{note}" for note in made.notes]
    return [*lines, f"{'use':<10}{safe_text(made.command)}"]
