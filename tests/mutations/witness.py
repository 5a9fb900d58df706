"""A pytest plugin, loaded in the copy of the repository: which engine was tested, and with what each test ended.

Writes JSON to the file that the environment names: an exit status alone cannot tell a test that noticed the fault from one that
fell over before it looked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import engine

REPORT = "MUTATION_REPORT"
_ended: list[dict[str, Any]] = []


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test any engine but the copy's."""
    if not Path(engine.__file__).is_relative_to(config.rootpath):
        raise pytest.UsageError(f"the engine under test is {engine.__file__}, not that of {config.rootpath}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how each test ended, and whether it was by its own word."""
    report = yield
    if report.failed or (report.when == "call" and report.passed):
        error = None if call.excinfo is None else call.excinfo.value
        noticed = report.when == "call" and error is not None and all(map(is_assertion, leaves(error)))
        _ended.append({"test": item.nodeid, "passed": report.passed, "noticed": noticed, "error": error and repr(error)[:300]})
    return report


def pytest_sessionfinish() -> None:
    """Write down what was seen."""
    Path(os.environ[REPORT]).write_text(json.dumps(_ended), encoding="utf-8")


def is_assertion(error: BaseException) -> bool:
    """Whether a test said no: by an assertion, or by pytest.raises or pytest.fail."""
    return isinstance(error, (AssertionError, pytest.fail.Exception))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors of a group (hypothesis reports several at once), or the one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]
