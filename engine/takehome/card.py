"""The model card: what was trained, on what, how, and what came of it, in figures of the run itself. Pure; claims nothing more.

Paths are shortened to names in it, but in the command that uses the result: a card is meant to be passed on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine import config as configs
from engine import methods
from engine.config import RunConfig
from engine.figures import number
from engine.model_names import plain
from engine.plot import plot
from engine.runs.state import RunState
from engine.runs.values import Series
from engine.takehome.kinds import Difference, Exported

_WIDTH, _HEIGHT = 64, 12  # of the plot, characters
_ROWS = 20  # of a table, at most: the first, the last, and some between
_WHAT = {
    "adapter": "An adapter for",
    "fused": "A fine-tuned copy of",
    "lmstudio": "A fine-tuned copy of",
    "gguf": "A GGUF file of a fine-tuned",
}
_VERSIONS = ("droid-tune", "mlx", "mlx-lm")


@dataclass(frozen=True, slots=True)
class Told:
    """What a card is made of."""

    run: str
    config: RunConfig
    state: RunState
    exported: Exported
    held_out: Mapping[str, Any] | None  # base, tuned, difference, low, high, n; None where this step was not evaluated


def card(told: Told) -> str:
    """README.md."""
    config, exported = told.config, told.exported
    base = base_name(config)
    sections = [
        _front(config),
        f"# {told.run}\n\n{_WHAT[exported.kind]} {base}, trained with droid-tune.",
        "\n".join(f"- {line}" for line in _facts(told)),
        f"## Use\n\n```\n{exported.command}\n```",
        f"## Held-out result\n\n{_result(told)}",
        f"## {_label(config).capitalize()} while training\n\n{_curve(told)}",
        f"## Check of these files\n\n{_check(exported)}",
        f"## Config\n\n```yaml\n{_shortened(config)}```",
        "## Licence\n\nThat of the base model applies: see the base model.",
    ]
    return "\n\n".join(sections) + "\n"


def base_name(config: RunConfig) -> str:
    """The base model: an id of the hub as it is, a folder or file by its name."""
    if config.model == "demo":
        return "droid-tune's embedded demo model"
    return plain(config.model) if not Path(config.model).is_absolute() else Path(config.model).name


def _front(config: RunConfig) -> str:
    """What the hub reads. The base model only where it is an id there."""
    is_id = config.model != "demo" and not Path(config.model).is_absolute()
    base = {"base_model": plain(config.model)} if is_id else {}
    tree = {**base, "library_name": "mlx", "tags": ["droid-tune", config.method]}
    return f"---\n{yaml.safe_dump(tree, sort_keys=False)}---"


def _facts(told: Told) -> Iterator[str]:
    config, exported, state = told.config, told.exported, told.state
    row = methods.method(config.method)
    adapter = config.adapter
    weights = (
        "every weight" if adapter.type == "full" else f"{adapter.type} of rank {adapter.rank}, scale {number(adapter.scale)}"
    )
    yield f"Base model: {base_name(config)}"
    yield f"Method: {row.title} (`{row.id}`); {row.source}"
    yield f"Trained: {weights}"
    step = "" if exported.step is None else f", after step {exported.step}"
    yield f"Checkpoint: {exported.checkpoint}{step}; the run did {state.step} of {config.run.steps} steps ({state.state})"
    yield f"Seed: {config.run.seed}"
    for path, digest in _data(told):
        yield f"Data: `{Path(path).name}`, sha256 `{digest}`"
    if exported.quantization is not None:
        settings = ", ".join(f"{key} {value}" for key, value in exported.quantization.items())
        yield f"Quantised: {settings}"
    versions = state.machine.get("versions") or {}
    yield "Versions: " + ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in _VERSIONS)


def _data(told: Told) -> Iterator[tuple[str, str]]:
    """The files that the run itself hashed, by path; of data that is no single file the digest that its journal has."""
    hashed = told.state.machine.get("files") or {}
    for path in (told.config.data.train, told.config.data.valid):
        if path is not None and path in hashed:
            yield path, hashed[path]
        elif path == told.config.data.train:
            yield path, told.state.digests.get("data_sha256", "not recorded")


def _label(config: RunConfig) -> str:
    return "loss" if methods.method(config.method).kind == "sft" else "reward"


def _result(told: Told) -> str:
    label, found = _label(told.config), told.held_out
    better = "lower is better" if label == "loss" else "higher is better"
    table = _evaluations(told)
    if found is None:
        what = "This step was not evaluated, or what was measured of it row by row is no longer kept."
        return what if table is None else f"{what}\n\n{table}"
    gap = f"difference {_signed(found['difference'])}"
    if found["low"] is not None:
        gap += f" (95% interval {_signed(found['low'])} to {_signed(found['high'])})"
    lines = [
        f"Mean {label} over {found['n']} held-out rows, greedy, {better}:" if label == "reward" else _loss_line(found, better),
        f"base {number(found['base'], 4)}, tuned {number(found['tuned'], 4)}; {gap}.",
    ]
    if told.exported.checkpoint == "best":
        lines.append("The best of several evaluations was taken, which flatters it a little.")
    return "\n".join(lines) + ("" if table is None else f"\n\n{table}")


def _loss_line(found: Mapping[str, Any], better: str) -> str:
    return f"Mean loss per token over {found['n']} held-out rows, {better}:"


def _evaluations(told: Told) -> str | None:
    series = told.state.held_out.get(_label(told.config))
    return None if not series else _table(("step", f"held-out {_label(told.config)}"), series)


def _curve(told: Told) -> str:
    series = told.state.series.get(_label(told.config))
    if not series:
        return "No step was done."
    lines = plot([(list(series.steps), list(series.values), _label(told.config))], _WIDTH, _HEIGHT, glyphs="ascii")
    drawn = "\n".join(line.rstrip() for line in lines)
    return f"```\n{drawn}\n```\n\n{_table(('step', _label(told.config)), series)}"


def _table(names: Sequence[str], series: Series) -> str:
    """Markdown, of at most _ROWS entries spread over the whole."""
    last = len(series) - 1
    places = sorted({round(place * last / max(1, _ROWS - 1)) for place in range(_ROWS)}) if last >= _ROWS else range(last + 1)
    rows = [(series.steps[place], number(series.values[place], 4)) for place in places]
    head = [f"| {names[0]} | {names[1]} |", "| ---: | ---: |"]
    return "\n".join([*head, *(f"| {step} | {value} |" for step, value in rows)])


def _check(exported: Exported) -> str:
    own = exported.difference
    lines = [f"Loaded again by mlx_lm and compared with the run's own policy on {own.tokens} fixed tokens: {said(own)}."]
    if exported.reload is not None and exported.kind == "adapter":
        lines.append(f"On the base as the run quantised it: {said(exported.reload)}.")
    elif exported.reload is not None:
        lines.append(f"That is what quantising costs; the files themselves hold what was to be written: {said(exported.reload)}.")
    return "\n".join([*lines, *(f"\n{note}" for note in exported.notes)])


def said(difference: Difference) -> str:
    """The figures in a line."""
    return f"largest logit difference {number(difference.largest)}, mean KL {number(difference.kl)} nats"


def _signed(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:+.4g}"


def _shortened(config: RunConfig) -> str:
    """The config as YAML, its paths shortened to names."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        if isinstance(value, list):
            return [short(item) for item in value]
        return Path(value).name if isinstance(value, str) and value.startswith("/") and "\n" not in value else value

    return yaml.safe_dump(short(yaml.safe_load(configs.dump(config))), sort_keys=False, allow_unicode=True)
