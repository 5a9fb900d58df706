"""The benchmark: that it times what it says, refuses what would flatter, and is drawn. Nothing here asserts a time."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine import machine_load, methods, provenance
from engine.cli import bench as verb
from engine.cli import bench_app, bench_lines
from engine.errors import InputError
from engine.types import Rollout
from engine.worker import bench_attention, bench_model, benching
from engine.worker.batching import Row, pack
from engine.worker.bench_journal import Meter, journal
from engine.worker.bench_model import Settings
from engine.worker.bench_rollout import require_whole
from engine.worker.bench_sft import sft
from engine.worker.bench_timing import Clock, Part, Timed, alternate
from engine.worker.bench_update import BareUpdate, gradient_difference, require_all
from engine.worker.blank import Shape, write_blank_model
from engine.worker.guard import MemoryGuard
from engine.worker.logprobs import completion_logprobs
from engine.worker.model import Policy
from engine.worker.supervised import SupervisedTask
from engine.worker.work import StepWork

SMALL: dict[str, Any] = {"prompts": 2, "group": 2, "prompt_tokens": 24, "max_tokens": 6, "rank": 2, "repeats": 1}
LOAD = {"seconds": 1.0, "others_cores": 0.0, "cores": 2, "loadavg_before": 0.1, "loadavg_after": 0.2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    write_blank_model(folder, Shape(hidden_size=32, num_hidden_layers=2, intermediate_size=64), seed=1)
    return folder


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    return bench_model.load(str(model), rank=2)


def numbers(tree: Any, path: str = "") -> dict[str, float]:
    """Every number of a tree by its path."""
    if isinstance(tree, dict):
        return {name: value for key, part in tree.items() for name, value in numbers(part, f"{path}.{key}").items()}
    return {path: tree} if isinstance(tree, int | float) and not isinstance(tree, bool) else {}


# What the worker measures.


def test_every_part_has_its_figures_and_the_same_gradient_as_the_bare_loop(model: Path) -> None:
    told: list[dict[str, Any]] = []
    settings = {**SMALL, "lengths": [3, 6]}
    benching.bench({"parts": ["rollout", "step", "sft"], "model": str(model), "blank": "", "settings": settings}, told.append)
    found = {line["part"]: line["found"] for line in told if line["event"] == "part"}
    assert [line["model"]["dtype"] for line in told if line["event"] == "model"] == ["float32"]
    assert set(found["rollout"]["sides"]) == {"ours", "apart", "bare", "bare_adapter"}
    for figures in found["rollout"]["sides"].values():
        assert set(figures) == {"prefill", "decode", "whole"}
        # 4 rows of 24 prompt tokens; 5 tokens of each after the first; 6 in all
        for part, tokens in (("prefill", 96), ("decode", 20), ("whole", 24)):
            assert figures[part]["tokens_per_second"] * figures[part]["seconds"] == pytest.approx(tokens)
    assert set(found["rollout"]["speed"]) == {"apart", "bare", "bare_adapter"}
    step = found["step"]
    assert list(step["ours"]) == ["rollout", "reward", "update", "whole"]
    assert set(step["bare"]) == set(step["time"]) | {"rollout"} == {"rollout", "update", "whole"}
    assert set(step["beta"]) == {"0", "0.04", "time", "cpu_time", "more_peak_bytes"}
    assert [row["max_tokens"] for row in step["lengths"]] == [3, 6]
    for row in step["lengths"]:  # 4 rows whose widths are rounded up to 8, and two prompts of 24
        assert (row["micro_batches"], row["computed_tokens"], row["recomputes"]) == ([4], 4 * 8 + 2 * 24, False)
        costs, each = row["milliseconds_per_token"], row["milliseconds_per_computed_token"]
        assert costs["attention"] > 0 and costs["update_apart"] == pytest.approx(costs["update"] - costs["attention"])
        assert each["update"] * 80 == pytest.approx(costs["update"] * 4 * row["max_tokens"])
    assert found["sft"]["target_tokens"] == 6
    for part in found.values():
        for name, value in numbers({**part, "load": None, "beta": None}).items():
            assert value > 0, name
    assert 0 < step["gradient_difference"] < 1e-5
    assert 0 < found["sft"]["gradient_difference"] < 1e-5
    assert drawn({"model": told[1]["model"] | {"name": "tiny"}, "settings": settings, **found})


def drawn(found: dict[str, Any]) -> list[str]:
    """The report's lines, none of which may be wider than a terminal or hold a figure that is none."""
    machine = {"chip": "Apple M2", "cores": 8, "backend": "metal"}
    shown = bench_lines.lines({"machine": machine, "versions": {"mlx": "0.32.4"}, **found})
    assert all("nan" not in line and len(line) <= 120 for line in shown), "\n".join(shown)
    return shown


@pytest.mark.parametrize("method", [m.id for m in methods.METHODS.values() if m.id not in ("sft", "grpo")])
def test_the_settings_of_every_method_are_allowed(policy: Policy, method: str, tmp_path: Path) -> None:
    """The rewards differ within every group and cut completions keep theirs, so that all rows are trained."""
    settings = Settings(method=method, prompts=verb._enough_prompts(method))
    config = bench_model.run_config(policy, settings, tmp_path, beta=0.0)
    objective = config.resolved_objective()
    assert (objective.beta, objective.truncated, config.sampling.temperature) == (0.0, "keep", 1.0)
    assert settings.prompts >= objective.minibatches


def test_a_gradient_that_is_not_the_same_is_found(policy: Policy, tmp_path: Path) -> None:
    """Weights of 1.001 w in place of w move the gradient by a thousandth of its norm."""
    settings = Settings(**{**SMALL, "method": "sft"})
    config = bench_model.run_config(policy, settings, tmp_path)
    data = bench_model.replies(policy, bench_model.prompts(policy, 4, 24), 6)
    task = SupervisedTask(policy, config, data, data[:1], MemoryGuard(4))
    batches = task.batches(StepWork(1))
    heavier = [replace(batch, weight=batch.weight * np.float32(1.001)) for batch in batches]
    bare = BareUpdate(policy, task, batches)
    assert gradient_difference(policy, task, heavier, bare) == pytest.approx(1e-3, rel=0.02)
    bare.at_once = 3  # 4 rows in two passes of the floor: the same sum
    assert gradient_difference(policy, task, batches, bare) < 1e-5


def test_a_bench_is_cut_as_its_settings_say(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers computed again, and one row at a time, as a run with these settings; neither by default. Asked for where a layer
    cannot be computed again: one message."""
    settings = Settings(**{**SMALL, "method": "sft", "bare": False, "warm": False})
    plain = sft(policy, settings, lambda text: None)
    assert (plain["micro_batch_rows"], plain["recomputes"]) == (4, False)
    cut = replace(settings, micro_batch_rows=1, grad_checkpoint=True)
    found = sft(policy, cut, lambda text: None)
    assert (found["micro_batch_rows"], found["recomputes"], policy.recomputes) == (1, True, True)
    assert found["ours"]["peak_bytes_above_weights"] < plain["ours"]["peak_bytes_above_weights"]
    assert sft(policy, settings, lambda text: None)["recomputes"] is policy.recomputes is False
    monkeypatch.setattr(bench_model.recompute, "is_exact", lambda policy: False)
    with pytest.raises(InputError, match="cannot be computed again"):
        sft(policy, cut, lambda text: None)


def test_the_calls_of_attention_are_those_of_the_update(policy: Policy) -> None:
    """2 layers, 4 heads of 8: two prompts by themselves, [24, 24], and 7 positions of 4 rows on their keys, [7, 24 + 7]."""
    rows = [Row(place, (1 + place // 2,) * 24, (3,) * 8) for place in range(4)]
    own = mx.fast.scaled_dot_product_attention
    found = bench_attention.calls(lambda batch: completion_logprobs(policy, batch, 1.0), pack(rows, 4, sharing=policy.sharing))
    assert mx.fast.scaled_dot_product_attention is own
    assert {(call.queries[0], call.keys[0], call.mask): times for call, times in found.items()} == {
        ((2, 4, 24, 8), (2, 4, 24, 8), "causal"): 2,
        ((4, 4, 7, 8), (4, 4, 31, 8), "causal"): 2,
    }
    call = next(iter(found))
    masked = replace(call, mask=((24, 24), mx.bool_), sinks=((4,), mx.float32))  # as families with a window and sinks ask
    part = bench_attention.cost(Counter({call: 1, masked: 3}), 1, recomputes=True)
    assert part.seconds > 0 and part.cpu_seconds >= 0 and bench_attention.cost(Counter(), 1, False) == Part(0.0, 0.0, 0)


def test_prompts_and_replies_are_different_and_of_one_length(policy: Policy) -> None:
    asked = bench_model.prompts(policy, 6, 25)
    assert {len(policy.render(one.messages)[1]) for one in asked} == {25}
    assert len({one.messages for one in asked}) == 6
    assert {len(policy.render(one.messages, one.completion)[2]) for one in bench_model.replies(policy, asked, 8)} == {8}


def test_what_would_flatter_is_refused(policy: Policy) -> None:
    """Rows that stopped (23 tokens of 24), rows that train nothing (3 of 4), a prompt without room for its template."""
    whole = [Rollout((1,) * 6, (-1.0,) * 6, "length", "")] * 3
    with pytest.raises(InputError, match="23 tokens of 24"):
        require_whole([*whole, Rollout((1,) * 5, (-1.0,) * 5, "stop", "")], Settings(**SMALL))
    with pytest.raises(InputError, match="0 of 4 rows are trained"):
        require_all([[]], 4)
    with pytest.raises(InputError, match="do not hold the chat template"):
        bench_model.prompts(policy, 2, 3)


def test_the_random_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call leaves it as it is; a folder that is a file is one message."""
    monkeypatch.setattr(bench_model, "BLANK", Shape(hidden_size=16, num_hidden_layers=1, intermediate_size=16))
    folder = bench_model.blank_folder(tmp_path / "machine" / "bench-4m")
    first = (folder / "model.safetensors").stat()
    assert bench_model.blank_folder(folder) == folder and (folder / "model.safetensors").stat() == first
    assert os.listdir(folder.parent) == ["bench-4m"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        bench_model.blank_folder(tmp_path / "file" / "bench-4m")


def test_the_record_of_a_run_is_timed_by_part() -> None:
    """One step of the demo: evaluated before and after, checkpoints at the start and at the end."""
    found = journal(1, lambda text: None)
    assert (found["steps"], found["evaluations"], found["checkpoints"]) == (1, 2, 2)
    assert set(found["parts_cpu_seconds"]) == {"journal", "samples", "checkpoints", "companion", "adapter"}
    assert 0 < found["share_of_cpu"] < 1 and found["written_bytes"] > 100_000
    assert drawn({"journal": found})


# How it is timed.


def timed(**sides: list[tuple[float, float, float]]) -> Timed:
    """Passes of (seconds of a, seconds of b, peak bytes of b); the CPU takes twice the seconds."""
    passes = {
        side: [{"a": Part(a, 2 * a, 10), "b": Part(b, 2 * b, int(peak))} for a, b, peak in all] for side, all in sides.items()
    }
    return Timed(passes, machine_load.Load(**LOAD), weights_bytes=5)


def test_ratios_are_medians_of_neighbours() -> None:
    """a: 1/1, 4/1, 9/3: the median of 1, 4 and 3 is 3 (the medians' ratio would be 4/1). a + b: 2/2, 5/2, 18/9 -> 2."""
    found = timed(ours=[(1, 1, 7), (4, 1, 30), (9, 9, 8)], bare=[(1, 1, 7), (1, 1, 7), (3, 6, 7)])
    assert found.ratio("ours", "bare", "a") == found.cpu_ratio("ours", "bare", "a") == 3
    assert found.ratio("ours", "bare") == 2
    assert found.told("ours", "a", tokens=8) == {
        "seconds": 4,
        "seconds_least": 1,
        "seconds_most": 9,
        "cpu_seconds": 8,
        "peak_bytes_above_weights": 5,
        "tokens_per_second": 2,
    }
    assert found.peak("ours") == 25 and found.peak("bare", "b") == 2


def test_watching_is_one_figure_with_the_windows_beside_it() -> None:
    """Steps of 1, 3 s and 4, 4 s without, 2, 2 and 5, 5 s with: medians 3.5 and 3.5, so 1; the pairs say 2/2 and 5/4."""
    found = bench_app.slowdown([([1, 3], [2, 2]), ([4, 4], [5, 5])])
    assert found["step_seconds"] == {"without": 3.5, "with": 3.5} and found["slowdown"] == 1
    assert found["slowdown_by_pair"] == [1, 1.25] and found["steps"] == {"without": 4, "with": 4}
    app = {"windows": 2, "window_seconds": 1.0, "share_of_one_core": 0.02, "share_most": 0.03, "start_cpu_seconds": 1.0}
    shown = "\n".join(drawn({"app": {**app, **found, "load": LOAD}}))
    assert "3.500 s with it, 3.500 s without: 1.00 times; between neighbouring windows 1.00 to 1.25" in shown


def test_a_result_says_what_it_was_taken_with(tmp_path: Path) -> None:
    """Version, date, machine, and the commit of a checkout: none where there is no checkout, -dirty where files differ."""
    found = provenance.provenance()
    assert found["versions"]["droid-tune"] and found["machine"]["cores"] > 0 and found["date"].startswith("2")
    assert "revision" in found and provenance.revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        (tmp_path / "file").write_text("one")
        subprocess.run([*git, *arguments], check=True)
    commit = provenance.revision(tmp_path)
    assert commit is not None and re.fullmatch("[0-9a-f]{7,}", commit)
    (tmp_path / "file").write_text("two")
    assert provenance.revision(tmp_path) == f"{commit}-dirty"


def test_sides_take_turns_after_a_warm_up() -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        def run(clock: Clock) -> None:
            order.append(name)
            clock.now("whole")

        return run

    found = alternate({"ours": side("o"), "bare": side("b")}, 2, 0, lambda text: None)
    assert order == list("ob" + "obob") and [len(passes) for passes in found.passes.values()] == [2, 2]


def test_a_part_that_comes_again_is_added_to_and_none_counts_nothing() -> None:
    clock = Clock()
    for name in ("a", "b", "a", None, None):
        clock.now(name)
    assert list(clock.parts) == ["a", "b"] and all(part.seconds > 0 for part in clock.parts.values())


def test_a_part_within_a_part_counts_once() -> None:
    meter = Meter()
    with meter.part("outer"), meter.part("inner"):
        sum(range(10_000))
    assert set(meter.cpu) == {"outer"} and meter.cpu["outer"] > 0


def test_the_machine_is_idle_when_others_use_no_more_than_a_tenth_of_a_core() -> None:
    """/proc/stat, 100 ticks a second: 1 + 2 + 3 + 6 + 7 + 8 ticks of work (not 4 idle and 5 waiting) are 0.27 s."""
    assert machine_load.stat_seconds("cpu  1 2 3 4 5 6 7 8 9 10", 100) == 0.27
    assert machine_load.ps_seconds(["0:01.50", "1:00:00", "2-00:00:01"]) == 1.5 + 3600 + 2 * 86400 + 1
    load = machine_load.Load(**LOAD)
    assert load.idle and machine_load.sentence(load).startswith("idle machine")
    assert "busy machine, trust the CPU-time ratios" in machine_load.sentence(replace(load, others_cores=0.3))
    assert not replace(load, others_cores=None).idle
    assert machine_load.cpu_seconds(os.getpid()) > 0


# The verb.


def test_one_argument_is_a_part_or_a_model(tmp_path: Path) -> None:
    assert verb.chosen(None, None) == (verb.PARTS, None)
    assert verb.chosen("step", "demo") == (("step",), "demo")
    assert verb.chosen("demo", None) == (verb.ON_MODEL, "demo")
    said = inspect.signature(verb.bench, eval_str=True).parameters["part"].annotation.__metadata__[0].help
    assert said == "rollout, step, sft, journal, app; without one all, of a MODEL rollout, step, sft."
    for part, model, what in (("rolout", None, "no part 'rolout'"), ("x", "demo", "no part 'x'"), ("app", "demo", "embedded")):
        with pytest.raises(InputError, match=what):
            verb.chosen(part, model)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"group": 1}, "--group"),
        ({"max_tokens": 1}, "--max-tokens"),
        ({"repeats": 0}, "--repeats"),
        ({"lengths": [64, 1]}, "--lengths"),
        ({"method": "sft"}, "--method"),
        ({"method": "gripo"}, "method"),
    ],
)
def test_settings_that_time_nothing_are_refused(changes: dict[str, Any], where: str) -> None:
    settings = {**SMALL, "method": "grpo", "lengths": [], "steps": 1}
    verb.check(("step",), settings, 1.0)
    with pytest.raises(InputError) as caught:
        verb.check(("step",), settings | changes, 1.0)
    assert caught.value.where == where and caught.value.remedy
    with pytest.raises(InputError, match="no lengths"):
        verb.parsed_lengths("64,x")


def test_the_verb_asks_a_worker_and_prints_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb.bench("sft", str(model), **SMALL, method="sft", as_json=True)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "revision" in found and found["versions"]["mlx"] and found["machine"]["chip"]
    assert found["sft"]["rows"] == 4 and found["settings"]["prompts"] == 2 and found["model"]["parameters"] > 0
    assert "sft: bare, 1 of 1" in said.err


@pytest.mark.slow
async def test_the_app_is_watched_beside_a_live_run() -> None:
    found = await bench_app.app(0.5, 1, lambda text: None)
    assert found["steps"]["without"] >= bench_app.LEAST_STEPS and found["steps"]["with"] >= bench_app.LEAST_STEPS
    assert 0 < found["share_of_one_core"] < 1 and found["start_cpu_seconds"] > 0 and found["slowdown"] > 0
    assert drawn({"app": found})
