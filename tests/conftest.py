"""What holds for every test: nothing touches the user's own runs, nothing asks the network for a model, and mlx is fast."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.blas import find_openblas

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # tests run side by side: no spinning threads
os.environ.setdefault("MLX_ENABLE_TF32", "0")  # as the launcher does for workers; read when mlx first multiplies

# On Linux mlx's own BLAS is 50 times slower. A library that is loaded before mlx, for all to see, takes its place in this
# process, as the launcher's LD_PRELOAD does in a worker. No environment variable changes: launches are tested as they are.
_openblas = find_openblas() if sys.platform == "linux" else None
if _openblas is not None:
    ctypes.CDLL(str(_openblas), mode=ctypes.RTLD_GLOBAL)


# With the others over ten minutes on two slow cores: `make test` runs them, the run for every change leaves them out.
LONG = (
    "tests/worker/test_bandits.py",
    "tests/worker/test_canaries.py",
    "tests/worker/test_equivalences.py",
    "tests/worker/test_gradients.py",
    "tests/worker/test_logprobs.py",
    "tests/worker/test_objective_options.py",
    "tests/export/",
    "tests/test_bench.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is long."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DROID_TUNE_HOME in a fresh folder, inherited by every process that the test starts."""
    home = tmp_path_factory.mktemp("droid-tune-home")
    monkeypatch.setenv("DROID_TUNE_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture
def warm_workers() -> Iterator[None]:
    """Workers that this process launches begin at once: see tests/support/warm.py."""
    from tests.support import warm  # few tests need what it imports

    with warm.workers():
        yield
