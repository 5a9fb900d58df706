"""The parts of the policy loss one by one: where each bound stands, what each part adds, and which parts do not meet.

Properties over random batches (loss_cases.py) and tables worked out by hand, in float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.methods import Objective

from .loss_cases import FORMS, Case, assert_same, cases, evaluate

few = settings(max_examples=25, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink))
WIDE = {"epsilon_low": 0.2, "epsilon_high": 0.28}


@few
@given(cases(), st.sampled_from([name for name, form in FORMS.items() if not form.beta or form.kl_in == "reward"]))
def test_nothing_of_a_reference_is_used_without_a_kl_in_the_loss(case: Case, name: str) -> None:
    poisoned = replace(case, ref=np.full_like(case.ref, np.nan))
    found, expected = evaluate(poisoned, FORMS[name]), evaluate(case, FORMS[name])
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert found[2]["kl"] == 0


@few
@given(cases(), st.sampled_from(["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]))
def test_the_importance_weight_is_one_where_sampler_and_trainer_agree(case: Case, tis: str) -> None:
    here = replace(case, sampler=case.old)
    off, on = Objective(beta=0.1), Objective(beta=0.1, tis=tis, tis_cap=1.0, tis_floor=1.0 if "mask" in tis else None)
    found, expected = evaluate(here, on), evaluate(here, off)
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert found[2]["tis"] == found[2]["tokens"] and found[2]["mismatch"] == 0


@few
@given(cases(), st.sampled_from(["k2", "k3", "k3_ratio"]), st.sampled_from(["token_truncate", "sequence_mask"]))
def test_the_importance_weight_leaves_the_kl_alone(case: Case, kl: str, tis: str) -> None:
    """Without an advantage the KL is all there is: the sampler does not matter. With one, the KL adds what it adds anyway."""
    on, off = Objective(beta=0.5, kl=kl, tis=tis, tis_cap=1.1), Objective(beta=0.5, kl=kl)
    silent = replace(case, advantage=np.zeros_like(case.advantage))
    alone = evaluate(silent, off)
    assert_same(evaluate(silent, on), alone)
    both, policy_term = evaluate(case, on), evaluate(case, replace(on, beta=0.0))
    np.testing.assert_allclose(both[0] - policy_term[0], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both[1] - policy_term[1], alone[1], rtol=1e-5, atol=1e-5)


@few
@given(cases())
def test_the_slopes_of_the_kl_estimates(case: Case) -> None:
    """With x = logp - ref at a token, on the policy, d / d logp: k2 x; k3 1 - e^-x; k3 times the ratio k3 + (1 - e^-x) = x: the
    gradient of KL(pi || ref), whose estimate is x times the score. And all are 0 where pi = ref."""
    silent = replace(case, advantage=np.zeros_like(case.advantage), old=None)
    apart = (case.logp.astype(np.float64) - case.ref) * case.mask
    weight = case.weights("seq_mean")[:, None]
    for kl, slope in (("k2", apart), ("k3", 1 - np.exp(-apart)), ("k3_ratio", apart)):
        objective = Objective(beta=0.5, kl=kl)
        np.testing.assert_allclose(evaluate(silent, objective)[1], 0.5 * weight * slope, rtol=1e-5, atol=1e-6)
        assert not evaluate(replace(silent, ref=case.logp), objective)[1].any()


@few
@given(cases(per_token=True), st.sampled_from(["token", "sequence", "sequence_token", "sequence_sum"]))
def test_what_is_clipped_has_no_slope_and_nothing_else_is_without_one(case: Case, ratio: str) -> None:
    """min(r A, clip(r) A) is flat where A > 0 and r > 1 + epsilon, or A < 0 and r < 1 - epsilon; and the statistics count it."""
    objective = Objective(ratio=ratio, **WIDE)
    one = replace(case, advantage=np.sign(case.advantage[:, :1]) * case.mask) if ratio.startswith("sequence") else case
    _, slope, stats = evaluate(one, objective)
    gap = (one.logp.astype(np.float64) - one.old) * one.mask
    if ratio != "token":
        total = gap.sum(axis=1, keepdims=True) * np.ones_like(gap)
        gap = total if ratio == "sequence_sum" else total / np.maximum(one.mask.sum(axis=1, keepdims=True), 1)
    r = np.exp(gap)
    assume(np.abs(r - 0.8).min() > 1e-5 and np.abs(r - 1.28).min() > 1e-5)
    low, high = (one.advantage < 0) & (r < 0.8), (one.advantage > 0) & (r > 1.28)
    assert ((slope != 0) == ((one.advantage != 0) & ~low & ~high & (one.mask > 0))).all()
    unit = one.mask if ratio == "token" else one.mask / np.maximum(one.mask.sum(axis=1, keepdims=True), 1)
    assert stats["clip_low"] == pytest.approx((unit * low).sum(), abs=1e-5)
    assert stats["clip_high"] == pytest.approx((unit * high).sum(), abs=1e-5)


@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token", "sequence_sum"])
def test_where_each_bound_stands(ratio: str) -> None:
    """Completions of one token with r = .79 .81 1.27 1.29 1.7, epsilon .2 below and .28 above, delta 1.6.

    -min(r A, clip(r) A) is for A = 1: -.79 -.81 -1.27 -1.28 -1.28, for A = -1: .8 .81 1.27 1.29 and 1.7, or 1.6 with delta; its
    slope is the loss itself, and 0 where that is a bound. cispo weighs -A logp by the clipped r: .8 .81 1.27 1.28 1.28.
    """
    r = np.array([0.79, 0.81, 1.27, 1.29, 1.7], dtype=np.float32)[:, None]
    ones, logp = np.ones_like(r), np.full_like(r, -1.0)
    case = Case(logp, logp - np.log(r), logp, logp, ones, ones, ones, (1,) * 5, (0,) * 5)

    def each(objective: Objective, advantage: float) -> tuple[list[float], list[float]]:
        given = replace(case, advantage=advantage * ones)
        losses = [evaluate(given.take([row]), objective, np.ones(1, dtype=np.float32))[0] for row in range(5)]
        return losses, evaluate(given, objective, np.ones(5, dtype=np.float32))[1][:, 0].tolist()

    one, two = Objective(ratio=ratio, **WIDE), Objective(ratio=ratio, delta=1.6, **WIDE)
    table = [
        (one, 1.0, [-0.79, -0.81, -1.27, -1.28, -1.28], [1, 1, 1, 0, 0]),
        (two, 1.0, [-0.79, -0.81, -1.27, -1.28, -1.28], [1, 1, 1, 0, 0]),
        (one, -1.0, [0.8, 0.81, 1.27, 1.29, 1.7], [0, 1, 1, 1, 1]),
        (two, -1.0, [0.8, 0.81, 1.27, 1.29, 1.6], [0, 1, 1, 1, 0]),
    ]
    for objective, advantage, losses, free in table:
        found = each(objective, advantage)
        assert found[0] == pytest.approx(losses, abs=1e-5)
        assert found[1] == pytest.approx([loss * on for loss, on in zip(losses, free, strict=True)], abs=1e-5)
    if ratio == "token":
        weights = [0.8, 0.81, 1.27, 1.28, 1.28]
        for low, first in ((0.2, 0.8), (None, 0.79)):
            losses, slopes = each(Objective(surrogate="cispo", epsilon_low=low, epsilon_high=0.28), -1.0)
            assert slopes == pytest.approx([first, *weights[1:]], abs=1e-5)
            assert losses == pytest.approx([-first, *(-weight for weight in weights[1:])], abs=1e-5)


@few
@given(cases(), st.sampled_from([name for name, form in FORMS.items() if not form.entropy_bonus]))
def test_an_entropy_bonus_adds_its_own_slope_and_no_other(case: Case, name: str) -> None:
    """loss - c sum w H: d / d entropy = -c w at every token that counts, whatever its advantage or ratio."""
    plain, bonus = FORMS[name], replace(FORMS[name], entropy_bonus=0.05)
    weight = case.weights(plain.aggregate)[:, None]
    value, slope, _ = evaluate(case, bonus, by="entropy")
    np.testing.assert_allclose(slope, -0.05 * weight * case.mask, rtol=1e-5, atol=1e-9)
    expected = evaluate(case, plain)
    np.testing.assert_allclose(value, expected[0] - 0.05 * (weight * case.entropy).sum(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(evaluate(case, bonus)[1], expected[1], rtol=1e-5, atol=2e-6)
