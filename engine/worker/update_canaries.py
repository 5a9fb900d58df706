"""Canaries of the updates: weights, gradient, importance ratio, clipping, the KL to the reference, and sampler against trainer.

Each is pure: (history, setting) -> what is wrong, or None. How they are asked: canaries.py.
"""

from __future__ import annotations

from statistics import fmean, median

from engine.worker.history import RECENT, Finding, History, Setting


def weights_still(history: History, setting: Setting) -> Finding | None:
    """Updates change hardly any number although their gradients are not zero: a 16-bit weight rounds small changes away.

    Of float32 weights AdamW moves nearly all. A bfloat16 weight changes only by more than 1/512 of itself, at a rate of 1e-6
    one in seventy of a usual matrix: below 5% most of what is learned is lost. A rate that has decayed to a tenth of its peak
    is left out: a schedule's last steps are meant to be small.
    """
    rows = history.last(lambda row: row["moved"] is not None)
    if not rows or any(row["lr"] < 0.1 * history.peak_lr for row in rows):
        return None
    moved = fmean(row["moved"] for row in rows)
    if moved >= 0.05:
        return None
    return Finding(
        "weights-still",
        f"the updates of the last {RECENT} steps changed {moved:.2%} of the trained numbers, although their gradient is not zero "
        f"(norm {rows[-1]['grad_norm'] or 0.0:.2g}, rate {rows[-1]['lr']:.2g})",
        "raise optim.learning_rate, or train an adapter (adapter.type: lora), which is held in float32",
    )


def gradient_zero(history: History, setting: Setting) -> Finding | None:
    """The gradient is exactly zero although rewards differ (or, supervised, at all)."""
    last = history.recent[-1]
    if last["grad_norm"] != 0 or last["skipped"]:
        return None
    if last["groups"] is None:
        what = ""
    elif setting.batch_baseline:
        if not (last["reward_std"] or 0.0) > 1e-8:
            return None
        what = ", although rewards differ"
    else:
        teaching = last["groups"] - last["zero_std_groups"]
        if not teaching:
            return None
        what = f", although {teaching} of {last['groups']} groups have rewards that differ"
    why = f"; {last['masked']} completions are masked because they were cut" if last["masked"] else ""
    return Finding(
        "gradient-zero",
        f"the gradient of step {last['step']} has norm 0{what}: nothing can be learned from it{why}",
        "look at what is trained (adapter.layers, adapter.keys), at objective.truncated and sampling.max_completion_tokens",
    )


def ratio_start(history: History, setting: Setting) -> Finding | None:
    """Before any update the policy is the one that sampled: its ratio is 1 but for rounding."""
    gap, limit = history.recent[-1]["ratio_gap_first"], 1e-3 if setting.exact else 0.05
    if gap is None or gap <= limit:
        return None
    return Finding(
        "ratio-start",
        f"the importance ratio is {gap:.2g} off 1 before the first update of a step (rounding allows {limit:g})",
        "run `droid-tune doctor --selftest`; where objective.old is sampler, use objective.old: trainer",
    )


def ratio_still(history: History, setting: Setting) -> Finding | None:
    """After an update the ratio has to leave 1, by more than it is off before: that is rounding.

    Where most groups are flat, one update may have had all of the gradient: then there is nothing to see.
    """
    rows = history.last(lambda row: row["ratio_gap_later"] is not None and row["ratio_gap_first"] is not None)
    flat = history.flat()
    is_flat = not setting.batch_baseline and (flat is None or flat >= 0.5)
    if not rows or is_flat or any(not row["grad_norm"] or row["skipped"] for row in rows):
        return None
    first, later = (fmean(row[name] for row in rows) for name in ("ratio_gap_first", "ratio_gap_later"))
    if later > 2 * first or later > 1e-4:  # a gap that 16-bit rounding alone makes is larger
        return None
    return Finding(
        "ratio-still",
        f"the importance ratio is {later:.2g} off 1 after an update and {first:.2g} before: the policy does not move",
        "raise optim.learning_rate, and look at what is trained (adapter.layers, adapter.keys)",
    )


def sampler_gap(history: History, setting: Setting) -> Finding | None:
    """Sampler and trainer compute the same log-probabilities by different kernels. prime-rl's own test allows a KL of 0.01."""
    last, limit = history.recent[-1], 1e-3 if setting.exact else 0.05
    mean_gap, kl = last["mismatch"], last["mismatch_kl"]
    if mean_gap is None or kl is None or (mean_gap <= limit and kl <= 0.01):
        return None
    return Finding(
        "sampler-gap",
        f"sampler and trainer disagree by {mean_gap:.2g} per log-probability, KL {kl:.2g} (expected below {limit:g} and 0.01)",
        "set objective.tis: token_truncate, and run `droid-tune doctor --selftest`",
    )


def clipped(history: History, setting: Setting) -> Finding | None:
    """More than half of the ratios are clipped: most rollouts are spent after the first updates."""
    low, high = history.now("clip_low"), history.now("clip_high")
    if low is None or high is None or low + high <= 0.5:
        return None
    return Finding(
        "clipped",
        f"{low + high:.0%} of the importance ratios are clipped, and clipped ones teach nothing",
        "widen objective.epsilon_low and objective.epsilon_high (short completions spread the ratio), or take fewer "
        "objective.updates_per_rollout or objective.minibatches",
    )


def kl_blow_up(history: History, setting: Setting) -> Finding | None:
    """The policy has left the reference: over 1 nat per token, or ten times what it was, and not small.

    Not small: reinforce_pp's recipe, whose beta is 0.001, learns its task while the KL goes from 0 to 0.2. Medians, since one
    rare token can make a step's mean of exp(d) - d - 1 as large as it likes.
    """
    values = [row["kl"] for row in history.recent if row["kl"] is not None]
    if len(values) < 3:
        return None
    now, before = median(values[-3:]), values[-23:-3]
    jumped = len(before) >= 10 and now > 10 * median(before) and now > 0.3
    if now <= 1.0 and not jumped:
        return None
    return Finding(
        "kl-blow-up",
        f"the KL to the reference is {now:.2g} nats per token" + (f", {median(before):.2g} before" if jumped else ""),
        "raise objective.beta, lower optim.learning_rate, or go back to an earlier checkpoint",
    )
