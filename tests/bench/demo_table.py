"""Does the embedded model learn, for every seed, and only from its reward? The table in README, made by running it.

    python -m tests.bench.demo_table [--seeds 5] [--write README.md]

Trains `droid-tune demo`'s config once per seed, and once per seed with rewards shuffled within their groups (the control).
Every figure is measured: greedy accuracy on the 128 held-out problems before and after, and the seconds that the steps took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from engine import config as configs
from engine.api import Engine
from engine.cli import modes
from engine.runs.state import RunState
from tests.bench.marked import write

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- demo table: written by `python -m tests.bench.demo_table --write README.md` -->", "<!-- end of demo table -->"


@dataclass(frozen=True)
class Result:
    """One run. Accuracies are shares of the held-out problems, lengths mean tokens of the greedy answers."""

    seed: int
    control: bool
    base: float
    last: float
    length_before: float
    length_after: float
    train_seconds: float
    modes: modes.Modes


async def measure(seed: int, control: bool, home: Path, steps: int | None = None) -> Result:
    """Train one run to its end (`steps`: shortened, and evaluated only before and after) and read its journal."""
    shorter = {} if steps is None else {"run.steps": steps, "run.eval_every": steps}
    loaded = configs.load(ROOT / "configs" / "demo.yaml", {"run.seed": seed, **shorter}).config
    if control:
        reward = loaded.rewards[0].model_copy(update={"file": str(Path(__file__).with_name("shuffled.py"))})
        loaded = loaded.model_copy(update={"rewards": [reward]})
    run = await Engine(home).start(loaded)
    state: RunState = await run.wait()
    if state.state != "finished":
        raise RuntimeError(f"seed {seed} ended {state.state}: {state.failure}")
    reward_curve, length = state.held_out["reward"], state.held_out["length"]
    return Result(
        seed=seed,
        control=control,
        base=reward_curve.values[0],
        last=reward_curve.values[-1],
        length_before=length.values[0],
        length_after=length.values[-1],
        train_seconds=sum(state.series["seconds.total"].values),
        modes=modes.of_step(run.record, 1),
    )


def table(results: list[Result]) -> list[str]:
    """Markdown: a row per seed, learned beside control."""
    lines = [
        "| seed | held-out, base | held-out, trained | answer tokens | seconds of training | control: trained |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    learned = {result.seed: result for result in results if not result.control}
    controls = {result.seed: result for result in results if result.control}
    for seed, result in sorted(learned.items()):
        control = f"{controls[seed].last:.3f}" if seed in controls else "–"
        lines.append(
            f"| {seed} | {result.base:.3f} | {result.last:.3f} | {result.length_before:.1f} → {result.length_after:.1f} "
            f"| {result.train_seconds:.0f} | {control} |"
        )
    total = None
    for result in learned.values():
        total = result.modes if total is None else total + result.modes
    if total is not None:
        lines += ["", f"Before training the model {total.sentence()} (sampled, first step of each seed)."]
    return lines


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as home:
        for seed in range(chosen.seeds):
            for control in (False, True):
                results.append(await measure(seed, control, Path(home)))
                print(json.dumps(asdict(results[-1])), flush=True)
    lines = table(results)
    print("\n".join(lines))
    if chosen.write is not None:
        write(chosen.write, START, END, lines)


if __name__ == "__main__":
    asyncio.run(main())
