"""What the step for data finds out and says, without a screen: columns, rows of each kind of file, the report's lines, paths."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.api import Engine
from engine.config import DataConfig
from engine.data.report import DryRun, ProblemGroup
from engine.data.rows import Problem
from engine.data.validate import DataReport
from engine.errors import InputError
from engine.types import Example
from tests.tui.wizard import pairs, rows_file
from tui.draft import Draft
from tui.forms import REWARDS, TRAIN
from tui.screens.new_run import columns
from tui.screens.new_run.checks import Checks, FileCheck, check_file, is_of_hub, read_line, troubles
from tui.screens.new_run.columns import NOT_CHOSEN, look, read_first, slots
from tui.screens.new_run.data import sample_file, tried
from tui.screens.new_run.fields import completed
from tui.screens.new_run.report import report

ROWS = [*pairs(2), {"prompt": "no answer here"}, *pairs(1)]  # the third of four cannot be used; the last repeats the first


def _jsonl(folder: Path) -> Path:
    return rows_file(folder, *ROWS)


def _json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def _csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("prompt,answer\n" + "".join(f"{row['prompt']},{row.get('answer', '')}\n" for row in ROWS))
    return path


def _parquet(folder: Path) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def _gz(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(_jsonl(folder).read_bytes()))
    return path


def _folder(folder: Path) -> Path:
    (folder / "mine").mkdir()
    rows_file(folder / "mine", *ROWS, name="train.jsonl")
    return folder / "mine"


async def _found(path: Path, draft: Draft) -> DataReport:
    config = draft.with_text(TRAIN, str(path)).checked(path.parent).ready
    assert config is not None
    found = await check_file(Engine(path.parent), FileCheck("data", path), config, None)
    assert isinstance(found, DataReport), found
    return found


@pytest.mark.parametrize("made", [_jsonl, _json, _csv, _parquet, _gz, _folder])
async def test_the_row_that_a_report_names_is_shown_from_every_kind_of_file(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    path = made(tmp_path)
    found = await _found(path, Draft())
    fatal = next(trouble for trouble in troubles((FileCheck("data", path, found),)) if trouble.is_fatal)
    assert "no answer here" in read_line(fatal.path, fatal.line) and fatal.count == 1
    repeat = next(trouble for trouble in troubles((FileCheck("data", path, found),)) if "repeats" in trouble.what)
    assert "What is 10+1?" in read_line(repeat.path, repeat.line)
    assert fatal.path.is_file()


def test_a_line_of_a_file_that_is_gone_raises_what_the_screen_says(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_line(tmp_path / "gone.jsonl", 1)
    with pytest.raises(InputError, match="no such data file"):
        read_line(tmp_path / "gone.csv", 1)


def test_columns_come_from_the_first_rows_in_their_order(tmp_path: Path) -> None:
    data = rows_file(tmp_path, "not json", {"b": 1, "a": None}, {"c": [1], "a": "late"})
    seen = look(data)
    assert (seen.names, seen.first) == (("b", "a", "c"), {"b": 1, "a": None, "c": [1]})
    with pytest.raises(InputError, match="no such data file"):
        look(tmp_path / "gone.jsonl")


def test_a_format_has_needed_fields_and_those_that_can_be_given_besides() -> None:
    names = {format: [(slot.name, slot.is_needed) for slot in slots(format, "grpo")] for format in ("gsm8k", "instruction", "?")}
    assert names["gsm8k"] == [("question", True), ("answer", True), ("system", False)]
    assert names["instruction"] == [
        *(("instruction", True), ("response", True)),
        *(("input", False), ("answer", False), ("system", False)),
    ]
    assert names["?"] == [("prompt", True), ("answer", True), ("system", False)]
    assert [slot.name for slot in slots("unknown", "sft")] == ["prompt", "completion", "system"]


def test_a_mapping_holds_what_is_not_found_by_itself(tmp_path: Path) -> None:
    """`output` is found for `response`; `q` is not found for `instruction`; a column for a reward stays whatever the format."""
    seen = look(rows_file(tmp_path, {"q": "ask", "output": "say", "instruction2": "x"}))
    instruction, response, *_ = slots("instruction", "sft")
    assert columns.chosen(response, seen, {}) == "output" and columns.choices(response, seen) == seen.names
    assert columns.choices(instruction, seen) == (NOT_CHOSEN, *seen.names)
    mapping = columns.with_choice(instruction, "q", seen, {"unit": "u"})
    assert mapping == {"unit": "u", "instruction": "q"} and columns.chosen(instruction, seen, mapping) == "q"
    assert columns.with_choice(response, "output", seen, {**mapping, "response": "q"}) == mapping
    assert columns.with_choice(instruction, NOT_CHOSEN, seen, mapping) == {"unit": "u"}
    assert columns.kept(mapping, slots("prompt+answer", "grpo")) == {"unit": "u"}


def test_the_first_row_is_read_as_the_run_will_read_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("q,a\n1+1,02\n")
    data = DataConfig(train=str(path), columns={"prompt": "q", "answer": "a"})
    reading = read_first(path, "grpo", data)
    assert isinstance(reading.row, Example) and (reading.format, reading.row.answer) == ("prompt+answer", "02"), "text, not 2"
    unknown = read_first(path, "grpo", replace_columns(data, {}))
    assert isinstance(unknown.row, Problem) and unknown.format == "unknown"
    shown = columns.preview(unknown, "auto", 80).plain
    assert "choose above, by left and right" in shown
    assert isinstance(read_first(tmp_path / "gone.csv", "grpo", data).row, InputError)


def replace_columns(data: DataConfig, mapping: dict[str, str]) -> DataConfig:
    return data.model_copy(update={"columns": mapping})


async def test_the_report_says_what_the_rewards_gave_and_how_often_each_answer_is_right(tmp_path: Path) -> None:
    draft = Draft().with_text(REWARDS, "[{name: number}, {name: length_target}]")
    rows = [
        *({"prompt": f"Is {n} odd?", "answer": "yes" if n % 4 else "no"} for n in range(1, 9)),
        {"prompt": "x", "answer": "7"},
    ]
    path = rows_file(tmp_path, *rows)
    config = draft.with_text(TRAIN, str(path)).checked(tmp_path).ready
    assert config is not None
    found = await check_file(Engine(tmp_path), FileCheck("data", path), config, None, config.rewards)
    assert isinstance(found, DataReport)
    shown = report(Checks(None, (FileCheck("data", path, found),)), draft, 120).plain
    assert "answers   yes (67%), no (22%), 7 (11%)" in shown, "6, 2 and 1 of 9"
    assert "⚠ number: 1 of 9 rows' own answers get full marks" in shown
    assert "⚠ length_target: run on 9 rows, 9 failed" in shown
    full = replace(found, dry_run=(DryRun("a", 9, 9, 0, 0, 0.1, ""), DryRun("b", 9, 9, 0, 0, 0.1, ""), own_reward(2)))
    shown = report(Checks(None, (FileCheck("data", path, full),)), draft, 120).plain
    assert "rewards   ✓ the rows' own answers get full marks from a, b\n" in shown
    assert "\n          ⚠ mine: run on 9 rows, 2 failed" in shown


def own_reward(failed: int) -> DryRun:
    return DryRun("mine", 9, None, 0, failed, 0.1, "")


def test_a_remedy_names_the_key_where_other_columns_can_help() -> None:
    groups = [ProblemGroup(kind, 1, (1,), "", "why", "do this") for kind in ("no-format", "missing-field", "empty")]
    found = DataReport("rows.jsonl", "grpo", "unknown", 3, 0, tuple(groups), None, None, 0, (), "unusable")
    remedies = [trouble.remedy for trouble in troubles((FileCheck("data", Path("rows.jsonl"), found),))]
    assert remedies == ["press m to say which column is which, or: do this"] * 2 + ["do this"]


def test_code_that_came_with_an_opened_file_is_not_run_before_the_run(tmp_path: Path) -> None:
    from engine import config as configs

    rows_file(tmp_path, *pairs(2))
    (tmp_path / "mine.py").write_text("def mine(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n")
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: demo\nmethod: grpo\ndata: {train: rows.jsonl}\nrewards: [{name: mine, file: mine.py}, {name: exact}]\n"
    )
    draft = Draft().with_config(configs.load(file), str(file))
    config = draft.checked(tmp_path).ready
    assert config is not None and [reward.name for reward in tried(draft, config)] == ["exact"]
    typed = draft.with_text(REWARDS, f"[{{name: mine, file: {tmp_path / 'mine.py'}}}]")
    config = typed.checked(tmp_path).ready
    assert config is not None and [reward.name for reward in tried(typed, config)] == ["mine"]


def test_sample_files_are_told_apart_by_method_topic_and_format(tmp_path: Path) -> None:
    names = [
        sample_file(tmp_path, "grpo", *what).name
        for what in (("arithmetic", None), ("law", "reasoning"), ("medicine", "reasoning"), ("words", "prompt+answer"))
    ]
    assert names == [
        "grpo-arithmetic-sample.jsonl",
        "grpo-law-reasoning-sample.jsonl",
        "grpo-medicine-reasoning-sample.jsonl",
        "grpo-words-prompt-answer-sample.jsonl",
    ]


def test_data_sets_of_the_hub_are_not_fetched_by_looking(tmp_path: Path) -> None:
    assert is_of_hub("openai/gsm8k") and is_of_hub("openai/gsm8k:main@refs/pr/1#train[:10]")
    assert not is_of_hub(str(tmp_path)) and not is_of_hub("data/rows.jsonl")
    shown = report(Checks(None, (FileCheck("data", Path("openai/gsm8k")),)), Draft(), 120).plain
    assert "a data set of the hub: fetched and checked when the run starts" in shown


def test_a_path_is_completed_to_the_first_name_that_begins_so(tmp_path: Path) -> None:
    for name in ("beta.yaml", "alpha.yaml", "al\x1bx"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert completed(f"{tmp_path}/al") == f"{tmp_path}/alpha.yaml", "a name that a terminal would obey is not offered"
    assert completed(f"{tmp_path}/fo") == f"{tmp_path}/folder/"
    for begun in (f"{tmp_path}/", f"{tmp_path}/none", "", "/nowhere/at/all", "~no-such-user/x", "a\0b"):
        assert completed(begun) is None, begun
