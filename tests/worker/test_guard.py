"""The memory guard: fewer rows at once before a pass would exceed the limit, the same sums, and a word in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from engine import splitting
from engine.api import Engine, Run
from engine.hardware import GIB
from engine.memory import Fit
from engine.splitting import LEAST_CACHE
from engine.worker.batching import Row, pack
from engine.worker.guard import MemoryGuard, tokens_of
from engine.worker.run import bound_cache, split_of
from tests.support.live import assert_same_bits, await_event, events, finish, kill, outcome, small_config

ROWS = [Row(index, (1, 2, 3), (4, 5, 6, 7), index) for index in range(8)]


class Told:
    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []

    def __call__(self, kind: str, message: str, remedy: str, **_: object) -> None:
        self.warnings.append((kind, message))


def guarded(limit: int | None, planned: float = 0.0, rows: int = 8) -> tuple[MemoryGuard, Told]:
    told = Told()
    return MemoryGuard(rows, None, limit, planned, told), told


def sizes(guard: MemoryGuard, run: Callable[[int], None] = lambda rows: None) -> list[int]:
    """The rows of the micro-batches that were run."""
    made, _ = guard.update(lambda: pack(ROWS, guard.micro_batch_rows), lambda batches: run(len(batches[0].index)))
    return [len(batch.index) for batch in made]


def test_rows_are_halved_until_the_plan_says_that_they_fit() -> None:
    """8 rows of 8 positions (widths are multiples of 8) and their prompt of 3, at 1 MB each: 67 MB beside what is active; 4 rows
    take 35 MB, 2 rows 19 MB."""
    batch = pack(ROWS, 8)[0]
    assert tokens_of(batch) == 8 * 8 + 3
    active = mx.get_active_memory()
    guard, told = guarded(active + 30 * 10**6, 1e6)
    assert sizes(guard) == [2, 2, 2, 2] and guard.micro_batch_rows == 2
    assert [kind for kind, _ in told.warnings] == ["memory", "memory"]
    assert "4 rows now, not 8" in told.warnings[0][1] and "2 rows now, not 4" in told.warnings[1][1]
    guard, told = guarded(active + 90 * 10**6, 1e6)
    assert sizes(guard) == [8] and not told.warnings


def test_one_row_that_goes_beyond_the_limit_is_told_once() -> None:
    """Training goes on: the plan may err. A run whose plan has said so at its start is not told again."""
    guard, told = guarded(1, 1e6, rows=1)
    assert sizes(guard) == [1] * 8 == sizes(guard)
    assert len(told.warnings) == 1 and "even a micro-batch of 1 row" in told.warnings[0][1] and "1 B" in told.warnings[0][1]
    guard, told = guarded(1, 1e6, rows=1)
    guard.has_told = True
    assert sizes(guard) == [1] * 8 and not told.warnings


def test_what_was_measured_takes_the_plans_place() -> None:
    """The first pass allocates 40 MB for 67 positions: the next 67 do not fit under a limit of 30 MB, 35 do."""

    def allocate(rows: int) -> None:
        mx.eval(mx.zeros((rows * 5 * 10**6 // 4,)) + 1)

    guard, told = guarded(None, 0.0)
    assert sizes(guard, allocate) == [8] and not told.warnings
    assert guard.measured_bytes == pytest.approx(40e6 / 67, rel=0.05)
    guard.limit_bytes = mx.get_active_memory() + 30 * 10**6
    assert sizes(guard, allocate) == [4, 4] and len(told.warnings) == 1


def test_a_refused_allocation_is_tried_again_with_half_the_rows() -> None:
    """Of Metal and CUDA: a CPU has no such error. One row cannot be halved, and other errors are nobody's to catch."""

    def refuse(rows: int) -> None:
        if rows > 2:
            raise RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed")

    guard, told = guarded(None)
    assert sizes(guard, refuse) == [2, 2, 2, 2] and len(told.warnings) == 2

    def broken(rows: int) -> None:
        raise RuntimeError("[matmul] shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        sizes(guard, broken)

    def always(rows: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        sizes(guard, always)
    assert guard.micro_batch_rows == 1


def test_a_rollout_is_drawn_again_in_fewer_places() -> None:
    guard, told = guarded(None)
    asked: list[int] = []

    def draw(places: int) -> str:
        asked.append(places)
        if places > 3:
            raise RuntimeError("CUDA out of memory")
        return "drawn"

    assert guard.sampled(12, draw) == "drawn"
    assert asked == [12, 6, 3] and guard.decode_rows == 3
    assert guard.sampled(2, draw) == "drawn" and asked[-1] == 2
    assert [kind for kind, _ in told.warnings] == ["memory"] * 2


def test_what_mlx_keeps_for_reuse_stays_within_the_limit() -> None:
    """8 GiB of which 3 are planned leave 5; a peak beyond the limit, and a CPU, the least. A run's start sets it, and
    never raises what mlx has by itself."""
    fit = Fit(4, False, None, update_peak=3 * GIB, rollout_peak=1 * GIB, score_peak=None, limit=8 * GIB)
    assert splitting.cache_bytes(fit, "metal") == splitting.cache_bytes(fit, "cuda") == 5 * GIB
    assert splitting.cache_bytes(replace(fit, update_peak=9 * GIB), "metal") == LEAST_CACHE
    assert splitting.cache_bytes(fit, "cpu") == LEAST_CACHE
    own = mx.set_cache_limit(GIB)
    try:
        split_of(small_config("grpo", run__memory_limit_gb=0.5), None, None, Told())  # type: ignore[arg-type]
        array = mx.zeros((3 * LEAST_CACHE // 4,)) + 1
        mx.eval(array)
        del array
        assert mx.get_cache_memory() <= LEAST_CACHE
        bound_cache(GIB)
        assert mx.set_cache_limit(own) == LEAST_CACHE
    finally:
        mx.set_cache_limit(own)


async def test_a_run_within_a_limit_goes_on_in_smaller_micro_batches(tmp_path: Path, warm_workers: None) -> None:
    """16 rows at once are asked for, with 2 MB: the worker takes fewer, says so for each halving, keeps them in its checkpoint
    and ends with the rewards and losses of the unlimited run."""
    asked = {"optim__micro_batch_rows": 16, "run__steps": 2}
    whole, _ = await finish(tmp_path / "whole", small_config("grpo", **asked))
    limited, state = await finish(tmp_path / "limited", small_config("grpo", **asked, run__memory_limit_gb=0.002))
    assert state.state == "finished"
    warnings = [event.fields for event in events(limited) if event.type == "warning"]
    assert warnings and {warning["kind"] for warning in warnings} == {"memory"}
    last = sorted(limited.record.checkpoints_dir.glob("step-*"))[-1]
    kept = json.loads((last / "state.json").read_text())
    assert kept["micro_batch_rows"] == warnings[-1]["micro_batch_rows"] < 16
    for one, other in zip(_steps(whole), _steps(limited), strict=True):
        assert one["reward"] == other["reward"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def _steps(run: Run) -> list[dict[str, Any]]:
    return [event.fields["metrics"] for event in events(run) if event.type == "step"]


async def test_a_run_that_computes_layers_again_resumes_to_the_same_bits(tmp_path: Path, warm_workers: None) -> None:
    """Killed after its first step and resumed: weights, samples and metrics of the run that was not; and the losses of a run that
    keeps its layers."""
    asked = {"optim__grad_checkpoint": True, "run__steps": 2, "run__checkpoint_every": 1}
    whole, _ = await finish(tmp_path / "whole", small_config("grpo", **asked))
    parted = await Engine(tmp_path / "parted").start(small_config("grpo", **asked))
    await_event(parted, 0, lambda event: event.type == "checkpoint" and event.fields["step"] == 1)
    kill(parted)
    await parted.resume()
    assert (await parted.wait()).state == "finished"
    assert_same_bits(outcome(whole), outcome(parted))
    last = sorted(whole.record.checkpoints_dir.glob("step-*"))[-1]
    assert json.loads((last / "state.json").read_text())["recomputes"] is True
    plain, _ = await finish(tmp_path / "plain", small_config("grpo", **{**asked, "optim__grad_checkpoint": False}))
    for one, other in zip(_steps(whole), _steps(plain), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
