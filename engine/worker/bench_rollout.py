"""The benchmark of rollouts: our sampler against the bare decoding loop, part by part.

prefill   from nothing until every row has its first token: the floor reads each prompt once for every completion
decode    from there until the last token of the last row is on the host, ours with the texts

Ours samples from the policy with its adapter on; `bare` decodes the model without one, `bare_adapter` with it. Where the model's
rows can hold a prompt together, ours does so, and `apart` is ours with a copy of the prompt's keys for every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import InputError
from engine.types import Prompt, Rollout
from engine.worker import bench_bare, bench_model
from engine.worker.bench_model import Settings
from engine.worker.bench_timing import Clock, Side, Timed, Told, alternate
from engine.worker.model import Policy
from engine.worker.sampler import sample
from engine.worker.step import prompts_within


def rollout(policy: Policy, settings: Settings, told: Told) -> dict[str, Any]:
    """Seconds, tokens a second and peak memory of each side, and the ratios of their speeds (ours over bare)."""
    asked = bench_model.prompts(policy, settings.prompts, settings.prompt_tokens)
    prompts = [prompt for prompt, _ in prompts_within(policy, asked, settings.prompt_tokens)]
    weights = bench_model.weights_bytes(policy)
    timed = alternate(_sides(policy, prompts, settings), settings.repeats, weights, told, warm=settings.warm)
    length = len(prompts[0].token_ids)
    found: dict[str, Any] = {"prompt_tokens": length, "rows": settings.rows, "parted": is_parted(policy), "sides": {}}
    for side in timed.passes:
        found["sides"][side] = _told(timed, side, settings, length, is_parted(policy) or side.startswith("bare"))
    if settings.bare:
        for name, ratio in (("speed", timed.ratio), ("cpu_speed", timed.cpu_ratio)):
            found[name] = {
                bare: {
                    **{part: ratio(bare, "ours", part) for part in ("prefill", "decode") if is_parted(policy)},
                    "whole": ratio(bare, "ours"),
                }
                for bare in timed.passes
                if bare != "ours"
            }
    return {**found, "load": timed.load.as_dict()}


def is_parted(policy: Policy) -> bool:
    """Whether prefill and decoding can be told apart: not where rows are decoded one after the other."""
    return policy.decoding.mode != "alone"


def _told(timed: Timed, side: str, settings: Settings, length: int, is_parted: bool) -> dict[str, Any]:
    parts = {
        "prefill": timed.told(side, "prefill", tokens=settings.rows * length),
        "decode": timed.told(side, "decode", tokens=settings.rows * (settings.max_tokens - 1)),
    }
    return {**(parts if is_parted else {}), "whole": timed.told(side, tokens=settings.tokens)}


def _sides(policy: Policy, prompts: list[Prompt], settings: Settings) -> dict[str, Side]:
    repeated = np.repeat(np.array([prompt.token_ids for prompt in prompts], dtype=np.int32), settings.group, axis=0)
    steps = iter(range(1, 1 << 30))

    def sampled(clock: Clock, share_prompts: bool) -> None:
        clock.now("prefill")
        first = iter((True,))

        def alive() -> None:  # once a position, after its tokens have come to the host
            if next(first, False):
                clock.now("decode")

        groups = sample(
            policy,
            prompts,
            settings.group,
            max_tokens=settings.max_tokens,
            temperature=1.0,
            seed=bench_model.SEED,
            step=next(steps),
            share_prompts=share_prompts,
            alive=alive,
        )
        clock.now(None)
        require_whole([rollout for group in groups for rollout in group], settings)

    def bare(clock: Clock) -> None:
        with policy.reference():
            bench_bare.rollout(policy.model, repeated, settings.max_tokens, clock)
            clock.now(None)

    def bare_adapter(clock: Clock) -> None:
        bench_bare.rollout(policy.model, repeated, settings.max_tokens, clock)

    can_share = policy.decoding.token_bytes > 0 and settings.group > 1
    sides: dict[str, Side] = {"ours": lambda clock: sampled(clock, can_share)}
    if settings.bare:
        apart: dict[str, Side] = {"apart": lambda clock: sampled(clock, False)} if can_share else {}
        sides |= {**apart, "bare": bare, "bare_adapter": bare_adapter}
    return sides


def require_whole(rollouts: list[Rollout], settings: Settings) -> None:
    """InputError unless every row has all its tokens: rows that stop early would count as speed."""
    made = sum(len(rollout.token_ids) for rollout in rollouts)
    if len(rollouts) != settings.rows or made != settings.tokens:
        what = f"{made} tokens of {settings.tokens} were sampled: rows stopped, and the figures would flatter"
        raise InputError(what, where="bench rollout", remedy="this is a fault of droid-tune's: please report it")
