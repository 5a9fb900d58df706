"""One question to a worker process: a request as JSON on its stdin, the answer in JSON lines, as each is ready."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from engine.errors import InputError
from engine.runs import launch

LINE_BYTES = 1 << 28  # the longest line that is taken: an answer of a model is one
_REMEDY = "`droid-tune doctor` shows what is installed; a model that needs more memory than there is ends this way, too"

Line = dict[str, Any]


async def ask(
    verb: str,
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    on_line: Callable[[Line], None],
    *,
    program: Sequence[str] = launch.WORKER,
) -> None:
    """Run `program` with the verb, tell `on_line` each line that it prints. Cancelled, the process is killed.

    Raises InputError where the worker prints one, dies, or prints what is no JSON.
    """
    with tempfile.TemporaryFile() as errors:
        worker = await asyncio.create_subprocess_exec(
            *(*program, verb),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=LINE_BYTES,
        )
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.write_eof()
            async for line in worker.stdout:
                on_line(parsed(line, verb))
            await worker.wait()
        except (BrokenPipeError, ConnectionResetError):  # it died before it read the request
            await worker.wait()
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
        if worker.returncode:
            raise died(worker.returncode, errors, verb)


def parsed(line: bytes, verb: str) -> Line:
    """A line of the worker; an InputError that it printed is raised here."""
    try:
        tree: Line = json.loads(line)
    except ValueError as error:
        raise InputError(f"not an answer: {line[:80]!r}", where=f"engine.worker {verb}", remedy="reinstall droid-tune") from error
    if "error" in tree:
        raise InputError(tree["error"], where=tree["where"], remedy=tree["remedy"])
    return tree


def died(status: int, errors: IO[bytes], verb: str) -> InputError:
    """The error to raise about a worker that ended by itself, with its last words."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
    return InputError(f"the worker {how}: {said}", where=f"engine.worker {verb}", remedy=_REMEDY)
