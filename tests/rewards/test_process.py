"""The reward process with real children: what users' code can do to it, and that nothing of it is left behind."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.process import RewardError, RewardProcess, Scores, check

PROMPTS = ["p0", "p1", "p2"]
COMPLETIONS = ["<answer>4</answer>", "5", "4"]
ANSWERS = ["4", "4", "4"]


def user(tmp_path: Path, code: str, *names: str, timeout: float = 20.0) -> list[RewardConfig]:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return [RewardConfig(name=name, file=str(path), timeout=timeout) for name in names or ("f",)]


def score(specs: list[RewardConfig], **columns: list[Any]) -> Scores:
    with RewardProcess(specs) as process:
        return process.score(PROMPTS, COMPLETIONS, {"answer": ANSWERS, **columns})


def each(tmp_path: Path, bodies: Iterable[str]) -> list[Scores]:
    """What functions of these bodies say, each called alone and all of them in one child; {f} is a function's own name."""
    names = {f"f{place}": body for place, body in enumerate(bodies)}
    code = "".join(f"def {name}(completions): {body.replace('{f}', name)}\n" for name, body in names.items())
    with RewardProcess(user(tmp_path, code, *names)) as process:
        return [process.score(PROMPTS, COMPLETIONS, {}, None, [*{*names} - {name}]) for name in names]


def only(scores: Scores) -> RewardError:
    assert len(scores.errors) == 1, scores.errors
    return scores.errors[0]


class Grandchild:
    """A program that a reward starts. It holds a named pipe open for as long as it lives, and says so when it has begun."""

    def __init__(self, folder: Path) -> None:
        self._pipe = folder / "alive"
        os.mkfifo(self._pipe)
        self._read = os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK)
        command = f"exec > '{self._pipe}'; echo begun; exec sleep 60"
        self.code = f"__import__('subprocess').Popen(['sh', '-c', {command!r}])"

    def await_begun(self) -> None:
        assert select.select([self._read], [], [], 20)[0] and os.read(self._read, 100) == b"begun\n"

    def await_end(self, seconds: float = 10.0) -> None:
        assert select.select([self._read], [], [], seconds)[0], "the program that the reward has started lives on"
        assert os.read(self._read, 100) == b""
        os.close(self._read)


def is_zombie_or_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# ---- values


def test_built_in_rewards() -> None:
    scores = score([RewardConfig(name="answer"), RewardConfig(name="format")])
    assert scores.parts == [{"answer": 1.0, "format": 0.0}, {"answer": 0.0, "format": 0.0}, {"answer": 1.0, "format": 0.0}]
    assert scores.failed == [False] * 3 and scores.errors == []
    assert set(scores.seconds) == {"answer", "format"} and all(0 <= value < 20 for value in scores.seconds.values())


def test_int_bool_none_and_tuples(tmp_path: Path) -> None:
    scores = score(user(tmp_path, "def f(completions): return 2, True, None"))
    assert scores.parts == [{"f": 2.0}, {"f": 1.0}, {"f": None}]
    assert scores.failed == [False] * 3 and scores.errors == []


def test_columns_arrive_by_keyword(tmp_path: Path) -> None:
    code = """
        def f(prompts, completions, answer, types=None, **rest):
            assert prompts == ["p0", "p1", "p2"] and answer == ["4"] * 3 and rest == {"level": [1, {"a": None}, "ü"]}, rest
            return [float(t) for t in types]
        def g(completions, level): return [float(len(completions))] * 3
    """
    scores = score(user(tmp_path, code, "f", "g"), types=["1", "2", "3"], level=[1, {"a": None}, "ü"])
    assert scores.errors == []
    assert scores.parts == [{"f": 1.0, "g": 3.0}, {"f": 2.0, "g": 3.0}, {"f": 3.0, "g": 3.0}]


def test_async_functions_are_awaited(tmp_path: Path) -> None:
    code = """
        import asyncio
        async def one(text):
            await asyncio.sleep(0)
            return float(len(text))
        async def f(prompts, completions, **_): return await asyncio.gather(*map(one, completions))
    """
    assert score(user(tmp_path, code)).parts == [{"f": 18.0}, {"f": 1.0}, {"f": 1.0}]


def test_unicode_goes_both_ways(tmp_path: Path) -> None:
    """Emoji, combining marks, U+2028 and half a surrogate pair (a decoded completion may hold one) arrive as they are."""
    texts = ["日本語 🎲 e\u0301", "a\u2028b\nc\x00", "\ud83d"]
    specs = user(tmp_path, f"def f(completions): return [float(a == b) for a, b in zip(completions, {texts!r})]")
    with RewardProcess(specs) as process:
        assert process.score(PROMPTS, texts, {}).parts == [{"f": 1.0}] * 3


def test_megabytes_in_and_out(tmp_path: Path) -> None:
    """More than a pipe holds, both ways: neither end may wait for the other."""
    count = 60_000
    specs = user(tmp_path, "def f(completions): return [len(c) / 3 for c in completions]")
    with RewardProcess(specs) as process:
        scores = process.score(["p"] * count, ["x" * 20] * count, {})
    assert scores.parts[-1] == {"f": 20 / 3} and len(scores.parts) == count


def test_one_call_cannot_change_what_the_next_sees(tmp_path: Path) -> None:
    code = """
        def f(completions, answer): completions.clear(); answer[0] = "x"; return [0.0] * 3
        def g(completions, answer): return [float(len(completions)), float(answer[0] == "4"), 0.0]
    """
    assert [part["g"] for part in score(user(tmp_path, code, "f", "g")).parts] == [3.0, 1.0, 0.0]


def test_many_calls_one_child(tmp_path: Path) -> None:
    specs = user(tmp_path, "N = 0\ndef f(completions):\n    global N\n    N += 1\n    return [float(N)] * len(completions)")
    with RewardProcess(specs) as process:
        pid = process.pid
        assert [process.score(["p"], ["c"], {}).parts[0]["f"] for _ in range(3)] == [1.0, 2.0, 3.0]
        assert process.score([], [], {}).parts == []
        assert process.pid == pid


# ---- what user code may do


def test_prints_and_reads_do_not_touch_the_protocol(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = """
        import os, subprocess, sys
        print('{"op": "ready", "columns": {}}')
        def f(completions):
            print('{"op": "result", "values": [9, 9, 9], "bad": []}', flush=True)
            os.write(1, b"raw bytes\\n")
            sys.stdout.write("no newline, caf\\u00e9")
            subprocess.run(["echo", "from a program"], check=True)
            assert sys.stdin.read() == ""
            return [0.0] * 3
    """
    scores = score(user(tmp_path, code))
    assert scores.errors == [] and scores.parts == [{"f": 0.0}] * 3
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("raw bytes", "no newline, caf", "from a program", '"values": [9, 9, 9]'):
        assert text in err


def test_an_exception_fails_every_row_and_keeps_the_other_rewards(tmp_path: Path) -> None:
    code = """
        def divide(text): return 1 / 0
        def f(completions): return [divide(c) for c in completions]
        def g(completions): return [1.0] * 3
    """
    scores = score(user(tmp_path, code, "f", "g"))
    error = only(scores)
    assert (error.name, error.rows, error.all_rows) == ("f", (0, 1, 2), True)
    assert error.message == "ZeroDivisionError: division by zero"
    assert "mine.py" in error.traceback and "in divide" in error.traceback and "__main__.py" not in error.traceback
    assert scores.failed == [True] * 3 and scores.parts == [{"f": None, "g": 1.0}] * 3


FAILING = {  # body -> message
    "return [1.0, 2.0]": "{f} returned 2 values for 3 completions",
    "return 1.0": "{f} returned float, not a list",
    "return None": "{f} returned NoneType",
    "return (1.0 for _ in completions)": "{f} returned generator",
    "import sys; sys.exit(0)": "SystemExit",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "return {f}(completions)": "RecursionError",
    "raise ValueError('x' * 10**6)": "ValueError: xxx",
}


def test_calls_that_fail_as_a_whole(tmp_path: Path) -> None:
    for place, (scores, message) in enumerate(zip(each(tmp_path, FAILING), FAILING.values(), strict=True)):
        error = only(scores)
        assert message.replace("{f}", f"f{place}") in error.message and error.all_rows and len(error.message) <= 2000, message
        assert len(error.traceback) <= 20_000
        assert scores.failed == [True] * 3


BAD = {  # value -> message
    "float('nan')": "nan",
    "float('inf')": "inf",
    "-float('inf')": "inf",
    "10 ** 400": "inf",
    "'1.0'": "str is not a number",
    "[1.0]": "list is not a number",
    "1j": "complex is not a number",
}


def test_a_bad_value_fails_its_row_alone(tmp_path: Path) -> None:
    bodies = [f"return [1.0, {value}, None]" for value in BAD]
    for place, (scores, message) in enumerate(zip(each(tmp_path, bodies), BAD.values(), strict=True)):
        error = only(scores)
        assert (error.rows, error.all_rows) == ((1,), False) and message in error.message, message
        assert scores.failed == [False, True, False]
        assert scores.parts == [{f"f{place}": 1.0}, {f"f{place}": None}, {f"f{place}": None}]


def test_bad_values_of_several_kinds_can_be_all_rows(tmp_path: Path) -> None:
    scores = score(user(tmp_path, "def f(completions): return [float('nan'), 'x', float('nan')]"))
    assert [(error.rows, error.all_rows) for error in scores.errors] == [((0, 2), True), ((1,), True)]


def test_a_missing_column_is_said_plainly(tmp_path: Path) -> None:
    error = only(score(user(tmp_path, "def f(completions, level): return [0.0] * 3")))
    assert "f needs the column level" in error.message and error.all_rows


def test_a_timeout_fails_its_reward_and_the_next_child_goes_on(tmp_path: Path) -> None:
    code = """
        import os, time
        def slow(completions):
            while completions[0] != "quick": pass
            return [1.0] * len(completions)
        def f(completions): return [float(os.getpid())] * len(completions)
    """
    slow, quick = user(tmp_path, code, "slow", "f")
    specs = [quick.model_copy(update={"name": "f"}), slow.model_copy(update={"timeout": 1.0}), RewardConfig(name="answer")]
    with RewardProcess(specs) as process:
        first = process.pid
        assert first is not None
        scores = process.score(PROMPTS, COMPLETIONS, {"answer": ANSWERS})
        error = only(scores)
        assert (error.name, error.rows, error.all_rows) == ("slow", (0, 1, 2), True)
        assert error.message == "took longer than its timeout of 1 s"
        assert 1.0 <= scores.seconds["slow"] < 15
        assert [part["answer"] for part in scores.parts] == [1.0, 0.0, 1.0] and scores.parts[0]["f"] == float(first)
        assert scores.failed == [True] * 3
        assert is_zombie_or_gone(first), "the old child is killed and reaped"
        again = process.score(["p"], ["quick"], {"answer": ["quick"]})
        assert again.errors == [] and again.parts == [{"f": float(process.pid or 0), "slow": 1.0, "answer": 1.0}]


@pytest.mark.parametrize(
    ("end", "message"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11")]
)
def test_a_crash_fails_its_reward_and_the_next_child_goes_on(tmp_path: Path, end: str, message: str) -> None:
    code = f"""
        import os, signal
        def crash(completions): {end}
        def f(completions): return [1.0] * 3
    """
    scores = score(user(tmp_path, code, "crash", "f"))
    assert only(scores).message == f"its process ended ({message})"
    assert scores.parts == [{"crash": None, "f": 1.0}] * 3


ENDS = {  # what the reward does once its program runs -> the error's message
    "time-out": ("program.wait()", "took longer than its timeout of 3 s"),
    "crash": ("__import__('os')._exit(3)", "its process ended (exit code 3)"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_a_reward_has_started_ends_with_its_child(tmp_path: Path, case: str) -> None:
    end, message = ENDS[case]
    program = Grandchild(tmp_path)
    wait = f"open({str(tmp_path / 'go')!r}).read()"  # until the test has seen the program begin
    os.mkfifo(tmp_path / "go")
    code = f"def f(completions):\n    program = {program.code}\n    {wait}\n    {end}\n"
    with RewardProcess(user(tmp_path, code, timeout=3.0)) as process:
        waiting = threading.Thread(target=lambda: (program.await_begun(), (tmp_path / "go").write_text("")))
        waiting.start()
        assert only(process.score(["p"], ["c"], {})).message == message
        waiting.join()
        program.await_end()


def test_what_a_reward_has_started_ends_on_close(tmp_path: Path) -> None:
    program = Grandchild(tmp_path)
    with RewardProcess(user(tmp_path, f"def f(completions):\n    {program.code}\n    return [1.0]")) as process:
        assert process.score(["p"], ["c"], {}).parts == [{"f": 1.0}]
        program.await_begun()
    program.await_end()


def test_no_limit(tmp_path: Path) -> None:
    assert score(user(tmp_path, "def f(completions): return [1.0] * 3", timeout=math.inf)).parts[0] == {"f": 1.0}


def test_ctrl_c_is_the_parents_affair(tmp_path: Path) -> None:
    """A child that died of SIGINT would fail the step that is being finished."""
    specs = user(tmp_path, "import os, signal\ndef f(completions): os.kill(os.getpid(), signal.SIGINT); return [1.0] * 3")
    assert score(specs).parts == [{"f": 1.0}] * 3


def test_columns_of_the_wrong_length() -> None:
    with (
        RewardProcess([RewardConfig(name="answer")]) as process,
        pytest.raises(ValueError, match="answer: 1 entries for 3 completions"),
    ):
        process.score(PROMPTS, COMPLETIONS, {"answer": ["4"]})


# ---- start and end


def test_an_import_error_stops_before_anything_runs(tmp_path: Path) -> None:
    specs = user(tmp_path, "import os\nimport no_such_module_anywhere")
    process = RewardProcess(specs)
    with pytest.raises(InputError, match="No module named 'no_such_module_anywhere'") as caught:
        process.start()
    assert caught.value.where == f"{tmp_path}/mine.py:2"
    assert process.pid is None


@pytest.mark.parametrize(
    ("code", "what"), [("while True: pass", "not imported within 1 s"), ("import os; os._exit(4)", "exit code 4")]
)
def test_a_file_that_never_finishes_importing(tmp_path: Path, code: str, what: str) -> None:
    process = RewardProcess(user(tmp_path, code), start_seconds=1 if "while" in code else 20)
    with pytest.raises(InputError, match=what):
        process.start()
    assert process.pid is None


def test_a_respawn_that_fails_is_an_input_error(tmp_path: Path) -> None:
    """The file was deleted during the run, and then a time-out needs a new child."""
    code = "def f(completions):\n    while True: pass\ndef g(completions): return [0.0]"
    with RewardProcess(user(tmp_path, code, "f", "g", timeout=0.3)) as process:
        (tmp_path / "mine.py").unlink()
        with pytest.raises(InputError, match="no such reward file"):
            process.score(["p"], ["c"], {})


def test_close_is_clean_and_leaves_no_zombie(tmp_path: Path) -> None:
    process = RewardProcess(user(tmp_path, "def f(completions): return [0.0]"))
    process.start()
    pid = process.pid
    assert pid is not None
    process.close()
    process.close()
    assert process.pid is None and is_zombie_or_gone(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_check(tmp_path: Path) -> None:
    good = user(tmp_path, "def f(completions, level): return [0.0]")
    check(good)
    check([*good, RewardConfig(name="answer")], columns=("answer", "level"))
    with pytest.raises(InputError, match=r"'f' needs the column 'level'.*the data has: answer"):
        check(good, columns=("answer",))
    with pytest.raises(InputError, match="did you mean 'answer'"):
        check([RewardConfig(name="anwser")])
    with pytest.raises(InputError, match="no such reward file"):
        check([RewardConfig(name="f", file=str(tmp_path / "none.py"))])
    with pytest.raises(InputError, match="has no function 'g'"):
        check(user(tmp_path, "def f(completions): return [0.0]", "g"))


PARENT = """
import json, sys
from engine.config import RewardConfig
from engine.rewards.process import RewardProcess
with RewardProcess([RewardConfig(name="f", file=sys.argv[1], timeout=float(sys.argv[2]))]) as process:
    print(process.pid, flush=True)
    process.score(["p"], ["c"], {})
"""
LOOPS = {
    "idle python": ("while True: pass", 60.0),
    "sleeping": ("__import__('time').sleep(600)", 60.0),
    # the program holds the error stream as well
    "waiting for a program": ("__import__('subprocess').run(['sleep', '60'])", 60.0),
    # one regex match holds the interpreter for ages: only the time limit's own thread can end that
    "blocked interpreter": ("__import__('re').match('(a+)+b', 'a' * 60)", 1.0),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_killed_parent_leaves_no_child(tmp_path: Path, case: str) -> None:
    """The child holds the parent's error stream: its end of file is the child's end. Nobody polls, nobody sleeps."""
    body, timeout = LOOPS[case]
    path = tmp_path / "mine.py"
    path.write_text(f"import sys\ndef f(completions):\n    print('in f', file=sys.stderr, flush=True)\n    {body}\n")
    command = [sys.executable, "-P", "-c", PARENT, str(path), str(timeout)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stderr is not None
    child = int(parent.stdout.readline())
    assert parent.stderr.readline() == "in f\n"
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    try:
        parent.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        raise
    assert time.monotonic() - killed < 15
    assert parent.returncode == -signal.SIGKILL


def test_the_child_imports_no_array_library_and_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "engine.py").write_text("raise RuntimeError('the current folder was imported')")
    monkeypatch.chdir(tmp_path / "here")
    code = """
        import json, sys
        def f(completions): raise RuntimeError(json.dumps(sorted(sys.modules)))
    """
    modules = json.loads(only(score(user(tmp_path, code))).traceback.partition("RuntimeError: ")[2])
    assert not {"mlx", "mlx_lm", "numpy", "transformers", "pydantic"} & set(modules)
