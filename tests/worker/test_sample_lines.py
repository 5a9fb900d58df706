"""The lines of a samples file: the JSON of the rows, and of every log-probability the same 32-bit float."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.worker.sample_lines import sample_lines


def row(logprobs: list[float], **more: Any) -> dict[str, Any]:
    return {"step": 3, "text": "a", "token_ids": list(range(len(logprobs))), "logprobs": logprobs, "finish": "stop", **more}


def read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.decode("utf-8", "surrogatepass")) for line in data.splitlines()]


@given(st.lists(st.floats(width=32, max_value=0.0, allow_nan=False, allow_infinity=False)), st.text())
def test_a_row_comes_back_as_it_was(logprobs: list[float], text: str) -> None:
    given_row = row(logprobs, text=text, answer='"token_ids": 0, "logprobs": 0', parts={"logprobs": 0.0, "x": None})
    (back,) = read(sample_lines([given_row]))
    assert list(back) == list(given_row) and back | {"logprobs": 0} == given_row | {"logprobs": 0}
    packed = f"{len(logprobs)}f"
    assert list(struct.unpack(packed, struct.pack(packed, *back["logprobs"]))) == logprobs


def test_rows_without_tokens_and_with_numbers_that_are_not_finite_are_written_too() -> None:
    """What a sampler made of broken weights stays what it was; a supervised row has no tokens of its own."""
    broken = row([-0.5, math.nan, -math.inf])
    first, second, third = read(sample_lines([{"text": "漢\ud800"}, broken, row([-1.0, 0.0])]))
    assert first == {"text": "漢\ud800"} and third["logprobs"] == [-1.0, 0.0]
    assert second["logprobs"][0] == -0.5 and math.isnan(second["logprobs"][1]) and second["logprobs"][2] == -math.inf
    assert sample_lines([]) == b""
