"""Faults in supervised rows and in the update itself: targets, dropout, clipping, the schedule, the optimizer's state."""

from __future__ import annotations

from .fault import Fault

TARGETS, SUPERVISED = "engine/data/targets.py", "engine/worker/supervised.py"
MODEL, TRAINER, OPTIMIZERS = "engine/worker/model.py", "engine/worker/trainer.py", "engine/worker/optimizers.py"
CHECKPOINT, RUN = "engine/worker/checkpoint.py", "engine/worker/run.py"
OF_TARGETS, OF_SUPERVISED = "tests/data/test_targets.py", "tests/worker/test_supervised.py"
OF_TRAINER, OF_OPTIMIZERS = "tests/worker/test_keys_trainer_summary.py", "tests/worker/test_optimizers.py"

FAULTS = (
    Fault(
        name="sft-mean-of-rows",
        why="one token normaliser over the update; a mean of rows trains short answers harder",
        file=SUPERVISED,
        old='aggregation_weights("token_mean",',
        new='aggregation_weights("seq_mean",',
        test=f"{OF_SUPERVISED}::test_a_supervised_update_weights_every_target_token_alike",
    ),
    Fault(
        name="sft-user-turns-learned",
        why="only replies are targets: with the users' turns in the mask the model learns to ask",
        file=TARGETS,
        old="mask += [0] * len(between) + [1] * len(target)",
        new="mask += [1] * len(between) + [1] * len(target)",
        test=f"{OF_TARGETS}::test_every_reply_of_a_chatml_chat_is_a_target_with_its_end",
    ),
    Fault(
        name="sft-stop-dropped",
        why="the token that ends a reply is a target, or the model never learns to stop",
        file=TARGETS,
        old="return text, ids, target[: stop + 1]",
        new="return text, ids, target[:stop]",
        test=f"{OF_TARGETS}::test_every_reply_of_a_chatml_chat_is_a_target_with_its_end",
    ),
    Fault(
        name="sft-evaluation-mean-of-rows",
        why="the held-out loss is per token, as the training loss is",
        file=SUPERVISED,
        old="loss = sum(sums) / sum(counts)",
        new="loss = sum(s / c for s, c in zip(sums, counts, strict=True)) / len(rows)",
        test=f"{OF_SUPERVISED}::test_supervised_evaluation_is_the_mean_over_held_out_tokens",
    ),
    Fault(
        name="dropout-on-from-the-start",
        why="a model that is left in training mode samples and scores with dropout: other numbers each time",
        file=MODEL,
        old="    model.eval()  # dropout off",
        new="    model.train()  # dropout on",
        test=f"{OF_SUPERVISED}::test_dropout_acts_in_the_loss_alone",
    ),
    Fault(
        name="dropout-left-on-after-the-loss",
        why="a model that is not put back after an update evaluates with dropout",
        file=SUPERVISED,
        old="        finally:\n            self.policy.model.eval()",
        new="        finally:\n            pass",
        test=f"{OF_SUPERVISED}::test_dropout_acts_in_the_loss_alone",
    ),
    Fault(
        name="clipping-dropped",
        why="without clipping one bad batch moves the weights as far as its gradient is long",
        file=TRAINER,
        old="clipped(gradient, grad_norm, self.config.max_grad_norm)",
        new="gradient",
        test=f"{OF_TRAINER}::test_an_sgd_update_moves_weights_against_the_clipped_gradient",
    ),
    Fault(
        name="clipping-by-micro-batch",
        why="the norm is that of the whole update's gradient; clipped part by part, the split changes the direction",
        file=TRAINER,
        old="            gradient = part if place == 0 else",
        new="            part = clipped(part, scalar(_norm(part)), self.config.max_grad_norm)\n"
        "            gradient = part if place == 0 else",
        test=f"{OF_OPTIMIZERS}::test_a_clipped_step_is_the_same_for_any_number_of_micro_batches",
    ),
    Fault(
        name="micro-batches-averaged",
        why="weights are those of the whole update, so micro-batches add up; a mean shrinks the gradient by their number",
        file=TRAINER,
        old="        grad_norm, loss_value = scalar(_norm(gradient)), scalar(total)",
        new="        gradient = tree_map(lambda g: g / max(len(batches), 1), gradient)\n"
        "        grad_norm, loss_value = scalar(_norm(gradient)), scalar(total)",
        test="tests/worker/test_caught.py::test_micro_batches_add_up_in_the_trainer",
    ),
    Fault(
        name="only-the-last-micro-batch",
        why="gradients that are replaced instead of added: all micro-batches but the last are lost",
        file=TRAINER,
        old="gradient = part if place == 0 else tree_map(mx.add, gradient, part)",
        new="gradient = part",
        test=f"{OF_OPTIMIZERS}::test_a_clipped_step_is_the_same_for_any_number_of_micro_batches",
    ),
    Fault(
        name="schedule-by-steps",
        why="a step may hold several updates: a schedule that is as long as the steps ends too early",
        file=RUN,
        old="config.run.steps * task.updates_per_step, config.run.seed)",
        new="config.run.steps, config.run.seed)",
        test="tests/worker/test_rewarding.py::test_the_rate_follows_the_updates_of_the_whole_run",
    ),
    Fault(
        name="warm-up-from-zero",
        why="a first update at the rate 0 is a rollout for nothing",
        file=TRAINER,
        old="return config.learning_rate * (update + 1) / warmup",
        new="return config.learning_rate * update / warmup",
        test=f"{OF_TRAINER}::test_the_schedule_by_hand",
    ),
    Fault(
        name="adam-without-bias-correction",
        why="mlx leaves the correction off by default: the first steps are off by up to (1 - b1) / sqrt(1 - b2)",
        file=OPTIMIZERS,
        old="return _Adam(rate, betas=betas, eps=config.eps, bias_correction=True)",
        new="return _Adam(rate, betas=betas, eps=config.eps, bias_correction=False)",
        test=f"{OF_OPTIMIZERS}::test_three_updates_follow_the_paper[adam]",
    ),
    Fault(
        name="adam-moments-in-16-bits",
        why="in bfloat16 the second moment stops growing, in float16 the epsilon is 0",
        file=OPTIMIZERS,
        old="class _AdamW(_Wide, optim.AdamW):",
        new="class _AdamW(optim.AdamW):",
        test=f"{OF_OPTIMIZERS}::test_16_bit_weights_are_updated_as_float32_would_be",
    ),
    Fault(
        name="optimizer-not-restored",
        why="a resumed run that starts with empty moments takes other steps than one that was never stopped",
        file=CHECKPOINT,
        old='    trainer.optimizer.state = nested(read_arrays(folder / "optimizer.safetensors"))\n',
        new="",
        test="tests/worker/test_checkpoint.py::test_training_goes_on_from_a_checkpoint_to_the_same_bits[lora-adamw]",
    ),
    Fault(
        name="reference-not-restored",
        why="a reference that has moved is part of a run's state",
        file=CHECKPOINT,
        old="        policy.set_reference_arrays(read_arrays(folder / _REFERENCE))",
        new="        pass",
        test="tests/worker/test_reference.py::test_a_checkpoint_brings_the_reference_back",
    ),
)
