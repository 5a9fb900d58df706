"""`droid-tune rewards` and `droid-tune rewards test`: real reward processes on real files, the embedded model's template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from engine import config as configs
from engine import data_check
from engine.cli.rewards import app
from engine.errors import InputError
from engine.rewards.registry import describe
from engine.rewards.trial import replies
from engine.runs import record
from engine.types import Example, Message

CHAIN = {
    "problem": "What is 7*4-3?",
    "reasoning_steps": ["7*4 = 28.", "28-3 = 25."],
    "solution": "25",
    "sparse_indicators": [0, 1],
}
SUMS = [{"prompt": f"What is {number}+1?", "answer": str(number + 1)} for number in range(1, 7)]
HALF = """
def half(completions, answer, **columns):
    return [0.5 if a in c else 0.0 for c, a in zip(completions, answer)]

def blind(completions, answer):
    return [1.0 for _ in completions]

def hurt_by_nothing(completions):
    return [1 / len(text) for text in completions]
"""


def config(tmp_path: Path, rewards: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Path:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.py").write_text(HALF, encoding="utf-8")
    tree = {"model": "demo", "method": "grpo", "data": {"train": "data.jsonl", "valid": "data.jsonl"}, "rewards": rewards}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tried(done: Result) -> dict[str, dict[str, Any]]:
    assert done.exit_code in (0, 1), done.output
    return {row["name"]: row for row in json.loads(done.stdout)["rewards"]}


def test_the_list_has_every_reward_with_its_columns() -> None:
    text = command().stdout
    assert all(f"\n{info.name}\n" in f"\n{text}" for info in describe())
    assert "columns: reasoning_steps, [sparse_indicators]" in text and 'pip install "droid-tune[math]"' in text
    assert max(map(len, text.splitlines())) <= 100
    found = {row["name"]: row for row in json.loads(command("--json").stdout)}
    assert found["step_coverage"]["columns"] == ["reasoning_steps"] and found["r1_int_reward_func"]["full_marks"] == 0.5


def test_the_answers_of_good_data_get_full_marks(tmp_path: Path) -> None:
    """
    Bare, `answer` and `number` give 1; in the layout `format` does; another row's answer gives 0 but for the layout.
    """
    path = config(tmp_path, [{"name": "answer"}, {"name": "number"}, {"name": "format"}], SUMS)
    done = command("test", path, "--json")
    found = tried(done)
    assert done.exit_code == 0
    for name, other in (("answer", 0.0), ("number", 0.0), ("format", 1.0)):
        row = found[name]
        assert (row["full_marks"], row["reference"], row["other"], row["empty"]) == (1.0, 1.0, other, 0.0)
        assert row["below"] == [] and row["fault"] == "" and 0 <= row["seconds"] < 10
    assert "✓ the answers get full marks" in command("test", path).stdout


def test_rows_that_no_answer_can_match_are_named(tmp_path: Path) -> None:
    """
    `integer` wants digits alone: "4 km" (line 4) gets 0, as do "5 km" and "6 km"; that is told, but is no fault. multiple_choice
    gives full marks to "B" (line 1) and does not apply to the others, which are no letters.
    """
    rows = [{"prompt": "a", "answer": "B"}, *SUMS[:2], *({"prompt": f"q{n}", "answer": f"{n} km"} for n in (4, 5, 6))]
    done = command("test", config(tmp_path, [{"name": "integer"}, {"name": "multiple_choice"}], rows), "--json")
    found = tried(done)
    assert done.exit_code == 0
    assert found["integer"]["below"] == [1, 4, 5, 6] and found["integer"]["reference"] == pytest.approx(2 / 6)
    assert found["multiple_choice"]["not_applicable"] == 5 and found["multiple_choice"]["below"] == []


def test_a_reward_that_its_own_answers_do_not_satisfy_is_a_fault(tmp_path: Path) -> None:
    """The pattern of the second row wants four digits of the answer "3"."""
    rows = [{**row, "pattern": pattern} for row, pattern in zip(SUMS, [r"\d", r"\d{4}", None], strict=False)]
    done = command("test", config(tmp_path, [{"name": "regex"}], rows))
    assert done.exit_code == 1
    assert "✕ regex: 1 reference answer does not get full marks" in done.stdout
    assert "regex: below full marks in line 2" in done.stdout


def test_another_rows_answer_is_a_different_one(tmp_path: Path) -> None:
    """Rows 1, 2 and 4 all say 2: against row 3's answer each gets 0, and row 3 gets 0 for theirs."""
    rows = [{"prompt": f"q{place}", "answer": answer} for place, answer in enumerate("2232")]
    found = tried(command("test", config(tmp_path, [{"name": "number"}], rows), "--json"))
    assert (found["number"]["reference"], found["number"]["other"]) == (1.0, 0.0)
    same = [{"prompt": f"q{place}", "answer": "2"} for place in range(3)]
    found = tried(command("test", config(tmp_path, [{"name": "number"}], same), "--json"))
    assert found["number"]["other"] is None and found["number"]["fault"] == ""


def test_rewards_of_ones_own(tmp_path: Path) -> None:
    """
    The best that `half` gives is 0.5, which all rows get. `blind` gives every answer 1, right or wrong: a fault. The third
    divides by the length of an empty completion.
    """
    mine = [{"name": name, "file": "mine.py"} for name in ("half", "blind", "hurt_by_nothing")]
    done = command("test", config(tmp_path, mine, SUMS), "--json")
    found = tried(done)
    assert done.exit_code == 1
    assert found["half"]["full_marks"] == 0.5 and found["half"]["fault"] == ""
    assert "does not tell right from wrong" in found["blind"]["fault"]
    assert found["hurt_by_nothing"]["fault"] == f"ZeroDivisionError: division by zero ({tmp_path / 'mine.py'}, line 9)"


def test_chains_of_steps(tmp_path: Path) -> None:
    """The row's own steps are its thoughts, so it covers them all; the bare answer would cover none."""
    rows = [CHAIN, {**CHAIN, "problem": "What is 7*4-4?", "reasoning_steps": ["7*4 = 28.", "28-4 = 24."], "solution": "24"}]
    found = tried(command("test", config(tmp_path, [{"name": "step_coverage"}], rows), "--json"))
    assert found["step_coverage"]["reference"] == 1.0 and found["step_coverage"]["other"] < 0.5


def test_rewards_that_need_completions_are_left_out(tmp_path: Path) -> None:
    judge = {"name": "llm_judge", "options": {"url": "http://127.0.0.1:9/v1"}}
    path = config(tmp_path, [{"name": "number"}, judge], SUMS)
    done = command("test", path, "--json")
    assert (done.exit_code, list(tried(done)), json.loads(done.stdout)["left_out"]) == (0, ["number"], ["llm_judge"])
    assert "note  llm_judge is left out" in command("test", path).stdout
    error = command("test", config(tmp_path, [judge], SUMS)).exception
    assert isinstance(error, InputError) and "--completions FILE" in error.remedy


def test_it_says_what_the_check_of_the_data_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Laid out, no answer is within 20 tokens, though each is when bare; `domain` owes nothing to rows without steps, which say none
    of its terms: 0, and nothing falls short; other tags than the layout's say nothing. A template of the config's own adds two
    tokens to each prompt, and what cannot be loaded is an error here, though it is left out.
    """
    rewards: list[dict[str, Any]] = [
        {"name": "soft_overlong", "options": {"max_tokens": 20, "cache": 2}},
        {"name": "domain", "options": {"required_terms": ["gravity"]}},
        {"name": "tag_count", "options": {"tags": ["plan"]}},
    ]
    path = config(tmp_path, rewards, SUMS)
    done = command("test", path, "--json")
    found, lines = tried(done), list(range(1, 7))
    assert (found["soft_overlong"]["below"], found["soft_overlong"]["reference"], found["soft_overlong"]["empty"]) == (
        lines,
        -1,
        0,
    )
    assert (found["domain"]["below"], found["domain"]["reference"], found["domain"]["fault"]) == ([], 0, "")
    assert (done.exit_code, json.loads(done.stdout)["left_out"]) == (0, ["tag_count"])
    given = configs.load(path).config
    report = data_check.check_config(given, None, False)
    assert [(group.kind, list(group.lines)) for group in report.warnings if group.field == "answer"] == [
        ("answer-below-full", lines)
    ]
    assert [(run.rows, run.full, run.not_applicable) for run in report.dry_run] == [(6, 0, 0), (6, 0, 6), (0, 0, 0)]
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    (tmp_path / "longer.jinja").write_text("12{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    measured = []
    for template in ("own.jinja", "longer.jinja"):
        chat = configs.load(path, {"chat.template": template}).config
        lengths = data_check.check_config(chat, (), False).prompt_tokens
        assert lengths is not None
        measured.append(lengths.min)
    assert measured[1] == measured[0] + 2
    monkeypatch.delenv("DROID_TUNE_JUDGE_URL", raising=False)
    error = command("test", config(tmp_path, [*rewards, {"name": "llm_judge"}], SUMS)).exception
    assert isinstance(error, InputError) and "has no server to ask" in error.what


def test_completions_of_a_file(tmp_path: Path) -> None:
    """Right for line 2 of the data, which asks for 3, wrong for line 1, right for the row that stands in the file: 1, 0, 1."""
    path = config(tmp_path, [{"name": "number"}], SUMS)
    file = tmp_path / "said.jsonl"
    rows = [{"line": 2, "completion": "It is 3."}, {"line": 1, "completion": "7"}, {**SUMS[4], "completion": "6"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = command("test", path, "--completions", file, "--json")
    assert done.exit_code == 0 and tried(done)["number"]["mean"] == pytest.approx(2 / 3)
    assert tried(command("test", path, "--completions", file, "--rows", 1, "--json"))["number"]["mean"] == 1
    for row, message in (
        ({"line": 2}, "there is no `completion`"),
        ({"line": 99, "completion": "x"}, "is no usable row"),
        ({"ask": "x", "completion": "x"}, "said.jsonl:1"),
    ):
        file.write_text(json.dumps(row), encoding="utf-8")
        error = command("test", path, "--completions", file).exception
        assert isinstance(error, InputError) and message in str(error)
    error = command("test", path, "--completions", file, "--run", "x").exception
    assert isinstance(error, InputError) and "two sources" in error.what


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    good = config(tmp_path, [{"name": "answer"}], SUMS)
    for arguments, message in (
        (("sft",), "there are no rewards to test"),
        ((good, "--set", "rewards=[{name: anwser}]"), "did you mean 'answer'"),
        ((tmp_path / "none.yaml",), "no such config file"),
    ):
        error = command("test", *arguments).exception
        assert isinstance(error, InputError) and message in str(error)


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [("What?", "<think>\n"), ("What?<think>\n", "\n")],
)
def test_what_the_prompt_opens_is_not_opened_again(prompt: str, opening: str) -> None:
    example = Example(1, (Message("user", "What?"),), None, "<think>no</think><answer>4</answer>", {})
    assert replies(example, prompt)[1] == ("<think>" if opening == "<think>\n" else "") + "no</think><answer>4</answer>"
    plain = Example(1, (Message("user", "What?"),), None, "4", {})
    bare, laid_out = replies(plain, prompt)
    assert bare == "4" and laid_out.startswith(opening) and laid_out.endswith("</think>\n<answer>4</answer>")


def test_completions_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Four stored completions, of the latest step: 2, 3, 4 are right for rows 0, 1, 2 and "no" is not: `number` gives 1, 1, 1, 0.
    """
    path = config(tmp_path, [{"name": "number"}, {"name": "mine", "file": "mine.py"}], SUMS)
    monkeypatch.setenv("DROID_TUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.py").write_text("def mine(completions): return [None, float('nan'), 1.0, 3.0]", encoding="utf-8")
    made = record.create(configs.load(path).config, record.home())
    samples = [
        {"prompt_id": place, "prompt": "p", "answer": SUMS[place]["answer"], "text": text}
        for place, text in ((0, "2"), (1, "3"), (2, "4"), (3, "no"))
    ]
    with pytest.raises(InputError, match="no stored completions"):
        raise command("test", path, "--run", made.id).exception or AssertionError
    made.samples_dir.mkdir(exist_ok=True)
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (made.samples_dir / "step-000001.jsonl").write_text(lines.replace('"no"', '"5"'), encoding="utf-8")
    (made.samples_dir / "step-000002.jsonl").write_text(lines, encoding="utf-8")
    done = command("test", path, "--run", made.id, "--json")
    found = tried(done)
    assert done.exit_code == 1, "mine fails on one completion"
    assert (found["number"]["mean"], found["number"]["least"], found["number"]["most"]) == (0.75, 0.0, 1.0)
    assert (found["mine"]["mean"], found["mine"]["not_applicable"]) == (2.0, 2)
    assert found["mine"]["errors"] == ["nan is not a usable reward"]
    (made.samples_dir / "step-000003.jsonl").write_text(lines.replace('"prompt_id": 0', '"prompt_id": 4'), encoding="utf-8")
    error = command("test", path, "--run", made.id).exception
    assert isinstance(error, InputError) and "trained on other data" in error.what
