"""How near is the memory plan? Each config of a grid is run for one step in a process of its own, beside what was predicted.

    python -m tests.bench.estimates [--out FILE] [--fitting] [--only TEXT]

Measured is mlx's own peak over a real step, whole and by its phases; the rewards come from their process, and no row stops
early. Of time there are the prediction from the machine's rates, which is cold, and what one measured step makes of it, both
against the step after that. `--fitting` runs the configs that the plan's counts were checked on.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import blas, machine_load, measuring
from engine.config import RunConfig
from engine.home import home
from engine.memory import Plan
from engine.provenance import provenance
from engine.timing import time_plan
from tests.bench.estimate_grid import BLANK, FITTING, HELD_OUT, OTHER, REPORTED, SMOLLM2, Case

ROOT = Path(__file__).resolve().parents[2]
REAL = Path.home() / ".cache" / "droid-tune-tests" / "smollm2-135m-float32"
NEAR, UNDER = 0.10, 0.20  # relative errors: what counts as near, and what is too far under
PHASES = ("rollout", "score", "update", "whole")
CHECKED = 1  # steps after the one that corrects the prediction of time
IN_TIME = 0.25  # relative error of a step's seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON of every figure")
    parser.add_argument("--fitting", action="store_true", help="the other list of configs")
    parser.add_argument("--only", default="", help="configs whose model and name have this text")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case is not None:
        print(json.dumps(measured(Case(**json.loads(chosen.case)), chosen.folder)))
        return
    cases = [case for case in (FITTING if chosen.fitting else REPORTED) if chosen.only in f"{case.model} {case.name}"]
    if measuring.known_rates(home()) is None:
        asyncio.run(measuring.measure_rates(home(), lambda text: print(text, file=sys.stderr)))
    start, begun, found = time.perf_counter(), machine_load.mark(), []
    with tempfile.TemporaryDirectory(prefix="droid-tune-estimates-") as name:
        for case in cases:
            found.append(apart(case, Path(name)))
            print(line(found[-1]), flush=True)
    report = {
        "kind": "estimates",
        **provenance(),
        "seconds": time.perf_counter() - start,
        "held_out_family": HELD_OUT,
        "cases": found,
        **verdict(found),
        "load": machine_load.since(begun).as_dict(),
    }
    print("\n".join(table(report)))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def apart(case: Case, folder: Path) -> dict[str, Any]:
    """`measured` in a fresh process with the BLAS that a worker gets. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "tests.bench.estimates", "--case", json.dumps(case.as_dict()), "--folder", str(folder)]
    environment = {"OPENBLAS_NUM_THREADS": str(os.cpu_count() or 1), **os.environ, **blas.blas_environment(os.environ)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case.model} {case.name}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """Predicted and measured bytes of one step's phases, and its seconds."""
    import mlx.core as mx

    from engine.worker import bench_model, selftest_checks
    from engine.worker.bench_model import Settings
    from engine.worker.bench_step import Steps
    from engine.worker.bench_timing import Clock
    from engine.worker.model import load_policy
    from engine.worker.rewarding import Judge

    mx.set_default_device(mx.cpu)
    model = _model(case.model, folder)
    settings = Settings(case.prompts, case.group, case.prompt_tokens, case.tokens, case.rank, bare=False)
    with _config(case, settings, model, folder) as config:
        policy = load_policy(model, config.adapter, bench_model.SEED, quantize=config.quantize)
        policy.stop_ids = frozenset()  # every row has all its tokens
        policy.recomputes = case.recomputes
        if case.adapter != "full":
            selftest_checks.move(policy)
        mx.eval(policy.model.parameters())
        asked = bench_model.prompts(policy, case.prompts, case.prompt_tokens)
        length = len(policy.render(asked[0].messages)[1])
        sampling = config.sampling.model_copy(update={"max_prompt_tokens": length})
        config = config.model_copy(update={"sampling": sampling})
        judge = Judge(config.rewards, _refused, policy.decode)
        try:
            steps, clock = Steps(policy, config, asked, judge, settings), Clock()
            mx.eval(steps.trainer.optimizer.state)
            if Plan(config, "cpu").reference:  # it is a copy of its own once the weights have moved
                steps(clock)
                clock = Clock()
            steps(clock)
            clock.now(None)
            later = [_seconds(steps) for _ in range(1 + CHECKED)]
        finally:
            judge.close()
    peaks = {name: part.peak_bytes for name, part in clock.parts.items()}
    rates = measuring.known_rates(home())
    time = rates and time_plan(Plan(config, "cpu"), rates, case.micro or case.rows, recomputes=case.recomputes)
    return {
        "case": case.as_dict(),
        "held_out": case.model == HELD_OUT,
        "prompt_tokens": length,
        "predicted": predicted(config, case),
        "measured": {**peaks, "whole": max(peaks.values())},
        "seconds": {
            "predicted": dict(time.phases) if time else None,
            "one_step": later[0],
            "measured": {name: statistics.median(each[name] for each in later[1:]) for name in later[0]},
        },
    }


def _seconds(steps: Any) -> dict[str, float]:
    """One more step's phases."""
    from engine.worker.bench_timing import Clock

    clock = Clock()
    steps(clock)
    clock.now(None)
    return {name: part.seconds for name, part in clock.parts.items()}


def predicted(config: RunConfig, case: Case) -> dict[str, int | None]:
    """The plan's peaks in bytes, by phase."""
    plan = Plan(config, "cpu")
    rows = config.optim.micro_batch_rows or plan.update_rows
    peaks = {"rollout": plan.rollout_peak(), "score": plan.score_peak(rows), "update": plan.update_peak(rows)}
    return {**peaks, "held": plan.held, "whole": max(peak or 0 for peak in peaks.values())}


@contextmanager
def _config(case: Case, settings: Any, model: Path, folder: Path) -> Iterator[RunConfig]:
    """The run's config; inside, its reward is in a folder."""
    from types import SimpleNamespace

    from engine.worker import bench_model

    with tempfile.TemporaryDirectory(dir=folder) as place:
        stand_in: Any = SimpleNamespace(folder=model)
        config = bench_model.run_config(stand_in, settings, Path(place), beta=case.beta)
        parts = {
            "adapter": {"type": case.adapter, "layers": case.layers},
            "quantize": {"bits": case.bits},
            "optim": {"name": case.optimizer, "micro_batch_rows": case.micro or case.rows, "grad_checkpoint": case.recomputes},
            "run": {"eval_rows": 1},
        }
        yield config.model_copy(update={name: getattr(config, name).model_copy(update=part) for name, part in parts.items()})


def _model(name: str, folder: Path) -> Path:
    """The model's folder, made where it is not there."""
    from engine.worker import bench_model
    from engine.worker.blank import write_blank_model
    from tests.support.families import write_family

    if name == SMOLLM2:
        return REAL
    made = folder / name
    if name == BLANK:
        return bench_model.blank_folder(made)
    if not made.is_dir() and name == "other":
        write_blank_model(made, dataclasses.replace(bench_model.BLANK, **OTHER), 1)
    return made if made.is_dir() else write_family(made, name)


def _refused(kind: str, message: str, remedy: str, **_: Any) -> None:
    raise RuntimeError(f"{kind}: {message}; {remedy}")


# What is said of it.


def error(found: Mapping[str, Any], phase: str) -> float | None:
    """(predicted - measured) / measured; None where the phase has none of either."""
    said, seen = found["predicted"].get(phase), found["measured"].get(phase)
    return None if said is None or not seen else said / seen - 1


def time_error(found: Mapping[str, Any], what: str) -> float | None:
    """(said - seen) / seen, of a step's seconds as predicted from rates or as the one measured step had them, without rewards."""
    said = found["seconds"][what]
    return None if said is None else _whole(said) / _whole(found["seconds"]["measured"]) - 1


def _whole(phases: Mapping[str, float]) -> float:
    """Of the step without its rewards: what these take is their own."""
    return sum(seconds for name, seconds in phases.items() if name != "reward")


def line(found: Mapping[str, Any]) -> str:
    """A row of the table."""
    case = Case(**found["case"])
    errors = [error(found, phase) for phase in PHASES]
    cells = [f"{case.model}{' (held out)' if found['held_out'] else ''}", case.name]
    cells += [f"{(found['predicted'][name] or 0) / 1e6:.1f}" for name in ("whole",)] + [f"{found['measured']['whole'] / 1e6:.1f}"]
    cells += ["" if value is None else f"{100 * value:+.1f}%" for value in errors]
    times = [time_error(found, "predicted"), time_error(found, "one_step")]
    cells += [
        f"{_whole(found['seconds']['measured']):.2f}",
        *("" if value is None else f"{100 * value:+.0f}%" for value in times),
    ]
    return "| " + " | ".join(cells) + " |"


def table(report: Mapping[str, Any]) -> list[str]:
    """Markdown: a row per config, and how many are near."""
    head = ["model", "config", "predicted MB", "measured MB", *(f"error, {phase}" for phase in PHASES), "seconds"]
    head += ["error, cold", "error, after one step"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(line, report["cases"])]
    near, of, least = report["near"], len(report["cases"]), report["furthest_under"]
    said = f"{near} of {of} within {NEAR:.0%}; furthest under {least:+.1%}; {report['seconds']:.0f} s in all."
    times = (
        f"A step's time: {report['in_time']} of {of} within {IN_TIME:.0%} after one measured step, {report['in_time_cold']} cold."
    )
    return [*lines, "", said, times]


def verdict(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many whole peaks are near, and whether one is too far under."""
    errors = [error(each, "whole") or 0.0 for each in found]
    return {
        "near": sum(abs(value) <= NEAR for value in errors),
        "furthest_under": min(errors, default=0.0),
        "in_time": sum(abs(time_error(each, "one_step") or 0.0) <= IN_TIME for each in found),
        "in_time_cold": sum(abs(value) <= IN_TIME for each in found if (value := time_error(each, "predicted")) is not None),
        "none_too_far_under": all(value >= -UNDER for value in errors),
    }


if __name__ == "__main__":
    main()
