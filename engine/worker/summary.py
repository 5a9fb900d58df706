"""What a run ends with: base against tuned on the held-out rows, with a confidence interval, and how to use the result."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import RunConfig
from engine.runs.record import RunRecord
from engine.types import Message
from engine.use_command import chat_options, has_no_option

_COMMAND_CHARACTERS = 200


def paired_difference(base: Sequence[float], tuned: Sequence[float], counts: Sequence[float]) -> dict[str, float | None]:
    """Mean of tuned - base with its 95% interval, over rows judged both times.

    `base` and `tuned` hold each row's sum and `counts` its denominator (1 for a reward, tokens for a loss): the value is
    sum(tuned - base) / sum(counts), and the interval is the normal one of a ratio estimator, value +- 1.96 s with
    s^2 = n / (n - 1) x sum((d_i - value x c_i)^2) / (sum c)^2. With fewer than two rows there is no interval (None).
    """
    used = [(t - b, c) for b, t, c in zip(base, tuned, counts, strict=True) if c > 0]
    if not used:
        return {"difference": None, "low": None, "high": None}
    d, c = np.array(used, dtype=np.float64).T
    value = float(d.sum() / c.sum())
    spread = standard_error(d, c)
    if spread is None:
        return {"difference": value, "low": None, "high": None}
    return {"difference": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread}


def standard_error(values: Sequence[float] | NDArray[np.float64], counts: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Of the ratio sum(values) / sum(counts), by the formula above; None with fewer than two rows that count."""
    d, c = np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    d, c = d[c > 0], c[c > 0]
    if len(d) < 2:
        return None
    value = d.sum() / c.sum()
    return math.sqrt(len(d) / (len(d) - 1) * float(((d - value * c) ** 2).sum())) / float(c.sum())


def generate_command(config: RunConfig, run: RunRecord, model: Path, example: Sequence[Message]) -> str:
    """The command that uses the result, on a held-out prompt where a command line can hold it; after plain text, for which
    `example` is empty, a text is to be continued, without the chat template. It is mlx_lm's where that has an option for all that
    the config says of chats and loads the base as the run did, else the product's own."""
    is_text = not example
    system = [message.content for message in example if message.role == "system"][:1]
    prompt = "THE BEGINNING OF A TEXT" if is_text else example[-1].content
    if max(map(len, [*system, prompt])) > _COMMAND_CHARACTERS or any(map(_is_read_otherwise, [*system, prompt])):
        system, prompt = [], "YOUR PROMPT"
    if config.quantize.bits is not None or has_no_option(config.chat):
        options = ["--plain"] if is_text else [part for text in system for part in ("--system", text)]
        return shlex.join(["droid-tune", "generate", run.id, *options, prompt])
    parts = ["mlx_lm.generate", "--model", str(model), "--adapter-path", str(run.adapters_dir), *chat_options(config.chat)]
    parts += ["--ignore-chat-template"] if is_text else [part for text in system for part in ("--system-prompt", text)]
    return shlex.join([*parts, "--prompt", prompt])


def _is_read_otherwise(text: str) -> bool:
    """Whether it would be an option, or mlx_lm.generate would put a line break or a tab into it."""
    return text.startswith("-") or "\\n" in text or "\\t" in text


def summarise(base: dict[str, Any], best: dict[str, Any], last: dict[str, Any], sign: float) -> dict[str, Any]:
    """The finished event's figures. Each argument holds `step`, `score`, `rows` and `counts` of an evaluation; `sign` turns a
    score into the value shown (-1 for a loss). `tuned` is what `adapters/` holds: the best held-out evaluation, so it is a
    little flattering; `last` is the final one."""
    counts = [b if b > 0 and t > 0 else 0.0 for b, t in zip(base["counts"], best["counts"], strict=True)]
    gap = paired_difference(base["rows"], best["rows"], counts)
    if sign < 0:
        gap = {
            "difference": _negative(gap["difference"]),
            "low": _negative(gap["high"]),
            "high": _negative(gap["low"]),
        }
    return {
        "base": sign * base["score"],
        "tuned": sign * best["score"],
        "tuned_step": best["step"],
        "last": sign * last["score"],
        **gap,
        "n": sum(count > 0 for count in counts),
    }


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
