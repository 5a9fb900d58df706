"""Every format in every kind of file gives the same rows, examples and prompts; folders; what readers hold in memory."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config as configs
from engine.data import formats, json_rows
from engine.data.rows import check_file, read_rows, row_at
from engine.data.values import Problem, Row
from engine.errors import InputError
from tests.support.data_files import KINDS, data_bytes, write_file

ODD = 'He said "2, 3; 4"\n\tand\u2028 日本語 🎲'
CHAT = [{"role": "user", "content": ODD}, {"role": "assistant", "content": "[4]"}]
ROWS: dict[str, list[dict[str, Any]]] = {  # strings and lists only: CSV has no numbers
    "prompt+answer": [
        {"prompt": ODD, "answer": "[1, 2]", "system": None, "type": "a", "choices": ["x", "y"]},
        {"prompt": "{b}", "answer": "{}", "system": "S", "type": "b", "choices": ["z"]},
    ],
    "gsm8k": [{"question": ODD, "answer": "2+2 = 4\n#### 4"}, {"question": "3?", "answer": "#### 3"}],
    "messages": [{"messages": CHAT, "answer": None}, {"messages": [*CHAT, CHAT[0]], "answer": "4"}],
    "prompt+completion": [{"prompt": ODD, "completion": "x"}, {"prompt": "b", "completion": '{"y": 1}'}],
    "instruction": [{"instruction": "Add.", "input": ODD, "output": "4"}, {"instruction": "Hi", "input": None, "output": "Ho"}],
    "reasoning": [
        {
            "problem": ODD,
            "reasoning_steps": ["2+2 = 4", "4*2 = 8, so"],
            "solution": "It is 8.\n#### 8",
            "sparse_indicators": [False, True],
            "efficiency_markers": {"target_tokens": 40},
            "domain": "arithmetic",
            "expertise_level": "beginner",
            "domain_context": {"units": ["m", "s"]},
        },
        {
            "problem": "3?",
            "reasoning_steps": ["3"],
            "solution": "3",
            "sparse_indicators": [True],
            "efficiency_markers": {"target_tokens": 10},
            "domain": "arithmetic",
            "expertise_level": None,
            "domain_context": {"units": ["kg"]},
        },
    ],
}


needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra `parquet` is not installed")
EVERY_KIND = [pytest.param(kind, marks=needs_pyarrow) if kind == "parquet" else kind for kind in KINDS]


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("format", ROWS)
def test_every_format_in_every_kind_of_file(tmp_path: Path, kind: str, format: str) -> None:
    """Plain, with a byte order mark, with CRLF, and zipped: the same rows, and so the same examples."""
    rows = ROWS[format]
    for place, how in enumerate(({}, {"bom": True}, {"zipped": True}, {"bom": True, "zipped": True})):
        folder = tmp_path / str(place)
        folder.mkdir()
        path = write_file(folder, kind, rows, **how)
        assert [row.fields for row in read_rows(path) if isinstance(row, Row)] == rows, how
        for supervised in ("sft", "rl"):
            data = formats.load(path, kind=supervised, format="auto")  # type: ignore[arg-type]
            plain = [formats.to_example(Row(1, row), format, supervised, None) for row in rows]  # type: ignore[arg-type]
            assert (data.format, data.problems) == (format, ())
            assert [(e.messages, e.completion, e.answer, e.columns) for e in data.examples] == [
                (e.messages, e.completion, e.answer, e.columns) for e in plain if not isinstance(e, Problem)
            ]
    crlf = tmp_path / "crlf"
    crlf.mkdir()
    if kind != "parquet" and not kind.startswith("csv"):  # in CSV a line break inside a cell is the cell's own
        assert [r.fields for r in read_rows(write_file(crlf, kind, rows, crlf=True)) if isinstance(r, Row)] == rows


def test_crlf_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,answer\r\n\r\n"a\r\nb",1\r\nc,2\r\n')
    assert list(read_rows(path)) == [Row(3, {"prompt": "a\r\nb", "answer": "1"}), Row(5, {"prompt": "c", "answer": "2"})]


def test_csv_cells(tmp_path: Path) -> None:
    """JSON where it is valid and the column is none of those that hold text; a column without a name gets one."""
    path = tmp_path / "rows.csv"
    path.write_text(',answer,tests,note,gold\n0,"[1, 2]","[1, 2]",[see below],"[3]"\n')
    (row,) = read_rows(path)
    assert isinstance(row, Row)
    assert row.fields == {"column_1": "0", "answer": "[1, 2]", "tests": [1, 2], "note": "[see below]", "gold": [3]}
    renamed = formats.scan(path, kind="rl", format="prompt+answer", columns={"answer": "gold", "prompt": "note"})
    assert renamed.examples[0].answer == "[3]", "a column that is renamed to one that holds text stays text"


def test_tabs(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt\tanswer\n1,5?\t2\n")
    assert list(read_rows(path)) == [Row(2, {"prompt": "1,5?", "answer": "2"})]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_rows_of_three_megabytes(tmp_path: Path, kind: str) -> None:
    long = '"x, \\' * 600_000
    rows = [{"prompt": long, "answer": "1"}, {"prompt": "y", "answer": "2"}, {"prompt": long + "z", "answer": "3"}]
    found = [row.fields["prompt"] for row in read_rows(write_file(tmp_path, kind, rows)) if isinstance(row, Row)]
    assert [len(prompt) for prompt in found] == [3_000_000, 1, 3_000_001]


@pytest.mark.parametrize("kind", ["jsonl", "json", "json-data", "json-lines", "csv"])
def test_readers_hold_one_row_at_a_time(tmp_path: Path, kind: str) -> None:
    """A file of 8 MB of rows of 10 KB: reading it takes less than 3 MB."""
    path = write_file(tmp_path, kind, [{"prompt": "x" * 10_000, "answer": str(i)} for i in range(800)])
    tracemalloc.start()
    count = sum(isinstance(row, Row) for row in read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 800 and path.stat().st_size > 8_000_000 and peak < 3_000_000


# ---- .json


def test_numbers_of_rows_in_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n{"meta": {"data": 3}, "data":\n [ {"a": 1} , 5,\n\n {"b": 2} ] , "more": null }\n')
    first, second, third = read_rows(path)
    assert (first, third) == (Row(1, {"a": 1}), Row(3, {"b": 2}))
    assert isinstance(second, Problem) and (second.line, second.kind) == (2, "not-object")


@pytest.mark.parametrize(("kind", "second"), [("jsonl", 2), ("json-data", 2), ("csv", 3)])
def test_a_row_by_the_number_in_its_report(tmp_path: Path, kind: str, second: int) -> None:
    """In a .csv file the second row is on the third line."""
    path = write_file(tmp_path, kind, pairs("a", "b"), zipped=True)
    assert row_at(path, second) == Row(second, pairs("b")[0]) and row_at(path, 9) is None


@pytest.mark.parametrize("text", ["[]", " [ ]\n", '{"data": []}'])
def test_json_without_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no rows"):
        formats.load(path, kind="rl")


def test_one_object_is_one_row(tmp_path: Path) -> None:
    """A row may have a column called data, as long as that holds no objects."""
    path = tmp_path / "rows.json"
    path.write_text('{"prompt": "a", "answer": "b", "data": [1]}')
    assert list(read_rows(path)) == [Row(1, {"prompt": "a", "answer": "b", "data": [1]})]


# ---- folders


def pairs(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "answer": "1"} for prompt in prompts]


def config(train: Path, valid: Path | None = None) -> configs.RunConfig:
    text = f"{{model: demo, method: grpo, data: {{train: '{train}', valid: {json.dumps(valid and str(valid))}}}, "
    return configs.parse(text + "rewards: [{name: answer}]}", base=Path.cwd()).config


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "validation-00000-of-00001"])
def test_a_folder(tmp_path: Path, name: str) -> None:
    write_file(tmp_path, "csv", pairs("a", "b", "c"), stem="train", zipped=True)
    write_file(tmp_path, "json", pairs("d"), stem=name)
    write_file(tmp_path, "jsonl", pairs("e"), stem="test")
    (tmp_path / "README.md").write_text("notes")
    data = formats.load_training_data(config(tmp_path))
    assert [example.messages[0].content for example in data.train] == ["a", "b", "c"]
    assert [example.messages[0].content for example in data.held_out] == ["d"]
    assert [file.path.name for file in data.files] == ["train.csv.gz", f"{name}.json"]
    assert check_file(tmp_path).name == "train.csv.gz" and len(list(read_rows(tmp_path))) == 3


def test_a_folder_without_a_valid_file_is_split(tmp_path: Path) -> None:
    write_file(tmp_path, "jsonl", pairs(*"abcdefghij"), stem="train")
    data = formats.load_training_data(config(tmp_path))
    assert (len(data.files), len(data.train), len(data.held_out)) == (1, 8, 2)
    other = write_file(tmp_path, "jsonl", pairs("x"), stem="mine")
    assert [e.messages[0].content for e in formats.load_training_data(config(tmp_path, other)).held_out] == ["x"]
    with pytest.raises(InputError, match="folder without a valid file"):
        formats.load_training_data(config(other, tmp_path))


def test_a_folder_that_leaves_it_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a train file") as caught:
        formats.load_training_data(config(tmp_path))
    assert caught.value.where == str(tmp_path) and "train.jsonl" in caught.value.remedy
    write_file(tmp_path, "jsonl", pairs("a"), stem="train")
    write_file(tmp_path, "csv", pairs("a"), stem="train")
    with pytest.raises(InputError, match=r"several files could be the train file: train\.csv, train\.jsonl"):
        check_file(tmp_path)


# ---- parquet


@needs_pyarrow
def test_values_of_parquet_that_json_has_not(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.datetime(2024, 2, 29, 12)
    good = {"prompt": "a", "answer": decimal.Decimal("1.50"), "day": day, "score": float("nan"), "raw": b"text"}
    rows = [good, good | {"raw": b"\xff\xd8"}, good | {"score": float("inf")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    first, second, third = read_rows(tmp_path / "rows.parquet")
    expected = {"prompt": "a", "answer": "1.50", "day": "2024-02-29T12:00:00", "score": None, "raw": "text"}
    assert first == Row(1, expected)
    assert isinstance(second, Problem) and (second.kind, second.field, second.line) == ("not-text", "raw", 2)
    assert isinstance(third, Problem) and (third.kind, third.field, third.line) == ("not-text", "score", 3)


def test_parquet_without_its_package(tmp_path: Path) -> None:
    """In a process where pyarrow cannot be imported."""
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    code = (
        "import sys, pathlib; sys.modules['pyarrow'] = None\n"
        "from engine.data.rows import read_rows\nfrom engine.errors import InputError\n"
        "try: next(read_rows(pathlib.Path(sys.argv[1])))\nexcept InputError as error: print(error)"
    )
    root = Path(__file__).parents[2]
    call = [sys.executable, "-c", code, str(tmp_path / "rows.parquet")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=root, check=True)
    assert "needs pyarrow, which is not installed" in done.stdout and "droid-tune[parquet]" in done.stdout


# ---- any rows and any bytes: drawing rows takes longer than reading them, so each is read from every kind of file

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT.filter(lambda name: name not in json_rows.WRAPPERS), VALUES, min_size=1, max_size=4)


JSON_KINDS = KINDS[:6]


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(OBJECTS, min_size=1, max_size=4),
    zipped=st.booleans(),
    bom=st.booleans(),
    place=st.integers(0, 1 << 16),
    size=st.integers(1, 38),
)
def test_any_json_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], zipped: bool, bom: bool, place: int, size: int
) -> None:
    """From every kind of file as they were, from a part of it never as if it were the whole, and by buffers of any size."""
    folder = tmp_path_factory.getbasetemp()
    for kind in JSON_KINDS:
        path = write_file(folder, kind, rows, zipped=zipped, bom=bom)
        assert [row.fields if isinstance(row, Row) else row for row in read_rows(path)] == rows, kind
        assert_cut_off(folder / path.name.removesuffix(".gz"), kind, rows, place)
    assert_in_pieces(rows, size)


def assert_cut_off(path: Path, kind: str, rows: list[dict[str, Any]], place: int) -> None:
    """Cut anywhere: the rows before the cut come back as they were, and a row that was cut is a problem."""
    whole = data_bytes(kind, rows).rstrip()
    cut = 1 + place % (len(whole) - 1)
    path.write_bytes(whole[:cut])
    found = list(read_rows(path))
    good = [row.fields for row in found if isinstance(row, Row)]
    assert good == rows[: len(good)], kind
    complete = kind in ("jsonl", "json-lines")  # cut between two rows, such a file is whole
    between = whole[cut : cut + 1] == b"\n" or whole[cut - 1 : cut] == b"\n"
    assert len(good) < len(found) or (complete and between), kind


def assert_in_pieces(rows: list[dict[str, Any]], size: int) -> None:
    """Every token is cut somewhere by the end of a buffer."""
    for length in (size, size + 1, size + 2):
        text = json.dumps({"x": 1.5e-7, "data": rows}, ensure_ascii=length % 2 == 0).encode()
        assert [row.fields for row in json_rows.values(io.BytesIO(text), length) if isinstance(row, Row)] == rows


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "answer": TEXT}), min_size=1, max_size=4))
def test_any_text_comes_back_from_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    """An empty cell is null, and a prompt that is JSON is read as JSON: so both are kept out here."""
    wanted = [{name: "'" + text for name, text in row.items()} for row in rows]
    for kind in ("csv", "csv-semicolon"):
        path = write_file(tmp_path_factory.getbasetemp(), kind, wanted)
        assert [row.fields if isinstance(row, Row) else row for row in read_rows(path)] == wanted, kind


@settings(deadline=None, max_examples=400)
@given(
    content=st.binary(min_size=1, max_size=60) | st.text("[]{}:,\"\\ \n\rab1e-0.ntru'", min_size=1, max_size=40).map(str.encode),
    ending=st.sampled_from((".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")),
)
def test_any_bytes_give_rows_problems_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(content)
    for kind in ("rl", "sft"):
        try:
            data = formats.scan(path, kind=kind)  # type: ignore[arg-type]
        except InputError as error:
            assert error.what and error.where and error.remedy
        else:
            assert data.rows == len(data.examples) + len(data.problems) > 0
            assert all(problem.reason and problem.remedy and problem.line >= 1 for problem in data.problems)
