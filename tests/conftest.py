"""What holds for every test: nothing touches the user's own runs, and nothing asks the network for a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # tests run side by side: no spinning threads
os.environ.setdefault("MLX_ENABLE_TF32", "0")  # as the launcher does for workers; read when mlx first multiplies


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DROID_TUNE_HOME in a fresh folder, inherited by every process that the test starts."""
    home = tmp_path_factory.mktemp("droid-tune-home")
    monkeypatch.setenv("DROID_TUNE_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home
