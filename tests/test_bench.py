"""The benchmark: that it times what it says, refuses what would flatter, and is drawn. Nothing here asserts a time."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import machine_load, methods
from engine.cli import bench as verb
from engine.cli import bench_app, bench_lines
from engine.errors import InputError
from engine.types import Rollout
from engine.worker import bench_model, benching
from engine.worker.bench_journal import Meter, journal
from engine.worker.bench_model import Settings
from engine.worker.bench_rollout import require_whole
from engine.worker.bench_timing import Clock, Part, Timed, alternate
from engine.worker.bench_update import BareUpdate, gradient_difference, require_all
from engine.worker.blank import Shape, write_blank_model
from engine.worker.guard import MemoryGuard
from engine.worker.model import Policy
from engine.worker.supervised import SupervisedTask
from engine.worker.work import StepWork
from tests.bench import peer, readme

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
    assert set(found["rollout"]["sides"]) == {"ours", "bare", "bare_adapter"}
    for figures in found["rollout"]["sides"].values():
        assert set(figures) == {"prefill", "decode", "whole"}
        # 4 rows of 24 prompt tokens; 5 tokens of each after the first; 6 in all
        for part, tokens in (("prefill", 96), ("decode", 20), ("whole", 24)):
            assert figures[part]["tokens_per_second"] * figures[part]["seconds"] == pytest.approx(tokens)
    assert set(found["rollout"]["speed"]) == {"bare", "bare_adapter"}
    step = found["step"]
    assert list(step["ours"]) == ["rollout", "reward", "update", "whole"]
    assert set(step["bare"]) == set(step["time"]) | {"rollout"} == {"rollout", "update", "whole"}
    assert set(step["beta"]) == {"0", "0.04", "time", "cpu_time", "more_peak_bytes"}
    assert [row["max_tokens"] for row in step["lengths"]] == [3, 6]
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
    assert "busy machine" in machine_load.sentence(replace(load, others_cores=0.3))
    assert not replace(load, others_cores=None).idle
    assert machine_load.cpu_seconds(os.getpid()) > 0


# The verb.


def test_one_argument_is_a_part_or_a_model(tmp_path: Path) -> None:
    assert verb.chosen(None, None) == (verb.PARTS, None)
    assert verb.chosen("step", "demo") == (("step",), "demo")
    assert verb.chosen("demo", None) == (verb.ON_MODEL, "demo")
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
    assert found["sft"]["rows"] == 4 and found["settings"]["prompts"] == 2 and found["model"]["parameters"] > 0
    assert "sft: bare, 1 of 1" in said.err


@pytest.mark.long
async def test_the_app_is_watched_beside_a_live_run() -> None:
    found = await bench_app.app(0.5, 1, lambda text: None)
    assert found["steps"]["without"] >= bench_app.LEAST_STEPS and found["steps"]["with"] >= bench_app.LEAST_STEPS
    assert 0 < found["share_of_one_core"] < 1 and found["start_cpu_seconds"] > 0 and found["slowdown"] > 0
    assert drawn({"app": found})


# Result files.


def side(seconds: float, rollout: float) -> dict[str, float]:
    cpu = {"cpu_seconds": 2 * seconds, "rollout_cpu_seconds": rollout}
    return {"seconds": seconds, "rollout_seconds": rollout, "tokens": 100, "peak_bytes_above_weights": 3_000_000, **cpu}


def test_the_peer_is_compared_round_by_round() -> None:
    """Steps 8/1, 9/3, 8/2: the median of 8, 3 and 4 is 4. Rollouts 4/1 in two rounds of three: 4, and 100 tokens in 1 s."""
    rounds = [
        {"ours": side(1, 1), "peer_default": side(8, 4)},
        {"ours": side(3, 1), "peer_default": side(9, 4)},
        {"ours": side(2, 1), "peer_default": side(8, 6)},
    ]
    found = peer.summary(rounds)
    assert found["times_as_fast"]["peer_default"]["step"] == found["times_as_fast"]["peer_default"]["step_by_cpu"] == 4
    assert found["times_as_fast"]["peer_default"]["rollout"] == 4
    assert found["sides"]["ours"] == {"step_seconds": 2, "rollout_tokens_per_second": 100, "peak_bytes_above_weights": 3_000_000}


def test_readme_is_made_of_the_results(tmp_path: Path) -> None:
    common = {
        "date": "2026-11-22T16:30:00+01:00",
        "machine": {"chip": "Apple M2", "cores": 8, "backend": "metal"},
        "settings": {"prompts": 4, "group": 8, "prompt_tokens": 160, "max_tokens": 64, "rank": 8},
        "model": {"name": "small", "folder": "small", "parameters": 135e6, "dtype": "float32"},
        "load": {**LOAD, "others_cores": 0.05},
    }
    times = {"rollout": 9.5, "step": 6.25}
    sides = {
        name: {"rollout_tokens_per_second": 100, "step_seconds": 2, "peak_bytes_above_weights": 5e6}
        for name in ("ours", "peer_best")
    }
    (tmp_path / "peer-small.json").write_text(
        json.dumps(
            {**common, "kind": "peer", "peer": "mlx-lm-lora 5.10.2", "times_as_fast": {"peer_best": times}, "sides": sides}
        )
    )
    costs = [{"max_tokens": 64, "milliseconds_per_token": {"whole": 1.5}}]
    step = {"time": {"update": 0.4, "whole": 0.3}, "gradient_difference": 2e-6, "lengths": costs}
    (tmp_path / "bench-small.json").write_text(json.dumps({**common, "step": step, "journal": {"share_of_cpu": 0.014}}))
    speed = {"speed": {"bare": {"decode": 0.9, "whole": 1.5}}}
    (tmp_path / "bench-small-rollout.json").write_text(json.dumps({**common, "rollout": speed}))
    text = "\n".join(readme.lines(readme.read(tmp_path)))
    for part in (
        "| 0.90 | 1.50 | 0.40 | 0.30 | – | 2e-06 |",
        "| 9.50 | 6.25 | 100 / 100 |",
        "64 tokens |",
        "1.4% of a run's CPU",
        "Nothing else ran there",
    ):
        assert part in text, text
    assert readme.lines([]) == []
