"""One tiny run for every test of what comes after it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from engine import share
from engine.api import Run
from tests.support import warm
from tests.support.live import finish, small_config

from .support import with_merges


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of GRPO on the embedded model, whose tokenizer was given merges; a checkpoint and an evaluation after each."""
    home = tmp_path_factory.mktemp("trained")
    model = with_merges(Path(shutil.copytree(share.demo_model(), home / "base")))
    overrides = {"run.steps": 2, "run.eval_every": 1, "run.checkpoint_every": 1, "run.name": "taken"}
    settings = {key.replace(".", "__"): value for key, value in overrides.items()}
    data = {"train": "datasets/arithmetic-train.jsonl", "valid": "datasets/arithmetic-heldout.jsonl"}  # the card has its digest
    config = small_config("grpo", model=str(model), data=data, optim__learning_rate=1e-3, **settings)
    with warm.workers():
        run, state = asyncio.run(finish(home, config))
    assert state.state == "finished", state.failure
    return run
