"""Runs Python programs that nobody has read: enclosed, limited, and never where no enclosure works.

What is contained: files (nothing outside a private /tmp can be written, homes and most of /etc cannot be seen), the network
(there is none), processes (none but the program's own can be seen or signalled), time, memory, number of processes, size and
number of files, and output.

What is not: the kernel, which all share, and the load on the machine for as long as the time limit allows. Memory is limited
twice: for each process by its address space, and for the whole sandbox by a look at it every TICK_SECONDS, between which a
program can go beyond. Memory in files that no process has mapped (memfd) is bounded only by the number and size of open files.
On macOS the address space has no limit that the system keeps, so the look alone counts.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.rewards import enclosures
from engine.rewards.boxes import Limits, Outcome, SandboxFailure, attend, started
from engine.rewards.enclosures import Enclosure

__all__ = ["Limits", "Outcome", "Sandbox", "SandboxFailure", "available", "probe"]


_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """An enclosure that has been tried on this machine, and the interpreter that runs in it."""

    enclosure: Enclosure
    python: str

    def run(self, program: str, stdin: bytes = b"", limits: Limits = _LIMITS) -> Outcome:
        """The program, as `python program.py` would run it. SandboxFailure where it could not be started."""
        with started(self.enclosure, ("script",), {"program": program}, stdin, (), limits) as box:
            return attend([box], limits)

    def judge(self, program: str, tests: str, limits: Limits = _LIMITS) -> dict[str, Any]:
        """The verdict of `tests` (Python with asserts) on `program`: {"passed", "why"}, or {"unusable": why the tests are}.

        Each runs in a sandbox of its own. The verdict comes on a pipe that the program does not have, from a process that
        it can neither see nor signal; what it returns is compared over there, as a copy. SandboxFailure as for `run`.
        """
        with ExitStack() as running:
            with _pipes() as (to_tester, from_candidate, to_candidate, from_tester):
                boxes = [
                    running.enter_context(started(self.enclosure, modules, payload | {"descriptors": ends}, b"", ends, limits))
                    for modules, payload, ends in (
                        (("wire", "candidate", "tester"), {"tests": tests}, [to_tester, from_tester]),
                        (("wire", "candidate"), {"program": program}, [to_candidate, from_candidate]),
                    )
                ]
            # The sandboxes alone hold the pipes now, so each of them sees the other's end.
            outcome = attend(boxes, limits)
        if outcome.killed_for:
            return {"passed": False, "why": f"went beyond its limit of {outcome.killed_for}"}
        try:
            verdict: dict[str, Any] = json.loads(outcome.stdout)
        except ValueError:
            return {"passed": False, "why": f"the tests ended without a verdict (exit code {outcome.exit_code})"}
        return verdict


@contextmanager
def _pipes() -> Iterator[tuple[int, int, int, int]]:
    """Read and write end of one pipe, then of another; closed out here at the end."""
    ends = (*os.pipe(), *os.pipe())
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


_lock = threading.Lock()
_found: list[Sandbox] = []


def available() -> Sandbox:
    """The best sandbox that works here, really tried the first time. InputError where none does: nothing is ever run bare."""
    with _lock:
        if not _found:
            _found.append(_find())
        return _found[0]


def _find() -> Sandbox:
    python = enclosures.interpreter()
    failures = []
    for enclosure in enclosures.candidates(python):
        sandbox = Sandbox(enclosure, python)
        why = probe(sandbox)
        if not why:
            return sandbox
        failures.append(f"{enclosure.name}: {why}")
    what = f"no sandbox works here, so programs of a model are not run ({'; '.join(failures) or 'none is installed'})"
    remedy = "macOS has one; in a container it must be allowed to make user namespaces, or leave out the reward code_tests"
    if sys.platform == "linux":
        remedy = (
            "install bubblewrap 0.8 or newer, or allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    raise InputError(what, where="rewards", remedy=remedy)


_PROBE = """
import os, socket
reached = []
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=2).close()
    reached.append("the network")
except OSError:
    pass
try:
    open({canary!r}).close()
    reached.append("a file of the user's")
except OSError:
    pass
for path in ({beside!r}, "/usr/droid-tune-probe", "/droid-tune-probe", "/dev/droid-tune-probe"):
    try:
        open(path, "w").close()
        reached.append("writing " + path)
    except OSError:
        pass
try:
    os.kill({pid}, 0)
    reached.append("another process")
except OSError:
    pass
try:
    open("room", "w").close()
except OSError:
    reached.append("no private folder")
print("reached", ", ".join(reached) or "nothing")
"""


def probe(sandbox: Sandbox) -> str:
    """Empty when a program runs in the sandbox and reaches nothing outside, else what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        canary = Path(folder) / "canary"
        canary.write_text("seen", encoding="utf-8")
        os.chmod(folder, 0o777)
        beside = str(Path(folder) / "written")
        port = server.getsockname()[1]
        program = _PROBE.format(port=port, canary=str(canary), beside=beside, pid=os.getpid())
        try:
            outcome = sandbox.run(program, limits=Limits(seconds=20.0))
        except SandboxFailure as failure:
            return str(failure)
    if outcome.exit_code == 0 and outcome.stdout.strip() == b"reached nothing":
        return _cannot_judge(sandbox)
    return (outcome.stdout or outcome.stderr).decode(errors="replace").strip()[-500:] or f"exit code {outcome.exit_code}"


def _cannot_judge(sandbox: Sandbox) -> str:
    """Empty when a right program passes its tests, else why it does not: every program would get a 0."""
    try:
        verdict = sandbox.judge("def f(x): return x + 1", "assert f(1) == 2", Limits(seconds=20.0))
    except SandboxFailure as failure:
        return str(failure)
    return "" if verdict.get("passed") is True else f"a right program does not pass its tests: {verdict}"
