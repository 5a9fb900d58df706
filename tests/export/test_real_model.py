"""SmolLM2 with an adapter: mlx_lm.generate uses the fused folder, and the GGUF file is read back to the same model."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.blas import blas_environment
from engine.takehome.export import export
from engine.takehome.kinds import Job
from tests.test_real_model import first_layers, smollm2  # noqa: F401 - fixtures

from .support import hand_made

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600), pytest.mark.usefixtures("warm_workers")]


def test_smollm2_is_taken_home(first_layers: Path, tmp_path: Path) -> None:  # noqa: F811
    """Its 49,152 tokens, tied embeddings, grouped heads and real BPE: logits reach 40, so F16 rounds them by some hundredths."""
    made = hand_made(tmp_path, first_layers, {"type": "lora"}, data={"train": "datasets/arithmetic.jsonl"})
    fused, half = asyncio.run(export(made, [Job("fused", tmp_path / "fused"), Job("gguf", tmp_path / "gguf")]))
    assert fused.difference.largest < 1e-3 and fused.difference.kl < 1e-8
    assert 0 < half.difference.largest < 0.5 and half.difference.kl < 1e-4
    command = shlex.split(fused.command.replace("YOUR PROMPT", "What is 2+2?"))
    assert command[0] == "mlx_lm.generate"
    generated = subprocess.run(
        [sys.executable, "-P", "-m", "mlx_lm", "generate", *command[1:], "--max-tokens", "8", "--verbose", "False"],
        env={**os.environ, **blas_environment(os.environ)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip()
