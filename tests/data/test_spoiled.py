"""Spoiled files: each gives the stated problem on the stated row, or one InputError; none is accepted in silence."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engine.data.validate import validate
from engine.errors import InputError
from tests.support.data_files import data_bytes

GOOD = {"prompt": "What is 2+2?", "answer": "4"}
CHAIN = {"problem": "2+2?", "reasoning_steps": ["2", "4"], "solution": "4"}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"
PARQUET = find_spec("pyarrow") is not None

Problem = tuple[int, str, str]  # line, kind, part of the reason


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# name: file name, content, the problem or the part of the InputError
BROKEN: dict[str, tuple[str, bytes, Problem | str]] = {
    # .jsonl
    "cut line": ("a.jsonl", GOOD_LINE + b'{"prompt": "a", "ans', (2, "not-json", "Unterminated string")),
    "plain text": ("a.jsonl", GOOD_LINE + b"hello\n", (2, "not-json", "column 1")),
    "single quotes": ("a.jsonl", GOOD_LINE + b"{'prompt': 'a'}\n", (2, "not-json", "double quotes")),
    "comma at the end": ("a.jsonl", GOOD_LINE + b'{"prompt": "a", "answer": "b",}\n', (2, "not-json", "column 31")),
    "comma between lines": ("a.jsonl", GOOD_LINE[:-1] + b",\n" + GOOD_LINE, (1, "not-json", "Extra data")),
    "two rows on a line": ("a.jsonl", GOOD_LINE + GOOD_LINE[:-1] + GOOD_LINE, (2, "not-json", "Extra data")),
    "a comment": ("a.jsonl", b"// rows\n" + GOOD_LINE, (1, "not-json", "Expecting value")),
    "line break in a string": ("a.jsonl", GOOD_LINE + b'{"prompt": "a\nb", "answer": "1"}\n', (2, "not-json", "Unterminated")),
    "tab in a string": ("a.jsonl", GOOD_LINE + b'{"prompt": "a\tb", "answer": "1"}\n', (2, "not-json", "control character")),
    "not a number": ("a.jsonl", GOOD_LINE + b'{"prompt": "a", "answer": NaN}\n', (2, "not-json", "NaN")),
    "too large a number": ("a.jsonl", GOOD_LINE + b'{"prompt": "a", "answer": 1e999}\n', (2, "not-json", "too large")),
    "a key twice": ("a.jsonl", GOOD_LINE + b'{"prompt": "a", "prompt": "b", "answer": "1"}\n', (2, "not-json", "given twice")),
    "Latin-1": ("a.jsonl", GOOD_LINE + '{"prompt": "é", "answer": "1"}\n'.encode("latin-1"), (2, "not-utf8", "byte 13")),
    "half a character": ("a.jsonl", GOOD_LINE + b'{"prompt": "\\udc00", "answer": "1"}\n', (2, "bad-text", "other half")),
    "an array as a line": ("a.jsonl", GOOD_LINE + b'["a", "b"]\n', (2, "not-object", "an array")),
    "null as a line": ("a.jsonl", GOOD_LINE + b"null\n", (2, "not-object", "null")),
    "JSON array in .jsonl": ("a.jsonl", json.dumps([GOOD]).encode(), (1, "not-object", "an array")),
    "nested too deeply": ("a.jsonl", GOOD_LINE + b"[" * 100_000 + b"\n", (2, "not-json", "not valid JSON")),
    "zeros": ("a.jsonl", GOOD_LINE + b"\0" * 4096, (2, "not-json", "not valid JSON")),
    "UTF-16": ("a.jsonl", jsonl(GOOD).decode().encode("utf-16"), "UTF-16"),
    "blank lines": ("a.jsonl", b"\n \r\n\t\n", "no rows"),
    "nothing": ("a.jsonl", b"", "is empty"),
    "parquet named .jsonl": ("a.jsonl", b"PAR1\x15\x04\xff\xfe\x00", (1, "not-utf8", "byte 7")),
    # .json
    "cut array": ("a.json", json.dumps([GOOD, GOOD]).encode()[:-20], (2, "not-json", "not valid JSON")),
    "array without its end": ("a.json", json.dumps([GOOD, GOOD]).encode()[:-1], (3, "not-json", "cut off")),
    "no comma between": ("a.json", b"[" + GOOD_LINE + GOOD_LINE + b"]", (2, "not-json", "expected ',', found '{' (line 2")),
    "comma before the end": ("a.json", b"[" + GOOD_LINE + b",]", (2, "not-json", "Expecting value (line 2")),
    "text behind the array": ("a.json", b"[" + GOOD_LINE + b"] x", (2, "not-json", "more after the end")),
    "two arrays": ("a.json", b"[" + GOOD_LINE + b"][" + GOOD_LINE + b"]", (2, "not-json", "more after the end")),
    "a string": ("a.json", b'"rows"', (1, "not-json", "array or an object")),
    "numbers in the array": ("a.json", json.dumps([GOOD, 3]).encode(), (2, "not-object", "a number")),
    "Latin-1 .json": ("a.json", '[{"prompt": "é"}]'.encode("latin-1"), (1, "not-utf8", "byte 14 of the file")),
    "two lists of rows": ("a.json", json.dumps({"data": [GOOD], "samples": [GOOD]}).encode(), (2, "not-json", "both 'data'")),
    "key twice in .json": ("a.json", b'[{"prompt": "a", "prompt": "b"}]', (1, "not-json", "given twice")),
    "cut object": ("a.json", b'{"data": [' + GOOD_LINE, (2, "not-json", "cut off")),
    "unquoted name": ("a.json", b"{data: []}", (1, "not-json", "double quotes")),
    "white space alone": ("a.json", b"  \n ", "no rows"),
    "half a character in .json": ("a.json", b'[{"prompt": "\\ud800", "answer": "1"}]', (1, "bad-text", "other half")),
    "lists under another name": ("a.json", json.dumps({"rows": [GOOD]}).encode(), (1, "no-format", "rows")),
    # .csv
    "cell too many": ("a.csv", b"prompt,answer\na,1\nb,2,3\n", (3, "wrong-cells", "3 cells")),
    "cell too few": ("a.csv", b"prompt,answer\na,1\nb\n", (3, "wrong-cells", "1 cells")),
    "open quote": ("a.csv", b'prompt,answer\na,1\n"b,2\nc,3\n', (3, "not-csv", "end of data")),
    "text behind a quote": ("a.csv", b'prompt,answer\na,1\n"b"x,2\n', (3, "not-csv", "not valid CSV")),
    "empty cell": ("a.csv", b"prompt,answer\na,1\nb,\n", (3, "missing-field", "'answer' is null")),
    "only separators": ("a.csv", b"prompt,answer\na,1\n,\n", (3, "missing-field", "'prompt' is null")),
    "Latin-1 .csv": ("a.csv", "prompt,answer\na,1\né,2\n".encode("latin-1"), (3, "not-utf8", "line 3")),
    "Latin-1 in the header": ("a.csv", "prömpt,answer\na,1\n".encode("latin-1"), "first line is not UTF-8"),
    "a name twice": ("a.csv", b"prompt,prompt\na,1\n", "two columns are called 'prompt'"),
    "header alone": ("a.csv", b"prompt,answer\n", "no rows"),
    "no header": ("a.csv", b"What is 2+2?,4\nWhat is 3+3?,6\n", (2, "no-format", "What is 2+2?, 4")),
    "old line ends": ("a.csv", b"prompt,answer\ra,1\rb,2\r", "first line"),
    # fields
    "no answer": ("a.jsonl", jsonl(GOOD, {"prompt": "a"}), (2, "missing-field", "'answer' is missing")),
    "null answer": ("a.jsonl", jsonl(GOOD, {"prompt": "a", "answer": None}), (2, "missing-field", "'answer' is null")),
    "blank prompt": ("a.jsonl", jsonl(GOOD, {"prompt": " \n", "answer": "1"}), (2, "empty", "no text")),
    "answer as a list": ("a.jsonl", jsonl(GOOD, {"prompt": "a", "answer": ["1"]}), (2, "wrong-type", "an array")),
    "mixed formats": ("a.jsonl", jsonl(GOOD, GOOD, {"question": "a", "answer": "#### 1"}), (3, "other-format", "gsm8k")),
    "preference row": (
        "a.jsonl",
        jsonl(GOOD, {"prompt": "a", "chosen": "b", "rejected": "c"}),
        (2, "refused-format", "preference"),
    ),
    "preference file": (
        "a.jsonl",
        jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}),
        "preference methods are not there yet",
    ),
    "text file": ("a.jsonl", jsonl({"text": "a"}), "plain text"),
    "unknown fields": ("a.jsonl", jsonl({"q": "a", "a": "b"}), (1, "no-format", "q, a")),
    "role": ("a.jsonl", jsonl({"messages": [{"role": "bot", "content": "a"}]}), (1, "unknown-role", "'bot'")),
    "no question": ("a.jsonl", jsonl({"messages": [{"role": "assistant", "content": "a"}]}), (1, "no-prompt", "no user turn")),
    "gsm8k without ####": ("a.jsonl", jsonl({"question": "a", "answer": "4"}), (1, "no-reference", "no ####")),
    "steps as a number": ("a.jsonl", jsonl(CHAIN | {"reasoning_steps": 2}), (1, "wrong-type", "a number")),
    "no steps": ("a.jsonl", jsonl(CHAIN | {"reasoning_steps": []}), (1, "empty", "no step")),
    "blank step": ("a.jsonl", jsonl(CHAIN | {"reasoning_steps": ["a", " "]}), (1, "empty", "no text")),
    "step as an object": ("a.jsonl", jsonl(CHAIN | {"reasoning_steps": [{"text": "a"}]}), (1, "wrong-type", "an object")),
    "tag in a step": ("a.jsonl", jsonl(CHAIN | {"reasoning_steps": ["</think>"]}), (1, "tags-in-text", "</think>")),
    "too few marks": ("a.jsonl", jsonl(CHAIN | {"sparse_indicators": [1]}), (1, "wrong-length", "1 marks for 2 steps")),
    "mark out of range": ("a.jsonl", jsonl(CHAIN | {"sparse_indicators": [1, 2]}), (1, "wrong-type", "no weight")),
    "marks of no step": ("a.jsonl", jsonl(CHAIN | {"sparse_indicators": "so"}), (1, "marks-nothing", "no step contains 'so'")),
    "marks as an object": ("a.jsonl", jsonl(CHAIN | {"sparse_indicators": {"0": 1}}), (1, "wrong-type", "an object")),
    "terms as numbers": ("a.jsonl", jsonl(CHAIN | {"domain_context": ["m", 2]}), (1, "wrong-type", "a number")),
    "domain as a list": ("a.jsonl", jsonl(CHAIN | {"domain": ["law"]}), (1, "wrong-type", "an array")),
    "context within context": ("a.jsonl", jsonl(CHAIN | {"domain_context": {"a": {}}}), (1, "wrong-type", "an object")),
    "instruction as a list": ("a.jsonl", jsonl({"instruction": ["a"], "output": "b"}), (1, "wrong-type", "an array")),
    "input as a list": ("a.jsonl", jsonl({"instruction": "a", "input": [1], "output": "b"}), (1, "wrong-type", "an array")),
    # gzip and others
    "cut gzip": ("a.jsonl.gz", gzip.compress(GOOD_LINE * 500)[:-20], "not a whole gzip file"),
    "no gzip": ("a.jsonl.gz", GOOD_LINE, "not a whole gzip file"),
    "gzip with a wrong sum": ("a.csv.gz", gzip.compress(b"prompt,answer\na,1\n")[:-8] + b"\1" * 8, "not a whole gzip file"),
    "gzip of nothing": ("a.json.gz", gzip.compress(b""), "is empty"),
    "gzip without its name": ("a.jsonl", gzip.compress(GOOD_LINE), (1, "not-utf8", "byte 2")),
    "spreadsheet": ("a.xlsx", b"PK\x03\x04", "not read"),
    "archive": ("a.tar.gz", gzip.compress(b"x"), "not read"),
}
if PARQUET:
    BROKEN |= {
        "cut parquet": ("a.parquet", data_bytes("parquet", [GOOD])[:-20], "not a whole parquet file"),
        "text named .parquet": ("a.parquet", GOOD_LINE, "not a whole parquet file"),
        "gap in parquet": (
            "a.parquet",
            (lambda raw: raw[:4] + b"\xff" * 60 + raw[64:])(data_bytes("parquet", [GOOD])),
            "parquet",
        ),
        "null in parquet": ("a.parquet", data_bytes("parquet", [GOOD, GOOD | {"answer": None}]), (2, "missing-field", "is null")),
    }


def test_there_are_enough() -> None:
    assert len(BROKEN) >= 60


@pytest.mark.parametrize("name", BROKEN)
def test_spoiled(tmp_path: Path, name: str) -> None:
    file, content, expected = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            validate(path, "grpo")
        assert expected in caught.value.what and str(path) in caught.value.where and caught.value.remedy
        return
    line, kind, reason = expected
    report = validate(path, "grpo")
    group = next(group for group in report.problems if group.kind == kind)
    assert group.lines[0] == line and reason in group.reason and group.remedy, group
    assert report.verdict != "ready" and report.usable < report.rows
