"""Which sandbox is found, when none is, and the command line of the one that only macOS has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.rewards import enclosures, sandbox

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's sandboxes")


def test_available_is_one_that_works() -> None:
    try:
        found = sandbox.available()
    except InputError as error:
        assert error.remedy
        pytest.skip(f"no sandbox here: {error}")
    assert sandbox.available() is found
    assert sandbox.probe(found) == ""


@linux
def test_refused_where_none_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"programs of a model are not run \(none is installed\)") as caught:
        sandbox._find()
    assert "install bubblewrap" in caught.value.remedy


@linux
def test_refused_where_the_sandbox_encloses_nothing(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `bwrap` that runs what it is given as it is: the trial finds the network open and a file written outside."""
    bare = open_folder / "bwrap"
    bare.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    monkeypatch.setenv("PATH", str(open_folder))
    with pytest.raises(InputError, match=r"bubblewrap: reached the network, .*writing /.*another process|bubblewrap: .*writing"):
        sandbox._find()


@linux
def test_refused_where_the_sandbox_does_not_start(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = open_folder / "bwrap"
    broken.write_text("#!/bin/sh\necho no permissions >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(open_folder))
    with pytest.raises(InputError, match=r"ended at once \(exit code 1\): no permissions"):
        sandbox._find()


def test_the_command_line_of_macos(tmp_path: Path) -> None:
    """Built anywhere, run on macOS alone: closed by default, no network, no fork, paths as parameters and never as syntax."""
    folder = tmp_path / 'a "quoted) folder'
    folder.mkdir()
    command = enclosures.seatbelt("/opt/py/bin/python3.11", ["-c", "x"], folder, tmp_path)
    assert command[0] == "/usr/bin/sandbox-exec" and command[-3:] == ["/opt/py/bin/python3.11", "-c", "x"]
    assert f"-DFOLDER={folder.resolve()}" in command and "-DPREFIX=/opt/py" in command
    profile = command[command.index("-p") + 1]
    assert "quoted" not in profile and profile.count("(") == profile.count(")")
    lines = profile.splitlines()
    assert lines[:2] == ["(version 1)", "(deny default)"] and lines[-1] == "(deny network*)"
    assert "(deny process-fork)" in lines and "(allow signal (target self))" in lines
    assert [line for line in lines if "file-write" in line and line.startswith("(allow")] == [
        '(allow file-write* (subpath (param "FOLDER")))',
        '(allow file-write-data (literal "/dev/null"))',
    ]
    # The last rule that matches counts: homes are closed after all is opened, and the interpreter opened after that.
    order = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in _IN_ORDER]
    assert order == sorted(order)
    assert enclosures.environment("/x")["HOME"] == "/x"


_IN_ORDER = (
    "(allow file-read* file-map-executable)",
    '(deny file-read* (subpath "/Users")',
    '(allow file-read* (subpath (param "PREFIX"))',
)
