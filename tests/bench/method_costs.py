"""What each method really costs against supervised training: one measured step of each on one config.

    python -m tests.bench.method_costs [--model MODEL] [--out FILE.json]

The same model, adapter and rows for all: supervised training learns as many rows as the others sample completions. Every other
completion is right, so that no row is left out; nothing is punished or masked for being cut; methods with more mini-batches than
prompts take as many. Each step is the second of a worker of its own, timed phase by phase as `droid-tune estimate --measure`
does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import machine_load, measuring
from engine.home import home
from engine.methods import METHODS
from engine.provenance import provenance
from engine.worker import bench_model
from engine.worker.bench_model import Settings

ROWS = 64


async def measured(model: str, settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """A row for each method: seconds by phase, updates, completion tokens, peak bytes, and multiples of supervised training."""
    policy = bench_model.load(model, settings.rank)
    asked = bench_model.prompts(policy, ROWS, settings.prompt_tokens)
    told = bench_model.replies(policy, asked, settings.max_tokens)
    rows = [{"prompt": one.messages[0].content, "completion": one.completion} for one in told]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rates = measuring.known_rates(home()) or await measuring.measure_rates(home(), _told)
    found: list[dict[str, Any]] = []
    for name in sorted(METHODS, key=lambda name: name != "sft"):
        own = METHODS[name].objective
        fewer = {"minibatches": settings.prompts} if own is not None and own.minibatches > settings.prompts else {}
        config = bench_model.run_config(policy, replace(settings, method=name), folder, **fewer)
        step = await measuring.measure_step(config, home(), rates, _told)
        objective = None if name == "sft" else config.resolved_objective()
        row = {
            "method": name,
            "beta": objective and objective.beta,
            "updates": 1 if objective is None else objective.updates,
            "seconds": dict(step.seconds),
            "total": step.total,
            "peak_bytes": max(step.peak_bytes.values()),
            "completion_tokens": step.completion_tokens,
            "micro_batch_rows": step.micro_batch_rows,
            "others_cores": step.others_cores,
        }
        base = found[0] if found else row
        row["time"], row["memory"] = row["total"] / base["total"], row["peak_bytes"] / base["peak_bytes"]
        print(json.dumps(row), file=sys.stderr, flush=True)
        found.append(row)
    return found


def _told(text: str) -> None:
    """Progress is the rows themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, an HF id on this machine, or demo; without it the random model of 4 M")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = Settings()
    model = options.model or str(bench_model.blank_folder(home() / "machine" / "bench-4m"))
    start = machine_load.mark()
    with tempfile.TemporaryDirectory(prefix="droid-tune-methods-") as name:
        rows = asyncio.run(measured(model, settings, Path(name)))
    report = {
        "kind": "methods",
        **provenance(),
        "model": Path(model).name,
        "settings": {"rows": settings.rows, "prompt_tokens": settings.prompt_tokens, "max_tokens": settings.max_tokens},
        "methods": rows,
        "load": machine_load.since(start).as_dict(),
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
