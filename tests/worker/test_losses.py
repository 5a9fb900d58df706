"""The policy loss against reference values (tests/golden/README.md): loss and gradient to 1e-6 absolute in float32."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.methods import Objective
from engine.worker import golden
from engine.worker.batching import aggregation_weights
from engine.worker.losses import STATS, policy_loss, supervised_loss

FIXTURE = golden.fixture("policy_losses")
CASES = {case["name"]: case for case in FIXTURE["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_agree_with_the_reference(name: str) -> None:
    value, gradient = golden.loss_and_gradient(CASES[name])
    assert abs(value - CASES[name]["loss"]) <= 1e-6
    np.testing.assert_allclose(gradient, CASES[name]["dloss_dlogp"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("relation", FIXTURE["relations"], ids=lambda r: r["kind"] + ":" + str(r.get("whole", r.get("cases"))))
def test_relations_between_cases_hold(relation: dict[str, Any]) -> None:
    if relation["kind"] == "sum":
        whole, parts = (
            golden.loss_and_gradient(CASES[relation["whole"]]),
            [golden.loss_and_gradient(CASES[name]) for name in relation["parts"]],
        )
        assert abs(whole[0] - sum(value for value, _ in parts)) <= 1e-6
        np.testing.assert_allclose(whole[1], np.concatenate([gradient for _, gradient in parts]), rtol=0, atol=1e-6)
        return
    (first, *others) = [golden.loss_and_gradient(CASES[name]) for name in relation["cases"]]
    for other in others:
        if "loss" in relation["of"]:
            assert abs(first[0] - other[0]) <= 1e-6
        if "dloss_dlogp" in relation["of"]:
            np.testing.assert_allclose(first[1], other[1], rtol=0, atol=1e-6)


def test_aggregation_weights_are_those_of_the_papers() -> None:
    """Lengths 2, 4, 1, 3 (10 tokens) in groups 0, 0, 1, 1, L = 8, N = 4.

    seq_mean 1/(4*2) = .125, 1/16, 1/4, 1/12;  constant 1/32;  token_mean 1/10;  seq_sum 1/4;  group_token_mean: groups of 6 and
    4 tokens: 1/(2*6), 1/(2*4).
    """
    args = ([2, 4, 1, 3], [0, 0, 1, 1], 8)
    assert aggregation_weights("seq_mean", *args) == [1 / 8, 1 / 16, 1 / 4, 1 / 12]
    assert aggregation_weights("constant", *args) == [1 / 32] * 4
    assert aggregation_weights("token_mean", *args) == [1 / 10] * 4
    assert aggregation_weights("seq_sum", *args) == [1 / 4] * 4
    assert aggregation_weights("group_token_mean", *args) == [1 / 12, 1 / 12, 1 / 8, 1 / 8]


def test_on_policy_gradient_is_minus_weight_times_advantage() -> None:
    """With old = logp the ratio is 1 and d loss / d logp_it = -w_i A_i m_it, whatever epsilon: here w = 1/(2*2), 1/(2*1)."""
    logp = mx.array([[-1.0, -2.0], [-0.5, -3.0]])
    mask, advantage, weight = mx.array([[1.0, 1.0], [1.0, 0.0]]), mx.array([[0.5, 0.5], [-2.0, -2.0]]), mx.array([0.25, 0.5])
    gradient = mx.grad(lambda x: policy_loss(x, objective=Objective(), mask=mask, advantage=advantage, weight=weight)[0])(logp)
    np.testing.assert_allclose(np.array(gradient), [[-0.125, -0.125], [1.0, 0.0]], atol=1e-7)


def test_stats_count_what_the_clip_did() -> None:
    """Ratios e^0.3 = 1.35 (A > 0: above 1.2, clipped), e^-0.3 = 0.74 (A < 0: below 0.8, clipped), 1 and 1 over 4 tokens; the
    sampler was 0.1 off on one token."""
    old = mx.array([[-1.0, -1.0], [-1.0, -1.0]])
    logp = mx.array([[-0.7, -1.0], [-1.3, -1.0]])
    sampler = mx.array([[-1.0, -1.1], [-1.0, -1.0]])
    advantage = mx.array([[1.0, 1.0], [-1.0, -1.0]])
    _, stats = policy_loss(
        logp, objective=Objective(), mask=mx.ones((2, 2)), advantage=advantage, weight=mx.ones(2), old=old, sampler=sampler
    )
    found = dict(zip(STATS, stats.tolist(), strict=True))
    exact = {"units": 4, "clip_low": 1, "clip_high": 1, "tokens": 4, "kl": 0, "tis": 4, "entropy": 0}
    assert {name: found[name] for name in exact} == exact
    assert found["ratio"] == pytest.approx(np.exp(0.3) + np.exp(-0.3) + 2, abs=1e-6)
    assert found["ratio_gap"] == pytest.approx(np.exp(0.3) - np.exp(-0.3), abs=1e-6)
    assert found["mismatch"] == pytest.approx(0.1, abs=1e-6)
    assert found["mismatch_kl"] == pytest.approx(np.exp(0.1) - 1 - 0.1, abs=1e-6)


def test_nothing_of_the_reference_is_used_at_beta_zero() -> None:
    mask, advantage, weight = mx.ones((1, 2)), mx.ones((1, 2)), mx.ones(1)
    poison = mx.full((1, 2), float("nan"))
    loss, _ = policy_loss(
        mx.array([[-1.0, -2.0]]), objective=Objective(), mask=mask, advantage=advantage, weight=weight, ref=poison
    )
    assert loss.item() == -2.0


def test_supervised_loss_is_the_mean_over_all_target_tokens() -> None:
    """Rows of 2 and 1 targets: -( -1 - 2 - 4 ) / 3 = 7/3; the padded place holds garbage and changes nothing."""
    logp = mx.array([[-1.0, -2.0], [-4.0, float("-inf")]])
    loss, _ = supervised_loss(logp, mask=mx.array([[1.0, 1.0], [1.0, 0.0]]), weight=mx.full((2,), 1 / 3))
    assert loss.item() == pytest.approx(7 / 3, abs=1e-6)
