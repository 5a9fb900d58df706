"""The dry run of a data check: real reward processes on the rows' own answers, through the verb and below it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from engine import config as configs
from engine.api import Engine
from engine.cli.validate import validate as verb
from engine.config import RewardConfig
from engine.data.scoring import Marks, OwnAnswer, reference_completion
from engine.errors import InputError
from engine.rewards.dry_run import answer_scorer, suited
from engine.types import Example, Message

CHAIN = {"problem": "What is 7*4-3?", "reasoning_steps": ["7*4 = 28.", "28-3 = 25."], "solution": "25"}
MINE = """
import os, time
def fine(completions, **columns): return [0.5] * len(completions)
def hangs(completions): time.sleep(60)
def crashes(completions): os._exit(3)
def raises(completions): return [1 / (0 if "<answer>7</answer>" in text else 1) for text in completions]
def always(completions): raise KeyError("x")
def nan(completions): return [float("nan") if "<answer>7</answer>" in text else 1.0 for text in completions]
def slow(completions): time.sleep(0.06); return [1.0] * len(completions)
def single(completions): return [1.0]
def tokens(completions, completion_ids): return [float(len(ids)) for ids in completion_ids]
def levels(completions, level): return [1.0] * len(completions)
"""
app = typer.Typer()
app.command()(verb)


def asked(answer: str | None, line: int = 1, **columns: Any) -> OwnAnswer:
    example = Example(line, (Message("user", "?"),), None, answer, {**columns, "answer": answer})
    return OwnAnswer(example, "?", reference_completion(example, "?"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def marks_of(rewards: list[RewardConfig], rows: list[OwnAnswer], **settings: Any) -> dict[str, Marks]:
    with answer_scorer(rewards, **settings) as scorer:
        return {marks.name: marks for marks in scorer(rows)}


def told(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code in (0, 2), done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---- what is tried


def test_the_reward_that_suits_the_answers() -> None:
    """Nine of ten decide; a date has two numbers and is a text."""
    numbers, letters = [asked(str(n)) for n in range(9)], [asked(letter) for letter in "ABCDABCDA"]
    assert suited([*numbers, asked("x")])[0] == "number" and suited([*numbers[:8], asked("x"), asked("y")])[0] == "answer"
    assert suited([*letters, asked("why")])[0] == "multiple_choice"
    assert suited([asked("Paris", choices=["Paris", "Rome"])])[0] == "multiple_choice"
    assert suited([asked("3 May 2021"), asked("4 May 2021")])[0] == "answer"
    assert suited([asked("$1,250.50"), asked("12 mg")]) == (
        "number",
        "chosen because 2 of 2 answers hold one number; --reward names another",
    )


def test_built_in_rewards_on_their_rows() -> None:
    """
    number: 1, 1, none in "yes". step_coverage and domain apply to the chain alone, of whose terms one is said.
    soft_overlong, one token a character, falls from 55 to 57: 0 at 52, -1 at 57, -1/2 at 56.
    """
    chain = Example(2, (Message("user", "?"),), None, "25", {**CHAIN, "answer": "25"})
    rows = [asked("4"), OwnAnswer(chain, "?", reference_completion(chain)), asked("yes", 3, tags=["x"])]
    assert [len(row.completion) for row in rows] == [52, 57, 56]
    rewards = [
        RewardConfig(name="number"),
        RewardConfig(name="step_coverage"),
        RewardConfig(name="domain", options={"required_terms": ["28", "litre"]}),
        RewardConfig(name="soft_overlong", options={"max_tokens": 57, "cache": 2}),
        RewardConfig(name="tag_count"),
        RewardConfig(name="llm_judge", options={"url": "http://127.0.0.1:9/v1"}),
        RewardConfig(name="repetition"),
        RewardConfig(name="length_target", options={"characters": 52}),
    ]
    found = marks_of(rewards, rows, encode=lambda text: [0] * len(text))
    assert found["number"].values == (1.0, 1.0, None) and found["number"].judges_answers
    assert found["step_coverage"].values == (None, 1.0, None) and not found["step_coverage"].failures
    assert found["domain"].values == (None, 0.5, None)
    assert found["soft_overlong"].values == (0.0, -1.0, -0.5) and found["soft_overlong"].full == 0
    for name, why in (("tag_count", "its tags are others"), ("llm_judge", "it asks a server")):
        assert found[name].tried == 0 and why in found[name].note
    assert (found["repetition"].tried, found["repetition"].full, found["repetition"].failures) == (3, None, ())
    assert found["length_target"].values == pytest.approx((1.0, 1 - 5 / 52, 1 - 4 / 52))
    without = marks_of(rewards[3:4], rows)["soft_overlong"]
    assert without.tried == 0 and "give --model" in without.note


def test_a_reference_is_laid_out_once() -> None:
    """Thoughts of its own stay; an answer with a tag in it breaks the layout, and nothing else."""
    assert reference_completion(asked("<think>a</think>4").example) == "<think>a</think>\n<answer>4</answer>"
    assert reference_completion(asked("4").example, "Q<think>\n").startswith("\nThe answer is 4.\n</think>")
    odd = Example(1, (Message("user", "?"),), None, "<think>", {**CHAIN, "answer": "<think>"})
    assert reference_completion(odd) == "<think>\nThe answer is <think>.\n</think>\n<answer><think></answer>"


# ---- what goes wrong


def test_failures_of_every_kind_are_told_and_harm_nobody(mine: Path) -> None:
    """
    40 rows in calls of 32 and 8; row 7 (the eighth) has the answer 7. `raises` fails for its whole call, whose rows are then
    tried alone: it was the eighth; `nan` fails for that row at once. `hangs` and `crashes` are given up after their first call.
    `levels` needs a column that one row has: None for the others. `always` raises for every row.
    """
    names = ("fine", "hangs", "crashes", "raises", "always", "nan", "levels", "absent")
    rewards = [RewardConfig(name=name, file=str(mine), timeout=0.5 if name == "hangs" else 20.0) for name in names]
    rows = [asked(str(n), n + 1, **({"level": 1} if n == 39 else {})) for n in range(40)]
    found = marks_of(rewards, rows)
    assert (found["fine"].tried, found["fine"].full, found["fine"].failures) == (40, None, ())
    assert found["hangs"].tried == found["crashes"].tried == 32
    assert "longer than its timeout of 0.5 s" in found["hangs"].failures[0].message
    assert "exit code 3" in found["crashes"].failures[0].message and found["crashes"].note == "given up after 32 rows"
    (raised,), (spoiled,) = found["raises"].failures, found["nan"].failures
    assert raised.rows == spoiled.rows == (7,) and found["raises"].tried == found["nan"].tried == 40
    assert found["always"].failures[0].rows == tuple(range(40)) and found["always"].tried == 40
    assert raised.message.startswith("ZeroDivisionError") and raised.message.endswith("mine.py, line 6)")
    assert found["levels"].failures == () and found["levels"].tried == 40
    assert "has no function 'absent'" in found["absent"].failures[0].message and len(found["absent"].failures[0].rows) == 40


def test_a_slow_reward_is_given_up_unless_everything_is_wanted(mine: Path) -> None:
    """0.06 s for each call of 32 rows: three calls are more than 0.15 s, whatever else there is to do."""
    rewards, rows = [RewardConfig(name="slow", file=str(mine)), RewardConfig(name="answer")], [asked("a")] * 200
    with answer_scorer(rewards, patience_seconds=0.15) as scorer:
        slow, quick = scorer(rows)
        assert slow.tried in (32, 64, 96) and quick.tried == 200 and "given up after 0.15 s" in slow.note
        assert scorer(rows)[0].tried == 0, "nor is it tried on the next lot"
    with answer_scorer(rewards, patience_seconds=math.inf) as scorer:
        assert scorer(rows)[0].tried == 200


# ---- the verb


def test_the_verb_tries_what_suits_and_says_so(tmp_path: Path) -> None:
    """10 numbers of 11 answers: `number` is taken and cannot judge the eleventh, which is line 11."""
    rows = [{"prompt": f"q{n}", "answer": f"{n}.5"} for n in range(10)]
    path = write(tmp_path / "a.jsonl", *rows, {"prompt": "last", "answer": "unknown"})
    found = told(path)
    assert [(g["kind"], g["lines"]) for g in found["warnings"]] == [("answer-not-scored", [11])]
    (run,) = found["dry_run"]
    assert (run["name"], run["rows"], run["full"], run["not_applicable"], run["failed"]) == ("number", 11, 10, 1, 0)
    assert 0 < run["seconds"] < 10 and "10 of 11 answers" in run["note"]
    text = CliRunner().invoke(app, [str(path)]).stdout
    assert "10 of 11 rows: the row's own answer gets full marks from number, 1 not applicable (0." in text
    assert told(path, "--no-dry-run")["dry_run"] == [] and told(path, "--method", "sft")["dry_run"] == []
    assert [run["name"] for run in told(path, "--reward", "answer", "--reward", "format")["dry_run"]] == ["answer", "format"]


def test_labels_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": f"q{n}", "answer": "ab"[n % 4 == 0]} for n in range(40)))
    text = CliRunner().invoke(app, [str(path), "--no-dry-run"]).stdout
    assert "answers  'a' 75%, 'b' 25%" in text


def test_what_cannot_be_loaded_or_lacks_its_column_is_told(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has failed for both rows, though none of the left out is ever called; the last one is left out alone."""
    monkeypatch.delenv("DROID_TUNE_JUDGE_URL", raising=False)
    rewards = [
        RewardConfig(name="language", options={"language": "xx"}),
        RewardConfig(name="llm_judge"),
        RewardConfig(name="length_target"),
        RewardConfig(name="soft_overlong"),
        RewardConfig(name="tokens", file=str(mine)),
    ]
    found = marks_of(rewards, [asked("1"), asked("2", 2)])
    for name, why in (
        ("language", "language is 'xx'"),
        ("llm_judge", "has no server to ask"),
        ("length_target", "needs the column target_length or efficiency_markers"),
        ("soft_overlong", "needs the option max_tokens"),
    ):
        (failure,) = found[name].failures
        assert (failure.rows, found[name].tried) == ((0, 1), 2) and why in failure.message
    assert (found["tokens"].tried, found["tokens"].failures) == (0, ()) and "give --model" in found["tokens"].note


def test_one_value_for_a_whole_call_is_a_failure(tmp_path: Path, mine: Path) -> None:
    """Row by row, as a call that raised is tried again, one value is right: the call's own failure stands, and it is given up."""
    rows = [{"prompt": f"q{n}", "answer": str(n)} for n in range(33)]
    found = told(write(tmp_path / "a.jsonl", *rows), "--reward", f"{mine}:single", "--reward", "number")
    single, number = found["dry_run"]
    assert (single["rows"], single["failed"], single["note"]) == (32, 32, "given up after 32 rows")
    assert (number["rows"], number["full"], found["verdict"]) == (33, 33, "unusable") and found["is_settings_only"]
    (group,) = found["warnings"]
    assert group["lines"] == [] and "returned 1 values for 32 completions" in group["reason"]


def test_a_failing_reward_is_a_warning(tmp_path: Path, mine: Path) -> None:
    """Where it fails on every row, a run would fail at once: the verdict is "unusable", though the data is not to blame."""
    path = write(tmp_path / "a.jsonl", *({"prompt": f"q{n}", "answer": str(n)} for n in range(5, 10)))
    assert told(path, "--reward", f"{mine}:nan")["verdict"] == "ready with warnings"
    found = told(path, "--reward", f"{mine}:nan", "--reward", f"{mine}:levels", "--reward", "number")
    groups = {group["field"]: group for group in found["warnings"]}
    assert {group["kind"] for group in groups.values()} == {"reward-failed"} and found["verdict"] == "unusable"
    assert found["is_settings_only"]
    assert groups["nan"]["lines"] == [3] and groups["nan"]["reason"] == "nan failed: nan is not a usable reward"
    assert (groups["levels"]["count"], groups["levels"]["lines"]) == (5, [])
    assert "needs the column level" in groups["levels"]["reason"] and groups["levels"]["remedy"] == "mend the function"
    (group,) = told(path, "--reward", "regex")["warnings"]
    assert (group["kind"], group["count"], group["lines"]) == ("reward-failed", 5, []) and "droid-tune rewards" in group["remedy"]
    shown = CliRunner().invoke(app, [str(path), "--reward", f"{mine}:levels"]).stdout
    assert "the data does not have (every row)" in shown and "levels: fails on 5 of 5 rows" in shown


def test_a_config_says_how_its_data_is_read(tmp_path: Path) -> None:
    """
    Columns, limits, rewards and their options come from the config: prompts of 1 + 3 tokens are within 4, the answer of line 2
    has no three digits. Flags win over it; relative data of a flag is the caller's, that of the config beside the config.
    """
    write(tmp_path / "rows.jsonl", {"ask": "a", "said": "123"}, {"ask": "b", "said": "12"}, {"ask": "cc", "said": "456"})
    tree = {
        "model": "demo",
        "method": "gspo",
        "data": {"train": "rows.jsonl", "columns": {"prompt": "ask", "answer": "said"}},
        "sampling": {"max_prompt_tokens": 4, "max_completion_tokens": 64},
        "rewards": [{"name": "regex", "options": {"pattern": "[0-9]{3}"}}],
    }
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    found = told("--config", path)
    assert (found["method"], found["usable"], found["prompt_tokens"]["limit"], found["prompt_tokens"]["over_limit"]) == (
        "gspo",
        3,
        4,
        1,
    )
    assert [(run["name"], run["full"]) for run in found["dry_run"]] == [("regex", 2)]
    assert [(g["kind"], g["lines"]) for g in found["warnings"]] == [("answer-below-full", [2])]
    other = write(tmp_path / "other.jsonl", {"ask": "a", "said": "1"})
    settings = ("--set", "data.system=Hello", "--reward", "auto")
    changed = told(other, "--config", path, "--method", "grpo", *settings)
    assert (changed["rows"], changed["method"], changed["dry_run"][0]["name"]) == (1, "grpo", "number")
    assert changed["verdict"] == "unusable", "with the system turn no prompt is within 4 tokens"
    tree["model"] = "nobody/has-this-model"
    path.write_text(json.dumps(tree), encoding="utf-8")
    done = CliRunner().invoke(app, ["--config", str(path)])
    assert "lengths are not measured: nobody/has-this-model" in done.stderr and "prompt   " not in done.stdout


def test_columns_and_format_by_flags(tmp_path: Path) -> None:
    """With and without a config, whose own names they replace."""
    path = write(tmp_path / "a.jsonl", *({"ask": f"q{n}", "said": str(n), "completion": "x"} for n in range(2)))
    flags = ("--columns", "prompt=ask", "--columns", "answer=said", "--format", "prompt+answer", "--no-dry-run")
    assert told(path, "--no-dry-run")["usable"] == 0
    found = told(path, *flags)
    assert (found["verdict"], found["usable"], found["format"]) == ("ready", 2, "prompt+answer")
    tree = {"model": "demo", "method": "grpo", "data": {"train": str(path), "columns": {"prompt": "wrong"}}}
    config = write(tmp_path / "c.yaml", {**tree, "rewards": [{"name": "number"}]})
    assert told("--config", config, *flags)["usable"] == 2


def test_bad_arguments_are_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "1"})
    for arguments, message in (
        ((path, "--reward", "nubmer"), "did you mean 'number'"),
        ((path, "--reward", "number", "-m", "sft"), "sft has no rewards"),
        ((path, "--set", "a=1"), "give --config"),
        ((path, "--reward", "number", "--reward", "number"), "two rewards have the same name"),
        ((path, "--columns", "prompt"), "'prompt' is not OURS=THEIRS"),
        ((path, "--format", "no-such"), "no-such"),
        ((), "there is no data to check"),
        (("--config", tmp_path / "none.yaml"), "no such config file"),
    ):
        error = CliRunner().invoke(app, list(map(str, arguments))).exception
        assert isinstance(error, InputError) and message in str(error)


def test_the_facade(tmp_path: Path) -> None:
    """The same by the two methods of Engine; without rewards nothing is scored."""
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "1"})
    tree = {"model": "demo", "method": "grpo", "data": {"train": str(path)}, "rewards": [{"name": "number"}]}
    config = configs.parse(json.dumps(tree), base=tmp_path).config

    async def both() -> tuple[Any, Any, Any]:
        engine = Engine(tmp_path)
        plain = await engine.validate(path, "grpo")
        named = await engine.validate(path, "grpo", rewards=config.rewards, max_prompt_tokens=7)
        return plain, named, await engine.validate_config(config)

    plain, named, configured = asyncio.run(both())
    assert plain.dry_run == () and [run.full for run in named.dry_run] == [run.full for run in configured.dry_run] == [1]
    assert configured.prompt_tokens is not None and configured.prompt_tokens.limit == 512
