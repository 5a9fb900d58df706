"""Runs a program as `python program.py` would: its standard input is the test's, its standard output the answer."""

from __future__ import annotations

from typing import Any


def main(payload: dict[str, Any]) -> None:
    exec(compile(payload["program"], "program.py", "exec"), {"__name__": "__main__"})
