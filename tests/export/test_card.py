"""The model card of runs that are made up, figure by figure: supervised, unevaluated, quantised, of a hub's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.runs.state import RunState
from engine.runs.values import record_metrics
from engine.takehome.card import Told, card
from engine.takehome.kinds import Difference, Exported
from tests.support.live import small_config

GAP = Difference(96, 0.25, 0.001, 0.002)
HELD_OUT = {"base": 2.5, "tuned": 1.25, "difference": -1.25, "low": -1.5, "high": -1.0, "n": 7}


def told(recipe: str, held_out: dict[str, Any] | None, **changes: Any) -> Told:
    """A run of 40 steps whose reward (or loss) is the step over 100, evaluated twice."""
    label = "loss" if recipe == "sft" else "reward"
    state = RunState(state="running", step=40, digests={"data_sha256": "abc"})
    for step in range(1, 41):
        record_metrics(state.series, step, {label: step / 100})
    for step, value in ((0, 2.5), (40, 1.25)):
        record_metrics(state.held_out, step, {label: value})
    parts: dict[str, Any] = {"kind": "fused", "out": Path("/x/out"), "checkpoint": "last", "step": 40, "bytes": 1, "files": ()}
    parts |= {"quantization": None, "difference": GAP, "reload": None, "command": "mlx_lm.generate --model /x/out"}
    config = small_config(recipe, model="owner/name", run__steps=50)
    return Told("r", config, state, Exported(**{**parts, **changes}), held_out)


def test_a_supervised_run() -> None:
    """Its loss, which is better when lower; a hub's model is named as the base, the running state is said."""
    text = card(told("sft", HELD_OUT))
    assert text.startswith("---\nbase_model: owner/name\n")
    assert "Mean loss per token over 7 held-out rows, lower is better:" in text
    assert "base 2.5, tuned 1.25; difference -1.25 (95% interval -1.5 to -1)." in text
    assert "the run did 40 of 50 steps (running)" in text and "sha256 `abc`" in text
    assert "## Loss while training" in text and "| 40 | 0.4 |" in text
    rows = [line for line in text.split("## Loss while training")[1].splitlines() if line.startswith("| ") and ":" not in line]
    assert len(rows) == 21 and rows[1] == "| 1 | 0.01 |"  # the head and 20 of 40 steps
    assert "flatters" not in text


@pytest.mark.parametrize("low", [None, -1.5])
def test_what_is_not_known_is_not_claimed(low: float | None) -> None:
    """No interval of one row; no result of a step that was not evaluated; versions that nobody recorded are unknown."""
    found = card(told("grpo", {**HELD_OUT, "low": low, "high": low and -1.0}))
    assert ("interval" in found) == (low is not None)
    none = card(told("grpo", None))
    assert "This step was not evaluated" in none and "interval" not in none and "| 40 | 1.25 |" in none
    assert "mlx unknown" in none


def test_the_cost_of_quantising_is_said() -> None:
    text = card(
        told("grpo", None, quantization={"bits": 4, "group_size": 64}, reload=Difference(96, 0.0, 0.0, 0.0), checkpoint="best")
    )
    assert "Quantised: bits 4, group_size 64" in text
    assert "on 96 fixed tokens: largest logit difference 0.25, mean KL 0.001 nats." in text
    assert "what quantising costs; the files themselves hold what was to be written: largest logit difference 0" in text
