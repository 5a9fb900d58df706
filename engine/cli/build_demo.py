"""How the embedded model was made: a blank model, synthetic work of two solvers, and the product's own supervised training.

`droid-tune build-demo OUT` repeats it (some ten minutes on two cores). The data is engine/data/arithmetic.py; held-out problems
occur in none of its rows.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import config as configs
from engine.api import Engine
from engine.cli import watch
from engine.data import arithmetic
from engine.data.writing import write_rows
from engine.errors import InputError

SFT_ROWS, SFT_SEED = 80_000, 0
RL_ROWS, HELD_OUT_ROWS, SAMPLE_ROWS = 512, 128, 512

_RECIPE = """
model: {blank}
method: sft
data: {{train: {data}}}
adapter: {{type: full}}
sampling: {{prompts_per_step: 64, max_prompt_tokens: 64, max_completion_tokens: 64}}
optim: {{learning_rate: 3.0e-3, schedule: cosine, warmup: 0.04, weight_decay: 0.01, betas: [0.9, 0.98], micro_batch_rows: 64}}
run: {{steps: {steps}, seed: 0, eval_every: 200, checkpoint_every: 400, name: build-demo}}
"""
_BLANK = ("--hidden-size", "64", "--layers", "2", "--intermediate-size", "128", "--heads", "4", "--seed", "0")


def build(out: Path, steps: int) -> int:
    """Make the embedded model in the new folder `out`; returns the training run's exit status."""
    if out.exists():
        raise InputError("exists already", where=str(out), remedy="name a new folder")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        blank = work / "blank"
        subprocess.run([sys.executable, "-P", "-m", "engine.worker", "blank", str(blank), *_BLANK], check=True)
        write_rows(work / "sft.jsonl", arithmetic.sft_rows(SFT_ROWS, SFT_SEED))
        recipe = _RECIPE.format(blank=blank, data=work / "sft.jsonl", steps=steps)
        status = asyncio.run(_train(recipe, work, out, blank))
    return status


async def _train(recipe: str, work: Path, out: Path, blank: Path) -> int:
    run = await Engine(work / "home").start(configs.parse(recipe, base=work).config)
    status = await watch.watch(run, plain=True)
    if status == 0:
        shutil.copytree(blank, out)
        # a full run's adapter file holds every weight under the model's own names
        shutil.copyfile(run.record.adapters_dir / "adapters.safetensors", out / "model.safetensors")
    return status


def write_datasets(folder: Path) -> None:
    """Write the embedded model's data files: problems to train on by reward, held-out ones, and a careful solver's work."""
    write_rows(folder / "arithmetic-train.jsonl", arithmetic.rl_rows("train", RL_ROWS, 0), overwrite=True)
    write_rows(folder / "arithmetic-heldout.jsonl", arithmetic.rl_rows("heldout", HELD_OUT_ROWS, 0), overwrite=True)
    write_rows(folder / "arithmetic-sft.jsonl", arithmetic.careful_rows("train", SAMPLE_ROWS, 1), overwrite=True)
