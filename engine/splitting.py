"""Into how many rows at once a run's work is cut so that it fits: what the plan chooses and the worker starts with."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hardware
from engine.config import RunConfig
from engine.hardware import Hardware
from engine.memory import Plan

GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class Split:
    """Rows at once, and what they are held against."""

    micro_batch_rows: int  # of one forward and backward pass
    decode_rows: int | None  # of a rollout; None: all of them
    recomputes: bool  # whether the backward pass computes each layer again
    limit_bytes: int
    update_bytes_per_token: float  # the plan's, beside what is held; 0 where the model's sizes are unknown


def split(config: RunConfig, known: Hardware | None = None) -> Split:
    """The split of the run on this machine (or on `known`). Raises InputError where the model cannot be read."""
    known = known or hardware.facts()
    plan, limit = Plan(config, known.backend), limit_bytes(config, known)
    fit = plan.fit(limit)
    rows = min(fit.micro_batch_rows, plan.update_rows)
    tokens = rows * plan.completion_width + plan.prompts(rows) * config.sampling.max_prompt_tokens
    each = 0.0 if plan.shape is None else (plan.update_peak(rows, fit.recomputes) - plan.held) / tokens
    return Split(fit.micro_batch_rows, fit.decode_rows, fit.recomputes, limit, each)


def limit_bytes(config: RunConfig, known: Hardware) -> int:
    """What the run may use: the machine's limit, or the config's where that is less."""
    machine, own = hardware.memory_limit_bytes(known), config.run.memory_limit_gb
    return machine if own is None else min(machine, round(own * GIGABYTE))
