"""The table of deliberate faults is kept up to date, and its machinery tells a fault that is noticed from one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations.__main__ import main
from tests.mutations.fault import Fault
from tests.mutations.faults import FAULTS
from tests.mutations.trial import ROOT

QUICK = "sft-stop-dropped"  # its test loads no array library
FILE, TEST = "engine/data/targets.py", "tests/data/test_targets.py::test_limits_count_prompt_and_everything_after_it"


def test_there_are_enough_faults_each_with_its_own_name_and_edit() -> None:
    assert len(FAULTS) >= 20
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert max(Counter((fault.file, fault.old, fault.new) for fault in FAULTS).values()) == 1
    assert all(fault.old != fault.new and fault.why for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_snippet_occurs_once_what_it_becomes_compiles_and_its_test_exists(fault: Fault) -> None:
    assert fault.problem(ROOT) is None
    compile(fault.faulty((ROOT / fault.file).read_text(encoding="utf-8")), fault.file, "exec")


def test_a_row_that_is_out_of_date_is_told(tmp_path: Path) -> None:
    """A snippet that occurs twice or not at all, a file and a test that are gone."""
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    (tmp_path / "test_a.py").write_text("def test_x():\n    assert True\n")
    fine = {"name": "n", "why": "w", "file": "a.py", "old": "x = 1", "new": "x = 2", "test": "test_a.py::test_x[1]"}
    assert Fault(**fine).problem(tmp_path) is None
    for change, words in (
        ({"old": "= 1"}, "occurs 2 times in a.py"),
        ({"old": "z"}, "occurs 0 times in a.py"),
        ({"file": "b.py"}, "b.py"),
        ({"test": "test_b.py::test_x"}, "there is no test test_b.py::test_x"),
        ({"test": "test_a.py::test_y"}, "there is no test test_a.py::test_y"),
    ):
        problem = Fault(**{**fine, **change}).problem(tmp_path)
        assert problem is not None and words in problem


def test_a_fault_is_caught_in_a_copy() -> None:
    """By the command, as one would type it; the source itself is left as it was."""
    (fault,) = (fault for fault in FAULTS if fault.name == QUICK)
    before = (ROOT / fault.file).read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations", QUICK, "--json", "-j", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["verdict"], result["test"], result["fault"]["name"]) == ("caught", fault.test, QUICK)
    assert "1 of 1 faults caught" in done.stderr
    assert (ROOT / fault.file).read_bytes() == before


def test_what_is_no_fault_is_missed_and_what_only_falls_over_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """A comment changes nothing; a name that there is not ends the test by an error of its own; a file that does not compile ends
    it at collection; and a test that does not pass without a fault proves nothing."""
    comment = Fault("comment", "none", FILE, '"""What supervised', '"""That supervised', TEST)
    no_name = Fault("no name", "none", FILE, "return len(self.prompt) <= max_", "return size(self.prompt) <= max_", TEST)
    no_code = Fault("no code", "none", FILE, "    prompt: tuple[int, ...]  # [P]", "    prompt: tuple[int, ...  # [P]", TEST)
    no_test = Fault("no test", "none", FILE, "def _learned(", "def _learned (", f"{TEST}[there is no such case]")
    assert main(["--json", "-j", "2"], (comment, no_name, no_code, no_test)) == 1
    found = {result["fault"]["name"]: result for result in json.loads(capsys.readouterr().out)}
    assert {name: result["verdict"] for name, result in found.items()} == {
        "comment": "missed",
        "no name": "broken",
        "no code": "broken",
        "no test": "broken",
    }
    assert "NameError" in found["no name"]["detail"] and "exit status 1" in found["no name"]["detail"]
    assert "SyntaxError" in found["no code"]["detail"]
    assert "does not pass without the fault" in found["no test"]["detail"]


def test_a_fault_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["not-a-fault"])
    assert stopped.value.code == 2
    assert "there is no fault not-a-fault" in capsys.readouterr().err
