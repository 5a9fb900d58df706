"""Who gets the credit, against tables worked out by hand: length, KL in the reward, returns per token, steps of reasoning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from engine.methods import METHODS, Objective
from engine.types import Finish, Group, Prompt, Rollout
from engine.worker.advantages import advantages
from engine.worker.credit import advantages_of, punishment, shaped, to_go, top_entropy, with_advantages

Steps = Sequence[Sequence[tuple[int, float]]]
EXACT = {"rel": 1e-12, "abs": 1e-15}


def group_of(
    rewards: Sequence[float | None],
    lengths: Sequence[int] | None = None,
    *,
    cut: Sequence[int] = (),
    steps: Steps = (),
    outcomes: Sequence[float | None] = (),
) -> Group:
    """A group with these rewards; members in `cut` were stopped by the limit."""
    lengths = lengths or [2] * len(rewards)
    ends: list[Finish] = ["length" if member in cut else "stop" for member in range(len(rewards))]
    rollouts = [Rollout((5,) * length, (0.0,) * length, end, "") for length, end in zip(lengths, ends, strict=True)]
    parts = tuple({} if reward is None else {"right": reward} for reward in rewards)
    own = tuple(tuple(one) for one in steps)
    prompt = Prompt(0, (1,), "", None)
    return Group(prompt, tuple(rollouts), parts, tuple(rewards), step_rewards=own, outcomes=tuple(outcomes))


def found(groups: Sequence[Group], objective: Objective, kl: Sequence[Sequence[float]] | None = None) -> list[list[list[float]]]:
    """The advantage of every token, [groups][G][C]."""
    arrays = None if kl is None else [np.array(one) for one in kl]
    made = with_advantages(groups, objective, arrays)
    return [
        [
            np.broadcast_to(advantage, len(rollout.token_ids)).tolist()
            for advantage, rollout in zip(advantages_of(group), group.rollouts, strict=True)
        ]
        for group in made
    ]


def same(got: list[list[list[float]]], wanted: list[list[list[float]]]) -> None:
    assert [[len(row) for row in group] for group in got] == [[len(row) for row in group] for group in wanted]
    for one, other in zip(got, wanted, strict=True):
        for row, expected in zip(one, other, strict=True):
            assert row == pytest.approx(expected, **EXACT)


# --- length


def test_soft_overlong_punishment_by_length() -> None:
    """DAPO Eq. 13 at the limit 20 with the share 0.2, a cache of 4: 0 up to 16 tokens, then -1/4 for each token more, -1 at 20.
    DAPO's own numbers: 20,480 tokens with a cache of 4,096: (16,384 - 18,432) / 4,096 = -1/2."""
    table = {1: 0, 15: 0, 16: 0, 17: -0.25, 18: -0.5, 19: -0.75, 20: -1}
    assert {length: punishment(length, 20, 0.2) for length in table} == pytest.approx(table)
    assert punishment(18_432, 20_480, 0.2) == pytest.approx(-0.5)


def test_length_is_charged_to_the_reward_and_reported_as_a_part() -> None:
    """16, 17 and 20 of 20 tokens: 1 + 0, 0 - 1/4, 1 - 1. The member without a reward stays without one, and has no part."""
    group = group_of([1.0, 0.0, 1.0, None], [16, 17, 20, 20], cut=[2, 3])
    (out,) = shaped([group], Objective(soft_overlong=0.2), 20)
    assert out.rewards == pytest.approx((1.0, -0.25, 0.0, None))
    assert [part.get("overlong") for part in out.reward_parts] == [0.0, pytest.approx(-0.25), -1.0, None]
    assert [part.get("right") for part in out.reward_parts] == [1.0, 0.0, 1.0, None]
    assert out.outcomes == () and out.rollouts == group.rollouts


def test_a_cut_completion_may_count_zero() -> None:
    """`zero`: the reward is 0 less the punishment, whatever rule or steps gave; one that ended by itself keeps its own."""
    group = group_of(
        [1.5, 1.5, None], [20, 20, 20], cut=[0, 2], steps=[[(3, 1.0)], [(3, 1.0)], [(3, 1.0)]], outcomes=[0.5, 0.5, None]
    )
    (out,) = shaped([group], Objective(truncated="zero"), 20)
    assert (out.rewards, out.outcomes) == ((0.0, 1.5, None), (0.0, 0.5, None))
    assert out.step_rewards == ((), ((3, 1.0),), ((3, 1.0),))
    (both,) = shaped([group], Objective(truncated="zero", soft_overlong=0.2), 20)
    assert (both.rewards, both.outcomes) == ((-1.0, 0.5, None), (-1.0, -0.5, None))


@pytest.mark.parametrize("truncated", ["keep", "mask"])
def test_otherwise_a_cut_completion_keeps_its_reward(truncated: str) -> None:
    group = group_of([1.0, 0.0], [20, 3], cut=[0], steps=[[(1, 2.0)], []], outcomes=[0.5, 0.0])
    assert shaped([group], Objective(truncated=truncated), 20) == [group]


# --- KL in the reward


def test_a_kl_is_charged_to_the_reward_of_a_completion() -> None:
    """beta 0.1; rewards 1 and 0, KL 0.5 + 0.5 and 2.0 + 0.0: 0.9 and -0.2.

    rloo: each less the other, +-1.1. group: +-0.55 / (std + 1e-4) with std = 0.55 sqrt 2. none: +-0.55. The second group has
    equal rewards and only its KL to tell apart: 1 - 0.3 and 1 - 0.1, none +-0.1. A member without a reward takes part in
    nothing, but its KL stands in the list all the same.
    """
    groups = [group_of([1.0, 0.0]), group_of([1.0, None, 1.0])]
    kl = [[0.5, 0.5], [2.0, 0.0], [1.0, 2.0], [70.0, 30.0], [0.5, 0.5]]
    charged = Objective(beta=0.1, kl="k1", kl_in="reward")
    table = {
        "rloo": [[1.1, -1.1], [-0.2, 0.0, 0.2]],
        "none": [[0.55, -0.55], [-0.1, 0.0, 0.1]],
        "group": [
            [sign * 0.55 / (0.55 * math.sqrt(2) + 1e-4) for sign in (1, -1)],
            [sign * 0.1 / (0.1 * math.sqrt(2) + 1e-4) for sign in (-1, 0, 1)],
        ],
    }
    for mode, expected in table.items():
        objective = Objective(advantage=mode, beta=charged.beta, kl=charged.kl, kl_in=charged.kl_in)
        same(found(groups, objective, kl), [[[value] * 2 for value in row] for row in expected])


def test_without_a_kl_nothing_is_charged() -> None:
    same(found([group_of([1.0, 0.0])], METHODS["rloo"].objective), [[[1.0, 1.0], [-1.0, -1.0]]])


# --- returns per token


def test_returns_to_go_are_whitened_over_all_tokens() -> None:
    """REINFORCE++: completions of 2 and 3 tokens, rewards 1 and 0, beta 0.5, KL [.2 .4] and [1 0 .6], so [.1 .2] and [.5 0 .3]
    are charged. Still to come at each token: [.3 .2], [.8 .3 .3]; returns [.7 .8], [-.8 -.3 -.3], mean .02; deviations .68 .78
    -.82 -.32 -.32, squares .4624 + .6084 + .6724 + .1024 + .1024 = 1.948, so std = sqrt(1.948 / 4)."""
    scale = math.sqrt(1.948 / 4) + 1e-4
    expected = [[0.68 / scale, 0.78 / scale], [-0.82 / scale, -0.32 / scale, -0.32 / scale]]
    objective = Objective(advantage="global", beta=0.5, kl="k1", kl_in="reward")
    kl = [[0.2, 0.4], [1.0, 0.0, 0.6]]
    same(found([group_of([1.0, 0.0], [2, 3])], objective, kl), [expected])
    same(found([group_of([1.0], [2]), group_of([0.0], [3])], objective, kl), [[row] for row in expected])  # groups do not matter
    (group,) = with_advantages([group_of([1.0, 0.0], [2, 3])], objective, [np.array(one) for one in kl])
    assert group.advantages == pytest.approx((0.73 / scale, -1.46 / 3 / scale))  # the mean over each completion's tokens


def test_whitening_weighs_completions_by_their_tokens_and_leaves_out_those_without_a_reward() -> None:
    """No KL: rewards 1 over 3 tokens, 0 over 1 token, one of 5 tokens without a reward: mean .75, deviations .25 (three times)
    and -.75, squares 3/16 + 9/16 = .75, std = sqrt(.75 / 3) = .5."""
    objective = METHODS["reinforce_pp"].objective
    got = found([group_of([1.0, None], [3, 5]), group_of([0.0], [1])], objective)
    same(got, [[[0.25 / 0.5001] * 3, [0.0] * 5], [[-0.75 / 0.5001]]])


def test_a_missing_reward_does_not_shift_the_kl_of_the_next() -> None:
    """beta 1: KL [9 9] belongs to the completion without a reward. The KL still to come is [1 0] and [3 3], so the returns are
    -1 0 -3 -3, their mean -1.75 and the squares .5625 + 3.0625 + 2 x 1.5625 = 6.75."""
    objective = Objective(advantage="global", beta=1.0, kl="k1", kl_in="reward")
    got = found([group_of([0.0, None, 0.0])], objective, [[1.0, 0.0], [9.0, 9.0], [0.0, 3.0]])
    scale = math.sqrt(6.75 / 3) + 1e-4
    same(got, [[[0.75 / scale, 1.75 / scale], [0.0, 0.0], [-1.25 / scale, -1.25 / scale]]])


# --- process rewards

# Completion one: 6 tokens, steps that end at tokens 2 and 5 with 1 and 0; completion two: 4 tokens, steps at 1 and 2 with 0.5 and
# -0.5, its last token belongs to no step. All four steps: mean .25, deviations .75 -.25 .25 -.75, squares 1.25.
STEPS: Steps = ([(2, 1.0), (5, 0.0)], [(1, 0.5), (2, -0.5)])
TO_GO = [[0.5] * 3 + [-0.25] * 3, [-0.5] * 2 + [-0.75] + [0.0]]  # sums of the deviations still to come


def stepped(outcomes: Sequence[float | None] = (0.0, 0.0), steps: Steps = STEPS) -> Group:
    rewards = [None if one is None else one + 0.5 for one in outcomes]
    return group_of(rewards, [6, 4], steps=steps, outcomes=outcomes)


def test_steps_are_normalised_over_the_group_and_summed_to_the_end() -> None:
    """DeepSeekMath 4.1.3: each step (r - mean) / std over all steps of the group, each token the sum of the steps that end at or
    after it. ddof 1: std = sqrt(1.25 / 3); ddof 0: sqrt(1.25 / 4); none: deviations alone."""
    for mode, spread in (("group", math.sqrt(1.25 / 3) + 1e-4), ("group_ddof0", math.sqrt(1.25 / 4) + 1e-4), ("none", 1.0)):
        got = found([stepped()], Objective(advantage=mode))
        same(got, [[[value / spread for value in row] for row in TO_GO]])


def test_an_outcome_is_normalised_apart_from_the_steps_and_added() -> None:
    """Outcomes 1 and 0: +-.5 / (sqrt .5 + 1e-4) at every token beside the steps, the last one included. The rewards as they are
    shown (1.5 and .5) are not what counts."""
    spread, whole = math.sqrt(1.25 / 3) + 1e-4, 0.5 / (math.sqrt(0.5) + 1e-4)
    got = found([stepped((1.0, 0.0))], Objective())
    same(got, [[[sign * whole + value / spread for value in row] for sign, row in zip((1, -1), TO_GO, strict=True)]])
    (group,) = with_advantages([stepped((1.0, 0.0))], Objective(advantage="none"))
    assert group.advantages == pytest.approx((0.5 + 0.125, -0.5 - 1.75 / 4))


def test_in_batch_mode_the_deviation_is_that_of_all_steps_and_the_centre_the_groups_own() -> None:
    """A second group with steps 3 and 1 (mean 2): all six values 1 0 .5 -.5 3 1 have the mean 5/6 and squares 11.5 - 25/6 = 22/3,
    std = sqrt(22/15). Outcomes are all 0."""
    other = group_of([3.0, 1.0], [2, 2], steps=[[(1, 3.0)], [(0, 1.0)]], outcomes=[0.0, 0.0])
    spread = math.sqrt(22 / 15) + 1e-4
    got = found([stepped(), other], Objective(advantage="batch"))
    same(got, [[[v / spread for v in row] for row in TO_GO], [[1 / spread, 1 / spread], [-1 / spread, 0.0]]])


def test_steps_that_are_all_alike_say_nothing() -> None:
    """Also one step alone, and steps that differ by float noise: what is left is the outcome, one number for each completion."""
    for steps in ([[(2, 1.0)], [(3, 1.0)]], [[(2, 1.0)], []], [[(2, 1.0)], [(1, 1 - 1e-9)]]):
        for mode in ("group", "group_ddof0", "none", "batch"):
            (group,) = with_advantages([stepped((1.0, 1.0), steps)], Objective(advantage=mode))
            assert (group.advantages, group.token_advantages) == ((0.0, 0.0), ())
        (group,) = with_advantages([stepped((1.0, 0.0), steps)], Objective(advantage="none"))
        assert (group.advantages, group.token_advantages) == ((0.5, -0.5), ())


def test_steps_of_a_completion_without_a_reward_are_no_part_of_the_pool() -> None:
    """The second completion failed: the pool is the first one's 1 and 0, mean .5, and its own tokens get 0."""
    same(found([stepped((0.0, None))], Objective(advantage="none")), [[[0.0] * 3 + [-0.5] * 3, [0.0] * 4]])


def test_with_a_global_baseline_steps_are_returns_like_any_other() -> None:
    """Returns to go, before whitening: outcome 1 with steps 1, 0 -> 2 2 2 1 1 1; outcome 0 with steps .5, -.5 -> 0 0 -.5 0."""
    returns = np.array([2, 2, 2, 1, 1, 1, 0, 0, -0.5, 0])
    expected = (returns - 0.85) / (np.std(returns, ddof=1) + 1e-4)
    same(found([stepped((1.0, 0.0))], METHODS["reinforce_pp"].objective), [[expected[:6].tolist(), expected[6:].tolist()]])


def test_to_go_counts_a_step_at_the_token_where_it_ends() -> None:
    """Steps 1 at token 0, 10 at token 2, and two that end together at token 3: 100 and 1000."""
    assert to_go([(0, 1.0), (2, 10.0), (3, 100.0), (3, 1000.0)], 5).tolist() == [1111, 1110, 1110, 1100, 0]
    assert to_go([], 2).tolist() == [0, 0]


# --- nothing to learn


@pytest.mark.parametrize("mode", ["group", "group_ddof0", "none", "batch", "rloo", "global"])
@pytest.mark.parametrize(
    "rewards", [[1.0, 1.0, 1.0, 1 - 1e-9], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0], [None, 1.0], [None, None], [2.0]]
)
def test_a_group_without_variance_gets_exactly_zero(mode: str, rewards: list[float | None]) -> None:
    """Float noise is no variance: (1e-9 of it over the 1e-4 would still be 1e-5); nor is one reward alone, whatever it is."""
    (group,) = with_advantages([group_of(rewards)], Objective(advantage=mode))
    assert group.advantages == (0.0,) * len(rewards) and group.token_advantages == ()


def test_an_excluded_completion_moves_no_baseline() -> None:
    """[3, None, 0, 0]: mean 1 of three; none 2, 0, -1, -1; rloo 3/2 of it; std = sqrt(6/2)."""
    spread = math.sqrt(3) + 1e-4
    table = {"none": [2, 0, -1, -1], "rloo": [3, 0, -1.5, -1.5], "group": [2 / spread, 0, -1 / spread, -1 / spread]}
    for mode, expected in table.items():
        same(found([group_of([3.0, None, 0.0, 0.0])], Objective(advantage=mode)), [[[value] * 2 for value in expected]])


def test_advantages_alone_know_no_whole_batch() -> None:
    with pytest.raises(ValueError, match="whole batch"):
        advantages([[1.0, 0.0]], "global")


def test_top_entropy_is_the_batchs_quantile() -> None:
    """Ten tokens of entropy 0 .. 9 in two completions: at least 7.2 for the top fifth, so 8 and 9; 0 for all."""
    values = [np.arange(0, 10, 2), np.arange(1, 10, 2)]
    assert top_entropy(values, 0.2) == pytest.approx(7.2)
    assert top_entropy(values, 1.0) == 0
