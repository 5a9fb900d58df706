"""A data file is read back to the rows that it was written from, is whole or not there, and refuses what it cannot carry."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.rows import Row, read_rows
from engine.data.writing import RowFile, write_rows
from engine.errors import InputError

JSON_KINDS = ("jsonl", "json", "jsonl.gz", "json.gz")
KINDS = (*JSON_KINDS, "csv", "csv.gz", "parquet")
NASTY = ["007", "null", "true", "1e5", "NaN", "a,b", '"', 'say "x", y', "\n", "a\r\nb\rc", "\r", "a\rb", "\ufeffx",
         "\u2028\u2029\x85", "🎲日",
         "\0", " x ", "'", ";", "\t", "=1+1", "[1, 2", "{not json}", "\\n", "\\ud83d", "#", "-", "\x1c\x0b\x0c"]  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"{text}?",
        "answer": text,
        "messages": [{"role": "user", "content": text}],
        "meta": {"steps": [], "n": [1, 2]},
        "k": None,
    }
    for text in NASTY
] + [{"prompt": "[1", "answer": "[1, 2]", "messages": [], "meta": None, "k": "x", "only here": "late"}]

text = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=("Cs",)), max_size=8))
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def read(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path))
    assert all(isinstance(row, Row) for row in rows), rows
    return [dict(row.fields) for row in rows if isinstance(row, Row)]


def typed(rows: list[dict[str, Any]], table: bool = False) -> list[str]:
    """The rows with their types and the order of inner names; of a table without the nulls of its columns."""
    return [repr(sorted((name, value) for name, value in row.items() if not table or value is not None)) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(tmp_path: Path, kind: str) -> None:
    """Also into a folder that is made, and the same rows give the same bytes."""
    path, again = tmp_path / "a" / "b" / f"rows.{kind}", tmp_path / f"again.{kind}"
    assert write_rows(path, iter(ROWS)) == len(ROWS) == write_rows(again, ROWS)
    assert typed(read(path), table=True) == typed(ROWS, table=True)
    assert path.read_bytes() == again.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["answer", "text", "a", "b", "ü 1", "x;y"]) | text, value), min_size=1, max_size=4
    )
)
def test_any_rows_are_read_back_or_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON carries all of them; a table says which row and field it cannot carry. Never does a file say something else."""
    for kind in ("jsonl", "json", "csv", "parquet"):
        path = tmp_path / f"rows.{kind}"
        try:
            write_rows(path, rows, overwrite=True)
        except InputError as error:
            assert kind in ("csv", "parquet") and error.remedy and error.where.startswith(f"{path}: "), error
        else:
            assert typed(read(path), kind in ("csv", "parquet")) == typed(rows, kind in ("csv", "parquet")), kind


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"answer": text | st.none(), "note": text, "list": st.lists(text)}), min_size=1, max_size=5
    )
)
def test_a_csv_file_carries_any_text(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """All but the empty text, which would be null, and a text that is JSON in a column that is not text by its name."""
    for row in rows:
        row["answer"], row["note"] = row["answer"] or None, f"'{row['note']}"
    write_rows(tmp_path / "rows.csv", rows, overwrite=True)
    assert read(tmp_path / "rows.csv") == rows


NOT_CARRIED: list[tuple[str, Any, tuple[str, ...], str]] = [
    ("x", float("nan"), KINDS, "row 2, x"),
    ("x", [0.5, float("-inf")], KINDS, "row 2, x[1]"),
    ("x", {"y": "\ud800"}, KINDS, "row 2, x.y"),
    ("x\ud800", "1", KINDS, "row 2"),
    ("x", {1: "a"}, KINDS, "row 2, x"),
    ("x", [(1, 2)], KINDS, "row 2, x[0]"),
    ("x", 10**5000, KINDS, "row 2, x"),
    ("answer", 42, ("csv",), "row 2, answer"),
    ("x", True, ("csv",), "row 2, x"),
    ("x", "", ("csv",), "row 2, x"),
    ("x", "[1]", ("csv",), "row 2, x"),
    ("answer", ["a"], ("csv",), "row 2, answer"),
    (" x", "a", ("csv",), "row 2,  x"),
    ("x\ny", "a", ("csv",), "row 2, x\ny"),
    ("p", 1, ("parquet",), "row 2, p"),
    ("x", [1, "a"], ("parquet",), "row 2, x"),
    ("x", [1, 0.5], ("parquet",), "row 2, x"),
    ("x", [{"a": 1}, {"b": 1}], ("parquet",), "row 2, x"),
    ("x", [{"a": 1, "b": 1}, {"b": 1, "a": 1}], ("parquet",), "row 2, x"),
    ("x", 2**63, ("parquet",), "row 2, x"),
    ("x", {}, ("parquet",), "row 2, x"),
]


@pytest.mark.parametrize(("name", "value", "kinds", "place"), NOT_CARRIED, ids=range(len(NOT_CARRIED)))
def test_what_a_kind_cannot_carry_is_refused_with_its_place(
    tmp_path: Path, name: str, value: Any, kinds: tuple[str, ...], place: str
) -> None:
    rows = [{"p": "a"}, {"p": "b", name: value}]
    for kind in ("jsonl", "csv", "parquet"):
        path = tmp_path / "new" / f"rows.{kind}"
        if kind in kinds:
            with pytest.raises(InputError) as refused:
                write_rows(path, rows)
            assert refused.value.where == f"{path}: {place}" and refused.value.remedy
            assert not path.parent.exists()
        elif kind == "jsonl":
            assert write_rows(path, rows) == 2 and read(path) == rows
            path.unlink()
            path.parent.rmdir()


def test_tables_refuse_what_would_be_no_row_or_other_columns(tmp_path: Path) -> None:
    for rows, place in (([{"a": "x"}, {"a": " "}], "row 2, a"), ([{"a;b": "x"}], "the first line, a;b"), ([{}], "every row")):
        with pytest.raises(InputError) as refused:
            write_rows(tmp_path / "rows.csv", rows)
        assert refused.value.where.endswith(place)
    assert list(tmp_path.iterdir()) == []


def broken(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"a": str(number)}
    raise RuntimeError("the rows end here")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fail_midway_leave_everything_as_it_was(tmp_path: Path, kind: str) -> None:
    path, old = tmp_path / "new" / f"rows.{kind}", tmp_path / f"old.{kind}"
    old.write_bytes(b"mine")
    for target in (path, old):
        with pytest.raises(RuntimeError):
            write_rows(target, broken(3000), overwrite=True)
    assert old.read_bytes() == b"mine" and [each.name for each in tmp_path.iterdir()] == [old.name]


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    """Also one that somebody else writes while the rows are read."""
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match="is there already"), RowFile(path) as file:
        file.add({"a": 1})
        path.write_bytes(b"theirs")
        file.publish()
    assert path.read_bytes() == b"theirs" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="is there already"):
        write_rows(path, [{"a": 1}])
    assert write_rows(path, [{"a": 1}], overwrite=True) == 1 and read(path) == [{"a": 1}]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for name, what in {
        "rows.txt": "'.txt' are not written",
        "rows": "no ending",
        "rows.parquet.gz": "compressed",
        "folder.csv": "is a folder",
        "file/rows.csv": "cannot be written",
        f"{'x' * 300}.csv": "cannot be written",
    }.items():
        with pytest.raises(InputError, match=what) as refused:
            write_rows(tmp_path / name, [{"a": "1"}], overwrite=True)
        assert str(tmp_path / name) in refused.value.where and refused.value.remedy
    with pytest.raises(InputError, match="no rows"):
        write_rows(tmp_path / "none.json", [])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    """The limit of a file's size stands in for the disk: it, too, is an OSError at some write, flush or close."""
    rows = [{"a": f"{number * 7919 % 10007:x}" * 8} for number in range(4000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_rows(tmp_path / f"rows.{kind}", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_parquet_names_the_extra(tmp_path: Path) -> None:
    """In a process where it cannot be imported; nothing is made."""
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path; from engine.data.writing import write_rows; from engine.errors import InputError\n"
        "try: write_rows(Path(sys.argv[1]), [{'a': 1}])\n"
        "except InputError as error: print(error.remedy)"
    )
    path = tmp_path / "new" / "rows.parquet"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "droid-tune[parquet]" in done.stdout and not path.parent.exists()


def test_files_are_what_other_tools_read(tmp_path: Path) -> None:
    rows = [{"a": "ä\n", "b": [1]}, {"a": "x"}]
    write_rows(tmp_path / "rows.json", rows)
    write_rows(tmp_path / "rows.csv", rows)
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")) == rows
    assert (tmp_path / "rows.csv").read_bytes() == 'a,b\n"ä\n",[1]\nx,\n'.encode()
