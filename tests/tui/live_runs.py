"""Run folders with fixed figures for the tests of the live screen."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from engine.runs.record import RunRecord
from tests.tui.support import Tape, make_run

CONFIG = """\
model: mlx-community/Qwen2.5-0.5B-Instruct-4bit
method: gspo
data:
  train: arithmetic.jsonl
adapter:
  type: lora
  rank: 16
sampling:
  prompts_per_step: 4
  group_size: 4
rewards:
- name: answer
  weight: 1.0
- name: format
  weight: 0.2
run:
  steps: 200
"""
MODEL = "mlx-community/Qwen2.5-0.5B-Instruct-4bit"
STEP_SECONDS = 37.5
PROMPTS = (
    ("Tom has 24 apples, buys 17 more and gives away 9. How many does he have?", "32"),
    ("What is 12 + 30 - 7?", "35"),
    ("A box holds 6 eggs. How many eggs do 7 boxes hold?", "42"),
)
TEXTS = (
    "<think>24+17=41\n41-9=32</think>\n<answer>32</answer>",
    "<think>24 and 17 make 41;\nless 9 that is 32</think>\n<answer>32</answer>",
    "<think>24+17=41\n41-9=31</think>\n<answer>31</answer>",
    "Let us see. " + "He gives away some, " * 30,
)
REWARDS = (1.2, 1.2, 0.2, 0.0)
ADVANTAGES = (0.87, 0.87, -0.71, -1.03)


def metrics(step: int) -> dict[str, Any]:
    """A step's metrics: the reward rises from 0.2 to 1.0 with a ripple."""
    share = step / 200
    reward = 0.2 + 0.8 * share + 0.05 * math.sin(step / 3)
    return {
        "step": step, "loss": 0.01 * math.cos(step / 5), "grad_norm": 1.0 + share, "lr": 1e-5 * (1 - share), "updates": 1,
        "tokens": 4000 + step, "reward": reward, "reward_std": 0.4,
        "parts": {"answer": reward - 0.15, "format": 0.9 + share / 10},
        "length": 143.0 - share * 20, "truncated": 0.14, "zero_std_groups": 4, "groups": 32, "excluded": 0,
        "entropy": 0.9 - share / 2,
        "kl": 0.011, "ratio": 1.0, "clip_low": 0.02, "clip_high": 0.03,
        "seconds": {"rollout": 28.0, "reward": 0.5, "score": 2.0, "update": 7.0, "total": STEP_SECONDS},
        "bytes": {"peak": 19_300_000_000, "active": 4_000_000_000, "cache": 900_000_000},
    }  # fmt: skip


def write_samples(
    record: RunRecord, step: int, texts: tuple[str, ...] = TEXTS, prompts: tuple[tuple[str, str], ...] = PROMPTS
) -> str:
    """A step's samples file; returns its name as the journal has it."""
    rows = []
    for number, (prompt, answer) in enumerate(prompts):
        for member, text in enumerate(texts):
            rows.append(
                {
                    "step": step, "prompt_id": number, "member": member, "prompt": prompt, "answer": answer, "text": text,
                    "token_ids": [1] * (41 + member), "logprobs": [-0.5] * (41 + member),
                    "finish": "length" if member == 3 else "stop",
                    "parts": {"answer": 1.0 if member < 2 else 0.0, "format": 1.0 if member < 3 else 0.0},
                    "reward": REWARDS[member % 4], "advantage": ADVANTAGES[member % 4],
                }
            )  # fmt: skip
    name = f"samples/step-{step:06d}.jsonl"
    (record.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def write_run(home: Path, steps: int = 112, name: str = "arith-gspo-2") -> tuple[RunRecord, Tape]:
    """A run that has trained so many of its 200 steps. The tape is open: go on with it, then set_times."""
    record = make_run(home, name, method="gspo", steps=200, model=MODEL)
    record.config_file.write_text(CONFIG)
    tape = Tape(record)
    tape.write(
        "started", pid=4242, resumed=False, host="studio", platform="macOS-15.1-arm64", threads=None, blas=None,
        versions={"python": "3.12.4", "mlx": "0.32.4", "mlx-lm": "0.32.2"}, device="Device(gpu, 0)",
    )  # fmt: skip
    for step in range(1, steps + 1):
        if step == 1:
            tape.write("eval", step=0, split="held_out", metrics={"reward": 0.31}, best=True)
            tape.write("checkpoint", step=0, update=0, path="checkpoints/step-000000", reason="start", seconds=0.1)
        tape.write("phase", step=step, name="rollout")
        if step > steps - 3:
            tape.write("samples", step=step, split="train", file=write_samples(record, step))
        tape.write("phase", step=step, name="update", update=0)
        tape.write("step", step=step, metrics=metrics(step))
        if step % 25 == 0:
            tape.write("eval", step=step, split="held_out", metrics={"reward": 0.31 + step / 230}, best=True)
            tape.write("checkpoint", step=step, update=0, path=f"checkpoints/step-{step:06d}", reason="schedule", seconds=0.1)
        if step == 108:
            remedy = "raise sampling.max_completion_tokens, or watch the length"
            tape.write("warning", kind="truncated", message="14% of answers hit the length limit", remedy=remedy, step=step)
    tape.summary(state="running", step=steps, pid=4242)
    return record, tape


def set_times(record: RunRecord, *, seconds: float = 4205.0, ago: float = 10.0, gap: float = 0.0) -> None:
    """Give the journal's events times at even distances over `seconds`, the last one `ago` seconds before now; the first two
    (created and started) share theirs, and the last one comes `gap` seconds later than it would."""
    events = [json.loads(line) for line in record.journal_file.read_text().splitlines()]
    begin = time.time() - ago - gap - seconds
    for number, event in enumerate(events):
        event["t"] = begin + seconds * max(0, number - 1) / max(1, len(events) - 2)
    events[-1]["t"] += gap
    record.journal_file.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events))
