"""Every family of models on a tiny folder of it: rollouts, gradients, runs, resume, the adapter in mlx_lm (family_check.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.blas import blas_environment
from engine.memory import SHARING_FAMILIES
from tests.support.families import FAMILIES, MIXTURES
from tests.support.once import made_once

pytestmark = pytest.mark.timeout(600)
NAMED = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "phi3", "gpt_oss", "qwen3_next", "mamba2", "gemma2")
KINDS = ("llama:dora", "gemma3_text:dora", "llama:full", "mamba2:full")
OTHERS = tuple(f"{name}=brief" for name in FAMILIES if name not in (*NAMED, "granite", "olmo2", "glm4", "smollm3"))
LIMIT = 1e-4  # nats; of a mixture of experts the 0.99 quantile, since a near-tie in a router can flip a row


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    def make(folder: Path) -> None:
        environment = {**os.environ, **blas_environment(os.environ), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "tests.worker.family_check", str(folder), *NAMED, *KINDS, *OTHERS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "found.jsonl").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "families", make)
    return {each["name"]: each for each in map(json.loads, (folder / "found.jsonl").read_text().splitlines())}


ALL = (*NAMED, *KINDS, *(name.partition("=")[0] for name in OTHERS))


@pytest.mark.parametrize("name", ALL)
def test_sampler_and_trainer_give_the_log_probabilities_of_a_plain_forward(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Unequal prompts, some past the sliding window; rows stop at many moments, and others take their places as they do."""
    figures = found[name]
    place = 0 if name.partition(":")[0] in MIXTURES else 1
    assert figures["sampler"][place] <= LIMIT and figures["trainer"][place] <= LIMIT
    assert figures["lengths"][0] < figures["lengths"][-1]  # some stopped early
    assert 0.02 < figures["surprise"] < 0.5  # of log V: neither certain nor blind
    assert figures["splits"]  # the head runs on completion tokens alone


@pytest.mark.parametrize("name", ALL)
def test_rows_are_decoded_together_and_the_same_alone(name: str, found: dict[str, dict[str, Any]]) -> None:
    """By the probe at load; what is drawn depends on the row's key alone, whoever else is in the batch."""
    figures = found[name]
    assert figures["mode"] == ("grouped" if name.startswith("gemma2") else "batch")
    assert figures["probe"] <= 1e-4 and figures["refills"]
    assert figures.get("same_alone", 1) >= (0.8 if name in MIXTURES else 1)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_reaches_what_is_trained_and_only_that(name: str, found: dict[str, dict[str, Any]]) -> None:
    """No adapter on a router, the head or an embedding; nothing that is trained stands still."""
    figures = found[name]
    assert not figures["still"]
    if ":full" in name:
        return
    parts = {part for path in figures["adapted"] for part in path.split(".")}
    assert not parts & {"gate", "router", "shared_expert_gate", "lm_head", "embed_tokens", "conv1d"}
    layers = {path.split(".")[1 + path.split(".").index("layers")] for path in figures["adapted"]}
    assert len(layers) == figures["layers"]
    if name in MIXTURES:
        assert any("experts" in path or "switch_mlp" in path for path in figures["adapted"])


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_computed_once_gives_the_gradient_of_a_prompt_for_every_row(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Prompts of any length together, but for families with recurrent state; the plan of memory knows which those are."""
    figures, family = found[name], name.partition(":")[0]
    assert figures["sharing"] == ("any" if family in SHARING_FAMILIES else "equal")
    assert figures["shared_gradient"] <= (2e-4 if family in MIXTURES else 2e-5)  # a near-tie in a router moves a token


@pytest.mark.parametrize("name", (*NAMED, *KINDS))
def test_a_run_learns_and_resumes_to_the_same_bits(name: str, found: dict[str, dict[str, Any]]) -> None:
    figures = found[name]
    assert set(figures["statuses"]) == {0}
    assert len(figures["statuses"]) == (1 if ":" in name else 3) and figures.get("stopped_at", 1) in (1, 2)  # of 3 steps
    assert not figures["warnings"]
    assert figures["mismatch"] < 1e-4 and figures["moved"] > 0 and figures["learned"] > 1e-3


@pytest.mark.parametrize("name", (*NAMED, *KINDS))
def test_mlx_lm_loads_the_adapter_and_fuses_it(name: str, found: dict[str, dict[str, Any]]) -> None:
    figures = found[name]
    assert figures["adapter"] == 0  # the same logits, to the bit
    assert figures["fused"] <= 1e-3
