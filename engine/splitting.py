"""Into how many rows at once a run's work is cut so that it fits: what the plan chooses and the worker starts with."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hardware
from engine.config import RunConfig
from engine.hardware import Backend, Hardware
from engine.memory import Fit, Plan

GIGABYTE = 10**9
LEAST_CACHE = 32 * 1024**2  # what mlx keeps of freed buffers on a CPU by itself: without any, every array would be allocated anew


@dataclass(frozen=True, slots=True)
class Split:
    """Rows at once, and what they are held against."""

    micro_batch_rows: int  # of one forward and backward pass
    decode_rows: int | None  # of a rollout; None: all of them
    recomputes: bool  # whether the backward pass computes each layer again
    limit_bytes: int
    update_bytes_per_token: float  # the plan's, beside what is held; 0 where the model's sizes are unknown
    fits: bool  # the whole run, by the plan; what stands here is the smallest cut where it does not
    update_fits: bool
    cache_bytes: int  # of freed buffers that mlx may keep for reuse


def split(config: RunConfig, known: Hardware | None = None) -> Split:
    """The split of the run on this machine (or on `known`). Raises InputError where the model cannot be read."""
    known = known or hardware.facts()
    plan, limit = Plan(config, known.backend), limit_bytes(config, known)
    fit = plan.fit(limit)
    rows = min(fit.micro_batch_rows, plan.update_rows)
    tokens = rows * plan.completion_width + plan.prompts(rows) * config.sampling.max_prompt_tokens
    each = 0.0 if plan.shape is None else (plan.update_peak(rows, fit.recomputes) - plan.held) / tokens
    return Split(
        micro_batch_rows=fit.micro_batch_rows,
        decode_rows=fit.decode_rows,
        recomputes=fit.recomputes,
        limit_bytes=limit,
        update_bytes_per_token=each,
        fits=fit.fits,
        update_fits=fit.update_peak <= limit,
        cache_bytes=cache_bytes(fit, known.backend),
    )


def cache_bytes(fit: Fit, backend: Backend) -> int:
    """Freed buffers that mlx may keep for reuse: what the limit leaves beside the planned peak, but never fewer than LEAST_CACHE,
    and on a CPU no more."""
    return LEAST_CACHE if backend == "cpu" else max(LEAST_CACHE, fit.limit - fit.peak)


def limit_bytes(config: RunConfig, known: Hardware) -> int:
    """What the run may use: the machine's limit, or the config's where that is less."""
    machine, own = hardware.memory_limit_bytes(known), config.run.memory_limit_gb
    return machine if own is None else min(machine, round(own * GIGABYTE))
