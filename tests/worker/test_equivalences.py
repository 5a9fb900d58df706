"""What has to be equal, whatever the batch: the relations between methods, and what a batch's shape may not change.

Properties over random batches (loss_cases.py), loss and gradient, in float32. Where a relation is not exact to the bit the
tolerance is assert_same's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.methods import METHODS, Objective
from engine.worker.advantages import STD_EPSILON, advantages
from engine.worker.batching import Row, aggregation_weights, minibatches, pack
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import STATS, policy_loss
from engine.worker.model import Policy

from .loss_cases import ARRAYS, FORMS, LIMIT, Case, assert_same, cases, evaluate
from .rows import nudge, prompts_of, rollout_rows

PHASES = (Phase.generate, Phase.shrink)
few = settings(max_examples=25, deadline=None, derandomize=True, phases=PHASES)
fewer = settings(max_examples=8, deadline=None, derandomize=True, phases=PHASES)
GARBAGE = [float("nan"), float("inf"), -float("inf"), 1e30, -1e4]
WIDE = {"epsilon_low": 0.2, "epsilon_high": 0.28}
SAME_LENGTH = st.integers(1, 6).map(lambda rows: [LIMIT] * rows)
REWARDS = st.lists(st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=6), min_size=1, max_size=4)


# --- between methods


@few
@given(cases(), st.sampled_from([0.0, 0.1]))
def test_gspo_is_grpo_while_the_policy_is_the_rollouts(case: Case, beta: float) -> None:
    """All ratios are 1: the clip is idle, and 1/|o| is in the mean of the sequence ratio as it is in the weights."""
    grpo = Objective(beta=beta)
    for old in (None, case.logp):
        here = replace(case, old=old)
        for ratio in ("sequence", "sequence_token"):
            gspo = replace(grpo, ratio=ratio, epsilon_low=3e-4, epsilon_high=4e-4)
            assert_same(evaluate(here, gspo), evaluate(here, grpo))


@few
@given(cases(), st.sampled_from([None, 1.4]), st.sampled_from(["seq_mean", "token_mean"]))
def test_gspo_token_is_gspo_where_a_completion_has_one_advantage(case: Case, delta: float | None, aggregate: str) -> None:
    """Off the policy too, clipped or not: sum_t s pi_t / sg(pi_t) has the value |o| s and the gradient of s at every token."""
    sequence = Objective(ratio="sequence", delta=delta, aggregate=aggregate, **WIDE)
    assert_same(evaluate(case, replace(sequence, ratio="sequence_token")), evaluate(case, sequence))


@few
@given(cases(lengths=SAME_LENGTH), st.sampled_from([0.0, 0.1]))
def test_grpo_dapo_and_dr_grpo_weigh_completions_of_full_length_alike(case: Case, beta: float) -> None:
    """|o_i| = L for all: 1/(N L) = 1/sum|o_j|. With one group also the group's mean."""
    one = replace(case, groups=(0,) * len(case.groups))
    found = [
        evaluate(one, Objective(aggregate=kind, beta=beta, **WIDE))
        for kind in ("seq_mean", "token_mean", "constant", "group_token_mean")
    ]
    for other in found[1:]:
        assert_same(other, found[0])


@given(REWARDS)
@few
def test_advantages_differ_by_known_factors(rewards: list[list[float]]) -> None:
    """Dr. GRPO = GRPO x (std + 1e-4), for either ddof; RLOO = G / (G - 1) x Dr. GRPO; exact up to float64."""
    modes = {mode: advantages(rewards, mode) for mode in ("group", "group_ddof0", "none", "rloo", "batch")}
    everything = np.concatenate([np.array(group) for group in rewards])
    for number, group in enumerate(rewards):
        plain, size = np.array(modes["none"][number]), len(group)
        factors = {
            "group": np.std(group, ddof=1) + STD_EPSILON,
            "group_ddof0": np.std(group) + STD_EPSILON,
            "batch": np.std(everything, ddof=1) + STD_EPSILON,
            "rloo": (size - 1) / size,
        }
        for mode, factor in factors.items():
            np.testing.assert_allclose(np.array(modes[mode][number]) * factor, plain, rtol=1e-12, atol=1e-14)
        others = [(sum(group) - reward) / (size - 1) for reward in group]  # the mean of the others
        np.testing.assert_allclose(modes["rloo"][number], np.array(group) - others, rtol=1e-12, atol=1e-14)


@few
@given(cases())
def test_cispo_reinforce_and_dapo_have_one_gradient_while_the_policy_is_the_rollouts(case: Case) -> None:
    """All three: -A / sum|o_j| at each token. REINFORCE is -sum w A logp itself, by hand. CISPO's loss is REINFORCE's too."""
    here = replace(case, old=None)
    weight = here.weights("token_mean")[:, None]
    reinforce = (float(-(weight * here.advantage * here.logp).sum()), -weight * here.advantage * here.mask, None)
    cispo = evaluate(here, METHODS["cispo"].objective)
    dapo = evaluate(here, METHODS["dapo"].objective)
    assert_same(cispo, reinforce)
    assert_same((0.0, dapo[1], None), (0.0, reinforce[1], None))


@few
@given(cases(per_token=True), st.sampled_from(list(FORMS)))
def test_on_the_policy_the_slope_is_minus_weight_times_advantage(case: Case, name: str) -> None:
    """Without KL and importance weight, each token's d loss / d logp = -w A; a completion that is one action has its whole
    advantage at each token (ratio of sums: -|o| w A for one advantage, -w sum_t A_t in general), GSPO the mean."""
    objective = replace(FORMS[name], beta=0.0, kl="k3", kl_in="loss", tis="off")
    _, slope, stats = evaluate(replace(case, old=None), objective)
    total = case.advantage.sum(axis=1, keepdims=True) * np.ones_like(case.advantage)
    whole = {"sequence_sum": total, "sequence": total / np.maximum(case.mask.sum(axis=1, keepdims=True), 1)}
    expected = -case.weights(objective.aggregate)[:, None] * whole.get(objective.ratio, case.advantage) * case.mask
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)
    assert stats["clip_low"] == stats["clip_high"] == 0
    assert stats["ratio"] == pytest.approx(stats["units"])


@few
@given(cases())
def test_rloo_is_reinforce_on_the_sum_of_log_probabilities(case: Case) -> None:
    """One action, weights 1/(N |o|): each token's slope is -A_i / N: the gradient of -1/N sum_i A_i log pi(o_i)."""
    objective = METHODS["rloo"].objective
    _, slope, _ = evaluate(replace(case, old=None), objective)
    np.testing.assert_allclose(slope, -case.advantage * case.mask / len(case.lengths), rtol=1e-5, atol=1e-6)


def test_without_bounds_several_updates_follow_the_importance_sampled_gradient() -> None:
    """Six passes of gradient descent on one rollout, epsilon -> infinity: the same path as -sum w rho A score by hand in float64
    (logits [C, V], score = onehot - softmax), and another one than with epsilon 0.2."""
    random = np.random.default_rng(0)
    tokens, start = random.integers(0, 5, (8, 6)), random.standard_normal((6, 5))
    advantage, weight = random.standard_normal((8, 1)) * np.ones((8, 6)), 1 / 48

    def logp_of(logits: np.ndarray) -> np.ndarray:
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_softmax[np.arange(6)[None], tokens]

    def ours(logits: mx.array, objective: Objective) -> mx.array:
        everything = logits - mx.logsumexp(logits, axis=1, keepdims=True)
        logp = mx.take_along_axis(mx.broadcast_to(everything[None], (8, 6, 5)), mx.array(tokens)[..., None], axis=2)[..., 0]
        old = mx.array(logp_of(start).astype(np.float32))
        given = {"mask": mx.ones((8, 6)), "advantage": mx.array(advantage.astype(np.float32)), "weight": mx.full((8,), weight)}
        return policy_loss(logp, objective=objective, old=old, **given)[0]

    by_hand = start.copy()
    for _ in range(6):
        ratio = np.exp(logp_of(by_hand) - logp_of(start))
        softmax = np.exp(by_hand) / np.exp(by_hand).sum(axis=1, keepdims=True)
        score = np.eye(5)[tokens] - softmax[None]  # [8, 6, 5]
        by_hand += 4.0 * weight * ((ratio * advantage)[..., None] * score).sum(axis=0)
    ends = {}
    for epsilon in (1e9, 0.2):
        logits = mx.array(start.astype(np.float32))
        for _ in range(6):
            logits = logits - 4.0 * mx.grad(ours)(logits, Objective(epsilon_low=epsilon, epsilon_high=epsilon))
        ends[epsilon] = np.array(logits)
    np.testing.assert_allclose(ends[1e9], by_hand, rtol=0, atol=1e-5)
    assert np.abs(ends[0.2] - by_hand).max() > 0.05


# --- what a batch's shape may not change


@fewer
@given(cases(per_token=True), st.sampled_from(GARBAGE))
@pytest.mark.parametrize("name", FORMS)
def test_columns_of_padding_change_nothing_whatever_they_hold(name: str, case: Case, garbage: float) -> None:
    """Three columns more, and garbage wherever no token counts: in the log-probabilities of all four policies and the entropy."""
    longer = case.changed(lambda array: np.pad(array, ((0, 0), (0, 3))))
    arrays = {part: getattr(longer, part) for part in ARRAYS if part not in ("mask", "advantage")}
    dirty = {part: np.where(longer.mask > 0, array, np.float32(garbage)) for part, array in arrays.items()}
    value, gradient, stats = evaluate(replace(longer, **dirty), FORMS[name])
    expected = evaluate(case, FORMS[name])
    assert_same((value, gradient[:, : case.mask.shape[1]], None), expected)
    assert not gradient[:, case.mask.shape[1] :].any()
    assert stats == pytest.approx(expected[2], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ["grpo", "gspo", "gspo_token", "cispo", "rloo"])
def test_padding_may_hold_any_advantage(name: str, garbage: float) -> None:
    """Completions of 2 and 3 tokens in 4 columns, on the policy: -w A at each token (rloo: times |o|), 0 in the padding."""
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=np.float32)
    logp = -mask
    case = Case(logp, logp, logp, logp, mask, mask, np.where(mask > 0, 1.5, garbage).astype(np.float32), (2, 3), (0, 0))
    value, gradient, _ = evaluate(case, FORMS[name])
    clean = evaluate(replace(case, advantage=1.5 * mask), FORMS[name])
    assert value == clean[0] and np.array_equal(gradient, clean[1])


@fewer
@given(cases(per_token=True), st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", FORMS)
def test_rows_may_stand_in_any_order(name: str, case: Case, random: object) -> None:
    """Lengths and groups moved with them, so the weights are worked out anew."""
    order = list(range(len(case.lengths)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = replace(case.take(order), lengths=tuple(case.lengths[i] for i in order), groups=tuple(case.groups[i] for i in order))
    value, gradient, _ = evaluate(case, FORMS[name])
    assert_same(evaluate(moved, FORMS[name]), (value, gradient[order], None))


@fewer
@given(cases(per_token=True), st.integers(1, 3))
@pytest.mark.parametrize("aggregate", ["seq_mean", "constant", "token_mean", "group_token_mean", "seq_sum"])
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token", "sequence_sum"])
def test_micro_batches_add_up_to_the_whole(ratio: str, aggregate: str, case: Case, size: int) -> None:
    """The weights are made once, of the whole update: then losses, gradients and statistics are sums."""
    objective = Objective(ratio=ratio, aggregate=aggregate, beta=0.1, tis="token_truncate", entropy_bonus=0.01, **WIDE)
    weight = case.weights(aggregate)
    parts = [list(range(start, min(start + size, len(weight)))) for start in range(0, len(weight), size)]
    found = [evaluate(case.take(part), objective, weight[part]) for part in parts]
    whole = evaluate(case, objective)
    assert_same((sum(part[0] for part in found), np.concatenate([part[1] for part in found]), None), whole)
    for name in STATS:
        assert sum(part[2][name] for part in found) == pytest.approx(whole[2][name], rel=1e-5, abs=1e-5)


@fewer
@given(cases(), st.sampled_from(["token", "sequence", "sequence_token", "sequence_sum"]))
@pytest.mark.parametrize("aggregate", ["seq_mean", "constant", "token_mean", "group_token_mean", "seq_sum"])
def test_rows_without_an_advantage_may_go_while_the_weights_stay(aggregate: str, case: Case, ratio: str) -> None:
    """At beta 0 and without an entropy bonus. With a KL or a bonus they do move the policy."""
    kept = [row for row in range(len(case.lengths)) if case.advantage[row].any()]
    gone = [row for row in range(len(case.lengths)) if row not in kept and case.lengths[row]]
    assume(kept and gone)
    objective = Objective(ratio=ratio, aggregate=aggregate, **WIDE)
    weight = case.weights(aggregate)
    value, gradient, _ = evaluate(case, objective)
    assert not gradient[gone].any()
    assert_same(evaluate(case.take(kept), objective, weight[kept]), (value, gradient[kept], None))
    assert evaluate(case, replace(objective, beta=0.1))[1][gone].any()
    assert evaluate(case, replace(objective, entropy_bonus=0.1), by="entropy")[1][gone].any()


# --- through a model


@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token", "sequence_sum"])
def test_every_mini_batch_has_the_ratio_one_while_the_policy_stays(make_policy: Callable[..., Policy], ratio: str) -> None:
    """`old` scored once over all rows in micro-batches of 5, then each of 3 mini-batches in micro-batches of 2."""
    policy = make_policy("lora")
    nudge(policy)
    prompts = prompts_of(policy, "What is 2+3?", "Hi", "One plus one", "And then?", "No")
    rows = [replace(row, advantage=1.0, weight=1.0) for row in rollout_rows(policy, prompts, 0.7)]
    old = score(policy, rows, 0.7, 5)
    for part in minibatches(5, 3, 0, 1, 0):
        chosen: list[Row] = [row for row in rows if row.group in part]
        for batch in pack(chosen, 2, old=old):
            given = {"mask": mx.array(batch.mask), "advantage": mx.array(batch.advantage), "weight": mx.array(batch.weight)}
            logp = completion_logprobs(policy, batch, 0.7)
            _, sums = policy_loss(logp, objective=Objective(ratio=ratio), old=mx.array(batch.old), **given)
            stats = dict(zip(STATS, sums.tolist(), strict=True))
            assert stats["ratio_gap"] / stats["units"] < (1e-4 if ratio == "sequence_sum" else 1e-5)
            assert stats["ratio"] / stats["units"] == pytest.approx(1, abs=1e-4 if ratio == "sequence_sum" else 1e-5)


def test_weights_of_full_length_are_one_number() -> None:
    """Four completions of 9 tokens, L = 9: 1/36 in every form but the sum."""
    for kind in ("seq_mean", "constant", "token_mean", "group_token_mean"):
        assert aggregation_weights(kind, [9] * 4, [0, 0, 1, 1], 9) == pytest.approx([1 / 36] * 4)
