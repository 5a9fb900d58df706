"""The reward `code_tests`: runs the program in a completion against its row's tests, in the sandbox, and nowhere else.

The column `tests` holds one of
* Python with asserts: "assert add(1, 2) == 3". They may stand in test_ functions, and may import the program's names from
  `solution`. How they are kept from the program is told in engine.rewards.inside.tester.
* a list of {"input", "output"}, or {"inputs": [...], "outputs": [...]}: what the program reads on its standard input and must
  write on its standard output. White space at the ends of lines and of the text does not count; the exit code must be 0.
  Outputs are compared out here: the program is never told them.
* either list as JSON text.

The score is 1 where every test passes, else 0: a share of tests would pay for programs that treat the easy cases alone. Where
the tests themselves are at fault the completion has no score and the report says why; a row without tests is not applicable.

Limits: the program can use the standard library alone. A program that knows the tests from its prompt can answer just those.
An assert that judges with a helper which only the program defines trusts the program: tests must import what they use.
Objects of the program's own classes are compared with each other by its own `==`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from engine.rewards.failed import Failed
from engine.rewards.options import Option, read
from engine.rewards.sandbox import Limits, Sandbox, SandboxFailure, available

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_MAX_CONCURRENCY = 8
_LIMITS = Limits()

OPTIONS = (
    Option("seconds", "number", "of each run of a program", f"{_LIMITS.seconds:g}", least=0.1, fills=""),
    Option("memory_mb", "number", "megabytes of each run of a program", str(_LIMITS.memory_bytes >> 20), least=64, fills=""),
    Option("concurrency", "whole", "programs that run at a time", f"cores, at most {_MAX_CONCURRENCY}", least=1, fills=""),
)

Values = list[float | Failed | None]


def code_tests(prompts: list[str], completions: list[str], tests: list[Any]) -> Values:
    """1 where the program in the completion passes all of its row's `tests` in the sandbox, else 0.

    `tests` is Python with asserts, "assert add(1, 2) == 3", or what the program reads and must print: a list of
    {"input": "1 2\\n", "output": "3\\n"}, or {"inputs": [...], "outputs": [...]}, also as JSON text. Not applicable to rows
    without tests; a row whose tests are at fault has no score.
    """
    return _score(available(), Limits(), _concurrency(), prompts, completions, tests)


def load(options: Mapping[str, Any]) -> Callable[..., Values]:
    """The reward with its options. InputError for an unknown option or one out of range, and where no sandbox works."""
    chosen = read("code_tests", OPTIONS, options)
    memory_bytes = int(chosen["memory_mb"]) << 20 if "memory_mb" in chosen else _LIMITS.memory_bytes
    limits = Limits(seconds=chosen.get("seconds", _LIMITS.seconds), memory_bytes=memory_bytes)
    return partial(_score, available(), limits, chosen.get("concurrency", _concurrency()))


def program_of(completion: str) -> str:
    """The last block fenced as Python; without one the last fenced block of no language; else the text after </think>."""
    blocks = _FENCE.findall(completion)
    for kinds in (_PYTHON, ("",)):
        found = [body for kind, body in blocks if kind.lower() in kinds]
        if found:
            return str(found[-1])
    return completion.rpartition("</think>")[2]


def same_output(written: str, expected: str) -> bool:
    """Whether they are equal but for white space at the ends of lines and of the text."""
    return _lines(written) == _lines(expected)


def _score(
    sandbox: Sandbox, limits: Limits, concurrency: int, prompts: list[str], completions: list[str], tests: list[Any]
) -> Values:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda completion, own: _one(sandbox, limits, completion, own), completions, tests))


def _one(sandbox: Sandbox, limits: Limits, completion: str, tests: Any) -> float | Failed | None:
    if tests is None or tests == "" or tests == []:
        return None
    program = program_of(completion)
    try:
        cases = _cases(tests)
        if cases is not None:
            return float(all(_answers(sandbox, limits, program, given, expected) for given, expected in cases))
        verdict = sandbox.judge(program, tests, limits)
    except ValueError as error:
        return Failed("its tests cannot be used", str(error), is_row_fault=True)
    except SandboxFailure as failure:
        return Failed("the sandbox did not start", str(failure))
    if "unusable" in verdict:
        return Failed("its tests cannot be used", verdict["unusable"], is_row_fault=True)
    return float(verdict["passed"])


def _answers(sandbox: Sandbox, limits: Limits, program: str, given: str, expected: str) -> bool:
    outcome = sandbox.run(program, given.encode(errors="surrogatepass"), limits)
    right = same_output(outcome.stdout.decode(errors="replace"), expected)
    return right and outcome.exit_code == 0 and not outcome.killed_for


def _cases(tests: Any) -> list[tuple[str, str]] | None:
    """Pairs of input and output; None where the tests are Python. ValueError where they are neither."""
    if isinstance(tests, str):
        if tests.lstrip()[:1] not in ("[", "{"):
            return None
        try:
            tests = json.loads(tests)
        except ValueError:
            return None  # Python may start so too
    if isinstance(tests, dict) and isinstance(tests.get("inputs"), list) and isinstance(tests.get("outputs"), list):
        if len(tests["inputs"]) != len(tests["outputs"]):
            raise ValueError(f"{len(tests['inputs'])} inputs, but {len(tests['outputs'])} outputs")
        tests = [{"input": given, "output": out} for given, out in zip(tests["inputs"], tests["outputs"], strict=True)]
    if not isinstance(tests, list) or not tests:
        raise ValueError("a list of {input, output} is wanted, or Python with asserts")
    for case in tests:
        if not isinstance(case, dict) or not isinstance(case.get("input"), str) or not isinstance(case.get("output"), str):
            raise ValueError("each of the tests must have the texts `input` and `output`")
    return [(case["input"], case["output"]) for case in tests]


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _concurrency() -> int:
    return min(os.cpu_count() or 1, _MAX_CONCURRENCY)
