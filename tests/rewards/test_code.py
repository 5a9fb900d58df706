"""Programs against tests: the right get 1, the wrong 0, and whoever tries to cheat gets 0 too."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards import code, sandbox
from engine.rewards.failed import Failed
from engine.rewards.inside.wire import Gone, decode, encode
from engine.rewards.process import RewardProcess

ADD = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b"
EQUAL = """
class Equal:
    __eq__ = __contains__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __sub__ = __rsub__ = __abs__ = lambda *_: 0.0
def add(a, b): return Equal()
"""
WRITES_THE_VERDICT = """
import os
for fd in range(64):
    try: os.write(fd, b'{"passed": true, "why": ""}\\n')
    except OSError: pass
os._exit(0)
"""
ANSWERS_UNASKED = """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"ready": true}\\n{"names": {}}\\n{"value": true}\\n' * 9)
    except OSError: pass
"""
PATCHES_UNITTEST = """
import sys, unittest
unittest.TestCase.assertEqual = lambda *_: None
sys.modules["unittest"] = None
def add(a, b): return 9
"""
PATCHES_BUILTINS = """
import builtins
builtins.AssertionError = Warning
builtins.abs = builtins.int = lambda *_: 3
def add(a, b): return 0
"""
READS_ITS_CALLERS = """
import sys, gc
def add(a, b):
    frame = sys._getframe(1)
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, str) and 'assert add' in value: return eval(value.split('==')[1].split()[0])
        frame = frame.f_back
    return [x for x in gc.get_objects() if isinstance(x, str) and '== 3' in x]
"""


@pytest.fixture(autouse=True)
def _needs_a_sandbox() -> None:
    try:
        sandbox.available()
    except InputError as error:
        pytest.skip(f"no sandbox here: {error}")


def scores(rows: dict[str, tuple[str, Any, Any]]) -> None:
    """Every row is (completion, tests, expected score); all are judged in one call."""
    values = code.code_tests([""] * len(rows), [row[0] for row in rows.values()], [row[1] for row in rows.values()])
    assert dict(zip(rows, values, strict=True)) == {name: row[2] for name, row in rows.items()}


def test_programs_that_try_to_pass_asserts() -> None:
    """Each cheat would pass where the tests run in the program's own process."""
    scores(
        {
            "right": (f"Here:\n```python\n{RIGHT}\n```\nDone.", ADD, 1.0),
            "bare text": (RIGHT, ADD, 1.0),
            "after thoughts": (f"<think>def add(: no</think>\n{RIGHT}", ADD, 1.0),
            "the last block counts": (f"```python\ndef add(a, b): return 0\n```\nBetter:\n```py\n{RIGHT}\n```", ADD, 1.0),
            "a sample output is no program": (f"```python\n{RIGHT}\n```\nIt prints\n```\n3\n```", ADD, 1.0),
            "wrong": ("def add(a, b): return a - b", ADD, 0.0),
            "right once only": ("def add(a, b): return 3", ADD, 0.0),
            "syntax error": ("def add(a, b: return a", ADD, 0.0),
            "prose": ("I cannot write that.", ADD, 0.0),
            "empty": ("", ADD, 0.0),
            "another name": ("def plus(a, b): return a + b", ADD, 0.0),
            "raises": ("def add(a, b): raise ValueError(a)", ADD, 0.0),
            "exits with 0 before the tests": ("import sys\nsys.exit(0)", ADD, 0.0),
            "exits in the call": ("import os\ndef add(a, b): os._exit(0)", ADD, 0.0),
            "SystemExit in the call": ("def add(a, b): raise SystemExit(0)", ADD, 0.0),
            "prints the verdict": ('print(\'{"passed": true, "why": ""}\')\nimport os; os._exit(0)', ADD, 0.0),
            "writes the verdict on every pipe": (WRITES_THE_VERDICT, ADD, 0.0),
            "answers before it is asked": (ANSWERS_UNASKED, ADD, 0.0),
            "equals everything": (EQUAL, ADD, 0.0),
            "equals everything, being a number": (
                "class Equal(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef add(a, b): return Equal(9)",
                ADD,
                0.0,
            ),
            "near to everything": (EQUAL, "assert abs(add(1, 2) - 3) < 1e-6", 0.0),
            "contains everything": (EQUAL, "assert 3 in add(1, 2)", 0.0),
            "patches builtins": (PATCHES_BUILTINS, ADD, 0.0),
            "a built-in of its own": ("def abs(x): return 0\ndef add(a, b): return 9", "assert abs(add(1, 2) - 3) < 1", 0.0),
            "a module of its own": (
                "class math:\n    isclose = staticmethod(lambda *x: True)\ndef add(a, b): return 9",
                "assert math.isclose(add(1, 2), 3)",
                0.0,
            ),
            "patches unittest and exits": (
                PATCHES_UNITTEST,
                "import unittest\ncase = unittest.TestCase()\nassert case.assertEqual(add(1, 2), 3) is None",
                0.0,
            ),
            "reads its callers": (READS_ITS_CALLERS, ADD, 0.0),
            "no assert gets its turn": ("def items(): return []", "for item in items():\n    assert item == 3", 0.0),
            "dies, and the test has a bare except": (
                "import os\ndef add(a, b): os._exit(0)",
                "try:\n    add(1, 2)\nexcept:\n    pass\nassert True",
                0.0,
            ),
            "calls itself for ever": ("def add(a, b): return add(b, a)", ADD, 0.0),
            "returns a nested list without end": ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", ADD, 0.0),
            "no tests": (RIGHT, None, None),
        }
    )


def test_what_tests_can_do() -> None:
    """Arguments that are changed, exceptions, classes, iterators, functions as arguments, tests in functions."""
    stack = (
        "class Empty(Exception): pass\nclass Stack:\n    def __init__(self): self.items = []\n"
        "    def push(self, x):\n        self.items.append(x)\n        return self\n"
        "    def pop(self):\n        if not self.items: raise Empty('nothing')\n        return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n    def __eq__(self, other): return self.items == other.items\n"
        "    def __str__(self): return f'Stack{self.items}'"
    )
    stack_tests = (
        "s = Stack()\ns.push(1).push((2, 3))\nassert len(s) == 2 and s.items == [1, (2, 3)] and str(s) == 'Stack[1, (2, 3)]'\n"
        "assert s.pop() == (2, 3) and isinstance(s, Stack)\nassert s == Stack().push(1) and s != Stack()\ns.pop()\n"
        "try:\n    s.pop()\n    assert False\nexcept Empty as error:\n    assert str(error) == 'nothing'"
    )
    scores(
        {
            "in place": ("def f(x): x.sort()", "a = [3, 1, 2]\nassert f(a) is None\nassert a == [1, 2, 3]", 1.0),
            "built-in exception": (
                "def f(x): return 1 / x",
                "try:\n    f(0)\n    assert 0\nexcept ZeroDivisionError:\n    assert 1",
                1.0,
            ),
            "a class": (stack, stack_tests, 1.0),
            "a wrong class": (stack.replace("pop()", "pop(0)"), stack_tests, 0.0),
            "an iterator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and 2 in f(3)", 1.0),
            "a function as argument": (
                "def f(g, xs): return [g(x) for x in xs]",
                "assert f(lambda x: x + 1, [1, 2]) == [2, 3]\nassert f(len, ['ab']) == [2]",
                1.0,
            ),
            "the program's own as argument": (
                "def half(x): return x / 2\ndef f(g, x): return g(x)",
                "assert f(half, 5) == 2.5\nassert f(lambda x: half(x) + 1, 5) == 3.5",
                1.0,
            ),
            "candidate": ("def f(x): return x * 2", "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)", 1.0),
            "test functions": ("def f(x): return x * 2", "from solution import f as g\ndef test_f():\n    assert g(2) == 4", 1.0),
            "a failing test function": ("def f(x): return x", "from solution import f\ndef test_f():\n    assert f(2) == 4", 0.0),
            "standard modules": ("def f(x): return x ** 0.5", "import math\nassert math.isclose(f(2), math.sqrt(2))", 1.0),
            "values of all kinds": (
                "from collections import OrderedDict, namedtuple\nfrom fractions import Fraction\nP = namedtuple('P', 'x y')\n"
                "def f(): return [None, True, 2**80, 1.5, 'é\\ud800', b'x', (1,), {1, 2}, OrderedDict(a=1), P(1, 2), 1j, "
                "Fraction(1, 3)]",
                "from fractions import Fraction\n"
                "assert f() == [None, True, 2**80, 1.5, 'é\\ud800', b'x', (1,), {1, 2}, {'a': 1}, (1, 2), 1j, Fraction(1, 3)]",
                1.0,
            ),
            "large numbers": (
                "import math\ndef f(n): return math.factorial(n)",
                "import math\nassert f(3000) == math.factorial(3000)",
                1.0,
            ),
            "a main block": (RIGHT + "\nif __name__ == '__main__':\n    print(add(int(input()), 1))", ADD, 1.0),
        }
    )


def test_programs_that_read_and_write() -> None:
    double = "print(int(input()) * 2)"
    cases = [{"input": "2\n", "output": "4\n"}, {"input": "-1\n", "output": "-2\n"}]
    scores(
        {
            "right": (f"```python\n{double}\n```", cases, 1.0),
            "as JSON text": (double, json.dumps(cases), 1.0),
            "as two lists": (double, {"inputs": ["2", "5"], "outputs": ["4", "10"]}, 1.0),
            "white space": ("print(int(input()) * 2, '  ')\nprint()", cases, 1.0),
            "right once only": ("print(4)", cases, 0.0),
            "more than the answer": (f"{double}\nprint('done')", cases, 0.0),
            "right, then it breaks": ("import sys\nprint(int(input()) * 2, flush=True)\nsys.exit(1)", cases, 0.0),
            "both answers": ("print('4 -2')", cases, 0.0),
            "exits": ("raise SystemExit(0)", cases, 0.0),
            "a success marker": ("print('booted'); print('OK'); print('passed')", cases, 0.0),
            "syntax error": ("print(", cases, 0.0),
            "a main block": ("def main(): print(int(input()) * 2)\nif __name__ == '__main__': main()", cases, 1.0),
        }
    )


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        ("assert f(", "are not Python"),
        ("f(1)", "have no assert"),
        ("def check(candidate):\n    assert candidate(1) == 1", "none of its asserts is ever run"),
        ("import no_such_module\nassert f(1) == 1", "import no_such_module"),
        ("class Node: pass\nassert f(Node()) == 1", "pass a Node"),
        ([{"input": "1"}], "the texts `input` and `output`"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs, but 0 outputs"),
        (3, "a list of {input, output} is wanted"),
    ],
)
def test_tests_that_are_at_fault(tests: Any, detail: str) -> None:
    """Not the completion's fault: it gets no score, and the report says why."""
    (value,) = code.code_tests([""], ["def f(x): return x"], [tests])
    assert isinstance(value, Failed) and value.why == "its tests cannot be used"
    assert detail in value.detail


def test_limits_hold_for_conversations() -> None:
    """1 s for a program that loops while it is loaded, one that loops in a call, and one whose answer has no end."""
    reward = code.load({"seconds": 1, "memory_mb": 512, "concurrency": 3})
    programs = [
        "while True: pass",
        "def add(a, b):\n    while True: pass",
        "def add(a, b):\n    held = [0]\n    while True: held += held",
        "import os, threading\ndef add(a, b):\n    while True:\n        for fd in range(3, 32):\n"
        "            try: os.write(fd, b'x' * 4096)\n            except OSError: pass",
        RIGHT,
    ]
    assert reward([""] * 5, programs, [ADD] * 5) == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_hostile_programs_do_not_stop_the_rewards(tmp_path: Path) -> None:
    """In the process that a run has its rewards in: what is contained is a 0 among others; what the reward's own `timeout`
    cuts off leaves no sandbox behind, and the next call is served."""
    megabytes = 1000 + os.getpid() % 1000  # shows in the command lines of this test's sandboxes
    file = tmp_path / "mine.py"
    options = {"seconds": 2, "memory_mb": megabytes}
    file.write_text(
        f"from engine.rewards import code\nquick = code.load({options})\nslow = code.load({options | {'seconds': 60}})"
    )
    fork_bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    completions = [RIGHT, fork_bomb, "held = []\nwhile True: held.append(bytearray(10**7))", "import os\nos.kill(0, 9)", RIGHT]
    with RewardProcess([RewardConfig(name="quick", file=str(file))]) as process:
        found = process.score([""] * 5, completions, {"tests": [ADD] * 5})
    assert [parts["quick"] for parts in found.parts] == [1.0, 0.0, 0.0, 0.0, 1.0] and not found.errors
    with RewardProcess([RewardConfig(name="slow", file=str(file), timeout=3.0)]) as process:
        cut_off = process.score([""] * 2, ["while True: pass", RIGHT], {"tests": [ADD] * 2})
        assert "took longer than its timeout" in cut_off.errors[0].message
        assert process.score([""], [RIGHT], {"tests": [ADD]}).parts == [{"slow": 1.0}]
    deadline = time.monotonic() + 20
    while left := _command_lines_with(rb"RLIMIT_AS\W+%d\b" % (megabytes << 20)):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)  # other processes, which send no word of their end


def _command_lines_with(pattern: bytes) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            command = path.read_bytes()
            found += [command] if re.search(pattern, command) else []
    return found


@pytest.mark.parametrize("options", [{"second": 1}, {"seconds": 0}, {"seconds": "5"}, {"memory_mb": 1}, {"concurrency": True}])
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        code.load(options)
    assert next(iter(options)) in caught.value.what and caught.value.remedy


def test_values_travel_as_they_are() -> None:
    values = [None, True, 0, -(2**60), 1.5, "x", [1, [2]], (1, (2,)), {1}, frozenset({1}), {(1, 2): [3]}, b"\0", 2j]
    values += [Fraction(-1, 3), Decimal("1.10"), range(1, 9, 2)]

    def refuse(*_: Any) -> Any:
        raise AssertionError("all are plain")

    for value in values:
        back = decode(json.loads(json.dumps(encode(value, refuse))), refuse)
        assert back == value and type(back) is type(value)
    for broken in ({"int": "xyz"}, {"tuple": 3}, {"set": [[]]}, {"what": []}, {}, {"int": "0x1", "b": 1}, {"fraction": [1, 0]}):
        with pytest.raises(Gone):
            decode(broken, refuse)


def test_it_runs_in_the_reward_process_by_its_config(tmp_path: Path) -> None:
    """Registered, with its options, through the real child: right, wrong, and tests that cannot be read."""
    spec = RewardConfig(name="code_tests", options={"seconds": 5, "concurrency": 2})
    programs = ["```python\ndef f(x):\n    return x + 1\n```", "```python\ndef f(x):\n    return x\n```", "def f(x): return x"]
    with RewardProcess([spec]) as process:
        scores = process.score(["p"] * 3, programs, {"tests": ["assert f(1) == 2", "assert f(1) == 2", 7]})
    assert [part["code_tests"] for part in scores.parts] == [1.0, 0.0, None]
    assert scores.failed == [False, False, True] and scores.errors[0].rows == (2,)
    with pytest.raises(InputError, match="has no options"), RewardProcess([RewardConfig(name="answer", options={"x": 1})]):
        pass
