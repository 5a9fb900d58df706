"""`droid-tune VERB`: one function per verb, each a few lines over engine.api. What is drawn lives in screens.py and watch.py."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from engine import methods
from engine.api import Engine, Run
from engine.cli import build_demo as demo_recipe
from engine.cli import loading, modes, screens, watch
from engine.cli.bench import bench
from engine.cli.chat import chat
from engine.cli.convert import convert
from engine.cli.doctor import doctor
from engine.cli.estimate import estimate
from engine.cli.export import export
from engine.cli.generate import generate
from engine.cli.models import models
from engine.cli.rewards import app as rewards_app
from engine.cli.sample_data import sample_data
from engine.cli.validate import validate
from engine.config import RunConfig
from engine.errors import InputError
from engine.runs.journal import jsonable
from engine.runs.state import RunState
from engine.safe_text import safe_text
from engine.shortfall import shortfall

T = TypeVar("T")

# Shows a run in the terminal until its user leaves and returns the exit status. The console script sets it where there is a
# terminal to draw in; without it, runs are shown as text.
viewer: Callable[[Engine, Run], int] | None = None

app = typer.Typer(
    name="droid-tune",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Train language models with rewards (GRPO, Dr. GRPO, GSPO) or by imitation (SFT) on MLX.

    A run is trained by a worker of its own: it outlives this command, the terminal and the connection. Start with
    `droid-tune demo`; then `droid-tune methods`, `droid-tune validate DATA --method grpo` and `droid-tune train CONFIG`.
    """,
)
app.command(name="sample-data")(sample_data)
app.command()(validate)
app.command()(convert)
app.command()(models)
app.add_typer(rewards_app, name="rewards")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the start of it.")]
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged recipe such as grpo.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config value, e.g. --set run.steps=20.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Shorthand for --set run.seed=N.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return as soon as the worker is started.")]


def main() -> NoReturn:
    """Run the command line; bad input prints one message and exits with 2."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        if "--json" in sys.argv:
            print(json.dumps(error.as_dict()))
        else:
            _complain(error)
        raise SystemExit(2) from None
    raise SystemExit(0)


def _complain(error: InputError) -> None:
    console = Console(stderr=True, highlight=False)
    place = f"{safe_text(error.where)}: " if error.where else ""
    console.print(Text.assemble(("error ", "bold red"), place, safe_text(error.what)), soft_wrap=True)
    if error.remedy:
        console.print(Text.assemble(("try   ", "bold"), safe_text(error.remedy)), soft_wrap=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _print(lines: list[str] | str) -> None:
    print(lines if isinstance(lines, str) else "\n".join(lines))


def _json(value: Any) -> None:
    print(json.dumps(jsonable(value), indent=1, ensure_ascii=False))


@app.command()
def train(
    config: ConfigFile, settings: Settings = None, seed: Seed = None, detach: Detach = False, as_json: Json = False
) -> None:
    """Start a run and watch it.

    The worker trains on when you leave (ctrl+c) or the connection drops; `droid-tune attach RUN` comes back to it.
    """
    _start(loading.load(config, settings, seed).config, detach, as_json, headless=False)


@app.command()
def demo(
    seed: Seed = None,
    settings: Settings = None,
    headless: Annotated[bool, typer.Option("--headless", help="Plain lines instead of the live view.")] = False,
    as_json: Json = False,
) -> None:
    """Watch the embedded model learn to think before it answers (GRPO, offline, under a minute on two cores).

    It is a small transformer that answers arithmetic at once, mostly wrong, or thinks first, mostly right. Only the answer is
    rewarded; you see it discover that thinking pays.
    """
    _start(loading.load("demo", settings, seed).config, False, as_json, headless, epilogue=_demo_epilogue)


def _demo_epilogue(run: Run, state: RunState) -> list[str]:
    """What the embedded model did at its first and at its last step."""
    if state.state != "finished" or state.step < 1:
        return []
    steps = {"before": 1, "after": state.step}
    return [f"{when:<8} {modes.of_step(run.record, step).sentence()}" for when, step in steps.items()]


def _start(config: RunConfig, detach: bool, as_json: bool, headless: bool, epilogue: watch.Epilogue = watch.nothing) -> None:
    if viewer is not None and not (detach or as_json or headless):
        engine = Engine()
        raise typer.Exit(_view(viewer, engine, _run(_started(engine, config)), epilogue))

    async def go() -> int:
        run = await _started(Engine(), config)
        if detach:
            if as_json:
                _json({"id": run.id, "folder": str(run.record.folder)})
            else:
                print(f"{run.id} is training on its own; `droid-tune attach {run.id}` shows it")
            return 0
        if not as_json:
            return await watch.watch(run, plain=headless or not sys.stdout.isatty(), epilogue=epilogue)
        state = await run.wait()
        _json({**state.as_dict(), "notes": epilogue(run, state)})
        return watch.exit_status(state)

    raise typer.Exit(_interruptible(go()))


async def _started(engine: Engine, config: RunConfig) -> Run:
    """The run, once it is started; one that does not fit is warned of on the error stream."""
    run = await engine.start(config)
    short = shortfall(config)
    if short is not None:
        print(safe_text(f"⚠ {short.message}; {short.remedy}"), file=sys.stderr, flush=True)
    return run


def _view(show: Callable[[Engine, Run], int], engine: Engine, run: Run, epilogue: watch.Epilogue = watch.nothing) -> int:
    """Let the terminal app show the run; once it is left, say how the run ended, where it has. Returns the exit status."""
    status = show(engine, run)
    state = _run(run.state())
    if not state.ended:
        return status
    _print([*screens.ending(state), *epilogue(run, state)])
    return status or watch.exit_status(state)


def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run it; ctrl+c leaves the run alone and says how to come back."""
    try:
        return _run(work)
    except KeyboardInterrupt:
        print("\nleft; the run goes on: `droid-tune runs` lists it, `droid-tune attach RUN` comes back", file=sys.stderr)
        return 0


@app.command(name="methods")
def list_methods(as_json: Json = False) -> None:
    """List the training methods: what each changes and when to use it."""
    if as_json:
        _json([screens.method_row(m) for m in methods.METHODS.values()])
    else:
        _print(screens.methods(tuple(methods.METHODS.values())))


app.command()(estimate)


@app.command()
def runs(as_json: Json = False) -> None:
    """List all runs, the latest first."""
    rows = _run(Engine().runs())
    if as_json:
        _json([row.as_dict() for row in rows])
    else:
        _print(screens.runs(rows))


@app.command()
def attach(
    run: RunId,
    headless: Annotated[bool, typer.Option("--headless", help="Plain lines instead of the live view.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The journal's events as JSON lines, as they come.")] = False,
) -> None:
    """Watch a run live: figures, the reward curve, the newest completions. Leave with q or ctrl+c; the run does not notice."""
    if viewer is not None and not (as_json or headless):
        engine = Engine()
        raise typer.Exit(_view(viewer, engine, _run(engine.attach(run))))

    async def go() -> int:
        attached = await Engine().attach(run)
        if not as_json:
            return await watch.watch(attached, plain=headless or not sys.stdout.isatty())
        await watch.logs(attached, True, True)
        return watch.exit_status(await attached.state())

    raise typer.Exit(_interruptible(go()))


@app.command()
def status(run: RunId, as_json: Json = False) -> None:
    """Say how a run is doing: state, step, latest figures, warnings, result."""

    async def go() -> None:
        attached = await Engine().attach(run)
        state = await attached.state()
        if as_json:
            _json(state.as_dict())
        else:
            _print(screens.status(state, attached.record.folder))

    _run(go())


@app.command()
def logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print a run's journal, one event a line."""

    async def go() -> int:
        await watch.logs(await Engine().attach(run), follow, as_json)
        return 0

    raise typer.Exit(_interruptible(go()))


def _command(run: str, verb: str, as_json: bool) -> None:
    async def go() -> None:
        attached: Run = await Engine().attach(run)
        answer = await {
            "pause": attached.pause,
            "resume": attached.resume,
            "stop": attached.stop,
            "checkpoint": attached.checkpoint,
        }[verb]()
        if as_json:
            _json({"id": attached.id, "verb": verb, "answer": answer})
        else:
            print(f"{attached.id}: {verb} {answer}")

    _run(go())


@app.command()
def pause(run: RunId, as_json: Json = False) -> None:
    """Ask a run to stand still (between two tokens or two updates); its memory stays allocated."""
    _command(run, "pause", as_json)


@app.command()
def resume(run: RunId, as_json: Json = False) -> None:
    """Let a paused run go on, or start a lost, stopped or failed one again from its last checkpoint, to the same bits."""
    _command(run, "resume", as_json)


@app.command()
def stop(run: RunId, as_json: Json = False) -> None:
    """Ask a run to write a checkpoint and end; `droid-tune resume RUN` takes it up again."""
    _command(run, "stop", as_json)


@app.command()
def checkpoint(run: RunId, as_json: Json = False) -> None:
    """Ask a run for a checkpoint now."""
    _command(run, "checkpoint", as_json)


app.command()(generate)
app.command()(chat)
app.command()(export)
app.command()(doctor)
app.command()(bench)


@app.command()
def schema() -> None:
    """Print the JSON schema of a config file: every key with its meaning and default."""
    _json(RunConfig.model_json_schema())


@app.command(name="build-demo", hidden=True)
def build_demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    datasets: Annotated[Path | None, typer.Option("--datasets", help="Write the embedded model's data files here.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Supervised steps of 64 rows.")] = 4000,
) -> None:
    """Make the embedded model again, from random weights, with the product's own supervised training."""
    if datasets is not None:
        demo_recipe.write_datasets(datasets)
    raise typer.Exit(demo_recipe.build(out, steps))
