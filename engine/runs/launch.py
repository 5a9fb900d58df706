"""Start a run's detached worker: it outlives the terminal, and holds the run's lock for its life.

The worker inherits the locked descriptor, so there is no moment at which a started run looks dead. What decides the
bits of a run (the BLAS library, its thread count, and whether CUDA may shorten float32) is recorded on the first launch
and restored on resume.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
from engine import blas
from engine.errors import InputError
from engine.hub import ONLINE
from engine.runs import control
from engine.runs.journal import JournalWriter
from engine.runs.record import ENDED, RunRecord, lock_is_held
from engine.runs.summary import summarise

WORKER = (sys.executable, "-P", "-m", "engine.worker")
LOCK_SECONDS = 2.0  # a viewer's probe holds the lock for microseconds, a worker that has just ended a little longer


def launch(record: RunRecord, resume: bool = False, *, program: Sequence[str] = WORKER) -> int:
    """Start the worker of a queued run (`resume`: of one that ran before) and return its process id.

    `program` gets the arguments run RUN_DIR --lock-fd N [--resume]. Raises InputError when the run has a worker already
    or has nothing left to do.
    """
    descriptor = _lock(record)
    try:
        summary = record.summary()
        if summary.state == "finished" or (summary.state == "queued") == resume:
            was = "is finished" if summary.state == "finished" else "was never started" if resume else "was started before"
            raise InputError(f"the run {was}", where=record.id, remedy=f"`droid-tune status {record.id}` says more")
        environment, recorded, changed = worker_environment(os.environ, summary.environment)
        if changed:
            with JournalWriter(record.journal_file) as journal:
                remedy = "put it back for the same bits; the run goes on"
                journal.write("warning", kind="environment", message=changed, remedy=remedy, step=summary.step)
        record.update(state="starting", pid=None, launched=time.time(), environment={**summary.environment, **recorded})
        command = [*program, "run", str(record.folder), "--lock-fd", str(descriptor)]
        with record.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--resume"] if resume else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=True,
                pass_fds=(descriptor,),
                cwd=record.folder,
                env=environment,
                start_new_session=True,
            )
    finally:
        os.close(descriptor)  # the worker's copy keeps the lock
    # collects the exit status, so that a viewer that outlives the worker keeps no zombie
    threading.Thread(target=process.wait, name=f"reap-{record.id}", daemon=True).start()
    return process.pid


def resume(record: RunRecord, *, program: Sequence[str] = WORKER) -> str | None:
    """Make the run go on: un-pause a live one and return the command's id, or start a lost, stopped or failed one again.

    Raises InputError for a finished run and for a running one.
    """
    summary = summarise(record)
    if summary.damaged:
        raise InputError(summary.damaged, where=record.id, remedy="mend run.json, or start a new run from config.yaml")
    if summary.state == "finished":
        raise InputError("the run is finished", where=record.id, remedy="start a new one from its config.yaml")
    if lock_is_held(record) and summary.recorded not in ENDED:
        if summary.recorded in ("paused", "pausing"):
            return control.send(record, "resume")
        remedy = f"`droid-tune attach {record.id}` shows it"
        if summary.state == "stalled":
            remedy = f"if it stays so, end process {summary.pid} and resume again"
        raise InputError(f"the run is {summary.state}", where=record.id, remedy=remedy)
    launch(record, resume=record.summary().state != "queued", program=program)
    return None


def worker_environment(env: Mapping[str, str], recorded: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], str]:
    """The worker's environment, what run.json is to record of it, and what has changed since it was first recorded ("": nothing).

    `recorded` is what an earlier launch returned, {} on the first. Raises InputError for a thread count that is none.
    """
    found = blas.blas_environment(env).get("LD_PRELOAD", env.get("LD_PRELOAD", ""))
    changed = ""
    tf32 = str(recorded.get("tf32") or env.get("MLX_ENABLE_TF32") or precision_environment()["MLX_ENABLE_TF32"])
    if not {"blas", "threads"} <= recorded.keys():  # a first launch
        threads = env.get("OPENBLAS_NUM_THREADS") or str(os.cpu_count() or 1)
        if not threads.isdecimal() or int(threads) < 1:
            remedy = "give a whole number, or unset it"
            raise InputError(f"not a number of threads: {threads!r}", where="OPENBLAS_NUM_THREADS", remedy=remedy)
        now: dict[str, Any] = {"blas": _blas_in(found), "threads": int(threads), "tf32": tf32}
    else:
        now = {"blas": recorded["blas"], "threads": recorded["threads"], "tf32": tf32}
        if now["blas"] and "/" in now["blas"] and not Path(now["blas"]).exists():
            now["blas"] = _blas_in(found)
            changed = f"{recorded['blas']} is gone; the worker now uses {now['blas'] or 'the BLAS that mlx links'}"
    # the user's own libraries stay, before the BLAS that is wanted
    preload = [part for part in blas.preloaded(env.get("LD_PRELOAD", "")) if not blas.is_fast_blas(part)]
    preload += [now["blas"]] if now["blas"] else []
    worker = {
        **allocator_environment(sys.platform, platform.libc_ver()),
        **env,
        "LD_PRELOAD": ":".join(preload),
        "OPENBLAS_NUM_THREADS": str(now["threads"]),
        "MLX_ENABLE_TF32": now["tf32"],
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # no library asks the network by itself
        ONLINE: "offline" if _is_offline(env) else "online",
    }
    if not preload:
        del worker["LD_PRELOAD"]
    path = python_path(env.get("PYTHONPATH", ""))
    if path:
        worker["PYTHONPATH"] = path
    return worker, now, changed


def _is_offline(env: Mapping[str, str]) -> bool:
    """Whether the user wants no network, as huggingface_hub reads it."""
    wish = env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or ""
    return wish.upper() in ("1", "ON", "YES", "TRUE")


def allocator_environment(system: str, libc: tuple[str, str]) -> dict[str, str]:
    """Settings of glibc's malloc that keep freed memory in the process; a user's own stand. `libc`: name and version.

    A step frees and asks for the same buffers again and again; handed back to the kernel, each would be mapped and zeroed
    anew. On the embedded model, 2 cores, a step takes 12% less time with 32 MiB, the most that glibc before 2.36 takes for a
    threshold; with 1 GiB an update on 32 completions of 512 tokens (random model, 4 million parameters) takes 23% less CPU time.
    """
    if system != "linux":
        return {}
    parts = [int(part) for part in libc[1].split(".")[:2] if part.isdigit()]
    is_new = libc[0] == "glibc" and parts >= [2, 36]
    threshold, trim = (1 << 30, 16 << 30) if is_new else (32 << 20, 4 << 30)
    return {"MALLOC_MMAP_THRESHOLD_": str(threshold), "MALLOC_TRIM_THRESHOLD_": str(trim), "MALLOC_TOP_PAD_": str(64 << 20)}


def precision_environment() -> dict[str, str]:
    """float32 means float32: on CUDA mlx would multiply in TF32 (10 bits), and the sampler's log-probabilities would differ
    from the trainer's by thousandths. A user's own setting stands."""
    return {"MLX_ENABLE_TF32": "0"}


def python_path(current: str) -> str:
    """PYTHONPATH for a worker that runs in another folder: `current` made absolute, with the folder of this engine in front
    where a fresh interpreter would not find it.

    An installed engine needs nothing; a source tree found through the present folder would not be found from the run's.
    """
    parts = [str(Path(part).absolute()) for part in current.split(os.pathsep) if part]
    path = os.pathsep.join(parts)
    root = str(Path(engine.__file__).resolve().parent.parent)
    return path if _finds_engine(path, root) else os.pathsep.join([root, *parts])


@functools.cache
def _finds_engine(path: str, root: str) -> bool:
    """Whether an interpreter with that PYTHONPATH imports the engine that lies in `root`: asked of one, 20 ms."""
    code = "import importlib.util as u; s = u.find_spec('engine'); print(s.origin if s else '')"
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", code]
    found = subprocess.run(command, cwd=os.sep, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return str(Path(os.fsdecode(found.stdout.strip())).resolve().parent.parent) == root


def _lock(record: RunRecord) -> int:
    """A descriptor that holds the run's lock alone."""
    descriptor = os.open(record.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                pid = record.summary().pid
                what = f"is already running{f' as process {pid}' if pid else ''}"
                raise InputError(what, where=record.id, remedy=f"`droid-tune attach {record.id}` shows it") from None
            time.sleep(0.02)  # flock has no wait with a limit


def _blas_in(preload: str) -> str | None:
    return next((part for part in blas.preloaded(preload) if blas.is_fast_blas(part)), None)
