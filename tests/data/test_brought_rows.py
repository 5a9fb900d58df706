"""Rows as other tools write them: TRL's conversations, OpenAI's content parts, ShareGPT's turns; and files that hold no row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.data.convert import convert
from engine.data.formats import load
from engine.data.rows import Problem, Row, read_rows
from engine.data.writing import write_rows
from engine.errors import InputError
from engine.types import Example, Message

ASKED = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4"}
GOOD = {"prompt": "1+1?", "completion": "2"}
PICTURE = {"type": "image_url", "image_url": {"url": "a.png"}}


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> Example:
    """What training reads from the first of the rows; all of them must be usable."""
    write_rows(folder / "rows.jsonl", rows, overwrite=True)
    data = load(folder / "rows.jsonl", kind="sft", **options)
    assert not data.problems
    return data.examples[0]


def refused(folder: Path, row: dict[str, Any], good: dict[str, Any]) -> Problem:
    """Why the row, beside a good one, cannot be used."""
    write_rows(folder / "rows.jsonl", [good, row], overwrite=True)
    (problem,) = load(folder / "rows.jsonl", kind="sft").problems
    assert problem.line == 2 and problem.remedy
    return problem


# ---- prompt and completion as turns


def test_a_completion_of_one_assistant_turn_is_its_text(tmp_path: Path) -> None:
    found = read(tmp_path, {"prompt": [ASKED], "completion": [REPLY]})
    assert (found.messages, found.completion, found.turns) == ((Message("user", "2+2?"),), "4", ())
    assert found.columns["completion"] == "4"
    done = convert(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "messages")
    assert (done.written, done.notes) == (1, ())
    assert [row.fields for row in read_rows(tmp_path / "out.jsonl") if isinstance(row, Row)] == [{"messages": [ASKED, REPLY]}]


@pytest.mark.parametrize(
    ("completion", "kind", "field", "remedy"),
    [
        ([REPLY, ASKED, REPLY], "several-turns", "completion", "`messages`"),
        ([ASKED], "wrong-role", "completion[0].role", "assistant"),
        ([], "empty", "completion", "turns"),
        ([{"role": "assistant"}], "missing-field", "completion[0].content", "role, content"),
    ],
)
def test_a_completion_of_other_turns_is_refused(
    tmp_path: Path, completion: list[Any], kind: str, field: str, remedy: str
) -> None:
    problem = refused(tmp_path, {"prompt": [ASKED], "completion": completion}, GOOD)
    assert (problem.kind, problem.field) == (kind, field) and remedy in problem.remedy


# ---- content in parts


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    found = read(tmp_path, {"messages": [{"role": "user", "content": parts}, REPLY]})
    assert (found.messages, found.completion) == ((Message("user", "2+2?"),), "4")


@pytest.mark.parametrize(
    ("parts", "kind", "field", "reason"),
    [
        ([{"type": "text", "text": "see"}, PICTURE], "other-part", "messages[0].content[1].type", "'image_url'"),
        ([{"type": "text"}], "wrong-type", "messages[0].content[0].text", "null"),
        ([{"text": "x"}], "wrong-type", "messages[0].content[0]", "without a type"),
        ([7], "wrong-type", "messages[0].content[0]", "a number"),
        ([], "empty", "messages[0].content", "no text"),
    ],
)
def test_other_parts_are_refused_by_their_type(tmp_path: Path, parts: list[Any], kind: str, field: str, reason: str) -> None:
    problem = refused(tmp_path, {"messages": [{"role": "user", "content": parts}, REPLY]}, {"messages": [ASKED, REPLY]})
    assert (problem.kind, problem.field) == (kind, field) and reason in problem.reason


# ---- ShareGPT


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


CHAT = said(("system", "Be brief."), ("human", "2+2?"), ("gpt", "4"))


def test_conversations_are_read_as_messages(tmp_path: Path) -> None:
    wanted = (Message("system", "Be brief."), Message("user", "2+2?"))
    for row, options in (
        ({"conversations": CHAT}, {}),
        ({"conversations": CHAT, "text": "<s>2+2?"}, {}),
        ({"chat": CHAT}, {"columns": {"messages": "chat"}}),
        ({"conversations": [{"role": "system", "content": "Be brief."}, ASKED, REPLY]}, {}),
        ({"messages": said(("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"))}, {"format": "messages"}),
    ):
        found = read(tmp_path, row, **options)
        assert (found.messages, found.completion) == (wanted, "4"), row


def test_a_row_with_a_format_of_its_own_keeps_it(tmp_path: Path) -> None:
    found = read(tmp_path, {**GOOD, "conversations": CHAT})
    assert (found.messages, found.completion) == ((Message("user", "1+1?"),), "2")


@pytest.mark.parametrize(
    ("turns", "kind", "field"),
    [
        (said(("human", "2+2?"), ("function_call", "{}"), ("gpt", "4")), "tool-turn", "messages[1].role"),
        (said(("human", "2+2?"), ("observation", "4"), ("gpt", "4")), "tool-turn", "messages[1].role"),
        (said(("human", "2+2?"), ("sage", "4")), "unknown-role", "messages[1].role"),
        ([{"from": "human"}, {"from": "gpt", "value": "4"}], "missing-field", "messages[0].content"),
        ([*said(("human", "2+2?")), "4"], "wrong-type", "messages[1]"),
    ],
)
def test_conversations_that_are_no_chat_are_refused(tmp_path: Path, turns: list[Any], kind: str, field: str) -> None:
    problem = refused(tmp_path, {"conversations": turns}, {"conversations": CHAT})
    assert (problem.kind, problem.field) == (kind, field)


def test_a_turn_that_calls_a_tool_says_so(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    problem = refused(tmp_path, {"messages": [ASKED, calling]}, {"messages": [ASKED, REPLY]})
    assert (problem.kind, problem.field) == ("tool-turn", "messages[1].content") and "calls a tool" in problem.reason


# ---- files


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", "[]", "the array is empty"),
        ("a.json", '\ufeff {"data": []}\n', "the array is empty"),
        ("a.json", " \n\n", "only blank lines"),
        ("a.jsonl", " \n\n", "only blank lines"),
        ("a.csv", "prompt,answer\n", "below the first line"),
    ],
)
def test_a_file_without_rows_says_how(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what):
        load(tmp_path / name, kind="sft")


@pytest.mark.parametrize(("wrapped", "name"), [({"rows": [GOOD]}, "rows"), ({"data": {"train": [GOOD]}}, "data.train")])
def test_a_wrapper_that_is_not_read_says_where_rows_go(tmp_path: Path, wrapped: dict[str, Any], name: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(wrapped), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "a.json", kind="sft")
    assert repr(name) in caught.value.remedy and "under data, samples or examples" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"prompt":1}, ]', "line 1, column 16 of"),  # [ is 1, {...} 2 to 13, the comma 14, the bracket 16
        ('[{"a": 1},\n {"b": 2} {"c": 3}]', "line 2, column 11 of"),
        ('[{"a": 1},\n {"b": 2}, nought]', "line 2, column 12 of"),
    ],
)
def test_a_damaged_array_names_line_and_column(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    found = [row for row in read_rows(tmp_path / "a.json") if isinstance(row, Problem)]
    assert len(found) == 1 and place in found[0].reason


def test_a_missing_path_is_explained_for_config_and_command_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path / "none.jsonl", kind="sft")
    assert "config's folder" in caught.value.remedy and "current folder" in caught.value.remedy


@pytest.mark.parametrize("row", [{"prompt": "2+2?"}, {"x": 1}])
def test_a_rename_is_worded_for_config_and_command_line(tmp_path: Path, row: dict[str, Any]) -> None:
    write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError) as caught:
        load(tmp_path / "rows.jsonl", kind="sft", format="prompt+answer" if "prompt" in row else "auto")
    assert "data.columns: {" in caught.value.remedy and "--columns " in caught.value.remedy


# ---- what a conversion leaves


def test_a_conversion_says_that_the_decisive_steps_no_longer_weigh_more(tmp_path: Path) -> None:
    chain = {"problem": "Q", "reasoning_steps": ["a", "b"], "solution": "4"}
    rows = [{**chain, "sparse_indicators": [0, 1]}, chain]
    write_rows(tmp_path / "rows.jsonl", rows)
    for number, target in enumerate(("messages", "gsm8k")):
        (note,) = [
            each
            for each in convert(tmp_path / "rows.jsonl", tmp_path / f"{number}.jsonl", target).notes
            if each.kind == "step-marks"
        ]
        assert (note.count, note.lines, note.field) == (1, (1,), "sparse_indicators")
    assert not convert(tmp_path / "rows.jsonl", tmp_path / "same.jsonl", "reasoning").notes


def test_nothing_becomes_a_text_for_the_reason_that_holds(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(InputError, match="does not say where its prompt ends"):
        convert(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "text")


def test_a_folder_says_which_files_were_left(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("train", "valid", "test-00000-of-00001", "notes"):
        write_rows(folder / f"{name}.jsonl", [GOOD])
    done = convert(folder, tmp_path / "out.jsonl", "messages")
    assert (done.written, done.not_read) == (1, ("test-00000-of-00001.jsonl", "valid.jsonl"))
    assert done.as_dict()["not_read"] == done.not_read
    assert convert(folder / "train.jsonl", tmp_path / "more.jsonl", "messages").not_read == ()
