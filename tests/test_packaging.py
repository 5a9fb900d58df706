"""What is shipped: the wheel carries its data, the sdist can build it, and an installed copy runs from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import engine
from tests.support.once import made_once

ROOT = Path(__file__).parents[1]
STEM = f"droid_tune-{engine.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""

    def build(out: Path) -> None:
        command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once(tmp_path_factory, "dist", build)


def shipped(folder: str, pattern: str) -> set[str]:
    """Paths of the repository's own files, as a wheel of the same tree has to hold them."""
    found = {f"engine/_share/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).glob(pattern)}
    assert found, f"no {folder}/{pattern} in the repository"
    return found


def test_wheel(built: Path) -> None:
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{STEM}.dist-info/METADATA").decode()
        scripts = wheel.read(f"{STEM}.dist-info/entry_points.txt").decode()
        licence = wheel.read(f"{STEM}.dist-info/licenses/LICENSE").decode()
    assert shipped("configs", "*.yaml") | shipped("datasets", "*.jsonl") <= names
    assert {f"engine/_share/models/demo/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= names
    assert {f"engine/_share/golden/{name}.json" for name in ("policy_losses", "advantages")} <= names
    assert {"engine/py.typed", "engine/worker/__main__.py", "tui/__main__.py"} <= names
    assert {name.split("/")[0] for name in names} == {"engine", "tui", f"{STEM}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or "/test_" in name or "tests/" in name]
    assert "droid-tune = tui.__main__:main" in scripts
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_sdist(built: Path) -> None:
    with tarfile.open(built / f"{STEM}.tar.gz") as sdist:
        names = {name.removeprefix(f"{STEM}/") for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "Makefile", "pyproject.toml", "tests/test_packaging.py", "configs/demo.yaml"} <= names
    assert not [name for name in names if name.startswith((".venv", "dist", "build", ".git/"))]


def test_an_unpacked_wheel_finds_its_data(built: Path, tmp_path: Path) -> None:
    """Without the repository on the path, from another folder."""
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from engine import share, config\n"
        "loaded = config.load(share.share_root('configs') / 'demo.yaml').config\n"
        "print(config.model_folder(loaded.model), loaded.data.train, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, train = map(Path, done.stdout.split())
    for path in (model / "config.json", train):
        assert path.is_file() and path.is_relative_to(tmp_path / "site")


def test_the_installed_command_trains_outside_the_clone(built: Path, tmp_path: Path) -> None:
    """The wheel installed by pip, its own console script, another folder: one step of the demo, by the wheel's own engine."""
    site = tmp_path / "site"
    wheel = built / f"{STEM}-py3-none-any.whl"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "DROID_TUNE_HOME": str(tmp_path / "home")}
    command = [str(site / "bin" / "droid-tune"), "demo", "--json", "--set", "run.steps=1", "--set", "run.eval_rows=4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    assert (state["state"], state["step"]) == ("finished", 1)
    assert str(site / "engine" / "_share" / "models" / "demo") in state["result"]["command"]


def test_a_cpu_and_a_cuda_backend_are_never_installed_together() -> None:
    """Each backend is an extra of its own, and none is pulled in by default on Linux."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    backends = {name: project["optional-dependencies"][name] for name in ("cpu", "cuda", "cuda12")}
    assert {name: len(needs) for name, needs in backends.items()} == {"cpu": 1, "cuda": 1, "cuda12": 1}
    assert all("sys_platform == 'linux'" in needs[0] for needs in backends.values())
    assert all("darwin" in need for need in project["dependencies"] if need.startswith("mlx>"))
