"""Rows of .parquet files, a batch at a time. The package that reads them is optional: the extras `parquet` and `hub`."""

from __future__ import annotations

import datetime
import decimal
import importlib
import math
from collections.abc import Iterator
from typing import IO, Any

from engine.data.values import Problem, Row
from engine.errors import InputError

_BATCH_ROWS = 256


class _NoText(Exception):
    """A value that no field can hold."""


def rows(file: IO[bytes], where: str) -> Iterator[Row | Problem]:
    """The rows, numbered from 1. InputError where pyarrow is missing or the file is no whole parquet file.

    Dates become ISO text, decimals their digits, NaN (a missing number) null. Bytes that are no text are a Problem.
    """
    pyarrow, parquet = require_package(where, "parquet")
    number = 0
    try:
        table = parquet.ParquetFile(file)
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            for fields in batch.to_pylist():
                number += 1
                yield _row(number, fields)
    except (pyarrow.ArrowException, OSError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"not a whole parquet file: {what}", where=where, remedy="write or fetch it again") from error


def require_package(where: str, extra: str) -> tuple[Any, Any]:
    """pyarrow and its parquet module. InputError, which names `extra`, where it is not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        remedy = f"pip install 'droid-tune[{extra}]', or save the rows as .jsonl"
        raise InputError("reading .parquet needs pyarrow, which is not installed", where=where, remedy=remedy) from error


def _row(number: int, fields: dict[str, Any]) -> Row | Problem:
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            plain[name] = _plain(value)
        except _NoText as error:
            return Problem(number, "not-text", name, f"{name!r} holds {error}", "remove the column, or turn it into text")
    return Row(number, plain)


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise _NoText("an infinite number")
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _NoText("bytes that are no text") from error
    raise _NoText(f"values of the type {type(value).__name__}")
