"""Folders made aside: gone with their maker, also with one that was killed, and nobody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.cache_folders import aside, clear

MAKER = """
import sys
from pathlib import Path
from engine.cache_folders import aside
with aside(Path(sys.argv[1]), "out") as folder:
    (folder / "weights").write_text("half")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_maker_left_goes_and_nothing_else(tmp_path: Path) -> None:
    """A living maker's folder stays; killed, it is removed by the next. What it was to replace, and had put away, comes back.
    Names that are not ours, and folders of another name, stay."""
    others = [tmp_path / name for name in (".out.part", ".out.12345678.parts", ".other.12345678.part", ".out.1234567g.part")]
    for other in others:
        other.mkdir()
    command = [sys.executable, "-P", "-c", MAKER, str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        left = tmp_path / maker.stdout.readline().strip()
        assert left.is_dir() and clear(tmp_path, "out") == []
        with aside(tmp_path, "out") as own:
            assert own != left and (left / "weights").is_file() and clear(tmp_path, "out") == []
        assert not own.exists()
        maker.kill()
        maker.wait()
    earlier = left.with_name(f"{left.name}.old")
    earlier.mkdir()
    (earlier / "weights").write_text("whole")
    with aside(tmp_path, "out"):
        assert not left.exists() and not earlier.exists()
        assert (tmp_path / "out" / "weights").read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])
    earlier.mkdir()
    assert clear(tmp_path, "out") == [earlier], "the new one has its name: the old one was on its way out"
    assert (tmp_path / "out" / "weights").is_file()
