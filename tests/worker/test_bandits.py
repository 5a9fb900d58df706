"""Problems whose answer is known: which gradient a method estimates, where a KL leads, and what a length does to a loss.

All through the product's own advantages, weights and loss; the expectations are enumerated, in closed form where there is one.
The policy of a bandit is softmax(logits), its completions have one token, the arm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.methods import METHODS, Objective
from engine.types import Group, Prompt, Rollout
from engine.worker.advantages import STD_EPSILON, advantages
from engine.worker.batching import aggregation_weights
from engine.worker.credit import advantages_of, with_advantages
from engine.worker.losses import policy_loss

Array = NDArray[np.float64]
LOGITS = np.array([0.3, -0.5, 0.9, 0.0, -1.2])
CORRECT = np.array([0, 1, 0, 1, 1])  # arms that are right; their probability is 0.33
ONE_ACTION = Objective(advantage="rloo", ratio="sequence_sum")


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


POLICY = softmax(LOGITS)
P = float(POLICY @ CORRECT)
GRAD_P = POLICY * (CORRECT - P)  # d p / d logits


def column(values: Any) -> mx.array:
    return mx.array(np.asarray(values, dtype=np.float32))[:, None]  # [B, 1]


def bandit_gradient(arms: Array, given: Array, weights: Sequence[float], objective: Objective) -> Array:
    """d loss / d logits of pulls `arms` with advantages `given`, through policy_loss."""

    def loss(logits: mx.array) -> mx.array:
        logp = (logits - mx.logsumexp(logits))[mx.array(arms)][:, None]  # [B, 1]
        ones = mx.ones(logp.shape)
        weight = mx.array(np.array(weights, dtype=np.float32))
        return policy_loss(logp, objective=objective, mask=ones, advantage=column(given), weight=weight)[0]

    return np.array(mx.grad(loss)(mx.array(LOGITS.astype(np.float32))), dtype=np.float64)


def factor(group: int, ddof: int) -> float:
    """c_G(p) with E[grad GRPO] = c_G(p) grad p, the 1e-4 beside the deviation accounted for.

    With K of G right, s_K = sqrt(K (G - K)) / G (times sqrt(G / (G - 1)) for ddof 1): right arms have the advantage
    (1 - K/G) / (s_K + 1e-4) and E[score | right] = grad p / p, wrong ones -K/G / (s_K + 1e-4) and -grad p / (1 - p). Together
    (1/G) (K (1 - K/G) / p + (G - K) (K/G) / (1 - p)) / (s_K + 1e-4) = K (G - K) / (G^2 (s_K + 1e-4) p (1 - p)),
    averaged over K ~ Bin(G, p). Without the 1e-4: E[sqrt(K (G - K))] / (G p (1 - p)), which tends to 1 / sqrt(p (1 - p)).
    """
    total = 0.0
    for k in range(1, group):
        deviation = math.sqrt(k * (group - k)) / group * (math.sqrt(group / (group - 1)) if ddof else 1)
        chance = math.comb(group, k) * P**k * (1 - P) ** (group - k)
        total += chance * k * (group - k) / (group**2 * (deviation + STD_EPSILON) * P * (1 - P))
    return total


def dr_grpo_factor(group: int) -> float:
    return (group - 1) / group


EXPECTED = {
    "dr_grpo": (METHODS["dr_grpo"].objective, dr_grpo_factor),
    "rloo, one action": (ONE_ACTION, lambda group: 1.0),
    "grpo": (Objective(), lambda group: factor(group, 1)),
    "grpo, ddof 0": (Objective(advantage="group_ddof0"), lambda group: factor(group, 0)),
    "cispo": (METHODS["cispo"].objective, lambda group: factor(group, 1)),
    "gspo": (METHODS["gspo"].objective, lambda group: factor(group, 1)),
}


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_expected_gradient_by_enumerating_every_group(name: str, group: int) -> None:
    """All 5^G groups, each weighed by its probability: E[-d loss] = c grad p, to float32's rounding."""
    objective, known = EXPECTED[name]
    outcomes = np.array(list(itertools.product(range(5), repeat=group)))  # [5^G, G]
    chance = POLICY[outcomes].prod(axis=1)
    found = np.array(advantages(CORRECT[outcomes].astype(float).tolist(), objective.advantage))
    each = aggregation_weights(objective.aggregate, [1] * group, [0] * group, 1)
    gradient = -bandit_gradient(outcomes.ravel(), found.ravel(), np.outer(chance, each).ravel(), objective)
    np.testing.assert_allclose(gradient, known(group) * GRAD_P, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_sampled_groups_average_to_the_expected_gradient(name: str) -> None:
    """10,000 groups of 6 in one update: the mean gradient lies within 4 standard errors of c grad p. These are small (4 of them
    under a tenth of the gradient): c is 5/6 for Dr. GRPO, 1 for RLOO, 1.68 for GRPO, 1.84 with ddof 0."""
    objective, known = EXPECTED[name]
    groups, group = 10_000, 6
    arms = np.random.default_rng(1).choice(5, size=(groups, group), p=POLICY)
    found = np.array(advantages(CORRECT[arms].astype(float).tolist(), objective.advantage))
    numbers = np.repeat(np.arange(groups), group).tolist()
    weights = aggregation_weights(objective.aggregate, [1] * arms.size, numbers, 1)
    mean = -bandit_gradient(arms.ravel(), found.ravel(), weights, objective)
    own = (found[..., None] * (np.eye(5)[arms] - POLICY)).mean(axis=1)  # [groups, 5] by hand, for the error and the mean
    np.testing.assert_allclose(mean, own.mean(axis=0), rtol=0, atol=1e-4)  # 60,000 addends in float32
    error = own.std(axis=0, ddof=1) / math.sqrt(groups)
    expected = known(group) * GRAD_P
    assert (np.abs(mean - expected) <= 4 * error).all()
    assert 4 * np.linalg.norm(error) < 0.1 * np.linalg.norm(expected)


def test_the_factors_of_the_papers() -> None:
    """ddof 1 is exactly sqrt((G - 1) / G) of ddof 0, but for the 1e-4; c_G tends to 1 / sqrt(p (1 - p)); G = 2: with K = 1 of
    chance 2 p (1 - p), sqrt(K (G - K)) = 1, so c_2 = 2 p (1 - p) / (2 p (1 - p)) = 1."""
    for group in (2, 6, 40):
        assert factor(group, 1) == pytest.approx(math.sqrt((group - 1) / group) * factor(group, 0), rel=2e-4)
    assert factor(2, 0) == pytest.approx(1, rel=3e-4)
    assert factor(400, 0) == pytest.approx(1 / math.sqrt(P * (1 - P)), rel=5e-3)


# --- REINFORCE++


def step_of(arms: Sequence[int], rewards: Sequence[float], group: int) -> list[Group]:
    """One-token completions in groups of `group`."""
    rollouts = [Rollout((arm,), (0.0,), "stop", "") for arm in arms]
    parts = [slice(start, start + group) for start in range(0, len(arms), group)]
    return [Group(Prompt(0, (0,), "", None), tuple(rollouts[part]), ({},) * group, tuple(rewards[part])) for part in parts]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_reinforce_pp_by_enumerating_every_batch(group: int) -> None:
    """Four pulls, whitened over the batch, whatever its groups: all 5^4 batches together give c_4(p) grad p of ddof 1, since a
    whitened batch is one group of four. And each batch's advantages are (r - mean) / (std + 1e-4) by hand."""
    objective = replace(METHODS["reinforce_pp"].objective, beta=0.0, kl="k3", kl_in="loss")
    outcomes = list(itertools.product(range(5), repeat=4))
    found = []
    for arms in outcomes:
        rewards = CORRECT[list(arms)].astype(float)
        given = [a for one in with_advantages(step_of(arms, rewards, group), objective) for a in advantages_of(one)]
        spread = rewards.std(ddof=1)
        by_hand = (rewards - rewards.mean()) / (spread + STD_EPSILON) if spread else np.zeros(4)
        np.testing.assert_allclose(np.array(given).ravel(), by_hand, rtol=1e-12, atol=1e-14)
        found.append(np.array(given).ravel())
    chance = POLICY[np.array(outcomes)].prod(axis=1)
    weights = np.repeat(chance / 4, 4)
    gradient = -bandit_gradient(np.array(outcomes).ravel(), np.concatenate(found), weights, objective)
    np.testing.assert_allclose(gradient, factor(4, 1) * GRAD_P, rtol=0, atol=2e-6)


# --- where a KL leads

REWARD = np.array([1.0, 0.0, 0.4, -0.6])
REFERENCE = softmax(np.array([-0.4, 0.7, 0.2, 0.5]))
BETA = 0.6


def gibbs() -> Array:
    """ref exp(r / beta) / Z: the maximum of E[r] - beta KL(pi || ref)."""
    tilted = REFERENCE * np.exp(REWARD / BETA)
    return tilted / tilted.sum()


def forward_optimum() -> Array:
    """beta ref / (lambda - r), lambda such that it sums to 1: the maximum of E[r] - beta KL(ref || pi)."""
    low, high = REWARD.max() + 1e-9, REWARD.max() + 10 * BETA
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * REFERENCE / (middle - REWARD)).sum() > 1 else (low, middle)
    return BETA * REFERENCE / (low - REWARD)


def descended(objective: Objective, rate: float = 1.0, steps: int = 400) -> Array:
    """Where gradient descent on the exact expected loss ends: every arm is a completion, weighed by its own probability (held
    constant, as a sampled completion's is), its advantage r - E[r], or with the KL in the reward with_advantages's own."""
    ref = np.log(REFERENCE).astype(np.float32)
    logits = mx.zeros(4)

    def loss(logits: mx.array, chance: mx.array, given: mx.array) -> mx.array:
        logp = (logits - mx.logsumexp(logits))[:, None]
        return policy_loss(
            logp, objective=objective, mask=mx.ones((4, 1)), advantage=given, weight=chance, ref=mx.array(ref)[:, None]
        )[0]

    slope = mx.grad(loss)
    for _ in range(steps):
        logp = np.array(logits - mx.logsumexp(logits), dtype=np.float64)
        if objective.kl_in == "reward":
            kl = [np.array([one]) for one in logp - np.log(REFERENCE)]
            (group,) = with_advantages(step_of(range(4), REWARD.tolist(), 4), objective, kl)
            given = np.array(group.advantages)
        else:
            given = REWARD - np.exp(logp) @ REWARD
        logits = logits - rate * slope(logits, mx.array(np.exp(logp).astype(np.float32)), column(given))
    return softmax(np.array(logits, dtype=np.float64))


@pytest.mark.parametrize("kl", ["k2", "k3_ratio"])
def test_k2_and_k3_ratio_lead_to_the_gibbs_policy(kl: str) -> None:
    np.testing.assert_allclose(descended(Objective(beta=BETA, kl=kl)), gibbs(), rtol=0, atol=1e-4)


def test_k3_leads_to_another_policy() -> None:
    """Its gradient as a loss is that of KL(ref || pi), whose optimum is beta ref / (lambda - r); the two are 0.1 apart."""
    found = descended(Objective(beta=BETA, kl="k3"))
    np.testing.assert_allclose(found, forward_optimum(), rtol=0, atol=1e-4)
    assert np.abs(found - gibbs()).max() > 0.1


@pytest.mark.parametrize("name", ["none", "rloo"])
def test_a_kl_in_the_reward_leads_to_the_gibbs_policy(name: str) -> None:
    """r - beta (log pi - log ref) less a baseline that all arms share: the score's mean is 0, so none moves the optimum."""
    objective = replace(METHODS["rloo"].objective, beta=BETA, advantage=name)
    np.testing.assert_allclose(descended(objective), gibbs(), rtol=0, atol=1e-4)


# --- length bias


def stopping(quit_chance: float, limit: int) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Probability, tokens and end of every completion a^n EOS, n = 0 .. limit - 1, and of a^limit, which is cut."""
    n = np.arange(limit + 1)
    stops = n < limit
    chance = np.where(stops, quit_chance * (1 - quit_chance) ** n, (1 - quit_chance) ** limit)
    return chance, np.where(stops, n + 1, limit), stops


def drift(objective: Objective, quit_chance: float, limit: int, advantage: float) -> float:
    """The expected ascent on the EOS logit from completions of this advantage: E over n of -d loss / d logit, the loss with the
    objective's own weights, N = 2 (a group of one right and one wrong completion, which the length does not touch)."""
    chance, lengths, stops = stopping(quit_chance, limit)
    mask = (np.arange(limit)[None] < lengths[:, None]).astype(np.float32)
    last = stops[:, None] & (np.arange(limit)[None] == lengths[:, None] - 1)
    weights = [
        2 * aggregation_weights(objective.aggregate, [length, 1], [0, 0], limit)[0] * p
        for length, p in zip(lengths.tolist(), chance, strict=True)
    ]

    def loss(logit: mx.array) -> mx.array:
        stop, on = -mx.logaddexp(mx.zeros(()), -logit), -mx.logaddexp(mx.zeros(()), logit)  # log q, log (1 - q)
        logp = mx.where(mx.array(last), stop, on)
        given = mx.full(logp.shape, advantage)
        weight = mx.array(np.array(weights, dtype=np.float32))
        return policy_loss(logp, objective=objective, mask=mx.array(mask), advantage=given, weight=weight)[0]

    return -float(mx.grad(loss)(mx.array(math.log(quit_chance / (1 - quit_chance)))).item())


def test_wrong_completions_lengthen_under_grpo_and_not_under_dr_grpo() -> None:
    """The toy of Dr. GRPO: each token is EOS with chance q = sigmoid(logit), the reward does not look at n.

    The score of a^n EOS is (1 - q) - n q = 1 - (n + 1) q. A constant divisor leaves A E[score] = A (1 - q / q) = 0. GRPO divides
    by |o| = n + 1: A (E[1 / (n + 1)] - q) = A (q ln(1/q) / (1 - q) - q), and ln(1/q) > 1 - q: so for A < 0 the EOS logit falls
    and wrong answers lengthen, for A > 0 it rises. q = 0.2: 0.2 (1.6094 / 0.8 - 1) = 0.2024. Cut at 120 tokens, 0.8^120 = 2e-12.
    """
    for a in (-1.0, 0.7):
        expected = a * (0.2 * math.log(5) / 0.8 - 0.2)
        assert drift(Objective(), 0.2, 120, a) == pytest.approx(expected, abs=1e-5)
        assert drift(METHODS["gspo"].objective, 0.2, 120, a) == pytest.approx(expected, abs=1e-5)
        assert drift(METHODS["dr_grpo"].objective, 0.2, 120, a) == pytest.approx(0, abs=1e-6)
    assert drift(Objective(), 0.2, 120, -1.0) < -0.2


def test_a_completion_that_is_one_action_has_no_length_bias_either() -> None:
    """RLOO: the ratio of sums with weights 1/(N |o|) is -A/N at each token: the expected score again, which is 0. And so it stays
    when one in four completions is cut at 13 tokens (0.9^13 = 0.25): a cut completion has the score -13 q."""
    for limit in (13, 120):
        for name in ("rloo", "dr_grpo"):
            assert drift(METHODS[name].objective, 0.1, limit, -1.0) == pytest.approx(0, abs=5e-5)
        assert drift(Objective(), 0.1, limit, -1.0) < -0.1
