"""What has no effect here, and which defaults apply that are not the tool's: all of it is said."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engine import config as configs
from engine.aliases.defaults import DEFAULTS
from engine.aliases.rows import LORA
from engine.aliases.table import ROWS
from engine.aliases.unused import IGNORED
from engine.errors import InputError
from tests.aliases.support import FLAT, GRPO, load


@pytest.mark.parametrize("row", IGNORED, ids=lambda row: f"{row.tools[0]} {row.key}")
def test_what_has_no_meaning_here_changes_nothing_and_is_named(row: Any) -> None:
    sure = {"disable_tqdm" if "TRL" in row.tools else "wandb": "mine"} if len(ROWS[row.key]) > 1 else {}
    loaded = load({**GRPO, **sure, row.key: 1})
    assert configs.dump(loaded.config) == configs.dump(load(GRPO).config)
    assert any(note.startswith("ignored:") and row.key in note and row.meaning in note for note in loaded.notes)


def test_mlx_lms_own_keys_are_known_and_its_defaults_are_named() -> None:
    """Read from the source of the installed mlx_lm."""
    spec = importlib.util.find_spec("mlx_lm")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "lora.py").read_text(encoding="utf-8"))
    theirs = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and "DEFAULTS" in ast.dump(node.targets[0])
    )
    assert {key for key in theirs if not any(LORA in row.tools for row in ROWS.get(key, ()))} == {"model"}
    named = {default.to: default.theirs[LORA] for default in DEFAULTS if LORA in default.theirs}
    lora = theirs["lora_parameters"]
    assert (named["adapter.rank"], named["adapter.scale"], named["adapter.layers"]) == (
        lora["rank"],
        lora["scale"],
        theirs["num_layers"],
    )
    assert (named["optim.name"], named["optim.learning_rate"]) == (theirs["optimizer"], theirs["learning_rate"])
    assert named["sampling.prompts_per_step"] == theirs["batch_size"]


def test_defaults_that_differ_are_named_and_ours_apply() -> None:
    flat = {**FLAT, "train_mode": "grpo"}
    loaded = load(flat)
    said = "\n".join(loaded.notes)
    objective, lora = loaded.config.resolved_objective(), loaded.config.adapter
    assert (objective.epsilon_low, objective.beta, lora.scale, lora.rank) == (0.2, 0.04, 20.0, 16)
    for note in (
        "objective.epsilon_low: 0.2 applies here (by default; mlx-lm-lora: 0.0001)",
        "objective.beta: 0.04 applies here (by default; mlx-lm-lora: 0.1)",
        "adapter.scale: 20.0 applies here (by default; mlx-lm-lora: 10.0)",
        "sampling.prompts_per_step: 4 applies here (by default; mlx-lm-lora: 1)",
    ):
        assert note in said
    assert "adapter.layers" not in said  # -1 in both
    trl = "\n".join(load({**FLAT, "num_generations": 8}).notes)
    for note in (
        "method: grpo applies here (a mean for each completion); TRL's own default is loss_type: dapo",
        "objective.beta: 0.04 applies here (by default; TRL: 0.0)",
        "objective.kl: k3 applies here (by default; TRL: k3_ratio)",
        "sampling.prompts_per_step: 4 applies here (by default; TRL: 8 completions",
    ):
        assert note in trl
    assert "epsilon" not in trl and "objective.beta" not in "\n".join(load({**FLAT, "num_generations": 8, "beta": 0.0}).notes)


def test_a_config_of_ours_with_a_foreign_key_has_no_foreign_defaults() -> None:
    loaded = load({**GRPO, "iters": 5})
    assert loaded.notes == () and loaded.origin["run.steps"] == "mlx_lm.lora, mlx-lm-lora: iters"
    assert load(GRPO).notes == ()


def test_flags_win_over_files_and_speak_our_names() -> None:
    loaded = load({**GRPO, "iters": 5}, **{"run.steps": 9})
    assert (loaded.config.run.steps, loaded.origin["run.steps"]) == (9, "flag")
    with pytest.raises(InputError, match=r"iters is a key of mlx_lm\.lora, mlx-lm-lora.*run\.steps"):
        load(GRPO, iters=5)
