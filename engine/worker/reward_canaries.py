"""Canaries of what was sampled and rewarded: contrast, lengths, entropy, the rewards themselves, and held-out against training.

Each is pure: (history, setting) -> what is wrong, or None. How they are asked: canaries.py.
"""

from __future__ import annotations

import math
from statistics import fmean

from engine.worker.credit import OVERLONG
from engine.worker.history import RECENT, Finding, History, Setting


def no_contrast(history: History, setting: Setting) -> Finding | None:
    """Most groups have equal rewards and teach nothing, while the task is not solved. A constant reward has its own canary."""
    flat, solved = history.flat(), history.solved()
    if setting.batch_baseline or history.constant() or flat is None or flat < 0.9 or solved is None or solved >= 0.9:
        return None
    return Finding(
        "no-contrast",
        f"{flat:.0%} of the last {RECENT} steps' groups have equal rewards: only the others teach anything",
        "take easier or harder prompts, a larger sampling.group_size, or objective.dynamic_sampling",
    )


def truncated(history: History, setting: Setting) -> Finding | None:
    """More than half of the completions never reach their end."""
    share = history.now("truncated")
    if share is None or share <= 0.5:
        return None
    return Finding(
        "truncated",
        f"{share:.0%} of the completions are cut at the limit",
        "raise sampling.max_completion_tokens, or reward brevity (objective.soft_overlong)",
    )


def entropy_collapse(history: History, setting: Setting) -> Finding | None:
    """The model gives nearly the same completion every time, before it has learned the task. (Where it has, low entropy is what
    certainty looks like.)"""
    before, after = history.at_start("entropy"), history.now("entropy")
    flat, solved = history.flat(), history.solved()
    if setting.batch_baseline or before is None or after is None or flat is None or flat < 0.8 or solved is None or solved >= 0.9:
        return None
    if after >= 0.1 * before:
        return None
    return Finding(
        "entropy-collapse",
        f"the entropy fell from {before:.2g} to {after:.2g} nats per token, and {flat:.0%} of the groups are of one mind",
        "lower optim.learning_rate, raise objective.epsilon_high (clip-higher), or set objective.entropy_bonus or objective.beta",
    )


def length_explosion(history: History, setting: Setting) -> Finding | None:
    """Completions grow to more than double, and the reward does not."""
    before, after = history.at_start("length"), history.now("length")
    reward_before, reward_after, solved = history.at_start("reward"), history.now("reward"), history.solved()
    if before is None or after is None or after <= 2 * before or reward_before is None or reward_after is None or solved is None:
        return None
    reach = (history.best or 0.0) - (history.worst or 0.0)
    if reward_after - reward_before > 0.05 * reach:
        return None
    return Finding(
        "length-explosion",
        f"completions grew from {before:.0f} to {after:.0f} tokens, while the reward went from {reward_before:.3g} to "
        f"{reward_after:.3g}",
        "use dr_grpo (no length bias), or objective.soft_overlong",
    )


def reward_constant(history: History, setting: Setting) -> Finding | None:
    """Every completion of the last steps had the same reward."""
    if not history.constant() or (history.solved() or 0.0) >= 0.98:
        return None
    return Finding(
        "reward-constant",
        f"every completion of the last {RECENT} steps had the reward {history.recent[-1]['reward']:g}: there is nothing to "
        "learn from",
        "try the reward on a few completions, look at the samples, and take prompts that the model solves now and then",
    )


def reward_saturated(history: History, setting: Setting) -> Finding | None:
    """Nearly every completion has the best reward seen, for ten steps."""
    flat, solved, reward = history.flat(10), history.solved(), history.now("reward")
    if flat is None or flat < 0.95 or solved is None or solved < 0.98 or reward is None:
        return None
    return Finding(
        "reward-saturated",
        f"nearly every completion has the best reward ({reward:.3g} on average), and {flat:.0%} of the groups teach nothing more",
        "stop here (adapters/ holds the best), or go on with harder prompts",
    )


def part_drowns(history: History, setting: Setting) -> Finding | None:
    """One reward makes up nearly all of the difference within groups (above 98%: fifty to one) although another differs too.

    A reward that hardly differs any more because it is nearly always given is learned, not drowned: it counts only while it
    differs at least half as much as it ever did. soft_overlong's punishment is silent wherever nothing is too long.
    """
    rows = [row["parts_spread"] for row in history.recent[-RECENT:]]
    if len(rows) < RECENT:
        return None
    names = {name for row in rows for name in row} - {OVERLONG}
    spread = {name: fmean([row.get(name, 0.0) for row in rows]) for name in names}
    if len(spread) < 2:
        return None
    loudest = max(spread, key=lambda name: spread[name])
    drowned = [
        name
        for name, value in sorted(spread.items())
        if 0 < value < 0.02 * (value + spread[loudest]) and value >= 0.5 * history.peak_spread[name]
    ]
    if not drowned:
        return None
    share = spread[loudest] / sum(spread.values())
    return Finding(
        "part-drowns",
        f"the reward {loudest} makes up {share:.1%} of the differences within groups and drowns {', '.join(drowned)}",
        f"bring the weights of {loudest} and {', '.join(drowned)} (rewards: weight) nearer to each other",
    )


def overfit(history: History) -> Finding | None:
    """Held-out falls, twice in a row by more than two standard errors below its best, while training went on rising.

    Where the best is the untrained model's, this speaks for supervised training only. By rewards, held-out answers are greedy
    and training's are sampled: what rises first in the samples may pass by the likeliest answer for a while, as in the demo.
    """
    if len(history.held) < 3:
        return None
    best, last = max(history.held, key=lambda one: one.score), history.held[-2:]
    if best in last or (best.step == 0 and not history.supervised):
        return None
    # the base was evaluated before any step: what came next is its training score
    train_then, train_now = best.train if best.train is not None else history.held[1].train, last[-1].train
    if train_then is None or train_now is None or train_now <= train_then:
        return None
    for one in last:
        if one.error is None or best.error is None or best.score - one.score <= 2 * math.hypot(one.error, best.error):
            return None
    sign = -1.0 if history.supervised else 1.0
    what = "loss" if history.supervised else "reward"
    return Finding(
        "overfit",
        f"the held-out {what} was best at step {best.step} ({sign * best.score:.3g}) and is now {sign * last[-1].score:.3g}, "
        f"while training went from {sign * train_then:.3g} to {sign * train_now:.3g}",
        "stop here: adapters/ holds the best; or take more data, a lower optim.learning_rate, or fewer run.steps",
    )
