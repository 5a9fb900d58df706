"""The verb `validate`: what a data file holds for a method, before any training."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine import config as configs
from engine import data_names, methods, reward_rules
from engine.api import Engine
from engine.cli import loading, report_lines
from engine.cli.convert import renamed
from engine.config import RewardConfig, SamplingConfig
from engine.errors import InputError
from engine.plot import glyph_set
from engine.rewards import registry
from engine.safe_text import safe_text

Rewards = Sequence[RewardConfig] | Literal["auto"]

_METHOD = "grpo"


def validate(
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="A .jsonl, .json, .csv or .parquet file, or a folder of them.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="The method that will use it; by default grpo.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Measure lengths in this model's tokens (a folder, an id or demo).")
    ] = None,
    valid: Annotated[
        str | None, typer.Option("--valid", help="A held-out file: checked, too, and which of its rows DATA has.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="The format of the rows, where it is not the one that is detected.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="OURS=THEIRS", help="Rename a column of DATA; can be repeated.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="CONFIG", help="Check as this run will: its data, columns, limits, model, rewards."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --config: override a value, e.g. --set data.system=Hello."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward", metavar="NAME", help="Score the rows' own answers with it; FILE.py:NAME is your own. Repeatable."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--no-dry-run", help="Score the rows' own answers with rewards.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Measure and score every row, not a sample of a large file's.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check a data file before training: usable rows, every unusable one with its line, lengths, duplicates, answers.

    For a reward method the rows' own answers are scored in the real reward process: an answer that gets less than full marks is
    one that no completion can match. Without --reward and --config the reward that suits the answers is tried (auto). Exits with
    2 when the file cannot be used.
    """
    where = Path.cwd()
    names = renamed(columns or ())
    if config is not None:
        flags = {
            "data.train": None if data is None else data_names.resolve(data, where),
            "data.valid": None if valid is None else data_names.resolve(valid, where),
            "model": None if model is None else configs.model_path(model, where),
            "method": method,
            "data.format": format,
            "data.columns": names or None,
        }
        given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
        run = loading.load(config, [*(settings or []), *given]).config
        asked = _rewards(reward, dry_run, run.method, run.sampling, run.rewards)
        report = asyncio.run(Engine().validate_config(run, full=full, rewards=asked))
        if report.prompt_tokens is None and report.usable:
            print(f"note  lengths are not measured: {safe_text(run.model)} is not on this machine", file=sys.stderr)
    elif settings:
        raise InputError("there is no config to override", where="--set", remedy="give --config CONFIG")
    elif data is None:
        raise InputError("there is no data to check", where="validate", remedy="name a data file, or give --config CONFIG")
    else:
        method = method or _METHOD
        report = asyncio.run(
            Engine().validate(
                Path(data_names.resolve(data, where)),
                method,
                None if model is None else configs.model_folder(configs.model_path(model, where)),
                valid=None if valid is None else Path(data_names.resolve(valid, where)),
                full=full,
                rewards=_rewards(reward, dry_run, method, SamplingConfig(), "auto"),
                format=format or "auto",
                columns=names,
            )
        )
    if as_json:
        print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        print("\n".join(report_lines.report(report, glyph_set(sys.stdout.encoding, os.environ))))
    raise typer.Exit(2 if report.verdict == "unusable" else 0)


def _rewards(named: Sequence[str] | None, dry_run: bool, method: str, sampling: SamplingConfig, otherwise: Rewards) -> Rewards:
    """The rewards of the dry run. InputError for names of none, and for those of a method that has none."""
    if not named or not dry_run:
        return otherwise if dry_run else ()
    if methods.method(method).kind != "rl":
        raise InputError(f"{method} has no rewards", where="--reward", remedy="leave it out, or give --method grpo")
    if list(named) == ["auto"]:
        return "auto"
    made = [_reward(name) for name in named]
    if len({reward.name for reward in made}) < len(made):
        raise InputError("two rewards have the same name", where="--reward", remedy="each part is reported by its name")
    return reward_rules.placed(made, sampling, lambda path: path)


def _reward(name: str) -> RewardConfig:
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return RewardConfig(name=function, file=str(Path(file).absolute()))
    if name not in registry.LOADED:
        registry.built_in(name)  # says which there are
    return RewardConfig(name=name)
