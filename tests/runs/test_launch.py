"""Launching, resuming and losing a worker, with a stand-in that has no model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.blas import blas_environment, find_openblas
from engine.errors import InputError
from engine.runs import launch as launching
from engine.runs import record as records
from engine.runs.journal import JournalReader
from engine.runs.launch import allocator_environment, python_path, worker_environment
from engine.runs.record import RunRecord, lock_is_held
from engine.runs.state import RunState, fold
from engine.runs.summary import summarise
from tests.runs.conftest import STAND_IN, make_config, until

ROOT = Path(__file__).parents[2]


def folded(record: RunRecord) -> RunState:
    return fold(JournalReader(record.journal_file).read(1 << 30))


@pytest.fixture
def endless(tmp_path: Path, home: Path) -> RunRecord:
    """A run that goes on until it is told to stop."""
    return records.create(make_config(tmp_path, steps=10**6), home)


def test_a_launched_worker_runs_to_its_end_detached(record: RunRecord, start: Callable[..., int]) -> None:
    pid = start(record)
    until(lambda: summarise(record).state == "finished" and not lock_is_held(record))
    facts = json.loads(record.log_file.read_text())
    assert facts == {"cwd": str(record.folder), "session": pid, "pid": pid, "stdin": ""}
    state = folded(record)
    assert (state.step, state.pid, list(state.series["reward"].steps)) == (5, pid, [1, 2, 3, 4, 5])
    with pytest.raises(InputError, match="finished"):
        launching.resume(record, program=STAND_IN)
    with pytest.raises(InputError, match="finished"):
        start(record, True)


def test_the_worker_outlives_its_launcher(endless: RunRecord) -> None:
    """A launcher that is gone at once leaves a worker that goes on; when that is killed too, the run is lost."""
    code = f"""
import os, sys
from pathlib import Path
from engine.runs.launch import launch
from engine.runs.record import RunRecord
print(launch(RunRecord(Path({str(endless.folder)!r})), program={STAND_IN!r}), flush=True)
os.kill(os.getpid(), 9)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    pid = int(parent.stdout)
    try:
        until(lambda: summarise(endless).state == "running")
        before = folded(endless).step
        until(lambda: folded(endless).step > before)
        assert lock_is_held(endless)
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: summarise(endless).state == "lost")
    assert not lock_is_held(endless)


def test_a_second_worker_is_refused(endless: RunRecord, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(endless)
    until(lambda: summarise(endless).state == "running")
    monkeypatch.setattr(launching, "LOCK_SECONDS", 0.05)
    with pytest.raises(InputError, match=f"already running as process {pid}"):
        launching.launch(endless, resume=True, program=STAND_IN)
    with pytest.raises(InputError, match="the run is running"):
        launching.resume(endless, program=STAND_IN)
    assert lock_is_held(endless) and folded(endless).resumes == 0


def test_a_killed_worker_is_resumed_and_no_step_is_counted_twice(endless: RunRecord, start: Callable[..., int]) -> None:
    first = start(endless)
    until(lambda: folded(endless).step >= 3)
    os.kill(first, signal.SIGKILL)
    until(lambda: not lock_is_held(endless))
    died_at = folded(endless).step
    second = start(endless, True)
    until(lambda: folded(endless).step >= died_at + 3)
    state = folded(endless)
    assert (state.resumes, state.pid) == (1, second) and second != first
    assert list(state.series["reward"].steps) == list(range(1, state.step + 1))


def test_launch_and_resume_know_their_states(record: RunRecord, start: Callable[..., int]) -> None:
    with pytest.raises(InputError, match="never started"):
        start(record, True)
    assert record.summary().state == "queued" and not lock_is_held(record)
    start(record)
    until(lambda: summarise(record).state == "finished" and not lock_is_held(record))


def test_resume_starts_a_run_that_was_never_launched(record: RunRecord) -> None:
    assert launching.resume(record, program=STAND_IN) is None
    until(lambda: summarise(record).state == "finished" and not lock_is_held(record))
    assert folded(record).resumes == 0


def test_resume_names_what_is_damaged(record: RunRecord) -> None:
    record.summary_file.write_text("{}")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        launching.resume(record, program=STAND_IN)


def test_openblas_is_preloaded_once(tmp_path: Path) -> None:
    assert blas_environment({}, platform="darwin") == {}
    assert blas_environment({"DROID_TUNE_NO_PRELOAD": "1"}, platform="linux") == {}
    assert blas_environment({"LD_PRELOAD": "/opt/x/libopenblas.so.0"}, platform="linux") == {}
    assert blas_environment({"LD_PRELOAD": "/opt/intel/libmkl_rt.so"}, platform="linux") == {}
    found = find_openblas([tmp_path])  # the linker's, if any
    library = tmp_path / "libopenblas.so.0"
    library.touch()
    assert find_openblas([tmp_path / "none", tmp_path]) == library
    preloaded = blas_environment({"LD_PRELOAD": "/usr/lib/libjemalloc.so"}, platform="linux")
    if found is None:
        assert preloaded == {}
    else:
        first, second = preloaded["LD_PRELOAD"].split(":")
        assert first == "/usr/lib/libjemalloc.so" and "openblas" in second


def test_first_launch_records_what_resume_restores(tmp_path: Path) -> None:
    library = tmp_path / "libopenblas.so.0"
    library.touch()
    env = {"LD_PRELOAD": f"/x/libjemalloc.so:{library}", "OPENBLAS_NUM_THREADS": "3", "KEPT": "yes"}
    worker, recorded, changed = worker_environment(env, {})
    assert recorded == {"blas": str(library), "threads": 3, "tf32": "0"} and changed == ""
    assert worker["LD_PRELOAD"] == f"/x/libjemalloc.so:{library}" and worker["OPENBLAS_NUM_THREADS"] == "3"
    assert (worker["KEPT"], worker["PYTHONUNBUFFERED"], worker["TOKENIZERS_PARALLELISM"], worker["HF_HUB_OFFLINE"]) == (
        "yes",
        "1",
        "false",
        "1",
    )

    later, again, changed = worker_environment(
        {"OPENBLAS_NUM_THREADS": "8", "LD_PRELOAD": "/x/libmkl_rt.so /x/liby.so"}, recorded
    )
    assert again == recorded and changed == ""
    assert later["LD_PRELOAD"] == f"/x/liby.so:{library}" and later["OPENBLAS_NUM_THREADS"] == "3"

    plain, none, changed = worker_environment({"LD_PRELOAD": str(library)}, {"blas": None, "threads": 2})
    assert "LD_PRELOAD" not in plain and none == {"blas": None, "threads": 2, "tf32": "0"} and changed == ""


def test_a_blas_that_is_gone_is_said(tmp_path: Path) -> None:
    gone, present = tmp_path / "gone" / "libopenblas.so.0", tmp_path / "libopenblas.so.0"
    present.touch()
    worker, recorded, changed = worker_environment({"LD_PRELOAD": str(present)}, {"blas": str(gone), "threads": 2})
    assert str(gone) in changed and str(present) in changed
    assert worker["LD_PRELOAD"] == str(present) and recorded == {"blas": str(present), "threads": 2, "tf32": "0"}


def test_thread_counts() -> None:
    env = {"DROID_TUNE_NO_PRELOAD": "1"}
    assert worker_environment(env, {})[0]["OPENBLAS_NUM_THREADS"] == str(os.cpu_count())
    for wrong in ("0", "two", "-1"):
        with pytest.raises(InputError, match="OPENBLAS_NUM_THREADS"):
            worker_environment({**env, "OPENBLAS_NUM_THREADS": wrong}, {})


def test_a_changed_blas_becomes_a_warning_in_the_journal(record: RunRecord, start: Callable[..., int]) -> None:
    record.update(environment={"blas": "/nowhere/libopenblas.so.0", "threads": 1, "other": "kept"})
    start(record)
    until(lambda: summarise(record).state == "finished")
    warning = folded(record).warnings[0]
    assert warning.kind == "environment" and "/nowhere/libopenblas.so.0 is gone" in warning.message
    environment = record.summary().environment
    assert environment["other"] == "kept" and environment["threads"] == 1 and environment["blas"] != "/nowhere/libopenblas.so.0"


def test_python_path_leads_to_this_engine_from_any_folder(tmp_path: Path) -> None:
    """An interpreter in another folder imports this engine and not a decoy that lies beside it."""
    decoy = tmp_path / "engine"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("")
    for current in ("", str(ROOT), str(tmp_path), os.path.relpath(ROOT)):
        env = {**os.environ, "PYTHONPATH": python_path(current)}
        command = [sys.executable, "-P", "-c", "import engine; print(engine.__file__)"]
        found = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert Path(found.strip()).parent == ROOT / "engine", current
    assert python_path(str(ROOT)) == str(ROOT)


def test_the_allocator_keeps_memory_on_linux_and_a_users_settings_stand() -> None:
    environment, _, _ = worker_environment({"MALLOC_TOP_PAD_": "1"}, {})
    assert environment["MALLOC_TOP_PAD_"] == "1"
    assert ("MALLOC_TRIM_THRESHOLD_" in environment) == (sys.platform == "linux")
    assert allocator_environment("darwin", ("", "")) == {}


def test_the_allocator_keeps_larger_buffers_where_glibc_lets_it() -> None:
    """Before 2.36 glibc refuses a threshold above 32 MiB, and would fall back to 128 KiB."""

    def threshold(*libc: str) -> int:
        return int(allocator_environment("linux", (libc[0], libc[1]))["MALLOC_MMAP_THRESHOLD_"])

    assert threshold("glibc", "2.36") == threshold("glibc", "3.0") == 1 << 30
    assert threshold("glibc", "2.35") == threshold("glibc", "2.9") == threshold("", "") == threshold("musl", "1.2.4") == 32 << 20


def test_float32_is_not_shortened_unless_the_user_says_so() -> None:
    assert worker_environment({}, {})[0]["MLX_ENABLE_TF32"] == "0"
    worker, recorded, _ = worker_environment({"MLX_ENABLE_TF32": "1"}, {})
    assert worker["MLX_ENABLE_TF32"] == recorded["tf32"] == "1"


def test_a_resume_multiplies_as_the_first_launch_did() -> None:
    _, recorded, _ = worker_environment({"MLX_ENABLE_TF32": "1"}, {})
    for env in ({}, {"MLX_ENABLE_TF32": "0"}):
        worker, again, changed = worker_environment(env, recorded)
        assert (worker["MLX_ENABLE_TF32"], again, changed) == ("1", recorded, "")
    older = {"blas": None, "threads": 2}  # recorded before there was a third entry: what it ran with is not known
    assert worker_environment({"MLX_ENABLE_TF32": "1"}, older)[0]["MLX_ENABLE_TF32"] == "1"
