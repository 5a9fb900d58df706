"""The time of a run before it begins: against sums worked by hand, and one real step beside its prediction."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import corrections, machine_rates, measuring, share
from engine.cli import estimate_lines
from engine.config import RunConfig, parse
from engine.errors import InputError
from engine.estimate import estimate
from engine.hardware import GIB, Hardware, facts
from engine.machine_rates import Correction, Rates
from engine.memory import Plan
from engine.method_costs import method_costs
from engine.time_plan import Lengths, Packed, TimePlan
from engine.timing import measured_corrections, time_plan

ROOT = Path(__file__).parents[1]
NEVER = 1e30  # a rate at which work takes no time
GIGA = 1e9
# The embedded model: width 64, 2 layers, MLP 128, 4 heads of 16, vocabulary 272, tied. One layer's modules have
# 4 x 64 x 64 + 3 x 64 x 128 = 40,960 weights; both 81,920.
WEIGHTS = 2 * 40_960
HEAD = 64 * 272


def flat_rates(**given: Any) -> Rates:
    """Products at 1 GFLOP/s whatever their size; all else takes no time, unless `given` says otherwise."""
    numbers = {**dict.fromkeys(("plain", "norm", "exp", "softmax", "draw"), NEVER), **given.pop("numbers", {})}
    table = {1: GIGA, 2048: GIGA}
    none = Rates({4: {1: table, 4096: table}}, {1: GIGA}, {1: NEVER}, numbers, 1 / NEVER, NEVER)
    return replace(none, **given)


@pytest.fixture
def machine() -> Hardware:
    return Hardware("Linux", "x86_64", "a chip", "cpu", 2, None, 8 * GIB, None, gpu_limit_bytes=8 * GIB)


def config(folder: Path, method: str = "grpo", **changes: Any) -> RunConfig:
    """2 prompts x 4 completions, 48 + 80 tokens, the embedded model, no KL."""
    (folder / "train.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    tree: dict[str, Any] = {"model": "demo", "method": method, "data": {"train": "train.jsonl"}}
    if method != "sft":
        tree |= {"rewards": [{"name": "answer"}], "objective": {"beta": 0.0}}
    names = ("prompts_per_step", "group_size", "max_prompt_tokens", "max_completion_tokens")
    small = {f"sampling.{name}": value for name, value in zip(names, (2, 4, 48, 80), strict=True)}
    every = {"run.steps": 40, "run.eval_every": 15, "run.checkpoint_every": 20, "run.eval_rows": 3}
    return parse(json.dumps(tree), base=folder, overrides={**small, **every, **changes}).config


def timed(config: RunConfig, rates: Rates | None = None, rows: int = 64, **more: Any) -> TimePlan:
    found = time_plan(Plan(config, "cpu"), rates or flat_rates(), rows, **more)
    assert found is not None
    return found


def attention(rows: int, new: int, context: float) -> float:
    """FLOPs of both layers: scores and sums of values, 2 x 2 x 4 heads x 16 for each pair of a new and a known token."""
    return 2 * 256 * rows * new * context


def test_a_rollout_reads_each_prompt_once_and_decodes_all_rows_together(tmp_path: Path) -> None:
    """Full training, so no adapter: 2 FLOPs a weight and token. Prefill: 2 prompts x 48 tokens x 2 x 81,920, their attention 2 x
    256 x 48 x 48 each, the head at one position. Decode: 80 positions x 8 rows x 2 x (81,920 + 17,408) and attention to
    48 + 1 ... 48 + 80 tokens, on the mean 48 + 40 + 1."""
    found = timed(config(tmp_path, **{"adapter.type": "full"}))
    prefill = 2 * (48 * 2 * WEIGHTS + attention(1, 48, 48) + 2 * HEAD)
    decode = 80 * (8 * 2 * (WEIGHTS + HEAD) + attention(8, 1, 48 + 40 + 1))
    assert found.prefill == pytest.approx(prefill / GIGA)
    assert found.decode == pytest.approx(decode / GIGA)
    assert found.phases["rollout"] == found.prefill + found.decode and found.phases["score"] == 0
    assert found.tokens == 640 and found.longest == "update"


def test_an_update_is_four_flops_a_weight_under_an_adapter_and_six_in_full(tmp_path: Path) -> None:
    """Prompts once each (2 x 48 tokens), completions 8 x 80: 736 tokens; the head on the 640 alone. Forward and the gradient of
    the inputs: 4 x 81,920 a token; in full also that of the weights: 6. Attention: forward 1, backward 2, prompts 48 x 48, the
    completions 80 x 128. Head: product and slope, in full the weights' too. A rank of 1 adds 6 x its own weights a token:
    (2 x 64 x 4 + 3 x 192) x 2 layers = 2,176."""
    tokens = 2 * 48 + 8 * 80
    pairs = 3 * (attention(2, 48, 48) + attention(8, 80, 128))
    full = timed(config(tmp_path, **{"adapter.type": "full"})).phases["update"]
    assert full == pytest.approx((6 * WEIGHTS * tokens + pairs + 6 * HEAD * 640) / GIGA)
    lora = timed(config(tmp_path, **{"adapter.rank": 1})).phases["update"]
    # products of width 1 are at the table's end: its rate
    assert lora == pytest.approx((4 * WEIGHTS * tokens + 6 * 2_176 * tokens + pairs + 4 * HEAD * 640) / GIGA)
    again = timed(config(tmp_path, **{"adapter.type": "full"}), recomputes=True).phases["update"]
    assert again - full == pytest.approx((2 * WEIGHTS * tokens + pairs / 3) / GIGA)


def test_scores_are_made_where_the_method_needs_them(tmp_path: Path) -> None:
    """Without adapters a pass over all rows is one number, s. Several updates: the policy's, s, less the share of the first,
    which is its own old policy, unless its rows come again. A KL: the reference's, s. A KL in the reward: both, of all rows, as
    rewards come first. Old log-probabilities of the sampler: none."""

    def score(method: str, **changes: Any) -> float:
        return timed(config(tmp_path, method, **{"adapter.type": "full", **changes})).phases["score"]

    once = score("grpo", **{"objective.beta": 0.1})
    assert once > 0 == score("grpo")
    kinds = {"objective.beta": 0.1, "objective.kl": "k1", "objective.kl_in": "reward"}
    assert score("grpo", **kinds) == pytest.approx(2 * once)
    two = {"objective.minibatches": 2}
    assert score("grpo", **two) == pytest.approx(once / 2)
    assert score("grpo", **two, **{"objective.updates_per_rollout": 2}) == pytest.approx(once)
    assert score("grpo", **two, **{"objective.beta": 0.1}) == pytest.approx(1.5 * once)
    assert score("grpo", **two, **{"objective.old": "sampler"}) == 0


def test_a_run_is_its_steps_its_evaluations_and_its_checkpoints(tmp_path: Path) -> None:
    """40 steps, every 15 an evaluation: after 0, 15, 30 and 40, so 4. Checkpoints at the start, after 20 and 40: 3, each twice
    139,264 bytes of adapter and 278,528 of the optimizer, at 1 MB/s."""
    rates = flat_rates(disk_bytes_per_second=1e6)
    found = timed(config(tmp_path), rates)
    assert (found.steps, found.evaluations, found.checkpoints) == (40, 4, 3)
    assert found.checkpoint == pytest.approx((2 * 139_264 + 278_528) / 1e6)
    assert found.run == pytest.approx(40 * found.step + 4 * found.evaluation + 3 * found.checkpoint)
    assert found.tokens_per_second == pytest.approx(640 / found.step)
    supervised = timed(config(tmp_path, "sft"), rates)
    assert list(supervised.phases) == ["update"] and supervised.evaluation > 0 and supervised.prefill == 0


def test_time_that_is_no_product_counts_too(tmp_path: Path) -> None:
    """One number of a kind each second, everything else for nothing. Draws: 80 positions x 8 rows x 272. With more prompts
    than may be decoded at once the positions are the same."""
    drawn = 80 * 8 * 272
    for rows in (None, 2):
        found = timed(config(tmp_path), flat_rates(numbers={"draw": 1.0}), decode_rows=rows)
        assert found.decode == pytest.approx(drawn, rel=1e-5)
    exponentials = timed(config(tmp_path, **{"adapter.type": "full"}), flat_rates(numbers={"exp": 1.0}))
    # prefill of 2 prompts: the activation 128 x 48 x 2 layers, the softmax 4 heads x 48 x 48 x 2 layers, 272 of the head
    assert exponentials.prefill == pytest.approx(2 * (128 * 48 * 2 + 4 * 48 * 48 * 2 + 272), rel=1e-5)
    # each weight comes from memory at a byte a second, once for each pass
    fetched = timed(config(tmp_path, **{"adapter.type": "full"}), flat_rates(stream={1: 1.0}))
    assert fetched.prefill == pytest.approx(2 * 4 * (WEIGHTS + HEAD), rel=1e-3)


def test_real_lengths_cost_less_than_the_limit(tmp_path: Path) -> None:
    """Half of the rows stop after 8 tokens: the decode is 8 positions of 8 rows and 72 of 4 (nothing but draws counted); an
    update that dropped those rows is that of one group of 4."""
    run, rates = config(tmp_path), flat_rates(numbers={"draw": 1.0})
    short = Lengths((48, 48), (80, 8, 80, 8, 8, 80, 8, 80))
    assert timed(run, rates, lengths=short).decode == pytest.approx((8 * 8 + 72 * 4) * 272, rel=1e-5)
    dropped = replace(short, updates=((Packed(1, 48, 4, 80, 320),),))
    half = timed(config(tmp_path, **{"sampling.prompts_per_step": 1}))
    assert timed(run, lengths=dropped).phases["update"] == pytest.approx(half.phases["update"])
    assert timed(run, lengths=short).step < timed(run).step


def test_a_measured_step_corrects_the_phases_that_it_had(tmp_path: Path) -> None:
    """Measured: the rollout twice as long as predicted, the update as long, rewards 4 s for 8 completions."""
    plain = timed(config(tmp_path))
    seconds = {"rollout": 2 * plain.phases["rollout"], "update": plain.phases["update"], "reward": 4.0}
    found = measured_corrections(seconds, plain, 8, "a step")
    assert {name: (each.by, each.factor, each.seconds_per_completion) for name, each in found.items()} == {
        "rollout": ("a step", 2.0, 0.0),
        "update": ("a step", 1.0, 0.0),
        "reward": ("a step", 1.0, 0.5),
    }
    after = timed(config(tmp_path), corrections=found)
    assert after.phases == pytest.approx({**plain.phases, **seconds})
    assert after.evaluation == pytest.approx(2 * plain.evaluation + 3 * 0.5)
    assert after.corrected_by == found and after.sources == ("a step",)
    assert after.as_dict()["corrected_by"]["reward"]["seconds_per_completion"] == 0.5


def test_rates_between_measured_places(machine: Hardware, tmp_path: Path) -> None:
    """Straight lines between logarithms: half-way from 1 to 256 rows is 16, of 1 and 4 GFLOP/s 2; the ends go on; a product
    thinner than any that was measured is as much slower."""
    rates = flat_rates(matmul={4: {64: {1: 1e9, 256: 4e9}, 1024: {1: 1e9, 256: 4e9}}})
    assert rates.product(16, 64, 4) == rates.product(16, 256, 4) == pytest.approx(2e9)
    assert (rates.product(4096, 64, 4), rates.product(16, 16, 4)) == pytest.approx((4e9, 0.5e9))
    assert rates.product(16, 64, 2) == pytest.approx(2e9)  # a type that was not measured: as the one that was
    key = machine_rates.key(machine, 2, "/usr/lib/libopenblas.so.0")
    assert key == "a chip, 2 cores, cpu, mlx ?, libopenblas.so.0 with 2 threads"
    assert machine_rates.load(tmp_path, key) is None
    machine_rates.keep(tmp_path, key, rates)
    learned = {"update": Correction("a step", 1.2, measured_t=1.0)}
    machine_rates.keep(tmp_path, "another", machine_rates.with_learned(rates, "llama lora", learned))
    assert machine_rates.load(tmp_path, key) == rates
    other = machine_rates.load(tmp_path, "another")
    assert other is not None and other.learned == {"llama lora": learned}
    for number in range(100):
        other = machine_rates.with_learned(other, f"key {number}", {"update": Correction("a step", 1.2, measured_t=2.0 + number)})
    assert len(other.learned) == 64 and "key 99" in other.learned and "llama lora" not in other.learned
    assert machine_rates.load(tmp_path, machine_rates.key(machine, 1, None)) is None
    file = tmp_path / "machine" / machine_rates.FILE
    for damage in ('"op_seconds": 0', '"op_seconds": -1', '"op_seconds": NaN', '"op_seconds": "x"', '"other": 1'):
        file.write_text(re.sub('"op_seconds": [0-9.e-]+', damage, file.read_text()))
        assert machine_rates.load(tmp_path, key) is None
        machine_rates.keep(tmp_path, key, rates)
    file.write_text("{")
    assert machine_rates.load(tmp_path, key) is None


def test_an_estimate_without_rates_says_how_to_get_them(tmp_path: Path, machine: Hardware) -> None:
    run = config(tmp_path)
    unknown = estimate(run, machine)
    assert unknown.seconds is None and unknown.time is None and "`droid-tune estimate CONFIG`" in unknown.seconds_reason
    start = time.process_time()
    known = estimate(run, machine, flat_rates())
    assert time.process_time() - start < 1.0
    assert known.time is not None and known.seconds == known.time.run and "the update takes longest" in known.seconds_reason
    assert any("rewards" in line for line in known.assumptions)
    assert json.loads(json.dumps(known.as_dict()))["time"]["phases"]["rollout"] == known.time.phases["rollout"]


def test_what_a_step_corrected_holds_for_its_model_and_its_rewards_alone(tmp_path: Path, machine: Hardware) -> None:
    """Measured with a judge of 2 s a completion: 8 completions take 16 s with these rewards, however they are weighed, and 0 with
    others, with other options or once the file says something else. The phases' factor of 3 holds for this model, lengths and
    methods left free, not for another adapter, other bits, or supervised training."""
    (tmp_path / "judge.py").write_text("def judge(**_):\n    return [1.0]\n")
    judged: dict[str, Any] = {"name": "judge", "file": str(tmp_path / "judge.py")}
    run = config(tmp_path, rewards=[judged])
    rates = corrections.kept(
        Plan(run, "cpu"),
        flat_rates(),
        {"update": Correction("a measured step", 3.0), "reward": Correction("a measured step", seconds_per_completion=2.0)},
    )

    def phases(run: RunConfig) -> dict[str, float]:
        found, plain = estimate(run, machine, rates), estimate(run, machine, flat_rates())
        assert found.time is not None and plain.time is not None
        shown = "\n".join(estimate_lines.estimate(found))
        assert ("2s a completion, by a measured step with these rewards" in shown) == bool(found.time.phases.get("reward"))
        times = round(found.time.phases["update"] / plain.time.phases["update"], 6)
        assert ("corrected x3 by a measured step of this model" in shown) == (times == 3)
        assert ("not yet corrected" not in found.seconds_reason) == (times == 3)
        said = {"update": times == 3, "reward": found.time.phases.get("reward", 0) > 0}  # scores: as updates, where there are any
        assert set(found.time.as_dict()["corrected_by"]) - {"score"} == {name for name, is_said in said.items() if is_said}
        return {"update": times, "reward": found.time.phases.get("reward", 0.0)}

    assert phases(run) == {"update": 3, "reward": 16}
    weighed = config(tmp_path, "gspo", rewards=[{**judged, "weight": 2.0, "timeout": 5.0}], **{"sampling.prompts_per_step": 4})
    assert phases(weighed) == {"update": 3, "reward": 32}
    assert phases(config(tmp_path)) == {"update": 3, "reward": 0}
    assert phases(config(tmp_path, rewards=[{**judged, "options": {"a": 1}}])) == {"update": 3, "reward": 0}
    for other in ({"adapter.type": "dora"}, {"quantize.bits": 4}):
        assert phases(config(tmp_path, rewards=[judged], **other)) == {"update": 1, "reward": 16}
    assert phases(config(tmp_path, "sft")) == {"update": 1, "reward": 0}
    plan = Plan(run, "cpu")
    assert plan.shape is not None and corrections.model_key(plan) in rates.learned
    for size in ({"layers": 3}, {"hidden": 128}, {"vocabulary": 300}, {"family": "qwen3"}):
        bigger = copy.copy(plan)
        bigger.shape = replace(plan.shape, **size)
        assert corrections.model_key(bigger) not in rates.learned
    costs = method_costs(run, rates, machine)
    plain = {row.method: row for row in method_costs(run, flat_rates(), machine)}
    for row in costs:  # nothing but updates here, but for rollouts, which nothing corrected
        assert "reward" not in row.corrected_by and row.corrected_by["update"].factor == 3
        assert row.phases["update"] == pytest.approx(3 * plain[row.method].phases["update"])
        assert row.phases.get("reward", 0) == 0 and row.as_dict()["corrected_by"]["update"]["by"] == "a measured step"
    shown = "\n".join(estimate_lines.costs(costs, run))
    assert "corrected in every row alike, by steps of this model: update x3" in shown
    (tmp_path / "judge.py").write_text("def judge(**_):\n    return [0.0]\n")
    assert phases(run) == {"update": 3, "reward": 0}


def test_what_each_method_would_cost(tmp_path: Path, machine: Hardware) -> None:
    """Against supervised training of as many rows; the run's own method as configured, the others by their own rows."""
    rows = {row.method: row for row in method_costs(config(tmp_path, **{"sampling.prompts_per_step": 4}), flat_rates(), machine)}
    assert next(iter(rows)) == "sft" and (rows["sft"].time, rows["sft"].memory) == (1.0, 1.0)
    assert [name for name, row in rows.items() if row.own] == ["grpo"]
    assert rows["grpo"].seconds == pytest.approx(timed(config(tmp_path, **{"sampling.prompts_per_step": 4})).step)
    assert rows["dr_grpo"].phases["score"] == 0 < rows["rloo"].phases["score"]
    assert (rows["gspo"].updates, rows["gspo"].note) == (4, "")
    assert rows["dapo"].updates == 4 and rows["dapo"].note == "4 mini-batches, not 16: one for each prompt"
    assert rows["gspo"].peak_bytes < rows["grpo"].peak_bytes  # an update of a quarter of the rows
    dapo = rows["dapo"]
    assert dapo.seconds is not None and dapo.seconds_most is not None
    assert dapo.seconds_most == pytest.approx(dapo.seconds + 3 * dapo.phases["rollout"])
    assert all(row.seconds is None and row.time is None for row in method_costs(config(tmp_path), None, machine))
    supervised = method_costs(config(tmp_path, "sft", **{"sampling.prompts_per_step": 16}), None, machine)
    assert [row.method for row in supervised if row.own] == ["sft"]
    assert next(row.updates for row in supervised if row.method == "gspo") == 4


def test_one_real_step_beside_its_prediction(tmp_path: Path, _own_home: Path) -> None:
    """The command measures the machine's rates once and keeps them, then a step of the config; no run is left behind."""
    (tmp_path / "run.yaml").write_text(
        "model: demo\nmethod: grpo\ndata: {train: datasets/arithmetic-train.jsonl}\nobjective: {beta: 0.04}\n"
        "rewards: [{name: answer}]\nrun: {steps: 5, eval_rows: 4}\n"
        "sampling: {prompts_per_step: 4, group_size: 4, max_prompt_tokens: 64, max_completion_tokens: 24}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "engine.cli", "estimate", "run.yaml", "--measure", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    measured = found["measured"]
    assert found["time"]["step"] > 0 and "speed" in done.stderr and "one step: rollout" in done.stderr
    assert set(measured["seconds"]) == {"rollout", "reward", "score", "update"} and min(measured["seconds"].values()) > 0
    assert measured["completions"] == 16 and measured["longest_completion"] <= 24 and measured["warmed"]
    # what the ratios say of the step itself is what was measured
    for name in ("rollout", "score", "update"):
        assert measured["predicted_seconds"][name] * measured["ratios"][name] == pytest.approx(measured["seconds"][name])
        assert 0.05 < measured["cpu_seconds"][name] / measured["predicted_seconds"][name] < 20
    assert measured["run_as_measured"] <= measured["run"]["run"] * 1.0001
    assert not (_own_home / "runs").exists()
    rates = measuring.known_rates(_own_home)
    assert rates is not None and rates.op_seconds < 1e-3 and rates.numbers["exp"] > 1e6
    keys = [key.startswith(("llama 2 x 64, vocabulary 272, 32 bits", "rewards ")) for key in rates.learned]
    assert keys == [True, True] * measured["kept"] and measured["reward_seconds_per_completion"] > 0
    assert measuring.rates_key().startswith(facts().chip)


def test_what_the_command_prints(tmp_path: Path, machine: Hardware) -> None:
    """Measured twice as long as predicted, on a quiet and on a busy machine; and the plan with its proposals."""
    run = config(tmp_path)
    plan = Plan(run, "cpu")
    predicted = timed(run)
    step = {
        "seconds": {"rollout": 2 * predicted.phases["rollout"], "reward": 4.0, "update": predicted.phases["update"]},
        "cpu_seconds": {},
        "peak_bytes": {"rollout": 10_000_000, "update": 20_000_000},
        "prompts": [48, 48],
        "completions": [80] * 8,
        "updates": [[[2, 48, 8, 80, 640]]],
        "scored": [],
        "micro_batch_rows": 8,
        "warmed": True,
        "others_cores": 0.0,
    }
    found = measuring.compared(plan, plan.fit(8 * GIB), flat_rates(), step, ["a warning"])
    shown = "\n".join(estimate_lines.measured(found))
    assert "x2 " in shown and "20.00 MB" in shown and "later estimates" in shown and "a warning" in shown
    assert found.kept and found.run_as_measured == pytest.approx(found.run.run)  # all completions were at the limit
    assert found.run.step == pytest.approx(found.total)
    busy = measuring.compared(plan, plan.fit(8 * GIB), flat_rates(), {**step, "others_cores": 1.5, "warmed": False})
    shown = "\n".join(estimate_lines.measured(busy))
    assert not busy.kept and "others used 1.5 cores" in shown and "pays for what is compiled" in shown
    shown = "\n".join(estimate_lines.estimate(estimate(run, machine, flat_rates(stream={1: 1e9}))))
    assert "time of a step, about" in shown and "at most" not in shown.replace("reuse come on top: at most", "")
    assert "the update takes longest" in shown and "4 evaluations, each" in shown and "room " in shown
    small = estimate(run.model_copy(update={"run": run.run.model_copy(update={"memory_limit_gb": 0.0025})}), machine)
    assert not small.fits and small.change is not None
    assert f"to fit   set {small.change.key} to {small.change.value}: peak" in "\n".join(estimate_lines.estimate(small))
    shown = "\n".join(estimate_lines.costs(method_costs(run, flat_rates(), machine), run))
    assert "grpo *" in shown and "where groups are replaced" in shown


def test_a_family_of_unknown_sizes_has_no_prediction(tmp_path: Path, machine: Hardware) -> None:
    folder = tmp_path / "model"
    shutil.copytree(share.demo_model(), folder)
    described = json.loads((folder / "config.json").read_text())
    del described["hidden_size"]
    (folder / "config.json").write_text(json.dumps(described))
    run = config(tmp_path, model=str(folder))
    assert "does not name" in estimate(run, machine, flat_rates()).seconds_reason
    plan = Plan(run, "cpu")
    step: dict[str, Any] = {"updates": [], "scored": [], "prompts": [1], "completions": [1], "seconds": {}}
    with pytest.raises(InputError, match="does not name"):
        measuring.compared(plan, plan.fit(8 * GIB), flat_rates(), step)
