"""Rows from any format to any other: what becomes of them, what is said of them, what is left out; and files in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.conversions import OWN_FIELDS, Converted, convert_row
from engine.data.convert import Conversion, Options, convert
from engine.data.examples import FORMATS, to_example
from engine.data.formats import as_example, detect
from engine.data.rows import Problem, Row, read_rows
from engine.data.splits import parse_split
from engine.data.writing import write_rows
from engine.errors import InputError
from engine.types import Example

CHAIN = "<think>\na\nb\n</think>\n<answer>4</answer>"
WORKED = "a\nb\n#### 4"
STEPS = {"reasoning_steps": ["a", "b"], "solution": "4"}


def chat(*turns: str) -> list[dict[str, str]]:
    """Turns such as "u:Hi": system, user or assistant."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def own(format: str, text: str, answer: str | None = None) -> dict[str, Any]:
    """The fields of a row with the system text S, the question Q and the completion `text`; `answer` is beside it."""
    beside = {} if answer is None else {"answer": answer}
    return {
        "messages": {"messages": chat("s:S", "u:Q", f"a:{text}"), **beside},
        "prompt+completion": {"system": "S", "prompt": "Q", "completion": text, **beside},
        "prompt+answer": {"system": "S", "prompt": "Q", "answer": answer or text},
        "instruction": {"system": "S", "instruction": "Q", "output": text, **beside},
        "gsm8k": {"system": "S", "question": "Q", "answer": text},
        "reasoning": {"system": "S", "problem": "Q", **STEPS},
        "text": {"text": text},
    }[format]


CHATTY = ("messages", "prompt+completion", "instruction")
SOURCES = {
    **{format: own(format, CHAIN, "4") for format in CHATTY},
    "reasoning": own("reasoning", ""),
    "gsm8k": own("gsm8k", WORKED),
    "prompt+answer": own("prompt+answer", "4"),
    "text": own("text", "T"),
}
REFUSED = {("prompt+answer", "reasoning"): "prompt\\+answer row without steps of reasoning"} | {
    pair: f"{pair[0]} rows cannot become {pair[1]} rows".replace("+", "\\+")
    for pair in [("text", name) for name in FORMATS if name != "text"] + [(name, "text") for name in FORMATS if name != "text"]
}


def expected(source: str, target: str) -> dict[str, Any]:
    if source == target:
        return SOURCES[source]
    if target == "reasoning":
        return own(target, "")
    if target == "gsm8k":
        return own(target, "#### 4" if source == "prompt+answer" else WORKED) | (STEPS if source == "reasoning" else {})
    if source == "prompt+answer":
        return own(target, "4")
    if source == "gsm8k":
        return own(target, WORKED, "4")
    return own(target, CHAIN, "4") | (STEPS if source == "reasoning" else {})


def run(folder: Path, rows: list[dict[str, Any]], target: str | None, **options: Any) -> tuple[Conversion, list[dict[str, Any]]]:
    """The conversion of the rows, and what was written."""
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    done = convert(source, out, target, Options(overwrite=True, **options))
    return done, fields(out)


def fields(path: Path) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in read_rows(path) if isinstance(row, Row)]


def test_the_table_knows_every_format() -> None:
    assert set(SOURCES) == set(FORMATS) == set(OWN_FIELDS)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_pair_of_formats(tmp_path: Path, source: str, target: str) -> None:
    """The new row to the letter with its columns kept, read again as its format; or a refusal that names the two."""
    row = SOURCES[source] | {"id": "r1", "type": "math"}
    if (source, target) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[source, target]):
            run(tmp_path, [row], target)
        assert not (tmp_path / "out.jsonl").exists()
        return
    done, made = run(tmp_path, [row], target)
    assert made == [expected(source, target) | {"id": "r1", "type": "math"}]
    assert detect(made[0]) == target and (done.source, done.target, done.written) == (source, target, 1)
    before, after = (to_example(Row(1, fields), name, "sft", None) for fields, name in ((row, source), (made[0], target)))
    assert isinstance(before, Example) and isinstance(after, Example) and before.messages == after.messages
    assert [note.kind for note in done.notes] == (
        ["completion"] if target == "prompt+answer" and source in (*CHATTY, "gsm8k") else []
    )
    _, bare = run(tmp_path, [row], target, only_format_fields=True)
    assert set(bare[0]) <= set(OWN_FIELDS[target]) and detect(bare[0]) == target


line = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12).map(lambda text: f"x {text} x")
line = line.filter(lambda text: "####" not in text and "<" not in text)
prose = st.lists(line, min_size=1, max_size=3).map("\n".join)
number = st.integers(-999, 99999).map(str)
columns = st.fixed_dictionaries(
    {}, optional={"id": prose, "type": prose, "tests": st.lists(prose), "x": st.none() | st.integers()}
)
system = st.fixed_dictionaries({}, optional={"system": prose})
beside = st.fixed_dictionaries({}, optional={"answer": prose})
turns = st.lists(prose, max_size=4).map(lambda texts: [f"{'ua'[place % 2]}:{text}" for place, text in enumerate(texts)])
worked = st.tuples(st.lists(line, min_size=1, max_size=3), number).map(lambda made: "\n".join([*made[0], f"#### {made[1]}"]))
chain_columns = st.fixed_dictionaries({}, optional={"answer": number, "domain": line, "sparse_indicators": st.just("x")})
RICH = {
    "messages": st.builds(lambda before, turn, reply, more: {"messages": chat(*before, *turn, f"u:{reply}", f"a:{reply}")} | more,
                          st.lists(prose.map("s:{}".format), max_size=1), turns, prose, beside),
    "prompt+completion": st.builds(lambda prompt, reply, *more: {"prompt": prompt, "completion": reply} | more[0] | more[1],
                                   prose, prose, beside, system),
    "prompt+answer": st.builds(lambda prompt, answer, more: {"prompt": prompt, "answer": answer} | more,
                               prose, number | prose, system),
    "instruction": st.builds(lambda asks, reply, *more: {"instruction": asks, "output": reply} | more[0] | more[1],
                             prose, prose, st.fixed_dictionaries({}, optional={"input": prose, "answer": prose}), system),
    "gsm8k": st.builds(lambda asks, reply, more: {"question": asks, "answer": reply} | more, prose, worked, system),
    "reasoning": st.builds(lambda asks, steps, solution, *more: {"problem": asks, "reasoning_steps": steps, "solution": solution}
                           | more[0] | more[1],
                           prose, st.lists(line, min_size=1, max_size=3), number | prose | worked, system, chain_columns),
}  # fmt: skip
# Where the second format carries all that the first one says. gsm8k carries chains that end in a number, and numbers.
THERE_AND_BACK = [
    *[(first, second) for first in CHATTY for second in CHATTY if first != second],
    *[("reasoning", second) for second in CHATTY],
    *[("prompt+answer", second) for second in CHATTY],
    *[("gsm8k", second) for second in (*CHATTY, "reasoning")],
    ("prompt+answer", "gsm8k"),
    ("reasoning", "gsm8k"),
    ("reasoning", "prompt+answer"),
]


def step(row: Row, source: str, target: str) -> Row | None:
    """The row in the other format; None where it is left out."""
    turns = row.fields.get("messages")
    kind = "rl" if turns and turns[-1]["role"] == "user" else "sft"
    example = as_example(row, source, kind, None, detected=True)
    assert isinstance(example, Example), example
    made = convert_row(row, example, source, target)
    return Row(row.line, made.fields) if isinstance(made, Converted) else None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_there_and_back_training_reads_the_same(data: st.DataObject) -> None:
    """For supervised training and for rewards, columns included; of chats one that no other format has is left out, not bent."""
    first, second = data.draw(st.sampled_from(THERE_AND_BACK))
    row = Row(7, data.draw(RICH[first]) | data.draw(columns))
    there = step(row, first, second)
    if there is None:
        assert second == "gsm8k" or (second == "instruction" and first == "messages")
        return
    assert detect(there.fields) == second
    back = step(there, second, first)
    assert back is not None
    for kind in ("sft", "rl"):
        before, after = (to_example(each, first, kind, None) for each in (row, back))
        if isinstance(before, Problem):  # gsm8k and chats that only one of the two can learn from
            assert isinstance(after, Problem) and before.kind == after.kind
            continue
        assert isinstance(after, Example)
        assert replace(before, columns={}) == replace(after, columns={})
        parted = ("instruction", "input")  # two texts become one prompt, and do not become two again
        assert all(after.columns[name] == value for name, value in before.columns.items() if name not in parted)


LEFT_OUT: list[tuple[dict[str, Any], str, str]] = [  # row, target, kind of the problem
    ({"question": "Q", "answer": "no number"}, "prompt+answer", "no-number"),
    ({"question": "Q", "answer": "#### 5"}, "reasoning", "no-steps"),
    ({"prompt": "Q", "answer": "red"}, "gsm8k", "no-number"),
    ({"prompt": "Q", "answer": "1,000"}, "gsm8k", "other-number"),
    ({"prompt": "Q", "answer": "5 apples"}, "gsm8k", "other-number"),
    ({"prompt": "Q", "completion": "It is 5.", "answer": "5"}, "gsm8k", "no-number"),
    ({"prompt": "Q", "completion": "#### 5", "answer": "6"}, "gsm8k", "other-number"),
    ({"prompt": "Q", "completion": "five"}, "reasoning", "no-steps"),
    ({"prompt": "Q", "completion": CHAIN, "answer": "5"}, "reasoning", "other-answer"),
    ({"prompt": "Q", "completion": "<think></think><answer>5</answer>"}, "reasoning", "no-steps"),
    ({"prompt": "Q", "completion": CHAIN.replace("\na\n", "\n<think>\n")}, "reasoning", "tags-in-text"),
    ({"prompt": "Q", "completion": CHAIN, "domain": "law"}, "reasoning", "taken-name"),
    ({"prompt": "Q", "completion": CHAIN, "reasoning_steps": ["c"], "solution": "4"}, "reasoning", "other-steps"),
    ({"prompt": "Q", "completion": CHAIN, "sparse_indicators": [1]}, "reasoning", "wrong-length"),
    ({"prompt": "Q", "answer": "4", "input": "more"}, "instruction", "taken-name"),
    ({"prompt": "Q", "answer": "4", "question": "mine"}, "gsm8k", "taken-name"),
    ({"messages": chat("u:1", "a:2", "u:3", "a:4")}, "instruction", "several-turns"),
    ({"messages": chat("u:1", "a:2", "u:3", "a:4")}, "gsm8k", "several-turns"),
    ({"messages": chat("s:", "u:1", "a:2")}, "instruction", "several-turns"),
    ({"messages": chat("u:1")}, "prompt+completion", "no-completion"),
    ({"prompt": "", "answer": "4"}, "messages", "empty"),
    ({"question": "other", "answer": "#### 1"}, "messages", "other-format"),
]


@pytest.mark.parametrize(("row", "target", "kind"), LEFT_OUT, ids=range(len(LEFT_OUT)))
def test_what_would_be_lost_or_guessed_is_left_out(tmp_path: Path, row: dict[str, Any], target: str, kind: str) -> None:
    """A good row of the same format is beside it; the other is reported with its line and a remedy, and nothing is made of it."""
    good = SOURCES[detect(row) or ""] if kind != "other-format" else SOURCES["prompt+answer"]
    if kind == "other-format" or (target == "reasoning" and "prompt" in good and "completion" not in good):
        good = own("prompt+answer", "4")
    done, made = run(tmp_path, [good, good | {"id": "2"}, row], target)
    assert [(group.kind, group.lines) for group in done.left_out] == [(kind, (3,))]
    assert len(made) == done.written == 2 and done.rows == 3
    assert done.left_out[0].reason and done.left_out[0].remedy


CHATS: list[tuple[dict[str, Any], str, dict[str, Any], list[str]]] = [
    (
        {"messages": chat("s:S", "u:1", "a:2", "u:3", "a:4")},
        "prompt+completion",
        {"system": "S", "prompt": chat("u:1", "a:2", "u:3"), "completion": "4"},
        ["earlier-replies"],
    ),
    (
        {"messages": chat("u:1", "a:2", "u:3"), "answer": "4"},
        "prompt+answer",
        {"prompt": chat("u:1", "a:2", "u:3"), "answer": "4"},
        ["earlier-replies"],
    ),
    ({"messages": chat("u:1", "a:2", "u:3")}, "prompt+answer", {"prompt": "1", "answer": "2"}, ["later-turns"]),
    (
        {"messages": [{"role": "user", "content": "1", "name": "Ann"}, *chat("a:2")]},
        "prompt+completion",
        {"prompt": "1", "completion": "2"},
        ["turn-fields"],
    ),
    ({"messages": chat("u:1", "a:2"), "system": "S"}, "prompt+completion", {"system": "S", "prompt": "1", "completion": "2"}, []),
    ({"messages": chat("s:", "u:1", "a:2")}, "prompt+completion", {"prompt": chat("s:", "u:1"), "completion": "2"}, []),
    (
        {"prompt": chat("u:1", "a:2", "u:3"), "completion": "4"},
        "messages",
        {"messages": chat("u:1", "a:2", "u:3", "a:4")},
        ["earlier-replies"],
    ),
    ({"instruction": "I", "input": "", "response": "R"}, "prompt+completion", {"prompt": "I", "completion": "R"}, []),
    ({"instruction": "I", "input": "X", "response": "R"}, "instruction", {"instruction": "I", "input": "X", "output": "R"}, []),
    (
        {"prompt": "Q", "completion": "<think>7*4=28, 28-3=25</think><answer>25</answer>"},
        "reasoning",
        {"problem": "Q", "reasoning_steps": ["7*4=28, 28-3=25"], "solution": "25"},
        ["layout"],
    ),
    ({"prompt": "Q", "completion": "4", "answer": "five"}, "prompt+answer", {"prompt": "Q", "answer": "five"}, ["completion"]),
    ({"question": "Q", "answer": "5"}, "messages", {"messages": chat("u:Q", "a:5")}, ["no-number"]),
    ({"prompt": "Q", "answer": 42}, "messages", {"messages": chat("u:Q", "a:42")}, []),
    (
        {"problem": "Q", "domain": "law", **STEPS},
        "prompt+answer",
        {"system": "You answer questions of this field: law.", "prompt": "Q", "answer": "4", **STEPS, "domain": "law"},
        [],
    ),
]


@pytest.mark.parametrize(("row", "target", "made", "notes"), CHATS, ids=range(len(CHATS)))
def test_what_a_format_has_no_place_for_is_said(
    tmp_path: Path, row: dict[str, Any], target: str, made: dict[str, Any], notes: list[str]
) -> None:
    done, written = run(tmp_path, [row], target)
    assert written == [made] and [(note.kind, note.lines) for note in done.notes] == [(kind, (1,)) for kind in notes]


def test_a_column_that_would_make_it_another_format_is_dropped_and_said(tmp_path: Path) -> None:
    done, made = run(tmp_path, [{"question": "Q", "answer": "a\n#### 4", "messages": "m"}], "prompt+answer", format="gsm8k")
    assert made == [{"prompt": "Q", "answer": "4"}] and {note.kind for note in done.notes} == {"column", "completion"}


@pytest.mark.parametrize(
    ("ending", "source"), [("jsonl", "csv"), ("csv", "jsonl.gz"), ("parquet", "json"), ("json.gz", "parquet")]
)
def test_only_the_kind_of_file_changes(tmp_path: Path, ending: str, source: str) -> None:
    rows = [{"prompt": "a\nb", "answer": "007", "tests": ["x"]}, {"prompt": "é", "answer": "null", "tests": []}]
    write_rows(tmp_path / f"in.{source}", rows)
    done = convert(tmp_path / f"in.{source}", tmp_path / f"out.{ending}")
    assert fields(tmp_path / f"out.{ending}") == rows and done.source == done.target == "prompt+answer"


def test_columns_are_renamed_and_repeats_dropped(tmp_path: Path) -> None:
    rows = [{"ask": "1", "reply": "a", "id": "x"}, {"ask": "1", "reply": "a", "id": "y"}, {"ask": "1", "reply": "b", "id": "z"}]
    done, made = run(tmp_path, rows, "messages", columns={"prompt": "ask", "completion": "reply"}, dedupe=True)
    assert [row["id"] for row in made] == ["x", "z"] and (done.repeats, done.rows) == (1, 3)
    with pytest.raises(InputError, match="no row has the field 'nowhere'"):
        run(tmp_path, rows, "messages", columns={"prompt": "ask", "completion": "reply", "system": "nowhere"})


def test_a_row_that_the_kind_of_file_cannot_carry_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "1", "answer": "a", "level": None}, {"prompt": "2", "answer": "b", "level": 3}]
    write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match="would be read as text") as refused:
        convert(tmp_path / "in.jsonl", tmp_path / "out.csv", "messages")
    assert refused.value.where == f"{tmp_path / 'out.csv'}: line 2 of in.jsonl, level"
    assert convert(tmp_path / "in.jsonl", tmp_path / "out.csv", "messages", Options(only_format_fields=True)).written == 2


ROWS = [{"prompt": f"prompt {number % 70}", "answer": str(number)} for number in range(100)]  # 30 prompts are there twice


def split(folder: Path, text: str, name: str = "parts", rows: list[dict[str, Any]] = ROWS, **options: Any) -> Conversion:
    write_rows(folder / "in.jsonl", rows, overwrite=True)
    return convert(folder / "in.jsonl", folder / name, options.pop("target", None), Options(split=parse_split(text), **options))


def test_parts_are_files_that_share_no_prompt(tmp_path: Path) -> None:
    done = split(tmp_path, "test=0.1,train=0.7,valid=20", target="messages", dedupe=True)
    parts = {path.stem: fields(path) for path in sorted((tmp_path / "parts").iterdir())}
    assert list(parts) == ["test", "train", "valid"] and done.files[0][0].endswith("train.jsonl")
    assert sum(map(len, parts.values())) + done.in_no_part == 100 == done.rows
    assert {name: len(rows) for name, rows in parts.items()} == {"test": 10, "train": 70, "valid": 20}
    asked = {name: {row["messages"][0]["content"] for row in rows} for name, rows in parts.items()}
    assert sum(map(len, asked.values())) == 70
    for rows in parts.values():
        order = [int(row["messages"][1]["content"]) for row in rows]
        assert order == sorted(order)


def test_the_same_seed_gives_the_same_parts(tmp_path: Path) -> None:
    """Of another kind of file, too, and with columns besides; another seed gives others. All rows are there: the shares are 1."""
    made = {}
    for name, options in {"a": {}, "b": {"kind": "csv"}, "c": {"seed": 1}}.items():
        done = split(tmp_path, "train=0.9,valid=0.1", name, **options)
        assert done.in_no_part == 0
        made[name] = [[row["answer"] for row in fields(Path(path))] for path, _ in done.files]
        assert sorted(int(answer) for part in made[name] for answer in part) == list(range(100))
    assert made["a"] == made["b"] != made["c"]


def test_chats_with_the_same_opening_stay_together(tmp_path: Path) -> None:
    rows = [{"messages": chat(f"u:{n % 10}", f"a:{n}", f"u:then {n}", f"a:so {n}")} for n in range(40)]
    split(tmp_path, "train=0.5,valid=0.5", rows=rows)
    train, valid = (
        {row["messages"][0]["content"] for row in fields(tmp_path / "parts" / f"{n}.jsonl")} for n in ("train", "valid")
    )
    assert len(train) == len(valid) == 5 and not train & valid


def test_parts_that_cannot_be_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    same = [{"prompt": "one", "answer": str(number)} for number in range(10)]
    for text, rows, what in (
        ("train=0.9,valid=0.1", same, "valid.jsonl would get no row"),
        ("train=0.99,valid=0.001", ROWS, "valid.jsonl would get no row"),
        ("train=101", ROWS, "more than all rows"),
    ):
        with pytest.raises(InputError, match=what):
            split(tmp_path, text, rows=rows)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "valid.jsonl").write_text("mine")
    for name, what, options in (
        ("file", "is a file", {}),
        ("full", "is there already", {}),
        ("parts", "'.xml' are not written", {"kind": "xml"}),
    ):
        with pytest.raises(InputError, match=what):
            split(tmp_path, "train=0.9,valid=0.1", name, **options)
    with pytest.raises(InputError, match="names the kind of files"):
        convert(tmp_path / "in.jsonl", tmp_path / "out.csv", None, Options(kind="csv"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "in.jsonl", "valid.jsonl"]
    assert (tmp_path / "full" / "valid.jsonl").read_text() == "mine"


def test_a_file_may_take_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    assert convert(path, path, "messages", Options(overwrite=True)).written == 100
    assert detect(fields(path)[0]) == "messages"


@pytest.mark.parametrize("split", ["", "train=0.5,valid=0.5"])
def test_an_end_midway_leaves_everything_as_it_was(tmp_path: Path, split: str) -> None:
    """A damaged line near the end, a caller that stops the work, a file that grows between the two passes."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out" / ("" if split else "rows.jsonl")
    options = Options(split=parse_split(split) if split else {})
    rows = [{"prompt": str(number), "answer": "1"} for number in range(3000)]
    write_rows(source, rows)
    content = source.read_bytes()

    def stopped(rows: int) -> None:
        if rows >= (5000 if split else 2000):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, "messages", options, stopped)
    source.write_bytes(content + b'{"prompt": "cut o')
    with pytest.raises(InputError, match="not valid JSON") as refused:
        convert(source, out, "messages", options)
    assert refused.value.where == f"{source}:3001"
    source.write_bytes(content)

    told: list[int] = []

    def grows(rows: int) -> None:
        told.append(rows)
        if told.count(3000) == 2:  # after the last row of the first pass
            source.write_bytes(content + content.splitlines(keepends=True)[0])

    if split:
        with pytest.raises(InputError, match="has changed"):
            convert(source, out, "messages", options, grows)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_rows_of_several_files_are_named_by_file_and_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "part-1.jsonl", [SOURCES["gsm8k"]] * 2)
    write_rows(tmp_path / "part-2.jsonl", [SOURCES["gsm8k"], {"question": "Q", "answer": "none"}])
    done = convert(tmp_path / "part-*.jsonl", tmp_path / "out.jsonl", "prompt+answer")
    assert done.written == 3 and done.left_out[0].lines == (4,) and "(part-2.jsonl, line 2)" in done.left_out[0].reason
    with (tmp_path / "part-2.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(InputError, match="not valid JSON") as refused:
        convert(tmp_path / "part-*.jsonl", tmp_path / "new.jsonl", "prompt+answer")
    assert refused.value.where == f"{tmp_path / 'part-2.jsonl'}:3" and not (tmp_path / "new.jsonl").exists()


def test_unknown_formats_are_refused_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"a": "1"}])
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "1", "chosen": "2", "rejected": "3"}])
    out = tmp_path / "out.jsonl"
    for name, target, format, where, what in (
        ("in", "messages", "auto", str(tmp_path / "in.jsonl"), "no row has the fields"),
        ("in", "sharegpt", "auto", "--to", "converted to 'sharegpt'"),
        ("in", "messages", "sharegpt", "--format", "unknown data format"),
        ("pairs", "messages", "auto", str(tmp_path / "pairs.jsonl"), "preference"),
        (
            "in",
            "messages",
            "gsm8k",
            str(tmp_path / "in.jsonl"),
            "none of its 1 rows can be written as messages: line 1: 'question'",
        ),
    ):
        with pytest.raises(InputError, match=what) as refused:
            convert(tmp_path / f"{name}.jsonl", out, target, Options(format=format))
        assert refused.value.where == where and refused.value.remedy
    assert not out.exists()
