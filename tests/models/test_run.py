"""A run whose model is on the hub alone: its worker fetches it, can be stopped and killed meanwhile, and then trains."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import config as configs
from engine.api import Engine
from engine.cli.bench import bench
from engine.errors import InputError
from engine.hub import ONLINE
from engine.preflight import preflight
from engine.runs import record as records
from engine.runs.journal import JournalWriter
from engine.runs.launch import worker_environment
from tests.support.hub import Hub, use
from tests.support.hub_models import WEIGHTS, demo_repo, heavy_repo
from tests.support.live import await_condition, await_event, events, small_config

PIECE = 10 << 20  # what huggingface_hub writes at once


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Hub({"o/heavy": heavy_repo(14), "o/tiny": demo_repo()}) as server:
        use(server, tmp_path / "hf", monkeypatch)
        yield server


def run_of(model: str, method: str = "grpo") -> configs.RunConfig:
    train = "datasets/arithmetic.jsonl"
    return small_config(method, model=model, data={"train": train}, run={"steps": 1, "eval_rows": 4})


async def test_a_download_is_paused_stopped_and_goes_on_where_it_was(hub: Hub, tmp_path: Path, _own_home: Path) -> None:
    """14 MB and the embedded model's 0.4: the server stands still after 12 MB, of which one piece of 10 MB is on the disk. Paused
    and un-paused, the worker asks for the rest, which stands still after 1 MB more; a stop does not wait for it. The next worker
    asks for the same, which breaks off once more after 2 MB, and trains a step."""
    repo = hub.repos["o/heavy"]
    repo.held = {WEIGHTS: 12 << 20}
    run = await Engine(_own_home).start(run_of("o/heavy"))
    phase = await_event(run, 0, lambda event: event.type == "phase")
    total = phase.fields["bytes"]
    assert phase.fields["name"] == "downloading" and total > len(repo.files[WEIGHTS]) > 14 << 20
    [part] = await_condition(lambda: list((tmp_path / "hf").rglob("*.incomplete")), "a partial file")
    await_condition(lambda: part.stat().st_size == PIECE, "a piece of it")
    beat = await_event(run, 0, lambda e: e.type == "heartbeat" and e.fields["bytes"].get("downloaded", 0) >= PIECE)
    assert PIECE < beat.fields["bytes"]["downloaded"] < total == beat.fields["bytes"]["to_download"]
    assert (await run.state()).state == "starting"

    await run.pause()
    paused = await_event(run, beat.seq, lambda event: event.type == "paused")
    assert (await run.state()).state == "paused"
    await_condition(lambda: run.record.summary().state == "paused", "run.json")
    repo.held = {WEIGHTS: 1 << 20}
    hub.released.set()  # whoever waits for the rest gets it, and does not go on
    hub.released.clear()
    hub.asked.clear()
    assert await run.resume() in ("accepted", "done")
    again = await_event(run, paused.seq, lambda event: event.type == "phase")
    assert again.fields["name"] == "downloading" and again.fields["done"] > PIECE
    await_condition(lambda: hub.ranges(WEIGHTS), "the request for the rest")
    assert (await run.state()).state == run.record.summary().state == "starting"
    await run.stop()
    state = await run.wait()
    assert state.state == "stopped" and not hub.released.is_set()
    assert part.stat().st_size == PIECE and hub.ranges(WEIGHTS) == [f"bytes={PIECE}-"]

    hub.released.set()
    hub.asked.clear()
    repo.cut = {WEIGHTS: 2 << 20}
    assert await run.resume() == "started"
    state = await run.wait()
    assert state.state == "finished", state.failure
    assert hub.ranges(WEIGHTS) == [f"bytes={PIECE}-", f"bytes={PIECE}-"], (
        "2 MB are less than a piece: nothing of them was written"
    )
    phases = [event.fields for event in events(run) if event.type == "phase"]
    assert [found["name"] for found in phases[:4]] == ["downloading", "downloading", "downloading", "load"]
    assert phases[2]["done"] > PIECE
    assert not [event for event in events(run) if event.type == "warning"], "nothing has changed between the two workers"
    assert (state.model, run.id) == ("o/heavy", "grpo-heavy") and "model: o/heavy@" in run.record.config_file.read_text()
    assert (run.record.adapters_dir / "adapters.safetensors").is_file() and not part.exists()


def test_a_stop_does_not_wait_for_the_network(hub: Hub, tmp_path: Path, _own_home: Path) -> None:
    """The server stands still for good; a signal ends the download within a second, and what has come stays."""
    from engine.worker.companion import Companion, StopRequested
    from engine.worker.run import _weights

    hub.repos["o/tiny"].held = {WEIGHTS: 100_000}
    config, _ = preflight(run_of("o/tiny", "sft"))
    record = records.create(config, _own_home)
    with JournalWriter(record.journal_file) as journal:
        companion = Companion(record, journal, 0.0)
        companion.signal_stop(signal.Signals.SIGTERM.name)
        started = time.monotonic()
        with pytest.raises(StopRequested):
            _weights(config.model, journal, companion)
        assert time.monotonic() - started < 5 and companion.phase == "downloading"
        hub.released.set()
        companion = Companion(record, journal, 0.0)
        folder = _weights(config.model, journal, companion)
        assert (folder / WEIGHTS).read_bytes() == hub.repos["o/tiny"].files[WEIGHTS]
        assert (companion.phase, companion.bytes) == ("load", {})


def test_a_worker_may_ask_the_hub_where_its_user_may() -> None:
    """Its libraries may not: HF_HUB_OFFLINE is set for them. An outer worker's leave is not inherited."""
    for env, leave in (
        ({}, "online"),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "no"}, "online"),
        ({"HF_HUB_OFFLINE": "1"}, "offline"),
        ({"TRANSFORMERS_OFFLINE": "yes", ONLINE: "online"}, "offline"),
    ):
        worker = worker_environment(env, {})[0]
        assert (worker["HF_HUB_OFFLINE"], worker[ONLINE]) == ("1", leave)


async def test_a_self_test_and_a_benchmark_fetch_nothing(hub: Hub, _own_home: Path) -> None:
    with pytest.raises(InputError, match=r"o/tiny: is not on this machine \(`hf download o/tiny`"):
        await Engine(_own_home).selftest("o/tiny", print)
    with pytest.raises(InputError, match=r"o/tiny: is not on this machine \(`hf download o/tiny`"):
        bench("rollout", "o/tiny")
    assert hub.sent[WEIGHTS] < 10_000
