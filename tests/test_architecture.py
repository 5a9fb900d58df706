"""The shape of the house: who may import whom, types, style, and no file that is two rooms. Each check runs as its own tool."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
MAX_LINES = 350


@pytest.mark.parametrize("command", ["lint-imports --no-cache", "mypy", "ruff check --no-cache ."])
def test_tool_finds_nothing(command: str) -> None:
    """The settings are in pyproject.toml."""
    tool, *arguments = command.split()
    done = subprocess.run([str(SCRIPTS / tool), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_two_rooms() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for room in ("engine", "tui")
        for path in (ROOT / room).rglob("*.py")
    }
    assert len(lines) > 20
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("module", ["tui.__main__", "engine.cli", "engine.api"])
def test_viewers_load_no_array_library(module: str) -> None:
    """What the contracts promise of the source, at run time: with everything that the packages pull in by themselves."""
    code = f"import sys, {module}; print(sorted({{m.split('.')[0] for m in sys.modules}} & {{'mlx', 'mlx_lm', 'transformers'}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_engine_loads_no_textual() -> None:
    code = "import sys, engine.cli, engine.api; print('textual' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
