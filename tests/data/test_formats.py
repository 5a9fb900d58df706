"""Reading .jsonl files: every format, every kind of unusable row, and the held-out split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import formats
from engine.data.examples import gsm8k_number
from engine.data.formats import Problem, Row, load, read_rows, split_held_out, to_example
from engine.errors import InputError
from engine.types import Example, Message

USER = Message("user", "2+2?")
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def example(fields: dict[str, Any], format: str, kind: formats.Kind = "rl", system: str | None = None) -> Example:
    result = to_example(Row(1, fields), format, kind, system)
    assert isinstance(result, Example), result
    return result


def problem(fields: dict[str, Any], format: str, kind: formats.Kind = "rl") -> Problem:
    result = to_example(Row(7, fields), format, kind, None)
    assert isinstance(result, Problem), result
    assert result.line == 7 and result.reason and result.remedy
    return result


# ---- reading lines


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "1"}\r\n\r\n  \r\n{"prompt": "b", "answer": "2"}')
    assert list(read_rows(path)) == [Row(1, {"prompt": "a", "answer": "1"}), Row(4, {"prompt": "b", "answer": "2"})]


def test_line_separators_inside_strings_do_not_split_rows(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines, but not in JSON."""
    path = write(tmp_path / "a.jsonl", {"prompt": "a\u2028b\u0085c 日本語 🎲", "answer": "1"})
    assert [row.fields["prompt"] for row in read_rows(path) if isinstance(row, Row)] == ["a\u2028b\u0085c 日本語 🎲"]


def test_a_row_of_two_megabytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "x" * 2_000_000, "answer": "1"}, {"prompt": "y", "answer": "2"})
    data = load(path, kind="rl")
    assert [len(e.messages[0].content) for e in data.examples] == [2_000_000, 1]


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"prompt": "a"', "not-json", "column 15"),
        (b"hello", "not-json", "not valid JSON"),
        (b'{"prompt": NaN}', "not-json", "NaN"),
        (b"[" * 200_000, "not-json", "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not-json", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not-utf8", "byte 13"),
        ("{}".encode("utf-16"), "not-utf8", "byte 1"),
        (b'[{"prompt": "a"}]', "not-object", "an array"),
        (b'"text"', "not-object", "a string"),
        (b"3", "not-object", "a number"),
        (b"null", "not-object", "null"),
        (b"true", "not-object", "true or false"),
        (b'{"prompt": "\\ud83d"}', "bad-text", "other half"),
    ],
)
def test_lines_that_are_no_rows(tmp_path: Path, line: bytes, kind: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n")
    _, found = read_rows(path)
    assert isinstance(found, Problem)
    assert (found.line, found.kind) == (2, kind) and reason in found.reason and found.remedy


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\\ud83d\\ude00"}\n')
    assert list(read_rows(path)) == [Row(1, {"prompt": "😀"})]


@pytest.mark.parametrize("call", [read_rows, lambda path: load(path, kind="rl")])
def test_files_that_cannot_be_read(tmp_path: Path, call: Any) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "rows.xlsx").write_text("a,b")
    (tmp_path / "rows").write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    for name, what in {
        "empty.jsonl": "is empty",
        "rows.xlsx": ".xlsx",
        "rows": "no ending",
        "folder.jsonl": "folder",
        "missing.jsonl": "no such",
    }.items():
        with pytest.raises(InputError, match=what) as caught:
            call(tmp_path / name)
        assert str(tmp_path / name) in caught.value.where and caught.value.remedy
    with pytest.raises(InputError, match="supported") as caught:
        call(tmp_path / "rows.xlsx")
    assert ".jsonl" in caught.value.remedy


# ---- detection


@pytest.mark.parametrize(
    ("fields", "format"),
    [
        ({"prompt": "a", "answer": "b"}, "prompt+answer"),
        ({"prompt": "a", "answer": "b", "system": "c", "type": "d"}, "prompt+answer"),
        ({"question": "a", "answer": "b"}, "gsm8k"),
        ({"messages": CHAT}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt+completion"),
        ({"prompt": "a", "completion": "b", "answer": "c"}, "prompt+completion"),
        ({"prompt": "a", "completion": None, "answer": "c"}, "prompt+answer"),
        ({"prompt": "a"}, None),
        ({}, None),
    ],
)
def test_detect(fields: dict[str, Any], format: str | None) -> None:
    assert formats.detect(fields) == format


def test_detect_file_takes_the_majority_of_the_first_200_rows(tmp_path: Path) -> None:
    """1 + 120 rows against 79 among the first 200; 400 later rows of the other format do not count."""
    chat, pair = {"prompt": "p", "completion": "c"}, {"question": "q", "answer": "#### 1"}
    path = write(tmp_path / "a.jsonl", chat, *[pair] * 79, *[chat] * 120, *[pair] * 400)
    assert formats.detect_file(path) == "prompt+completion"
    assert formats.detect_file(write(tmp_path / "b.jsonl", {"x": 1})) is None
    renamed = write(tmp_path / "c.jsonl", {"x": "p", "y": "a"})
    assert formats.detect_file(renamed, {"prompt": "x", "answer": "y"}) == "prompt+answer"


def test_rows_of_another_format_are_problems_that_name_both(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "answer": "4"}
    data = load(write(tmp_path / "a.jsonl", row, row, {"messages": CHAT}, {"prompt": "x"}), kind="rl")
    assert data.format == "prompt+answer" and len(data.examples) == 2 and data.rows == 4
    other, missing = data.problems
    assert (other.line, other.kind) == (3, "other-format")
    assert "messages" in other.reason and "prompt+answer" in other.reason
    assert (missing.line, missing.kind, missing.field) == (4, "missing-field", "answer")


# ---- rows to examples


def test_prompt_answer() -> None:
    fields = {"prompt": "2+2?", "answer": 4, "type": "sum", "level": 2}
    found = example(fields, "prompt+answer")
    assert found == Example(1, (USER,), None, "4", {"answer": "4", "type": "sum", "types": "sum", "level": 2})
    assert example(fields, "prompt+answer", "sft").completion == "4"


def test_prompt_as_messages() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *CHAT, {"role": "user", "content": "And 3+3?"}]
    found = example({"prompt": turns, "answer": "6"}, "prompt+answer")
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "user"]


def test_gsm8k() -> None:
    solution = "It costs 2*600 = 1,200.\n#### 5\n#### $1,200"
    found = example({"question": "2+2?", "answer": solution}, "gsm8k")
    assert (found.messages, found.completion, found.answer) == ((USER,), None, "1200")
    assert found.columns == {"question": "2+2?", "answer": "1200"}
    supervised = example({"question": "2+2?", "answer": solution}, "gsm8k", "sft")
    assert (supervised.completion, supervised.answer) == (solution, "1200")
    assert example({"question": "2+2?", "answer": "Four."}, "gsm8k", "sft").completion == "Four."


@pytest.mark.parametrize(
    ("tail", "number"),
    [
        ("#### 42", "42"),
        ("#### -3.5 metres", "-3.5"),
        ("#### $1,000.", "1000"),
        ("####\n7", "7"),
        ("#### \u22122", "-2"),
        ("#### 3/4", "3/4"),
        ("#### yes", None),
        ("42", None),
        ("####", None),
    ],
)
def test_gsm8k_number(tail: str, number: str | None) -> None:
    assert gsm8k_number(f"First 9.\n{tail}") == number


def test_messages() -> None:
    turns = [*CHAT, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6"}]
    found = example({"messages": turns}, "messages")
    assert [m.content for m in found.messages] == ["2+2?", "4", "And 3+3?"]
    assert (found.completion, found.answer) == ("6", "6")
    assert example({"messages": turns, "answer": "six"}, "messages").answer == "six"
    assert "messages" not in found.columns


def test_messages_that_end_with_a_question() -> None:
    """Without an answer the last assistant turn is learned; with one the whole conversation is a prompt for rewards."""
    turns = [*CHAT, {"role": "user", "content": "And 3+3?"}]
    asked = example({"messages": turns, "answer": "6"}, "messages")
    assert ([m.content for m in asked.messages], asked.completion, asked.answer) == (["2+2?", "4", "And 3+3?"], None, "6")
    learned = example({"messages": turns}, "messages", "sft")
    assert ([m.content for m in learned.messages], learned.completion) == (["2+2?"], "4")


def test_prompt_completion() -> None:
    fields = {"prompt": "2+2?", "completion": "It is 4."}
    assert example(fields, "prompt+completion").answer == "It is 4."
    assert example(fields, "prompt+completion").columns["answer"] == "It is 4."
    assert example(fields, "prompt+completion", "sft").answer is None
    both = example(fields | {"answer": "4"}, "prompt+completion")
    assert (both.completion, both.answer) == ("It is 4.", "4")


def test_system_messages() -> None:
    """The row's own system text wins over the config's, and a system turn over both."""
    pair = {"prompt": "2+2?", "answer": "4"}
    assert example(pair, "prompt+answer", system="S").messages == (Message("system", "S"), USER)
    assert example(pair | {"system": "own"}, "prompt+answer", system="S").messages == (Message("system", "own"), USER)
    assert example(pair | {"system": None}, "prompt+answer", system="S").messages == (Message("system", "S"), USER)
    chat = {"messages": [{"role": "system", "content": "turn"}, *CHAT]}
    assert example(chat, "messages", system="S").messages == (Message("system", "turn"), USER)


SYSTEM_TURN = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("fields", "format", "kind", "field"),
    [
        ({"prompt": "a"}, "prompt+answer", "missing-field", "answer"),
        ({"prompt": "a", "answer": None}, "prompt+answer", "missing-field", "answer"),
        ({"prompt": " \n", "answer": "1"}, "prompt+answer", "empty", "prompt"),
        ({"prompt": "a", "answer": ""}, "prompt+answer", "empty", "answer"),
        ({"prompt": 3, "answer": "1"}, "prompt+answer", "wrong-type", "prompt"),
        ({"prompt": "a", "answer": ["1"]}, "prompt+answer", "wrong-type", "answer"),
        ({"prompt": "a", "answer": True}, "prompt+answer", "wrong-type", "answer"),
        ({"prompt": "a", "answer": "1", "system": 5}, "prompt+answer", "wrong-type", "system"),
        ({"prompt": [], "answer": "1"}, "prompt+answer", "empty", "prompt"),
        ({"prompt": [SYSTEM_TURN], "answer": "1"}, "prompt+answer", "no-prompt", "prompt"),
        ({"prompt": [SYSTEM_TURN, *CHAT], "answer": "1", "system": "x"}, "prompt+answer", "two-systems", "system"),
        ({"prompt": "a", "answer": "1", "completions": "x"}, "prompt+answer", "reserved-name", "completions"),
        ({"question": "a", "answer": "42"}, "gsm8k", "no-reference", "answer"),
        ({"question": "a", "answer": "#### yes"}, "gsm8k", "no-reference", "answer"),
        ({"messages": "hi"}, "messages", "wrong-type", "messages"),
        ({"messages": []}, "messages", "empty", "messages"),
        ({"messages": ["hi"]}, "messages", "wrong-type", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages", "missing-field", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages",
            "wrong-type",
            "messages[0].content[0].text",
        ),
        ({"messages": [*CHAT, {"role": "tool", "content": "x"}]}, "messages", "tool-turn", "messages[2].role"),
        ({"messages": [*CHAT, {"role": "sage", "content": "x"}]}, "messages", "unknown-role", "messages[2].role"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "messages", "empty", "messages[1].content"),
        ({"messages": [CHAT[1]]}, "messages", "no-prompt", "messages"),
        ({"messages": [CHAT[0]]}, "messages", "no-reference", "messages"),
        ({"prompt": "a", "completion": "  "}, "prompt+completion", "empty", "completion"),
    ],
)
def test_unusable_rows(fields: dict[str, Any], format: str, kind: str, field: str) -> None:
    found = problem(fields, format)
    assert (found.kind, found.field) == (kind, field)


def test_supervised_training_needs_a_completion() -> None:
    assert problem({"messages": [CHAT[0]], "answer": "4"}, "messages", "sft").kind == "no-completion"


# ---- load


def test_load_remaps_columns(tmp_path: Path) -> None:
    """A renamed field hides one that has our name: the row's own `answer` is not the reference here."""
    path = write(tmp_path / "a.jsonl", {"ask": "2+2?", "gold": "4", "answer": "wrong", "level": 1})
    data = load(path, kind="rl", columns={"prompt": "ask", "answer": "gold"})
    assert data.examples[0] == Example(1, (USER,), None, "4", {"level": 1, "answer": "4"})


def test_columns_can_swap_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "4", "answer": "2+2?"})
    data = load(path, kind="rl", columns={"prompt": "answer", "answer": "prompt"})
    assert (data.examples[0].messages, data.examples[0].answer) == ((USER,), "4")


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "1"})
    with pytest.raises(InputError, match="no row has the field 'sytem'") as caught:
        load(path, kind="rl", columns={"system": "sytem"})
    assert caught.value.where.endswith("columns.system")


def test_load_reports_every_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "2+2?", "answer": "4"}, {"prompt": "", "answer": "4"}, [1])
    data = load(path, kind="rl")
    assert [(p.line, p.kind) for p in data.problems] == [(2, "empty"), (3, "not-object")]
    assert data.rows == 3 and [e.line for e in data.examples] == [1]
    assert len(data.sha256) == 64 and data.sha256 == load(path, kind="sft").sha256


def test_load_raises_for_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n\n{"prompt": "a", "answ\n')
    with pytest.raises(InputError) as caught:
        load(path, kind="rl")
    assert caught.value.where == f"{path}:3" and "not valid JSON" in caught.value.what and caught.value.remedy


def test_load_raises_without_usable_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of its 2 rows can be used: line 1: .*x, y; line 2"):
        load(write(tmp_path / "a.jsonl", {"x": 1, "y": 2}, {"x": 1}), kind="rl")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="only blank lines"):
        load(tmp_path / "blank.jsonl", kind="rl")
    with pytest.raises(InputError, match="unknown data format 'alpaca'"):
        load(tmp_path / "a.jsonl", kind="rl", format="alpaca")


def test_a_given_format_is_not_detected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "2+2?", "completion": "It is 4.", "answer": "4"})
    assert load(path, kind="sft", format="prompt+answer").examples[0].completion == "4"
    assert load(path, kind="sft").examples[0].completion == "It is 4."


# ---- the held-out split


def numbered(count: int, prompts: int | None = None) -> list[Example]:
    return [Example(i + 1, (Message("user", str(i % (prompts or count))),), None, str(i)) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "rows", "held"), [(0, 64, 0), (1, 64, 0), (2, 64, 1), (9, 64, 1), (50, 64, 10), (50, 3, 3), (1000, 64, 64)]
)
def test_split_sizes(count: int, rows: int, held: int) -> None:
    """At most `rows`, at most a fifth (50 / 5 = 10), at least one row of two: 9 / 5 rounds down to 1."""
    train, held_out = split_held_out(numbered(count), None, rows, 0)
    assert (len(train), len(held_out)) == (count - held, held)


def test_split_is_the_same_everywhere() -> None:
    """Fixed values: the split depends on SHA-256 alone, not on a random generator or on the hash seed of the process."""
    _, held_out = split_held_out(numbered(20), None, 64, 0)
    assert [e.line for e in held_out] == [2, 3, 7, 12]
    assert split_held_out(numbered(20), None, 64, 1)[1] != held_out


def test_equal_prompts_stay_on_one_side() -> None:
    """60 rows of 20 prompts: 12 held-out rows are 4 whole prompts."""
    train, held_out = split_held_out(numbered(60, prompts=20), None, 64, 0)
    assert len(held_out) == 12
    assert not {e.messages for e in train} & {e.messages for e in held_out}


def test_one_prompt_for_all_rows_can_still_be_split() -> None:
    train, held_out = split_held_out(numbered(10, prompts=1), None, 64, 0)
    assert (len(train), len(held_out)) == (8, 2)


def test_a_valid_file_leaves_the_training_rows_alone() -> None:
    rows, valid = numbered(10), numbered(100)
    train, held_out = split_held_out(rows, valid, 64, 0)
    assert train == tuple(rows) and len(held_out) == 64
    assert [e.line for e in held_out] == sorted(e.line for e in held_out)
    assert split_held_out(rows, valid[:5], 64, 0)[1] == tuple(valid[:5])


@settings(deadline=None)  # a busy machine is no failure
@given(count=st.integers(0, 120), prompts=st.integers(1, 120), rows=st.integers(1, 80), seed=st.integers(0, 2**40))
def test_split_loses_nothing(count: int, prompts: int, rows: int, seed: int) -> None:
    examples = numbered(count, prompts)
    train, held_out = split_held_out(examples, None, rows, seed)
    assert sorted([*train, *held_out], key=lambda e: e.line) == examples
    assert list(train) == sorted(train, key=lambda e: e.line)
    assert len(held_out) <= max(1, min(rows, count // 5)) and (count < 2 or held_out)
