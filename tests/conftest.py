"""What holds for every test: nothing touches the user's own runs, nothing asks the network for a model, and mlx is fast."""

from __future__ import annotations

import ctypes
import itertools
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


_homes = itertools.count()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DROID_TUNE_HOME in a fresh folder, inherited by every process that the test starts."""
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(_homes))  # mktemp reads the names of all folders before it
    home.mkdir(parents=True)
    monkeypatch.setenv("DROID_TUNE_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture
def warm_workers() -> Iterator[None]:
    """Workers that this process launches begin at once: see tests/support/warm.py."""
    from tests.support import warm  # few tests need what it imports

    with warm.workers():
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], warm_workers: None) -> object:
    """The command line in this process (tests.support.cli.Command)."""
    from tests.support.cli import in_process  # deferred: few tests need all that it loads

    return in_process(monkeypatch, capfd)
