"""The embedded model: what it is made from, and that only its reward teaches it to think. One seed; README's table has five."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli.build_demo import HELD_OUT_ROWS, RL_ROWS, SAMPLE_ROWS, SFT_ROWS, SFT_SEED
from engine.cli.modes import Modes, count
from engine.data import arithmetic
from engine.methods import METHODS
from engine.model_files import read_headers
from engine.runs.record import list_runs
from engine.share import demo_model, share_root
from tests.bench import methods_table
from tests.bench.demo_table import END, START, Result, measure, table
from tests.bench.marked import write
from tests.bench.shuffled import answer as shuffled_answer


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (share_root("datasets") / name).read_text().splitlines()]


def test_the_model_is_small_and_in_mlx_lms_layout() -> None:
    parameters = sum(header.elements for header in read_headers(demo_model()))
    assert 100_000 * 0.9 < parameters < 2_000_000
    assert {path.name for path in demo_model().iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_data_files_are_what_the_generator_makes() -> None:
    assert rows("arithmetic-train.jsonl") == arithmetic.rl_rows("train", RL_ROWS, 0)
    assert rows("arithmetic-heldout.jsonl") == arithmetic.rl_rows("heldout", HELD_OUT_ROWS, 0)
    assert rows("arithmetic-sft.jsonl") == arithmetic.careful_rows("train", SAMPLE_ROWS, 1)


def test_no_problem_of_one_split_occurs_in_another() -> None:
    made_from = {row["prompt"] for row in arithmetic.sft_rows(SFT_ROWS, SFT_SEED)}
    train, held_out = ({row["prompt"] for row in rows(f"arithmetic-{name}.jsonl")} for name in ("train", "heldout"))
    assert (len(train), len(held_out)) == (RL_ROWS, HELD_OUT_ROWS)
    assert not made_from & train and not made_from & held_out and not train & held_out


def test_answers_and_working_are_right() -> None:
    """83-45+21: 83-40=43, -5=38, +20=58, +1=59."""
    problem = arithmetic.Problem((83, -45, 21))
    assert (problem.prompt, problem.answer) == ("What is 83-45+21?", 59)
    assert arithmetic.careful_completion(problem) == "<think>83-40=43-5=38+20=58+1=59</think><answer>59</answer>"
    for row in [*rows("arithmetic-train.jsonl"), *rows("arithmetic-heldout.jsonl")]:
        assert eval(row["prompt"].removeprefix("What is ").removesuffix("?")) == int(row["answer"])


def told(home: Path) -> list[tuple[str, str]]:
    """(kind, message) of every warning of the only run in `home`."""
    (run,) = list_runs(home)
    events = [json.loads(line) for line in run.journal_file.read_text().splitlines()]
    assert any(event["type"] == "finished" for event in events)
    return [(event["kind"], event["message"]) for event in events if event["type"] == "warning"]


@pytest.mark.usefixtures("warm_workers")
async def test_grpo_teaches_it_to_think(tmp_path: Path) -> None:
    """Greedy held-out accuracy from at most 0.45 to at least 0.95, by a reward for the answer alone; answers grow longer."""
    found = await measure(0, False, tmp_path, steps=35)  # it thinks from step 25 on; README's table has all 50
    assert found.base <= 0.45
    assert found.last >= 0.95
    assert found.length_after > 2 * found.length_before
    assert found.modes.thinking_right / found.modes.thinking > 0.8  # the base's own modes, sampled at step 1
    assert found.modes.at_once_right / found.modes.at_once < 0.4
    assert told(tmp_path) == []  # a healthy run: no learning canary fires


@pytest.mark.usefixtures("warm_workers")
async def test_shuffled_rewards_teach_it_nothing(tmp_path: Path) -> None:
    found = await measure(0, True, tmp_path, steps=30)  # the other seeds think by then; README's controls ran all 50
    assert found.last < 0.6


def test_the_control_keeps_each_groups_rewards_and_an_evaluations_own() -> None:
    right, wrong = "<answer>1</answer>", "<answer>2</answer>"
    completions = [right, wrong, wrong, wrong, right, right, right, wrong]
    found = shuffled_answer(["p"] * 4 + ["q"] * 4, completions, ["1"] * 8)
    assert (sorted(found[:4]), sorted(found[4:])) == ([0, 0, 0, 1], [0, 1, 1, 1])  # type: ignore[type-var]
    assert shuffled_answer(["p", "q"], [right, wrong], ["1", "1"]) == [1, 0]


def test_modes_are_counted_from_samples() -> None:
    """Two of four think, one of them right; one of the two others is right."""
    samples = [
        {"text": "<think>1+1=2</think><answer>2</answer>", "parts": {"answer": 1.0}},
        {"text": "<think>1+1=3</think><answer>3</answer>", "parts": {"answer": 0.0}},
        {"text": "<answer>2</answer>", "parts": {"answer": 1.0}},
        {"text": "<answer>9</answer>", "parts": {"answer": 0.0}},
    ]
    assert count(samples) == Modes(2, 1, 2, 1)
    assert count(samples).sentence() == (
        "thinks in 50% of 4 answers; right 50% of the time when it thinks, 50% of the time when it answers at once"
    )


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    found = Result(0, False, 0.125, 0.984, 5.0, 28.8, 31.4, Modes(3, 3, 7, 1))
    control = Result(0, True, 0.125, 0.05, 5.0, 5.0, 20.0, Modes(3, 3, 7, 1))
    lines = table([found, control])
    assert lines[2] == "| 0 | 0.125 | 0.984 | 5.0 → 28.8 | 31 | 0.050 |"
    path = tmp_path / "README.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write(path, START, END, lines)
    assert path.read_text() == f"before\n{START}\n" + "\n".join(lines) + f"\n{END}\nafter\n"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no markers"):
        write(path, START, END, lines)


def test_the_readme_has_a_row_for_every_reward_method() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = text.partition(methods_table.START)[2].partition(methods_table.END)[0]
    assert [m.id for m in METHODS.values() if m.kind == "rl" and f"| {m.id} |" not in block] == []
