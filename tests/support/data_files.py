"""The same rows as every kind of data file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]
KINDS = ("jsonl", "json", "json-data", "json-samples", "json-examples", "json-lines", "csv", "csv-semicolon", "parquet")


def data_bytes(kind: str, rows: Rows, *, bom: bool = False, crlf: bool = False) -> bytes:
    """The content of a file of that kind."""
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink)
        return sink.getvalue()
    if kind.startswith("csv"):
        text = csv_text(rows, ";" if kind.endswith("semicolon") else ",")
    elif kind in ("jsonl", "json-lines"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(list(rows), ensure_ascii=False, indent=1)
    else:
        tree = {"version": "1.0", kind.removeprefix("json-"): list(rows), "notes": [1, {"data": []}]}
        text = json.dumps(tree, ensure_ascii=False, indent=2)
    if crlf:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return (b"\xef\xbb\xbf" if bom else b"") + text.encode()


def csv_text(rows: Rows, delimiter: str = ",") -> str:
    """Lists and objects as JSON in their cell, null as an empty cell; lines end as spreadsheets end them."""
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, lineterminator="\r\n")
    names = list(rows[0])
    writer.writerow(names)
    for row in rows:
        cells = [row[name] for name in names]
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else "" if cell is None else cell for cell in cells])
    return sink.getvalue()


def write_file(folder: Path, kind: str, rows: Rows, *, zipped: bool = False, stem: str = "rows", **how: bool) -> Path:
    """A file of that kind in `folder`."""
    content = data_bytes(kind, rows, **how)
    path = folder / f"{stem}.{kind.partition('-')[0]}{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path
