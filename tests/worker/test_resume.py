"""A worker killed at any moment resumes to the same bits: weights, optimizer, samples and every metric."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.api import Engine, Run
from engine.config import RunConfig
from engine.runs.journal import Event
from tests.support import warm
from tests.support.live import assert_same_bits, await_condition, await_event, events, finish, kill, outcome, small_config

pytestmark = pytest.mark.usefixtures("warm_workers")

SLOW_JUDGE = '''
import time

def considered(prompts, completions, answer):
    """A judge that takes a while, like one over a network."""
    time.sleep(0.3)
    return [float(a in c) for c, a in zip(completions, answer)]
'''


def phase(name: str, step: int, update: int | None = None) -> Callable[[Event], bool]:
    return lambda e: (
        e.type == "phase" and e.fields["name"] == name and e.fields["step"] == step and e.fields.get("update") == update
    )


def until(wanted: Callable[[Event], bool]) -> Callable[[Run, int], None]:
    """Wait for an event of the present worker."""

    def wait(run: Run, since: int) -> None:
        await_event(run, since, wanted)

    return wait


def checkpoint_being_written(run: Run, since: int) -> None:
    await_condition(lambda: list(run.record.checkpoints_dir.glob(".tmp-step-*")), "a checkpoint being written")


async def killed_run(home: Path, config: RunConfig, moments: dict[str, Callable[[Run, int], None]]) -> Run:
    """Train the config, killed once at each of the moments and resumed each time."""
    run = await Engine(home).start(config)
    since = 0
    for wait in moments.values():
        await asyncio.to_thread(wait, run, since)
        await asyncio.to_thread(kill, run)
        since = (await run.state()).seq
        assert (await run.state()).state in (
            "lost",
            "starting",
        )  # just started, it is given some seconds before it is called lost
        await run.resume()
    state = await run.wait()
    assert state.state == "finished", state.failure
    assert state.resumes == len(moments)
    return run


async def assert_same_as_uninterrupted(tmp_path: Path, config: RunConfig, moments: dict[str, Callable[[Run, int], None]]) -> Run:
    """Train the config twice, side by side: killed at each of the moments, and in one go."""
    assert len(moments) == 10
    interrupted, (whole, state) = await asyncio.gather(
        killed_run(tmp_path / "a", config, moments), finish(tmp_path / "b", config)
    )
    assert state.state == "finished", state.failure
    assert_same_bits(outcome(interrupted), outcome(whole))
    return interrupted


async def test_grpo_killed_at_ten_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Four mini-batches a step, a reference, two rewards; a checkpoint is due between any two updates."""
    judge = tmp_path / "judge.py"
    judge.write_text(SLOW_JUDGE)
    config = small_config(
        "grpo",
        rewards=[{"name": "answer", "weight": 1.0}, {"name": "considered", "weight": 0.5, "file": str(judge)}],
        objective__minibatches=4,
        objective__beta=0.02,
        run__steps=6,
        run__eval_every=3,
        run__keep_checkpoints=99,
        run__checkpoint_minutes=1e-9,
    )
    moments = {
        "while loading": until(lambda e: e.type == "started"),
        "base evaluation": until(phase("eval", 0)),
        "rollout": until(phase("rollout", 1)),
        "reward": until(phase("reward", 2)),
        "checkpoint write": checkpoint_being_written,
        "score": until(phase("score", 3)),
        "evaluation": until(phase("eval", 3)),
        "between updates": until(phase("update", 4, 2)),
        "before the last update": until(phase("update", 5, 3)),
        "last step": until(lambda e: e.type == "step" and e.fields["step"] == 6),
    }
    run = await assert_same_as_uninterrupted(tmp_path, config, moments)
    restored = [e.fields["from_step"] for e in events(run) if e.type == "resumed"]
    assert 4 in restored  # step 5 was taken up again in its middle: its rollouts were not sampled anew
    assert len([e for e in events(run) if phase("rollout", 5)(e)]) == 1


async def test_sft_killed_at_ten_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = small_config("sft", run__steps=30, run__eval_every=10, run__checkpoint_every=4, adapter__dropout=0.1)
    at_step = lambda step: until(lambda e: e.type == "step" and e.fields["step"] >= step)  # noqa: E731
    moments = {
        "while loading": until(lambda e: e.type == "started"),
        "base evaluation": until(phase("eval", 0)),
        "first update": until(phase("update", 1, 0)),
        "checkpoint write": checkpoint_being_written,
        "step 6": at_step(6),
        "evaluation": until(phase("eval", 10)),
        "step 14": at_step(14),
        "another checkpoint write": checkpoint_being_written,
        "step 23": at_step(23),
        "last step": at_step(30),
    }
    await assert_same_as_uninterrupted(tmp_path, config, moments)


FULL = {"adapter": {"type": "full"}, "objective": {"minibatches": 4, "beta": 0.02}, "run__keep_checkpoints": 9}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How a run of full weights ends in one go."""
    with warm.workers():
        whole, _ = asyncio.run(finish(tmp_path_factory.mktemp("whole"), small_config("gspo", run__steps=3, **FULL)))
    return outcome(whole)


@pytest.mark.parametrize("verb", ["stop", "pause"])
async def test_a_stop_or_a_pause_changes_no_bit(tmp_path: Path, uninterrupted: dict[str, Any], verb: str) -> None:
    """Stopped in the middle of a step and resumed, or paused and un-paused: the run ends as if nothing had been."""
    config = small_config("gspo", run__steps=3, **FULL)
    run = await Engine(tmp_path / "a").start(config)
    await asyncio.to_thread(await_event, run, 0, phase("update", 2, 1))
    await (run.stop() if verb == "stop" else run.pause())
    expected = "stopped" if verb == "stop" else "paused"
    await asyncio.to_thread(await_event, run, 0, lambda e: e.type == expected)
    if verb == "stop":
        assert (await run.wait()).state == "stopped"
    else:
        assert (await run.state()).state == "paused"
    assert await run.resume() in ("started", "accepted", "done")
    assert (await run.wait()).state == "finished"
    assert_same_bits(outcome(run), uninterrupted)


async def test_a_run_resumed_on_other_data_says_so(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"prompt": "What is 1{n}+10?", "completion": "2{n}"}}\n' for n in range(10)))
    run = await Engine(tmp_path).start(small_config("sft", data={"train": str(data)}, run__steps=100_000))
    await asyncio.to_thread(await_event, run, 0, lambda e: e.type == "step")
    await run.stop()
    assert (await run.wait()).state == "stopped"
    with data.open("a") as file:
        file.write('{"prompt": "more", "completion": "rows"}\n')
    since = (await run.state()).seq
    await run.resume()
    warning = await asyncio.to_thread(await_event, run, since, lambda e: e.type == "warning")
    assert warning.fields["kind"] == "surroundings-changed" and str(data) in warning.fields["message"]
    await asyncio.to_thread(await_event, run, since, lambda e: e.type == "step")
    await run.stop()
    assert (await run.wait()).state == "stopped"
