"""A samples file's text: one line of JSON for each rollout. Its numbers for each token are most of it, and most of the work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ENCODER = json.JSONEncoder(ensure_ascii=False)
_TOKENS, _LOGPROBS = "token_ids", "logprobs"


def sample_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows in their order. Log-probabilities have nine digits: what tells every 32-bit float from every other."""
    return "".join(map(_line, rows)).encode("utf-8", "surrogatepass")


def _line(row: Mapping[str, Any]) -> str:
    tokens, logprobs = row.get(_TOKENS), row.get(_LOGPROBS)
    if tokens is None or logprobs is None or not math.isfinite(sum(logprobs)):
        return _ENCODER.encode(row) + "\n"
    # within a text every quote is escaped, so that nothing else looks like these two
    text = _ENCODER.encode({**row, _TOKENS: 0, _LOGPROBS: 0})
    text = text.replace(f'"{_TOKENS}": 0', f'"{_TOKENS}": [{", ".join(map(str, tokens))}]', 1)
    return text.replace(f'"{_LOGPROBS}": 0', f'"{_LOGPROBS}": [{_numbers(logprobs)}]', 1) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(["%.9g"] * len(values)) % tuple(values)
