"""Does every method train the embedded model? The table in README, made by running it.

    python -m tests.bench.methods_table [--seeds 3] [--methods grpo,gspo] [--write README.md]

Trains each reward method's packaged recipe (configs/METHOD.yaml, as it is) once per seed. Every figure is measured: greedy
accuracy on the 128 held-out problems before, after the last step and at the best evaluation (what `adapters/` holds), the
seconds that the steps took, and the kinds of warnings that the run gave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from engine import config as configs
from engine import methods
from engine.api import Engine
from tests.bench.marked import write

ROOT = Path(__file__).resolve().parents[2]
START, END = (
    "<!-- methods table: written by `python -m tests.bench.methods_table --write README.md` -->",
    "<!-- end of methods table -->",
)
ENOUGH = 0.85


@dataclass(frozen=True)
class Result:
    """One run; accuracies are shares of the held-out problems."""

    method: str
    seed: int
    base: float
    last: float
    best: float
    seconds: float
    warnings: tuple[str, ...]


async def measure(method: str, seed: int, home: Path) -> Result:
    """Train one recipe to its end and read its journal."""
    config = configs.load(ROOT / "configs" / f"{method}.yaml", {"run.seed": seed, "run.eval_rows": 128}).config
    run = await Engine(home).start(config)
    state = await run.wait()
    if state.state != "finished":
        raise RuntimeError(f"{method}, seed {seed}, ended {state.state}: {state.failure}")
    accuracy = state.held_out["parts.answer"].values
    kinds = tuple(sorted({warning.kind for warning in state.warnings}))
    seconds = sum(state.series["seconds.total"].values)
    return Result(method, seed, accuracy[0], accuracy[-1], max(accuracy), seconds, kinds)


def table(results: list[Result]) -> list[str]:
    """Markdown: a row per method."""
    lines = [
        "| method | seeds | held-out, base | after the last step | at the best evaluation | seconds | warnings |",
        "|---|---|---:|---|---|---|---|",
    ]
    for method in dict.fromkeys(result.method for result in results):
        runs = [result for result in results if result.method == method]
        seeds = ", ".join(str(run.seed) for run in runs)
        last = ", ".join(f"{run.last:.3f}" for run in runs)
        best = ", ".join(f"{run.best:.3f}" for run in runs)
        seconds = ", ".join(f"{run.seconds:.0f}" for run in runs)
        kinds = ", ".join(sorted({kind for run in runs for kind in run.warnings})) or "none"
        lines.append(f"| {method} | {seeds} | {runs[0].base:.3f} | {last} | {best} | {seconds} | {kinds} |")
    short = [f"{result.method} with seed {result.seed} ({result.best:.3f})" for result in results if result.best < ENOUGH]
    lines += ["", f"Below {ENOUGH}: {'; '.join(short) or 'none'}."]
    return lines


async def main() -> None:
    rows = [method.id for method in methods.METHODS.values() if method.kind == "rl"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(rows))
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as home:
        for method in chosen.methods.split(","):
            for seed in range(chosen.seeds):
                results.append(await measure(method, seed, Path(home)))
                print(json.dumps(asdict(results[-1])), flush=True)
    lines = table(results)
    print("\n".join(lines))
    if chosen.write is not None:
        write(chosen.write, START, END, lines)


if __name__ == "__main__":
    asyncio.run(main())
