"""Faults between rewards and the weights of tokens: baselines, deviations, KL in the reward, normalisers."""

from __future__ import annotations

from .fault import Fault

ADVANTAGES, CREDIT = "engine/worker/advantages.py", "engine/worker/credit.py"
BATCHING, STEP = "engine/worker/batching.py", "engine/worker/step.py"
OF_ADVANTAGES, OF_CREDIT = "tests/worker/test_advantages.py", "tests/worker/test_credit.py"
OF_TRUNCATED = "tests/worker/test_truncated.py"
OF_STEP, OF_OPTIONS = "tests/worker/test_step.py", "tests/worker/test_objective_options.py"
ROWS_AND_WEIGHTS = f"{OF_STEP}::test_each_update_has_its_rows_and_weights"

FAULTS = (
    Fault(
        name="ddof-swapped",
        why="numpy divides by G, torch by G - 1: with G = 2 the advantages differ by sqrt(2)",
        file=ADVANTAGES,
        old="np.std(present, ddof=1)",
        new="np.std(present, ddof=0)",
        test=f"{OF_ADVANTAGES}::test_every_mode_agrees_with_the_reference",
    ),
    Fault(
        name="epsilon-inside-the-root",
        why="the epsilon is added to the deviation, not to the variance",
        file=ADVANTAGES,
        old="1 / (float(np.std(present, ddof=1)) + STD_EPSILON)",
        new="1 / float(np.sqrt(np.var(present, ddof=1) + STD_EPSILON))",
        test=f"{OF_ADVANTAGES}::test_every_mode_agrees_with_the_reference",
    ),
    Fault(
        name="excluded-reward-as-zero",
        why="a reward that failed is no reward of 0: it would pull the baseline down",
        file=ADVANTAGES,
        old="valid = [[r for r in group if r is not None] for group in rewards]",
        new="valid = [[r or 0.0 for r in group] for group in rewards]",
        test=f"{OF_ADVANTAGES}::test_a_missing_reward_moves_no_baseline",
    ),
    Fault(
        name="variance-threshold-removed",
        why="rewards that differ by rounding alone become advantages of size 1 when divided by their deviation",
        file=ADVANTAGES,
        old="max(present) - min(present) >= SAME_REWARD",
        new="max(present) - min(present) > 0",
        test=f"{OF_ADVANTAGES}::test_a_group_without_variance_gets_exactly_zero_whatever_float_noise_says",
    ),
    Fault(
        name="dr-grpo-with-deviation",
        why='Dr. GRPO is "done right" by leaving the deviation out; two trainers in use keep it',
        file=ADVANTAGES,
        old='"none": lambda: 1.0,',
        new='"none": lambda: 1 / (float(np.std(present, ddof=1)) + STD_EPSILON),',
        test=f"{OF_ADVANTAGES}::test_a_missing_reward_moves_no_baseline",
    ),
    Fault(
        name="rloo-baseline-with-itself",
        why="leave-one-out leaves the completion's own reward out of its baseline: G / (G - 1)",
        file=ADVANTAGES,
        old='"rloo": lambda: count / (count - 1),',
        new='"rloo": lambda: 1.0,',
        test=f"{OF_ADVANTAGES}::test_a_missing_reward_moves_no_baseline",
    ),
    Fault(
        name="whitening-by-completion",
        why="REINFORCE++ whitens over all tokens of the batch, so that long completions count more",
        file=CREDIT,
        old="every = np.concatenate([np.zeros(0), *present])",
        new="every = np.array([value.mean() for value in present])",
        test=f"{OF_CREDIT}::test_whitening_weighs_completions_by_their_tokens_and_leaves_out_those_without_a_reward",
    ),
    Fault(
        name="process-rewards-from-the-wrong-side",
        why="a token is credited with the steps that end at or after it, not with those before it",
        file=CREDIT,
        old="return np.cumsum(at_end[::-1])[::-1]",
        new="return np.cumsum(at_end)",
        test=f"{OF_CREDIT}::test_to_go_counts_a_step_at_the_token_where_it_ends",
    ),
    Fault(
        name="overlong-off-by-the-cache",
        why="the punishment is -1 at the limit; without the cache in it, it would be 0 there",
        file=CREDIT,
        old="(limit - cache - length) / cache",
        new="(limit - length) / cache",
        test=f"{OF_CREDIT}::test_soft_overlong_punishment_by_length",
    ),
    Fault(
        name="kl-in-the-reward-paid",
        why="the KL is charged to the reward; with the sign turned, moving away from the reference pays",
        file=CREDIT,
        old="outcome if outcome is None or sums is None else outcome - sums[place]",
        new="outcome if outcome is None or sums is None else outcome + sums[place]",
        test=f"{OF_CREDIT}::test_a_kl_is_charged_to_the_reward_of_a_completion",
    ),
    Fault(
        name="entropy-quantile-keeps-the-lowest",
        why="the tokens of the highest entropy are the forks that are worth training (2506.01939)",
        file=STEP,
        old="np.where(entropy[row.index] >= least,",
        new="np.where(entropy[row.index] <= least,",
        test=f"{OF_OPTIONS}::test_the_top_share_of_tokens_keeps_its_advantage_and_the_weights_stay",
    ),
    Fault(
        name="masked-rows-in-the-token-count",
        why="a completion that trains nothing has to leave the token normaliser too",
        file=STEP,
        old="[0 if row.excluded else len(row.tokens) for row in rows],",
        new="[len(row.tokens) for row in rows],",
        test=f"{OF_TRUNCATED}::test_masked_completions_leave_the_token_counts_and_stay_in_n[token_mean-0.0]",
    ),
    Fault(
        name="masked-rows-out-of-n",
        why="masking a completion's loss does not make the batch smaller: it stays in N",
        file=STEP,
        old='rows = [row for row in step_completions(work.groups, self.objective.truncated == "mask") if row.group in chosen]',
        new=(
            'rows = [row for row in step_completions(work.groups, self.objective.truncated == "mask") '
            "if row.group in chosen and not row.excluded]"
        ),
        test=f"{OF_TRUNCATED}::test_masked_completions_leave_the_token_counts_and_stay_in_n[seq_mean-0.0]",
    ),
    Fault(
        name="zero-advantage-rows-out-of-n",
        why="rows that are skipped because they move nothing must stay in N, or the others weigh more",
        file=STEP,
        old='self.objective.truncated == "mask") if row.group in chosen]',
        new='self.objective.truncated == "mask") if row.group in chosen and np.any(row.advantage)]',
        test=f"{ROWS_AND_WEIGHTS}[grpo]",
    ),
    Fault(
        name="zero-advantage-rows-dropped-despite-a-kl",
        why="with a KL in the loss rows without an advantage still move the policy",
        file=STEP,
        old="(self.objective.trains_all or bool(np.any(row.advantage)))",
        new="bool(np.any(row.advantage))",
        test=f"{ROWS_AND_WEIGHTS}[grpo with kl]",
    ),
    Fault(
        name="micro-batch-normaliser",
        why="normalised within each micro-batch the loss depends on how the batch was split (two trainers shipped this)",
        file=BATCHING,
        old="weight=np.array([row.weight for row in rows], dtype=np.float32),",
        new="weight=np.full(len(rows), 1 / sum(len(row.tokens) for row in rows), dtype=np.float32),",
        test=f"{ROWS_AND_WEIGHTS}[token_mean]",
    ),
    Fault(
        name="dr-grpo-by-the-longest-completion",
        why="Dr. GRPO divides by a constant of the whole run, not by what happens to be the longest here",
        file=BATCHING,
        old="return [1 / (n * max_completion_tokens)] * n",
        new="return [1 / (n * max(1, *lengths))] * n",
        test=f"{ROWS_AND_WEIGHTS}[dr_grpo]",
    ),
    Fault(
        name="group-token-mean-of-the-batch",
        why="DAPO as written takes the token mean within each group; over the batch it is another weight",
        file=BATCHING,
        old="return [1 / (len(tokens) * max(tokens[group], 1)) for group in groups]",
        new="return [1 / max(total, 1)] * n",
        test=f"{ROWS_AND_WEIGHTS}[group_token_mean]",
    ),
)
