"""Small real models for the worker's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import AdapterConfig
from engine.worker.blank import Shape, write_blank_model
from engine.worker.model import Policy, load_policy

from .step_bench import bench, shared_bench  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def blank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained byte-level model: 2 layers, width 32."""
    folder = tmp_path_factory.mktemp("blank")
    write_blank_model(folder, Shape(32, 2, 64, 4, 2), seed=1)
    return folder


@pytest.fixture
def make_policy(blank_folder: Path) -> Callable[..., Policy]:
    """A fresh policy on the blank model, by adapter type."""

    def make(kind: str = "lora", **options: object) -> Policy:
        adapter = AdapterConfig.model_validate({"type": kind, "rank": 4, "scale": 4.0, **options})
        return load_policy(blank_folder, adapter, seed=0)

    return make
