"""The cache of converted files: made once, whole or not at all; and a run straight from a .gguf file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine import config as configs
from engine import home
from engine.errors import InputError
from engine.estimate import estimate
from engine.gguf.folder import cached_folders, description, mlx_folder
from engine.model_files import read_headers
from engine.models.sources import with_weights
from engine.preflight import preflight
from engine.runs import control
from engine.runs import record as records
from engine.runs.journal import JournalReader, JournalWriter
from tests.support.gguf_files import (
    TINY,
    file_bytes,
    model_metadata,
    model_tensors,
    tiny_file,
    tiny_tokenizer_metadata,
    tiny_weights,
    tokenizer_metadata,
)
from tests.support.live import await_condition, events, finish, small_config


def demo_file(path: Path, kind: str = "Q8_0") -> Path:
    """The embedded model as a .gguf file."""
    demo = configs.model_folder("demo")
    config = json.loads((demo / "config.json").read_text())
    weights = {name: np.asarray(array) for name, array in load_file(demo / "model.safetensors").items()}
    metadata = model_metadata(config) | tokenizer_metadata(demo, "gpt-2")
    path.write_bytes(file_bytes(metadata, model_tensors(weights, config, kind, {})))
    return path


def test_a_file_is_converted_once_and_told_as_it_goes(tmp_path: Path) -> None:
    path, cache, told = tiny_file(tmp_path / "my model (v1).gguf"), tmp_path / "cache", []
    folder = mlx_folder(path, cache, lambda done, total: told.append((done, total)))
    total = sum(header.bytes for header in read_headers(folder))
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert folder.parent == cache and folder.name.startswith("my-model-v1-")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert mlx_folder(path, cache, lambda *_: pytest.fail("converted again")) == folder == description(path, cache)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    [found] = cached_folders(cache)
    assert (found.folder, found.source) == (folder, path)
    assert found.bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_another_file_is_another_folder(tmp_path: Path) -> None:
    """Another content of the same size and time, or a later time; a copy that keeps its time is the same."""
    path, cache = tiny_file(tmp_path / "m.gguf"), tmp_path / "cache"
    info = path.stat()
    first = description(path, cache)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "m.gguf"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert description(copy, cache) == first
    tiny_file(path, seed=1)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_size == info.st_size
    assert mlx_folder(path, cache).name != first.name
    os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000))
    assert description(copy, cache) not in (first, description(path, cache))


def test_a_file_that_was_moved_is_converted_from_its_new_place(tmp_path: Path) -> None:
    """The same size, time and content: the description of the old place serves, but the weights come from the new one."""
    path, cache = tiny_file(tmp_path / "m.gguf"), tmp_path / "cache"
    described = description(path, cache)
    (tmp_path / "other").mkdir()
    moved = path.rename(tmp_path / "other" / "m.gguf")
    assert description(moved, cache) == described
    assert with_weights(described) == cached_folders(cache)[0].folder
    assert cached_folders(cache)[0].source == moved


def test_a_conversion_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    path, cache = tiny_file(tmp_path / "m.gguf"), tmp_path / "cache"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mlx_folder(path, cache, stop)
    assert [*cache.iterdir()] == [cache / ".locks"] and cached_folders(cache) == []
    assert mlx_folder(path, cache).is_dir()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path, cache = tiny_file(tmp_path / "m.gguf"), tmp_path / "cache"

    def change(done: int, total: int) -> None:
        if done == total:
            os.utime(path, ns=(1, 1))

    with pytest.raises(InputError, match="changed while it was converted"):
        mlx_folder(path, cache, change)
    assert cached_folders(cache) == []


def test_a_full_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own figures are the machine's: here it says that 1 MB is free."""
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**6, 10**6)
    monkeypatch.setattr("engine.gguf.folder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"1\.00 MB are free, and the converted model takes \d+\.\d+ kB") as caught:
        mlx_folder(tiny_file(tmp_path / "m.gguf"), tmp_path / "cache")
    assert "DROID_TUNE_HOME" in caught.value.remedy and cached_folders(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    for make in (mlx_folder, description):
        with pytest.raises(InputError, match="cannot be made"):
            make(tiny_file(tmp_path / "m.gguf"), tmp_path / "cache")


CONVERT = """
import sys
from pathlib import Path
from engine.gguf.folder import mlx_folder

told = []
def say(done, total):
    if not told:
        print("begun", flush=True)
        sys.stdin.readline()
    told.append(done)

print(mlx_folder(Path(sys.argv[1]), Path(sys.argv[2]), say), max(told, default=0), flush=True)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_make_it_once_and_a_killed_one_leaves_no_trace(killed: bool, tmp_path: Path) -> None:
    """The first stands still in its conversion, the second waits for the lock (it has told 0 bytes). The first goes on: the
    second converts nothing. Or it is killed: the second makes the folder, and takes away what the first had begun."""
    path, cache = demo_file(tmp_path / "m.gguf"), tmp_path / "cache"
    with ExitStack() as stack:
        both = []
        for _ in range(2):
            command = [sys.executable, "-c", CONVERT, str(path), str(cache)]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "begun\n"
            both.append(process)
        assert len([*cache.glob(".*.part")]) == 1
        first, second = both
        if killed:
            first.kill()
            first.wait()
        else:
            first.communicate("\n")
        folder, told = second.communicate("\n")[0].split()
    total = sum(header.bytes for header in read_headers(Path(folder)))
    assert int(told) == (total if killed else 0) and [*cache.glob(".*.part")] == []
    assert [model.folder for model in cached_folders(cache)] == [Path(folder)]


def test_memory_is_that_of_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 3 MB takes less than 1 MB: rows come in runs of 32 kB, of which numpy makes a few copies."""
    monkeypatch.setattr("engine.gguf.blocks._CHUNK_BYTES", 32 << 10)
    config = {**TINY, "intermediate_size": 32_768}
    path = tmp_path / "m.gguf"
    path.write_bytes(
        file_bytes(model_metadata(config) | tiny_tokenizer_metadata(), model_tensors(tiny_weights(config), config, "Q8_0", {}))
    )
    assert path.stat().st_size > 3_000_000
    description(path, tmp_path / "cache")
    tracemalloc.start()
    try:
        mlx_folder(path, tmp_path / "cache")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_config_takes_the_file_by_its_path(tmp_path: Path) -> None:
    """Beside the config; absolute; named well where it is missing. `model_folder` gives what needs no weights."""
    (tmp_path / "models").mkdir()
    path = demo_file(tmp_path / "models" / "m.gguf")
    assert configs.model_path("models/m.gguf", tmp_path) == str(path)
    folder = configs.model_folder(str(path))
    assert folder.parent == home.models() / ".described" and not [*folder.glob("*.safetensors")]
    with pytest.raises(InputError, match="cannot be read: No such file"):
        configs.model_folder(configs.model_path("models/absent.gguf", tmp_path))
    done = with_weights(folder)
    assert configs.model_folder(str(path)) == done == with_weights(done) and done.parent == home.models()


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_the_estimate_is_the_same_before_and_after(kind: str, tmp_path: Path) -> None:
    path = demo_file(tmp_path / "m.gguf", kind)
    config = small_config("grpo", model=str(path), data={"train": "datasets/arithmetic.jsonl"})
    preflight(config)
    before = estimate(config)
    assert before.weights_bytes > 0 and cached_folders(home.models()) == []
    with_weights(configs.model_folder(str(path)))
    assert estimate(config) == before


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_straight_from_a_gguf_file(tmp_path: Path, _own_home: Path) -> None:
    """It converts once, says so as a phase before anything is loaded, trains, and names the file that it depends on."""
    path = demo_file(tmp_path / "demo.gguf")
    config = small_config("grpo", model=str(path), data={"train": "datasets/arithmetic.jsonl"}, run={"steps": 1})
    run, state = await finish(_own_home, config)
    assert state.state == "finished", state.failure
    phases = [event.fields for event in events(run) if event.type == "phase"]
    total = sum(header.bytes for header in read_headers(configs.model_folder(str(path))))
    assert phases[0] == {"name": "converting", "step": 0, "bytes": total}
    started = next(event for event in events(run) if event.type == "started")
    assert str(path) in started.fields["files"]
    adapter = json.loads((run.record.adapters_dir / "adapter_config.json").read_text())
    assert adapter["model"] == str(configs.model_folder(str(path)))


def test_a_stop_ends_a_conversion_and_a_pause_holds_it(tmp_path: Path, _own_home: Path) -> None:
    """Asked for while the worker loads: nothing is left, and the run can go on later. A pause is carried out there, too."""
    from engine.worker.companion import Companion, StopRequested
    from engine.worker.run import _weights

    path = demo_file(tmp_path / "demo.gguf")
    record = records.create(small_config("grpo", model=str(path), data={"train": "datasets/arithmetic.jsonl"}), _own_home)
    with JournalWriter(record.journal_file) as journal:
        companion = Companion(record, journal, 0.0)
        companion.signal_stop("SIGTERM")
        with pytest.raises(StopRequested):
            _weights(str(path), journal, companion)
        assert (companion.phase, cached_folders(home.models())) == ("converting", [])
        companion = Companion(record, journal, 0.0)
        record.update(state="starting")

        def accept(verb: str) -> None:
            control.send(record, verb)
            for command in companion.inbox.poll():
                companion._accept(command)

        def go_on() -> None:
            await_condition(lambda: record.summary().state == "paused", "the pause")
            accept("resume")

        accept("pause")
        with ThreadPoolExecutor(1) as beside:
            beside.submit(go_on)
            assert _weights(str(path), journal, companion) == cached_folders(home.models())[0].folder
        assert (companion.phase, companion.bytes) == ("load", {}) and record.summary().state == "starting"
        told = [event.fields.get("name", event.type) for event in JournalReader(record.journal_file).read()]
        assert [each for each in told if each != "command"] == ["converting", "paused", "resumed", "converting", "load"]
