"""The five commands that a model goes through, as users type them: validate, estimate, train, export, chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def all_five(model: Path, place: Path, *export: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Two steps of GRPO on short completions, the last layer trained; its export into place/out, and one answer of three
    tokens from each side. The estimate, the run's state and the export's figures; runs and conversions are in place/home."""
    config = {
        "model": str(model),
        "method": "grpo",
        "data": {"train": "datasets/arithmetic.jsonl"},
        "rewards": [{"name": "number"}],
        "adapter": {"layers": 1, "rank": 4},
        "sampling": {"prompts_per_step": 1, "group_size": 2, "max_prompt_tokens": 64, "max_completion_tokens": 3},
        "run": {"name": "five", "steps": 2, "eval_every": 2, "eval_rows": 1, "checkpoint_every": 2},
    }
    (place / "config.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "DROID_TUNE_HOME": str(place / "home")}

    def droid_tune(*arguments: str, typed: str = "") -> str:
        command = [sys.executable, "-P", "-m", "tui", *arguments]
        done = subprocess.run(
            command, input=typed, env=environment, cwd=place, capture_output=True, text=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    checked = json.loads(droid_tune("validate", "datasets/arithmetic.jsonl", "--model", str(model), "--json"))
    assert checked["verdict"] == "ready"
    estimated = json.loads(droid_tune("estimate", "config.yaml", "--json"))
    assert not [*(place / "home").glob("models/*/model.safetensors")]  # so far without the weights
    state = json.loads(droid_tune("train", "config.yaml", "--json"))
    assert (state["state"], state["step"]) == ("finished", 2)
    assert state["metrics"]["mismatch"]["value"] < 1e-3
    made = json.loads(droid_tune("export", "five", "--checkpoint", "last", "--out", str(place / "out"), *export, "--json"))
    assert made["step"] == 2 and made["difference"]["largest"] < 1e-3  # mlx_lm reads the export back
    answers = droid_tune("chat", "five", "--checkpoint", "last", "--max-tokens", "3", typed="/both\nWhat is 2+2?\n").splitlines()
    assert [line.partition(": ")[0] for line in answers] == ["base", "tuned"] and all(line.split(": ")[1] for line in answers)
    return estimated, state, made
