"""The verb `doctor`: what this machine is, and whether it computes rightly (`--selftest`)."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from engine import hardware, measuring, selftest
from engine.api import Engine
from engine.cli.screens import table
from engine.errors import InputError
from engine.figures import number, size
from engine.hardware import Hardware
from engine.machine_rates import Rates
from engine.safe_text import safe_text
from engine.selftest_checks import CHECKS, CheckResult, Report

_SIGNS = {"passed": "✓", "failed": "✕", "warning": "⚠", "skipped": "–"}
_TYPES = {4: "float32", 2: "bfloat16"}  # bytes of a number -> its type
_NAME_WIDTH = max(len(check.name) for check in CHECKS)


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="With --selftest: a folder, an HF id on this machine, or demo.")
    ] = None,
    test: Annotated[bool, typer.Option("--selftest", help="Check the numerics on this machine's device (seconds).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Look at this machine: chip, memory, BLAS, packages, and how fast mlx multiplies here (measured), with the
    rates that estimates of time begin with.

    With --selftest: whether it computes rightly. Losses against reference values, padding, sampler against trainer, gradients,
    the adapter on disk; exit status 1 where a check fails.
    """
    if test:
        raise typer.Exit(_selftest(model or "demo", as_json))
    if model is not None:
        remedy = f"`droid-tune doctor --selftest {model}`"
        raise InputError("a model is looked at only by the self-test", where=model, remedy=remedy)
    engine, facts, device = Engine(), hardware.facts(), hardware.device_facts()
    rates = measuring.known_rates(engine.home, facts)
    if as_json:
        told = {**facts.as_dict(), "mlx": device, "rates": measured_rates(rates), "selftest": _last(engine, facts)}
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        outcome, line = selftest.last_line(engine.home, facts)
        print("\n".join([*machine_lines(facts, device), rates_line(rates), f"{_SIGNS[outcome]} {safe_text(line)}"]))


def _selftest(model: str, as_json: bool) -> int:
    """Run it, showing each check as it completes; the exit status."""
    show = (lambda _: None) if as_json else (lambda found: print("\n".join(result_lines(found)), flush=True))
    try:
        report = asyncio.run(Engine().selftest(model, show))
    except KeyboardInterrupt:
        print("\nleft; nothing is kept of this self-test", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        print("\n".join(["", *report_lines(report)]))
    return 1 if report.outcome == "failed" else 0


def _last(engine: Engine, facts: Hardware) -> dict[str, Any] | None:
    """The last report and what has changed since, or why it cannot be read."""
    try:
        report = selftest.latest(engine.home)
    except InputError as error:
        return error.as_dict()
    return None if report is None else {**report.as_dict(), "stale": selftest.stale(report, facts)}


def measured_rates(rates: Rates | None) -> dict[str, Any] | None:
    """What estimates of time begin with, in two figures: large products by the type of their numbers, in 1e9 FLOP/s, and weights
    that no cache holds, in 1e9 bytes/s. None where this machine's rates were not measured."""
    if rates is None:
        return None
    products = {_TYPES.get(item, f"{8 * item} bits"): rates.product(math.inf, math.inf, item) / 1e9 for item in rates.matmul}
    memory = rates.streamed(math.inf) / 1e9
    return {"matmul_gflops": products, "memory_gb_per_second": memory, "measured_t": rates.measured_t}


# What is drawn: values to lines of text. Every string from outside goes through safe_text.


def result_lines(found: CheckResult) -> list[str]:
    """A check in a line, and below a miss what it means and what to do."""
    figures = ", ".join(
        f"{figure.name} {number(figure.value, 2) if figure.value is not None else 'not finite'}"
        + ("" if figure.limit is None else f" (≤ {figure.limit:g})")
        for figure in found.figures
    )
    told = figures if not found.note else f"skipped: {found.note}" if found.outcome == "skipped" else found.note
    lines = [f"{_SIGNS[found.outcome]} {found.name:<{_NAME_WIDTH}} {found.seconds:6.1f} s  {safe_text(told)}"]
    if found.outcome in ("failed", "warning"):
        lines += [f"    it compares {found.measures}", f"    {found.meaning}", f"    try: {found.remedy}"]
    return lines


def report_lines(report: Report) -> list[str]:
    """How the whole test ended, on what."""
    count = {outcome: len(report.named(outcome)) for outcome in ("failed", "warning", "skipped")}
    noted = "".join(f", {n} {outcome}" for outcome, n in count.items() if n)
    word = "failed" if report.outcome == "failed" else "passed"
    subject = report.subject
    device = f"{subject.device_name or report.chip} ({subject.device})"
    share = f"{len(report.named('passed'))} of {len(report.results)} checks passed"
    return [
        f"self-test {word} in {report.seconds:.0f} s: {share}{noted}",
        f"{safe_text(report.model)} in {subject.dtype} on {safe_text(device)}, mlx {report.versions.get('mlx', '–')}",
    ]


def rates_line(rates: Rates | None) -> str:
    """The measured rates, or which command measures them."""
    found = measured_rates(rates)
    if found is None:
        return "rates not measured yet: `droid-tune estimate grpo` does it, once (seconds)"
    products = ", ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in found["matmul_gflops"].items())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["measured_t"]))
    return f"rates of {when}: products {products}; memory {found['memory_gb_per_second']:,.1f} GB/s (estimate --remeasure: anew)"


def machine_lines(facts: Hardware, device: Mapping[str, Any]) -> list[str]:
    """The machine, what mlx makes of it, and what is amiss."""
    rows = []
    for key, value in facts.as_dict().items():
        if key == "warnings" or value is None:
            continue
        shown = (
            size(value)
            if key.endswith("_bytes")
            else ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        rows.append([key.removesuffix("_bytes").replace("_", " "), shown])
    rows += [
        [f"mlx {key.replace('_', ' ')}", number(value) if isinstance(value, float) else str(value)]
        for key, value in device.items()
        if value is not None
    ]
    return [*table(rows), *(f"⚠ {line}" for line in facts.warnings)]
