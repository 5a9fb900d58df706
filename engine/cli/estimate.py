"""The verb `estimate`: memory and time of a run before it is started; with --measure, of one real step beside."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from engine.api import Engine
from engine.cli import estimate_lines, loading
from engine.errors import InputError
from engine.runs.journal import jsonable
from engine.safe_text import safe_text

T = TypeVar("T")


def estimate(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged recipe such as grpo.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config value, e.g. --set run.steps=20.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run one real step (nothing is kept of it), and correct the run's time by it.")
    ] = False,
    methods: Annotated[
        bool, typer.Option("--methods", help="What each method would cost in this one's place, against supervised training.")
    ] = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure this machine's speed anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what a run will need in memory and time, from the model's config.json and file headers; nothing is loaded.

    Time follows from this machine's speed, which is measured the first time (a few seconds). It is about that,
    with every completion at its limit. With --measure, one step of this config shows what the model really does.
    """
    if measure and methods:
        raise InputError("--measure and --methods are two questions", where="estimate", remedy="ask one after the other")
    engine, loaded = Engine(), loading.load(config, settings, None).config
    if remeasure or not engine.has_rates():
        _work(engine.measure_rates(lambda text: _tell(f"measuring this machine's speed: {text}")))
    if methods:
        costs = _work(engine.method_costs(loaded))
        _print([cost.as_dict() for cost in costs] if as_json else estimate_lines.costs(costs, loaded), as_json)
        return
    if not measure:
        found = _work(engine.estimate(loaded))
        _print(found.as_dict() if as_json else estimate_lines.estimate(found), as_json)
        return
    before = _work(engine.estimate(loaded))
    step = _work(engine.measure_step(loaded, lambda text: _tell(f"one step: {text}")))
    if as_json:
        _print({**before.as_dict(), "measured": step.as_dict()}, True)
    else:
        _print([*estimate_lines.estimate(before), "", *estimate_lines.measured(step)], False)


def _work(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        print("\nleft; nothing is kept", file=sys.stderr)
        raise typer.Exit(130) from None


def _tell(text: str) -> None:
    print(safe_text(text), file=sys.stderr, flush=True)


def _print(found: Any, as_json: bool) -> None:
    print(json.dumps(jsonable(found), indent=1, ensure_ascii=False) if as_json else "\n".join(found))
