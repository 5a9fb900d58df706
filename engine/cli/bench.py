"""The verb `bench`: how fast rollouts and updates are here, as ratios to a bare loop in the same process."""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import config as configs
from engine import home, methods
from engine.cli import bench_lines, leaving
from engine.cli.bench_app import app as bench_app
from engine.errors import InputError
from engine.models.sources import present
from engine.provenance import provenance
from engine.runs import launch
from engine.safe_text import safe_text
from engine.takehome import asking

ON_MODEL = ("rollout", "step", "sft")  # the others train the embedded model, whatever is named
PARTS = (*ON_MODEL, "journal", "app")
_PROMPTS = 4


def bench(
    part: Annotated[
        str | None,
        typer.Argument(
            metavar="PART", help=f"{', '.join(PARTS)}; without one all, of a MODEL {', '.join(ON_MODEL)}.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, an HF id on this machine, or demo; without one a random model of 4 million parameters.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", help="Prompts of a step; 4, or as many as the method's mini-batches need.")
    ] = None,
    group: Annotated[int, typer.Option("--group", help="Completions of each prompt.")] = 8,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Tokens of each prompt.")] = 160,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of each completion; none stops before.")] = 64,
    rank: Annotated[int, typer.Option("--rank", help="Of the low-rank adapter on every linear layer.")] = 8,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed passes of each side, after one that is not counted.")] = 3,
    method: Annotated[str, typer.Option("--method", "-m", help="Whose steps are timed.")] = "grpo",
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths", help="step: also the cost of a token at these lengths, e.g. 64,128,256,512,1024.", metavar="N,N"
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="journal: steps of the demo.")] = 20,
    seconds: Annotated[float, typer.Option("--seconds", help="app: seconds of a window with and of one without it.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Time rollouts, steps and supervised updates on this machine, each against a bare loop of mlx_lm's forward passes, in turn.

    journal: what a run's record costs. app: what watching a run costs; both always run the demo. Other work on the machine is
    noted; with it, trust the CPU-time ratios.
    """
    wanted, model = chosen(part, model)
    settings = {
        "prompts": prompts if prompts is not None else _enough_prompts(method),
        "group": group,
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "rank": rank,
        "repeats": repeats,
        "method": method,
        "lengths": [] if lengths is None else parsed_lengths(lengths),
        "steps": steps,
    }
    check(wanted, settings, seconds)
    if model is not None:
        model = configs.model_path(model, Path.cwd())
        present(model)  # an error now, not when a worker has started
    found = leaving.run(_measured(wanted, model, settings, seconds), "nothing is kept of this benchmark")
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(bench_lines.lines(found)))


def chosen(part: str | None, model: str | None) -> tuple[tuple[str, ...], str | None]:
    """The parts and the model that the two arguments mean: a single one may be either. Raises InputError."""
    if part is None or part in PARTS:
        wanted: tuple[str, ...] = PARTS if part is None else (part,)
    elif model is not None or (not Path(part).exists() and difflib.get_close_matches(part, PARTS, n=1)):
        near = difflib.get_close_matches(part, PARTS, n=1, cutoff=0.0)
        raise InputError(f"no part {part!r}", where="bench", remedy=f"did you mean {near[0]}? One of: {', '.join(PARTS)}")
    else:
        wanted, model = ON_MODEL, part
    if model is not None and not set(wanted) & set(ON_MODEL):
        remedy = f"leave {model} out"
        raise InputError(f"{wanted[0]} always runs the embedded model", where="bench", remedy=remedy)
    return wanted, model


def parsed_lengths(text: str) -> list[int]:
    """The numbers in N,N,... Raises InputError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} are no lengths", where="--lengths", remedy="for example --lengths 64,128,256") from None


def check(wanted: tuple[str, ...], settings: dict[str, Any], seconds: float) -> None:
    """Raise InputError for numbers that nothing can be timed with."""
    least = {
        "prompts": 1,
        "group": 2 if "step" in wanted else 1,
        "prompt_tokens": 1,
        "max_tokens": 2,
        "rank": 1,
        "repeats": 1,
        "steps": 1,
    }
    for name, bound in least.items():
        if settings[name] < bound:
            why = " (a group of one has no baseline)" if name == "group" and settings[name] == 1 else ""
            where = f"--{name.replace('_', '-')}"
            raise InputError(f"{settings[name]} is too few{why}", where=where, remedy=f"give {bound} or more")
    if any(length < 2 for length in settings["lengths"]):
        raise InputError("a length is below 2", where="--lengths", remedy="a completion needs a first token and one more")
    if not 0 < seconds < float("inf"):
        raise InputError(f"{seconds} is no time", where="--seconds", remedy="give more than 0")
    if methods.method(settings["method"]).kind == "sft" and {"rollout", "step"} & set(wanted):
        raise InputError(
            "sft has no rollouts and no rewards", where="--method", remedy="`droid-tune bench sft` times its updates"
        )


def _enough_prompts(method: str) -> int:
    objective = methods.method(method).objective
    return _PROMPTS if objective is None else max(_PROMPTS, objective.minibatches)


async def _measured(wanted: tuple[str, ...], model: str | None, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Every part's figures, with what they were measured on."""
    found: dict[str, Any] = {**provenance(), "settings": {**settings, "seconds": seconds}}

    def take(line: asking.Line) -> None:
        if line["event"] == "progress":
            _tell(line["part"], line["text"])
        elif line["event"] == "model":
            found["model"] = {"name": "random, 4 million parameters" if model is None else Path(model).name, **line["model"]}
        else:
            found[line["part"]] = line["found"]

    asked = [part for part in wanted if part != "app"]
    if asked:
        environment = launch.worker_environment(os.environ, {})[0]
        request = {"parts": asked, "model": model, "blank": str(home.home() / "machine" / "bench-4m"), "settings": settings}
        await asking.ask("bench", request, environment, take)
    if "app" in wanted:
        found["app"] = await bench_app(seconds, settings["repeats"], lambda text: _tell("app", text))
    return found


def _tell(part: str, text: str) -> None:
    print(f"{part}: {safe_text(text)}", file=sys.stderr, flush=True)
