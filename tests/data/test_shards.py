"""Several files as one table: which are taken together, which are refused, and how their rows are numbered."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engine.data import formats
from engine.data.rows import check_file, file_sha256, place, read_rows, row_at
from engine.data.values import Problem, Row
from engine.data_names import RowRange, cut, hub_id
from engine.errors import InputError
from tests.support.data_files import KINDS, write_file

CHAT = [{"role": "user", "content": 'Say "2, 3"'}, {"role": "assistant", "content": "[4]"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "prompt+answer": [{"prompt": f"p{i}\n", "answer": f"[{i}]"} for i in range(5)],
    "messages": [{"messages": [*CHAT, CHAT[0]], "answer": str(i)} for i in range(5)],
    "text": [{"text": f'{i}: He said "2, 3; 4"\n\tand\u2028 日本語 🎲'} for i in range(5)],
}


needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra `parquet` is not installed")
EVERY_KIND = [pytest.param(kind, marks=needs_pyarrow) if kind == "parquet" else kind for kind in KINDS]


def write_shards(folder: Path, kind: str, rows: list[dict[str, Any]], count: int = 3, **how: Any) -> list[Path]:
    """Rows in turns over `count` shards, the last of which has the rest: 5 rows in 3 shards are 1, 1 and 3."""
    each = len(rows) // count
    parts = [rows[i * each : (i + 1) * each if i + 1 < count else len(rows)] for i in range(count)]
    return [write_file(folder, kind, part, stem=f"train-{i:05d}-of-{count:05d}", **how) for i, part in enumerate(parts)]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_shards_of_every_kind_are_the_rows_of_one_file(tmp_path: Path, kind: str) -> None:
    for zipped in (False, True):
        for name, rows in ROWS.items():
            folder = tmp_path / f"{name}-{zipped}"
            folder.mkdir()
            write_shards(folder, kind, rows, zipped=zipped)
            assert [row.fields for row in read_rows(folder) if isinstance(row, Row)] == rows
            data = formats.load(folder, kind="sft")
            assert (data.format, data.rows, data.problems) == (name, 5, ())
            plain = [formats.to_example(Row(1, row), name, "sft", None) for row in rows]
            assert [(e.messages, e.completion) for e in data.examples] == [
                (e.messages, e.completion) for e in plain if not isinstance(e, Problem)
            ]


def test_rows_are_numbered_on_and_found_again(tmp_path: Path) -> None:
    """Shards of 1, 1 and 3 rows: the second row of the last one is the fourth of all."""
    files = write_shards(tmp_path, "jsonl", ROWS["prompt+answer"])
    assert [row.line for row in read_rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert place(tmp_path, 4) == (files[2], 2) and place(files[2], 2) == (files[2], 2)
    assert row_at(tmp_path, 4) == Row(4, ROWS["prompt+answer"][3]) and row_at(tmp_path, 6) is None


def test_a_problem_says_its_shard_and_its_own_line(tmp_path: Path) -> None:
    first, second, third = write_shards(tmp_path, "jsonl", ROWS["prompt+answer"])
    first.write_text('{"prompt": "a"}\n')
    third.write_text('\n{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": ""}\n')
    found = formats.scan(tmp_path, kind="rl").problems
    assert [(problem.line, problem.reason.partition(" (")[2]) for problem in found] == [
        (1, f"{first.name}, line 1)"),
        (5, f"{third.name}, line 3)"),  # behind one row each in the others
    ]
    second.write_text("{oops\n")
    with pytest.raises(InputError, match="not valid JSON") as caught:
        formats.load(tmp_path, kind="rl")
    assert caught.value.where == f"{second}:1"


def test_the_hash_is_of_all_shards_in_order(tmp_path: Path) -> None:
    files = write_shards(tmp_path, "jsonl", ROWS["prompt+answer"])
    own = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    data = formats.scan(tmp_path, kind="rl")
    assert data.sha256 == file_sha256(data.path) == hashlib.sha256(own).hexdigest()
    assert file_sha256(files[0]) == hashlib.sha256(files[0].read_bytes()).hexdigest()
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[1])
    files[1].write_bytes(contents[0])
    assert file_sha256(data.path) != data.sha256


def test_shards_are_read_one_after_the_other(tmp_path: Path) -> None:
    """The second is damaged, and the rows of the first come all the same."""
    _, second, _ = write_shards(tmp_path, "jsonl", ROWS["prompt+answer"], zipped=True)
    rows = read_rows(tmp_path)
    second.write_bytes(b"no gzip")
    assert next(rows) == Row(1, ROWS["prompt+answer"][0])
    with pytest.raises(InputError, match="not a whole gzip file") as caught:
        next(rows)
    assert caught.value.where == str(second)


def test_what_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    def refused(what: str, *names: str, path: str = "") -> None:
        for old in tmp_path.iterdir():
            old.unlink()
        for name in names:
            (tmp_path / name).write_text('prompt,answer\n1,2\n{"prompt": "a", "answer": "b"}\n')
        with pytest.raises(InputError) as caught:
            check_file(tmp_path / path)
        assert what in caught.value.what and str(tmp_path) in caught.value.where and caught.value.remedy

    refused("of its 4 shards these are missing: train-00001-of-00004.csv", *(f"train-{i:05d}-of-00004.csv" for i in (0, 2, 3)))
    refused("train-00001-of-00012.csv, train-00002-of-00012.csv, train-00003-of-00012.csv and 8 more", "train-00000-of-00012.csv")
    refused("different endings: .csv, .jsonl", "train-00000-of-00002.csv", "train-00001-of-00002.jsonl")
    refused("different endings: .csv, .csv.gz", "train-00000-of-00002.csv", "train-00001-of-00002.csv.gz")
    refused("several files could be the train file", "train-00000-of-00001.csv", "train-00000-of-00002.csv")
    refused("several files could be the train file", "train.csv", "train-00000-of-00001.csv")
    refused("3 files are shards of 2", *(f"train-{i}.csv" for i in ("0-of-2", "1-of-2", "00001-of-2")))
    refused("without a train file", "train_0.csv", "train_1.csv")
    refused("no file has such a name", "a.csv", path="b*.csv")
    refused("different kinds: .csv, .jsonl", "a1.csv", "a2.jsonl", path="a*")
    refused("shards of several tables", "a-0-of-1.csv", "b-0-of-1.csv", path="*.csv")
    refused("these are missing: a-1-of-2.csv", "a-0-of-2.csv", path="a-*.csv")


def test_a_pattern_takes_files_together_that_only_look_alike(tmp_path: Path) -> None:
    """Numbers in names count as numbers: 2 before 10."""
    for i in (10, 2, 1):
        write_file(tmp_path, "jsonl", [{"prompt": str(i), "answer": "1"}], stem=f"train_{i}")
    rows = list(read_rows(tmp_path / "train_*.jsonl"))
    assert [row.fields["prompt"] for row in rows if isinstance(row, Row)] == ["1", "2", "10"]


def test_hashes_behind_the_count_and_a_point_before_the_number(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002-ab12.jsonl", "train-00001-of-00002-cd34.jsonl", "dev.0-of-2.jsonl", "dev.1-of-2.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name, "answer": "1"}) + "\n")
    assert check_file(tmp_path).name == "train-*-of-00002-*.jsonl" and len(list(read_rows(tmp_path))) == 2
    assert len(list(read_rows(tmp_path / "dev.*-of-2.jsonl"))) == 2


# 10 rows, numbered from 0. A percentage is of 10 rows; -10% of them is the last.
RANGES = {
    "[:3]": (0, 1, 2),
    "[8:]": (8, 9),
    "[-2:]": (8, 9),
    "[:80%]": tuple(range(8)),
    "[80%:]": (8, 9),
    "[-10%:]": (9,),
    "[25%:5]": (2, 3, 4),  # 2.5 rows round to the even 2
    "[:]": tuple(range(10)),
    "[:99]": tuple(range(10)),
    "[5:2]": (),
}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "shards"])
def test_some_rows_of_a_file(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": str(i), "answer": "1"} for i in range(10)]
    path = tmp_path if kind == "shards" else write_file(tmp_path, kind, rows)
    if kind == "shards":
        write_shards(tmp_path, "jsonl", rows)
    for text, wanted in RANGES.items():
        found = [row for row in read_rows(Path(f"{path}{text}")) if isinstance(row, Row)]
        assert [int(row.fields["prompt"]) for row in found] == list(wanted), text
        assert [row.line for row in found] == [i + (2 if kind == "csv" else 1) for i in wanted], "they keep their numbers"
    with pytest.raises(InputError, match=r"no rows are in \[5:2\]"):
        formats.scan(Path(f"{path}[5:2]"), kind="rl")


def test_names_of_data() -> None:
    """What is an id of the hub, what a path, and that a name is written as it is read."""
    for text in (
        "o/n",
        "o/n:en",
        "o/n@v1",
        "o/n:en@refs/convert/parquet#train_sft[:80%]",
        "o/n#a/b.jsonl",
        "o.x/n-1.5#test[-5:]",
    ):
        named = hub_id(text)
        assert named is not None and str(named) == text
    for text in (
        "rows.jsonl",
        "o/rows.jsonl",
        "o/rows.csv.gz",
        "./o/n",
        "../n",
        "/o/n",
        "~/n",
        "a/b/c",
        "o/n*",
        "name",
        "o/n[1]",
    ):
        assert hub_id(text) is None, text
    assert cut("a[1:2]") == ("a", RowRange("1", "2")) and cut("a[1]") == ("a[1]", None)


def test_a_file_that_is_there_is_no_pattern_and_no_range(tmp_path: Path) -> None:
    for name, others in (("odd*.jsonl", "odd2.jsonl"), ("odd[1:2].jsonl", "odd.jsonl")):
        (tmp_path / name).write_text('{"prompt": "a", "answer": "1"}\n')
        (tmp_path / others).write_text("{oops\n")
        assert list(read_rows(tmp_path / name)) == [Row(1, {"prompt": "a", "answer": "1"})]
