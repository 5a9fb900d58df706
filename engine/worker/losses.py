"""The one policy loss. Every method is this function with other data: loss = sum over tokens of w_i m_it (l_it + beta k_it).

The weights w_i are fixed on the host before micro-batching (batching.aggregation_weights), so that accumulation is a sum
and leaving out rows without advantage changes nothing. What is left out: no value loss, no entropy bonus.
"""

from __future__ import annotations

import mlx.core as mx

from engine.methods import Objective

# Sums that one call returns beside the loss, in this order; `units` counts tokens (sequences where the ratio is a sequence's).
STATS = ("units", "ratio", "clip_low", "clip_high", "tokens", "kl", "mismatch")


def policy_loss(
    logp: mx.array,  # [B, C] log pi of each completion token: the only differentiable input
    *,
    objective: Objective,
    mask: mx.array,  # [B, C] 1 for a completion token that counts; elsewhere the other arrays may hold anything
    advantage: mx.array,  # [B, C]
    weight: mx.array,  # [B]
    old: mx.array | None = None,  # [B, C] the policy of the rollout; None: this policy (a single update)
    sampler: mx.array | None = None,  # [B, C] as reported by the sampler
    ref: mx.array | None = None,  # [B, C] the reference; needed only where beta > 0
) -> tuple[mx.array, mx.array]:
    """The loss (scalar, a sum) and its statistics ([7] sums named by STATS, without gradient).

    clip    -min(min(r, delta) A, clamp(r, 1 - epsilon_low, 1 + epsilon_high) A)   GRPO Eq. 3; delta: INTELLECT-2 2505.07291
    cispo   -sg(min(r, 1 + epsilon_high)) A logp                                   MiniMax-M1 2506.13585 Eq. 4
    r       token: exp(logp - old);  sequence: exp(mean over the completion)       GSPO 2507.18071 Eq. 7
    k3      exp(d) - d - 1, d = ref - logp (DeepSeekMath Eq. 4);  k2: d^2 / 2
    """
    counts = mask > 0  # [B, C]
    logp = mx.where(counts, logp, 0.0)  # before any exp: 0 * inf would be nan
    old = mx.stop_gradient(logp if old is None else mx.where(counts, old, 0.0))
    log_ratio = logp - old  # [B, C]
    length = mx.maximum(mask.sum(axis=1, keepdims=True), 1.0)  # [B, 1]
    if objective.ratio == "sequence":
        log_ratio = mx.broadcast_to(log_ratio.sum(axis=1, keepdims=True) / length, logp.shape)
    ratio = mx.exp(log_ratio)
    low = 0.0 if objective.epsilon_low is None else 1 - objective.epsilon_low
    high = 1 + objective.epsilon_high
    if objective.surrogate == "cispo":
        surrogate = -mx.stop_gradient(mx.clip(ratio, low, high)) * advantage * logp
    else:
        unclipped = ratio if objective.delta is None else mx.minimum(ratio, objective.delta)
        surrogate = -mx.minimum(unclipped * advantage, mx.clip(ratio, low, high) * advantage)
    gap = None if sampler is None else mx.where(counts, old - sampler, 0.0)
    if objective.tis_cap is not None:
        if gap is None:
            raise ValueError("truncated importance weights need the sampler's log-probabilities")
        surrogate = mx.minimum(mx.exp(gap), objective.tis_cap) * surrogate
    kl = mx.zeros_like(logp)
    if objective.beta:
        if ref is None:
            raise ValueError("beta > 0 needs the reference's log-probabilities")
        kl = kl_estimate(mx.where(counts, ref - logp, 0.0), objective.kl)
        surrogate = surrogate + objective.beta * kl
    loss = (weight[:, None] * mx.where(counts, surrogate, 0.0)).sum()
    unit = mask / length if objective.ratio == "sequence" else mask
    below, above = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)
    stats = mx.stack(
        [
            unit.sum(),
            (unit * ratio).sum(),
            (unit * below).sum(),
            (unit * above).sum(),
            mask.sum(),
            (mask * kl).sum(),
            mx.zeros(()) if gap is None else mx.abs(gap).sum(),
        ]
    )
    return loss, mx.stop_gradient(stats)


def kl_estimate(d: mx.array, kind: str) -> mx.array:
    """Per-token estimate of KL(pi || ref) from d = ref - logp; both kinds have zero slope at d = 0."""
    return 0.5 * d * d if kind == "k2" else mx.exp(d) - d - 1


def supervised_loss(logp: mx.array, *, mask: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """Negative log-likelihood: sum of w_i m_it (-logp_it), with w = 1 / tokens of the whole update. Stats as policy_loss."""
    logp = mx.where(mask > 0, logp, 0.0)
    tokens = mask.sum()
    zero = mx.zeros(())
    return -(weight[:, None] * logp).sum(), mx.stop_gradient(mx.stack([tokens, tokens, zero, zero, tokens, zero, zero]))
