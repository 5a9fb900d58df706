"""Faults in the policy loss: ratios, bounds, estimates, and what has a gradient and what has not."""

from __future__ import annotations

from .fault import Fault

LOSSES = "engine/worker/losses.py"
GOLDEN = "tests/worker/test_losses.py::test_loss_and_gradient_agree_with_the_reference"
EQUAL, PARTS = "tests/worker/test_equivalences.py", "tests/worker/test_loss_parts.py"

FAULTS = (
    Fault(
        name="old-without-stop-gradient",
        why="with old = logp the ratio is 1 and has no slope left: nothing is learned on the policy",
        file=LOSSES,
        old="old = mx.stop_gradient(logp if old is None else mx.where(counts, old, 0.0))",
        new="old = logp if old is None else mx.where(counts, old, 0.0)",
        test="tests/worker/test_losses.py::test_on_policy_gradient_is_minus_weight_times_advantage",
    ),
    Fault(
        name="cispo-weight-without-stop-gradient",
        why="CISPO's clipped weight is a constant (MiniMax-M1 Eq. 4); with a slope it is another objective",
        file=LOSSES,
        old="surrogate = -mx.stop_gradient(mx.clip(ratio, low, high)) * advantage * logp",
        new="surrogate = -mx.clip(ratio, low, high) * advantage * logp",
        test=f"{GOLDEN}[cispo_beta0_offpolicy]",
    ),
    Fault(
        name="cispo-cap-read-as-absolute",
        why="TRL's epsilon_high is the cap itself, ours is its distance from 1: mixed up, every weight is capped at 0.28",
        file=LOSSES,
        old="mx.stop_gradient(mx.clip(ratio, low, high)) * advantage * logp",
        new="mx.stop_gradient(mx.clip(ratio, low, objective.epsilon_high)) * advantage * logp",
        test=f"{GOLDEN}[cispo_beta0_offpolicy]",
    ),
    Fault(
        name="gspo-token-without-stop-gradient",
        why="GSPO-token holds the sequence's ratio fixed (Eq. 14); else its slope is counted twice",
        file=LOSSES,
        old="return mx.stop_gradient(_exp(total / length)) * mx.exp(logp - mx.stop_gradient(logp))",
        new="return _exp(total / length) * mx.exp(logp - mx.stop_gradient(logp))",
        test=f"{EQUAL}::test_gspo_token_is_gspo_where_a_completion_has_one_advantage",
    ),
    Fault(
        name="gspo-without-root",
        why="GSPO's ratio is the geometric mean over the completion (Eq. 7); without 1/|o| it is RLOO's",
        file=LOSSES,
        old='_exp(total if kind == "sequence_sum" else total / length)',
        new="_exp(total)",
        test=f"{GOLDEN}[gspo_beta0_offpolicy]",
    ),
    Fault(
        name="clip-bounds-swapped",
        why="DAPO's clip-higher raises the upper bound: 0.2 below and 0.28 above, not the other way round",
        file=LOSSES,
        old="else 1 - objective.epsilon_low\n    high = 1 + objective.epsilon_high",
        new="else 1 - objective.epsilon_high\n    high = 1 + (objective.epsilon_low or 0.0)",
        test=f"{GOLDEN}[dapo_beta0_offpolicy]",
    ),
    Fault(
        name="surrogate-max",
        why="the pessimistic bound is the smaller of the two (GRPO Eq. 3); the larger one never clips what it should",
        file=LOSSES,
        old="surrogate = -mx.minimum(unclipped * advantage, mx.clip(ratio, low, high) * advantage)",
        new="surrogate = -mx.maximum(unclipped * advantage, mx.clip(ratio, low, high) * advantage)",
        test=f"{GOLDEN}[grpo_beta0_offpolicy]",
    ),
    Fault(
        name="never-clipped",
        why="a surrogate without its clip is plain importance sampling",
        file=LOSSES,
        old="surrogate = -mx.minimum(unclipped * advantage, mx.clip(ratio, low, high) * advantage)",
        new="surrogate = -unclipped * advantage",
        test=f"{PARTS}::test_what_is_clipped_has_no_slope_and_nothing_else_is_without_one",
    ),
    Fault(
        name="two-sided-clip-lost",
        why="the upper bound on the unclipped branch is what keeps negative advantages from exploding (INTELLECT-2)",
        file=LOSSES,
        old="unclipped = ratio if objective.delta is None else mx.minimum(ratio, objective.delta)",
        new="unclipped = ratio",
        test=f"{GOLDEN}[grpo_delta]",
    ),
    Fault(
        name="k3-sign-of-d",
        why="k3 takes d = ref - logp; with the sign turned it estimates another divergence",
        file=LOSSES,
        old="else _exp(d) - d - 1",
        new="else _exp(-d) + d - 1",
        test=f"{GOLDEN}[grpo_beta0.04_offpolicy]",
    ),
    Fault(
        name="kl-slope-at-the-reference",
        why="a KL whose slope is not 0 at pi = ref is subtracted from every advantage (a trainer in use has one)",
        file=LOSSES,
        old="else _exp(d) - d - 1",
        new="else _exp(d) - 1",
        test=f"{PARTS}::test_the_slopes_of_the_kl_estimates",
    ),
    Fault(
        name="k3-ratio-without-ratio",
        why="k3 has the gradient of KL(pi || ref) only when it is multiplied by the ratio (DeepSeek-V3.2)",
        file=LOSSES,
        old='(token_ratio * kl if objective.kl == "k3_ratio" else kl)',
        new="kl",
        test="tests/worker/test_bandits.py::test_k2_and_k3_ratio_lead_to_the_gibbs_policy[k3_ratio]",
    ),
    Fault(
        name="importance-weight-on-the-kl",
        why="the weight trainer / sampler belongs to the policy term alone",
        file=LOSSES,
        old="surrogate = surrogate + objective.beta * (",
        new="surrogate = surrogate + tis * objective.beta * (",
        test=f"{PARTS}::test_the_importance_weight_leaves_the_kl_alone",
    ),
    Fault(
        name="importance-weight-of-the-current-policy",
        why="the weight is old / sampler; from the current policy it would count the ratio twice",
        file=LOSSES,
        old="mx.where(counts, old - sampler, 0.0)",
        new="mx.where(counts, logp - sampler, 0.0)",
        test=f"{GOLDEN}[dapo_tis]",
    ),
    Fault(
        name="importance-weight-not-capped",
        why="without its cap the weight has no bound, and neither has the variance",
        file=LOSSES,
        old="return mx.stop_gradient(mx.minimum(weight, objective.tis_cap))",
        new="return mx.stop_gradient(weight)",
        test=f"{GOLDEN}[dapo_tis]",
    ),
    Fault(
        name="entropy-bonus-as-a-penalty",
        why="the bonus is subtracted from a loss; added, it makes the policy collapse",
        file=LOSSES,
        old="surrogate = surrogate - objective.entropy_bonus *",
        new="surrogate = surrogate + objective.entropy_bonus *",
        test=f"{PARTS}::test_an_entropy_bonus_adds_its_own_slope_and_no_other",
    ),
    Fault(
        name="padding-multiplied-away",
        why="0 x inf is nan: what padding holds has to be replaced before any arithmetic, not multiplied by the mask",
        file=LOSSES,
        old="logp = mx.where(counts, logp, 0.0)  # before any exp",
        new="logp = mask * logp  # before any exp",
        test=f"{EQUAL}::test_columns_of_padding_change_nothing_whatever_they_hold",
    ),
)
