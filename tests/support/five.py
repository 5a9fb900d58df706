"""The five commands that a model goes through: validate, estimate, train, export, chat. Chat is the real command, fed by a pipe;
the others go through the console script's own function in this process, and have warm workers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tui.__main__ import main as console_script


def all_five(model: Path, place: Path, *export: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Two steps of GRPO on short prompts and completions, the last layer trained; its export into place/out, and one answer of
    three tokens from each side. The estimate, the run's state and the export's figures; runs and models are in place/home."""
    config = {
        "model": str(model),
        "method": "grpo",
        "data": {"train": "short.jsonl", "system": "."},
        "rewards": [{"name": "number"}],
        "adapter": {"layers": 1, "rank": 4},
        "sampling": {"prompts_per_step": 1, "group_size": 2, "max_prompt_tokens": 64, "max_completion_tokens": 3},
        "run": {"name": "five", "steps": 2, "eval_every": 2, "eval_rows": 1, "checkpoint_every": 2},
    }
    (place / "config.yaml").write_text(json.dumps(config))
    rows = [{"prompt": f"1+{n}?", "answer": str(1 + n)} for n in range(9)]
    (place / "short.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    environment = {**os.environ, "DROID_TUNE_HOME": str(place / "home")}

    def droid_tune(*arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch, warm.workers(), contextlib.redirect_stdout(io.StringIO()) as said:
            patch.setattr(sys, "argv", ["droid-tune", *arguments])
            patch.setenv("DROID_TUNE_HOME", environment["DROID_TUNE_HOME"])
            patch.chdir(place)
            with pytest.raises(SystemExit) as left:
                console_script()
        assert left.value.code == 0, said.getvalue()
        return said.getvalue()

    checked = json.loads(droid_tune("validate", "datasets/arithmetic.jsonl", "--model", str(model), "--json"))
    assert checked["verdict"] == "ready"
    estimated = json.loads(droid_tune("estimate", "config.yaml", "--json"))
    assert not [*(place / "home").glob("models/*/model.safetensors")]  # so far without the weights
    state = json.loads(droid_tune("train", "config.yaml", "--json"))
    assert (state["state"], state["step"]) == ("finished", 2)
    assert state["metrics"]["mismatch"]["value"] < 1e-3
    made = json.loads(droid_tune("export", "five", "--checkpoint", "last", "--out", str(place / "out"), *export, "--json"))
    assert made["step"] == 2 and made["difference"]["largest"] < 1e-3  # mlx_lm reads the export back
    command = [sys.executable, "-P", "-m", "tui", "chat", "five", "--checkpoint", "last", "--max-tokens", "3"]
    talk = subprocess.run(
        command, input="/both\n2+2?\n", env=environment, cwd=place, capture_output=True, text=True, timeout=800, check=False
    )
    assert talk.returncode == 0, talk.stdout + talk.stderr
    answers = talk.stdout.splitlines()
    assert [line.partition(": ")[0] for line in answers] == ["base", "tuned"] and all(line.split(": ")[1] for line in answers)
    return estimated, state, made
