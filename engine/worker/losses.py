"""The one policy loss. Every method is this function with other data: loss = sum of w_i m_it (l_it + beta k_it - c H_it).

The weights w_i are fixed on the host before micro-batching (batching.aggregation_weights), so that accumulation is a sum
and leaving out rows without advantage changes nothing. What is left out: no value loss.
"""

from __future__ import annotations

import mlx.core as mx

from engine.objective import Objective

# Sums that one call returns beside the loss, in this order; `units` counts tokens (sequences where the ratio is a sequence's).
STATS = ("units", "ratio", "ratio_gap", "clip_low", "clip_high", "tokens", "kl", "mismatch", "mismatch_kl", "tis", "entropy")
MAX_LOG_RATIO = 60.0  # exp stays finite in float32: an infinite ratio times an advantage of 0 would be nan


def policy_loss(
    logp: mx.array,  # [B, C] log pi of each completion token: differentiable
    *,
    objective: Objective,
    mask: mx.array,  # [B, C] 1 for a completion token that counts; elsewhere the other arrays may hold anything
    advantage: mx.array,  # [B, C]
    weight: mx.array,  # [B]
    old: mx.array | None = None,  # [B, C] the policy of the rollout; None: this policy (a single update)
    sampler: mx.array | None = None,  # [B, C] as reported by the sampler
    ref: mx.array | None = None,  # [B, C] the reference; needed only where beta > 0 and the KL is in the loss
    entropy: mx.array | None = None,  # [B, C] of the whole distribution, in nats: differentiable; needed for an entropy bonus
) -> tuple[mx.array, mx.array]:
    """The loss (scalar, a sum) and its statistics ([11] sums named by STATS, without gradient).

    clip    -min(min(r, delta) A, clamp(r, 1 - epsilon_low, 1 + epsilon_high) A)   GRPO Eq. 3; delta: INTELLECT-2 2505.07291
    cispo   -sg(clamp(r, 1 - epsilon_low, 1 + epsilon_high)) A logp                MiniMax-M1 2506.13585 Eq. 4
    r       token: exp(logp - old);  sequence: exp(mean over the completion)       GSPO 2507.18071 Eq. 7
            sequence_token: sg(s) pi / sg(pi), s the sequence's                    GSPO Eq. 14
            sequence_sum: exp(sum over the completion), one action                 RLOO 2402.14740
    tis     the policy term is multiplied by importance_weight(old - sampler)
    k       kl_estimate(ref - logp); k3_ratio multiplies k3 by exp(logp - old)     DeepSeek-V3.2, 2512.02556
    """
    counts = mask > 0  # [B, C]
    logp = mx.where(counts, logp, 0.0)  # before any exp: 0 * inf would be nan
    advantage = mx.where(counts, advantage, 0.0)
    old = mx.stop_gradient(logp if old is None else mx.where(counts, old, 0.0))
    length = mx.maximum(mask.sum(axis=1, keepdims=True), 1.0)  # [B, 1]
    token_ratio = _exp(logp - old)  # [B, C]
    ratio = _ratio(objective.ratio, logp, old, token_ratio, length)
    low = 0.0 if objective.epsilon_low is None else 1 - objective.epsilon_low
    high = 1 + objective.epsilon_high
    if objective.surrogate == "cispo":
        surrogate = -mx.stop_gradient(mx.clip(ratio, low, high)) * advantage * logp
    else:
        unclipped = ratio if objective.delta is None else mx.minimum(ratio, objective.delta)
        surrogate = -mx.minimum(unclipped * advantage, mx.clip(ratio, low, high) * advantage)
    gap = mx.zeros_like(logp) if sampler is None else mx.where(counts, old - sampler, 0.0)
    tis = mx.ones_like(logp)
    if objective.tis != "off":
        if sampler is None:
            raise ValueError("importance weights need the sampler's log-probabilities")
        tis = importance_weight(gap, objective)
        surrogate = tis * surrogate
    kl = mx.zeros_like(logp)
    if objective.beta and objective.kl_in == "loss":
        if ref is None:
            raise ValueError("beta > 0 needs the reference's log-probabilities")
        kl = kl_estimate(mx.where(counts, ref - logp, 0.0), objective.kl)
        surrogate = surrogate + objective.beta * (token_ratio * kl if objective.kl == "k3_ratio" else kl)
    if objective.entropy_bonus:
        if entropy is None:
            raise ValueError("an entropy bonus needs the entropies")
        surrogate = surrogate - objective.entropy_bonus * mx.where(counts, entropy, 0.0)
    loss = (weight[:, None] * mx.where(counts, surrogate, 0.0)).sum()
    unit = mask if objective.ratio == "token" else mask / length
    below, above = _bounded(objective, ratio, advantage, low, high)
    stats = _stats(
        units=unit.sum(),
        ratio=(unit * ratio).sum(),
        ratio_gap=(unit * mx.abs(ratio - 1)).sum(),
        clip_low=(unit * below).sum(),
        clip_high=(unit * above).sum(),
        tokens=mask.sum(),
        kl=(mask * kl).sum(),
        mismatch=mx.abs(gap).sum(),
        mismatch_kl=(_exp(gap) - 1 - gap).sum(),
        tis=(mask * tis).sum(),
        entropy=mx.zeros(()) if entropy is None else mx.where(counts, entropy, 0.0).sum(),
    )
    return loss, stats


def _bounded(objective: Objective, ratio: mx.array, advantage: mx.array, low: float, high: float) -> tuple[mx.array, mx.array]:
    """Where the lower and where the upper bound took effect, [B, C] each: cispo caps whatever the advantage's sign is."""
    if objective.surrogate == "cispo":
        return (ratio < low) & (advantage != 0), (ratio > high) & (advantage != 0)
    above = (ratio > high) & (advantage > 0)
    if objective.delta is not None:
        above = above | ((ratio > objective.delta) & (advantage < 0))
    return (ratio < low) & (advantage < 0), above


def _ratio(kind: str, logp: mx.array, old: mx.array, token_ratio: mx.array, length: mx.array) -> mx.array:
    """The importance ratio that stands at each token, [B, C]; log-probabilities are 0 where nothing counts."""
    if kind == "token":
        return token_ratio
    total = (logp - old).sum(axis=1, keepdims=True)  # [B, 1]
    if kind == "sequence_token":
        return mx.stop_gradient(_exp(total / length)) * mx.exp(logp - mx.stop_gradient(logp))
    return mx.broadcast_to(_exp(total if kind == "sequence_sum" else total / length), logp.shape)


def importance_weight(gap: mx.array, objective: Objective) -> mx.array:
    """The weight on the policy term from gap = trainer - sampler log-probabilities [B, C] (0 where nothing counts), no gradient.

    truncate: min(w, tis_cap); mask: w where tis_floor <= w <= tis_cap, else 0; w of the token, or of the whole completion.
    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; masks: IcePop.
    """
    level, _, kind = objective.tis.partition("_")
    weight = _exp(gap if level == "token" else mx.broadcast_to(gap.sum(axis=1, keepdims=True), gap.shape))
    if kind == "truncate":
        return mx.stop_gradient(mx.minimum(weight, objective.tis_cap))
    inside = (weight <= objective.tis_cap) & (weight >= (objective.tis_floor or 0.0))
    return mx.stop_gradient(mx.where(inside, weight, 0.0))


def kl_estimate(d: mx.array, kind: str) -> mx.array:
    """Per-token estimate of KL(pi || ref) from d = ref - logp: k2 d^2 / 2, else k3 exp(d) - d - 1 (DeepSeekMath Eq. 4). Both have
    zero slope at d = 0. As a loss k2 moves towards KL(pi || ref), k3 towards KL(ref || pi), k3 times the ratio as k2."""
    return 0.5 * d * d if kind == "k2" else _exp(d) - d - 1


def supervised_loss(
    logp: mx.array, *, mask: mx.array, weight: mx.array, token_weight: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Negative log-likelihood: sum of w_i m_it v_it (-logp_it), with w = 1 / sum of m v over the whole update; v, `token_weight`
    [B, C], is 1 everywhere where it is None. Stats as policy_loss: tokens are counted, not weighed."""
    logp = mx.where(mask > 0, logp, 0.0)
    if token_weight is not None:
        logp = token_weight * logp
    tokens = mask.sum()
    return -(weight[:, None] * logp).sum(), _stats(units=tokens, ratio=tokens, tokens=tokens)


def _stats(**sums: mx.array) -> mx.array:
    return mx.stop_gradient(mx.stack([sums.get(name, mx.zeros(())) for name in STATS]))


def _exp(value: mx.array) -> mx.array:
    return mx.exp(mx.minimum(value, MAX_LOG_RATIO))
