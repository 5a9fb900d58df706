"""Faults on the way of a token: sampled, judged, packed, scored, and weighed against the policy that sampled it."""

from __future__ import annotations

from .fault import Fault

SAMPLER, ROLLOUTS, KEYS = "engine/worker/sampler.py", "engine/worker/rollouts.py", "engine/worker/keys.py"
BATCHING, LOGPROBS, STEP = "engine/worker/batching.py", "engine/worker/logprobs.py", "engine/worker/step.py"
MODEL, REWARDING = "engine/worker/model.py", "engine/worker/rewarding.py"
OF_ROLLOUT, OF_STEP = "tests/worker/test_rollout_and_score.py", "tests/worker/test_step.py"
AGREE = f"{OF_ROLLOUT}::test_sampler_and_trainer_agree_with_a_plain_forward"
ROWS_AND_WEIGHTS = f"{OF_STEP}::test_each_update_has_its_rows_and_weights"
OLD_AND_REF = f"{OF_STEP}::test_old_is_the_policy_and_ref_the_base_model_at_the_temperature[lora]"

FAULTS = (
    Fault(
        name="stop-token-dropped",
        why="a stop token that is left out of the completion is never reinforced: the policy cannot learn to end",
        file=SAMPLER,
        old="    return Rollout(tuple(ids), tuple(logprobs),",
        new='    ids, logprobs = (ids[:-1], logprobs[:-1]) if finish == "stop" else (ids, logprobs)\n'
        "    return Rollout(tuple(ids), tuple(logprobs),",
        test=f"{OF_ROLLOUT}::test_the_stop_token_is_kept_and_the_limit_is_a_finish_of_its_own",
    ),
    Fault(
        name="one-stop-token-of-several",
        why="chat models end a turn with one token and a text with another; whichever comes, the completion has ended",
        file=MODEL,
        old="frozenset(int(i) for i in tokenizer.eos_token_ids)",
        new="frozenset({int(tokenizer.eos_token_id)})",
        test="tests/worker/test_caught.py::test_every_stop_token_of_the_model_ends_a_completion",
    ),
    Fault(
        name="retokenised-completion",
        why="encode(decode(ids)) is not ids: other tokens are trained than were sampled, and the stop token is lost",
        file=SAMPLER,
        old="    return Rollout(tuple(ids), tuple(logprobs),",
        new="    ids = [*policy.tokenizer.encode(policy.decode(ids), add_special_tokens=False), *ids][: len(ids)]\n"
        "    return Rollout(tuple(ids), tuple(logprobs),",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="last-token-not-masked-in",
        why="a mask made from `ids != pad` leaves the stop token out where pad and stop are one token",
        file=BATCHING,
        old="np.ones(len(row.tokens)) if row.mask is None",
        new="np.arange(len(row.tokens)) < len(row.tokens) - 1 if row.mask is None",
        test=f"{ROWS_AND_WEIGHTS}[grpo]",
    ),
    Fault(
        name="mask-shifted-by-one",
        why="targets that were shifted once too often: the first token of every completion is not trained",
        file=BATCHING,
        old="np.ones(len(row.tokens)) if row.mask is None",
        new="np.arange(len(row.tokens)) > 0 if row.mask is None",
        test=f"{ROWS_AND_WEIGHTS}[grpo]",
    ),
    Fault(
        name="mask-one-too-long",
        why="`steps <= lengths` instead of `<`: the first padding token of every row is a target",
        file=BATCHING,
        old="np.ones(len(row.tokens)) if row.mask is None",
        new="np.ones(min(len(row.tokens) + 1, shape[1])) if row.mask is None",
        test=f"{ROWS_AND_WEIGHTS}[grpo]",
    ),
    Fault(
        name="padding-trained",
        why="a mask of ones trains the padding of every row but the longest",
        file=BATCHING,
        old="np.ones(len(row.tokens)) if row.mask is None",
        new="np.ones(shape[1]) if row.mask is None",
        test=f"{ROWS_AND_WEIGHTS}[grpo]",
    ),
    Fault(
        name="positions-shifted-by-one",
        why="position t predicts token t + 1; read at the token itself, the head says what follows it",
        file=BATCHING,
        old="(lengths[:, None] - 1 + np.arange(width, dtype=np.int32)[None])",
        new="np.minimum(lengths[:, None] + np.arange(width, dtype=np.int32)[None], tokens.shape[1] - 1)",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="prompt-left-out-of-scoring",
        why="log pi(o) instead of log pi(o | q): a trainer in use scores completions without their prompts",
        file=STEP,
        old="prompt=group.prompt.token_ids,",
        new="prompt=group.prompt.token_ids[-1:],",
        test=OLD_AND_REF,
    ),
    Fault(
        name="prompts-mixed-up-in-a-batch",
        why="completions scored after another row's prompt",
        file=BATCHING,
        old="np.array([prompts[row.prompt] for row in rows], dtype=np.int32)",
        new="np.array([prompts[row.prompt] for row in rows][::-1], dtype=np.int32)",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="head-over-the-wrong-position",
        why="the first token has to be drawn after the prompt's last token, not after the one before it",
        file=SAMPLER,
        old="cache=cache)[:, -1:])[:, -1])",
        new="cache=cache)[:, -2:-1])[:, -1])",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="groups-mixed-in-sampling",
        why="prompts repeated [A A B B], completions read as [A B A B]",
        file=SAMPLER,
        old="[made[start : start + group_size] for start in range(0, len(made), group_size)]",
        new="[made[start :: len(prompts)] for start in range(len(prompts))]",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="groups-mixed-in-rewards",
        why="rewards read in another order than completions: a group is judged by its neighbours",
        file=REWARDING,
        old="own = [slice(start, start + size) for start in range(0, len(flat), size)]",
        new="own = [slice(start, None, len(prompts)) for start in range(len(prompts))]",
        test=f"{OF_STEP}::test_prompts_over_the_limit_are_left_out_and_ids_stay_places",
    ),
    Fault(
        name="sampled-without-temperature",
        why="the behaviour policy is softmax(logits / T): sampler and trainer have to mean the same one",
        file=SAMPLER,
        old="logits = logits.astype(mx.float32) * (1 / temperature)",
        new="logits = logits.astype(mx.float32)",
        test=f"{AGREE}[lora-0.6]",
    ),
    Fault(
        name="trained-without-temperature",
        why="sampled at one temperature and scored at 1: the ratio is off from the start",
        file=STEP,
        old="logp = completion_logprobs(self.policy, batch, temperature)",
        new="logp = completion_logprobs(self.policy, batch, 1.0)",
        test=f"{OF_STEP}::test_at_rate_zero_the_ratio_stays_one",
    ),
    Fault(
        name="reference-without-temperature",
        why="the reference's log-probabilities use the sampling temperature too",
        file=STEP,
        old="ref = score(self.policy, rows, temperature, micro)",
        new="ref = score(self.policy, rows, 1.0, micro)",
        test=OLD_AND_REF,
    ),
    Fault(
        name="every-position-draws-alike",
        why="one key for all positions of a completion: the same random number at every token",
        file=SAMPLER,
        old="base + mx.array([0, position], dtype=mx.uint32)",
        new="base",
        test="tests/worker/test_caught.py::test_every_position_of_a_completion_draws_anew",
    ),
    Fault(
        name="every-step-draws-alike",
        why="one key for all steps: a step samples what the step before it has sampled",
        file=SAMPLER,
        old="keys.key32(seed, step, purpose, *name)",
        new="keys.key32(seed, purpose, *name)",
        test=f"{OF_ROLLOUT}::test_a_draw_depends_on_its_key_alone",
    ),
    Fault(
        name="every-epoch-in-one-order",
        why="data shuffled once: every epoch shows the rows in the same order",
        file=KEYS,
        old='generator(seed, epoch, "data order")',
        new='generator(seed, "data order")',
        test="tests/worker/test_keys_trainer_summary.py::test_every_epoch_uses_every_row_once_in_a_new_order",
    ),
    Fault(
        name="logprobs-in-bfloat16",
        why="log-probabilities in 16 bits have three digits: ratios of rounding errors (traps of bfloat16 and float16)",
        file=LOGPROBS,
        old="    logits = logits.astype(mx.float32)\n    return",
        new="    logits = logits.astype(mx.bfloat16).astype(mx.float32)\n    return",
        test=f"{AGREE}[lora-1.0]",
    ),
    Fault(
        name="gradient-cut-before-the-loss",
        why="scores computed outside the differentiated function: the loss looks right and nothing is learned",
        file=STEP,
        old="logp = completion_logprobs(self.policy, batch, temperature)",
        new="logp = mx.stop_gradient(completion_logprobs(self.policy, batch, temperature))",
        test=f"{OF_STEP}::test_the_gradient_is_that_of_the_formulas[dr_grpo]",
    ),
    Fault(
        name="reference-as-old-policy",
        why="the ratio is against the policy that sampled; against the reference everything is soon clipped",
        file=STEP,
        old="old=old, ref=work.ref)",
        new="old=work.ref, ref=work.ref)",
        test=OLD_AND_REF,
    ),
    Fault(
        name="old-policy-not-kept",
        why="without the rollout's log-probabilities every later update takes itself for on-policy: ratio 1, no clip",
        file=STEP,
        old='if self.objective.old == "sampler" else work.old',
        new='if self.objective.old == "sampler" else None',
        test=f"{OF_STEP}::test_the_ratio_is_taken_against_the_rollout_through_all_updates",
    ),
    Fault(
        name="reference-with-the-adapter-on",
        why="the reference is the model without its adapter; with it on, the KL is always 0",
        file=MODEL,
        old="self.model.update_modules(nested({name: _base(module) for name, module in adapted.items()}))",
        new="self.model.update_modules(nested(adapted))",
        test=f"{OF_ROLLOUT}::test_the_reference_is_the_base_model_and_comes_off_again[lora]",
    ),
    Fault(
        name="refill-repeats-prompts",
        why="dynamic sampling has to replace groups by prompts that were not yet used in the step",
        file=KEYS,
        old="if int(i) not in taken][:count]",
        new="][:count]",
        test="tests/worker/test_dynamic_sampling.py::test_a_small_data_set_ends_the_search",
    ),
)
