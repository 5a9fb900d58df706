"""The self-test's checks: each passes on a sound model, and each sees the fault that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.selftest_checks import CHECKS, Figure, result
from engine.worker import checkpoint, golden
from engine.worker import selftest_checks as checks
from engine.worker.logprobs import score
from engine.worker.model import Policy
from engine.worker.selftest import selftest

from .rows import nudge


def passes(figures: tuple[Figure, ...]) -> bool:
    return all(figure.is_within for figure in figures)


def values(figures: tuple[Figure, ...]) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in figures}


@pytest.fixture
def policy(make_policy: Callable[..., Policy]) -> Policy:
    made = make_policy("lora")
    checks.move(made)
    return made


def test_every_check_passes_on_a_sound_model(blank_folder: Path) -> None:
    subject, *results = selftest(str(blank_folder))
    assert subject.model_dump() == {"device": "cpu", "device_name": subject.device_name, "dtype": "float32"}
    assert [(found.name, found.outcome) for found in results] == [(check.name, "passed") for check in CHECKS]
    assert all(found.figures and not found.note and found.seconds > 0 for found in results)


def test_a_wrong_golden_value_is_seen() -> None:
    assert passes(checks.golden_values())
    case = next(case for case in golden.fixture("policy_losses")["cases"] if case["name"] == "grpo_beta0_offpolicy")
    value, gradient = golden.loss_and_gradient(case)
    wrong, _ = golden.loss_and_gradient({**case, "inputs": {**case["inputs"], "num_sequences": 7}})  # another normaliser N
    assert abs(value - case["loss"]) <= checks.GOLDEN < abs(wrong - case["loss"])
    assert gradient.shape == np.array(case["dloss_dlogp"]).shape
    advantages = golden.fixture("advantages")["cases"][0]
    off = {**advantages, "expected": {"none": [[x + 1e-9 for x in row] for row in advantages["expected"]["none"]]}}
    assert golden.advantage_error(advantages) <= checks.GOLDEN_ADVANTAGES < golden.advantage_error(off)


def test_rows_of_the_batch_check_are_unequal_and_padded_together(policy: Policy) -> None:
    """Else it would compare a batch of one with itself."""
    prompts, completions = zip(*((len(prompt.token_ids), len(target)) for prompt, target in checks.texts(policy)), strict=True)
    assert len(set(prompts)) == len(set(completions)) == 3
    rows = [checks.Row(i, prompt.token_ids, target) for i, (prompt, target) in enumerate(checks.texts(policy))]
    assert len(checks.pack(rows, len(rows))) == 1


@pytest.mark.parametrize("fault", ["temperature", "weights", "a token of the prompt"])
def test_a_trainer_that_scores_something_else_is_seen(policy: Policy, fault: str) -> None:
    rows = checks.rollout_rows(policy)
    reported = [np.array(row.sampler, dtype=np.float32) for row in rows]
    allowed = checks.limits(policy)
    assert passes(checks.differences(score(policy, rows, 1.0, 8), reported, allowed))
    temperature = 0.7 if fault == "temperature" else 1.0
    if fault == "weights":
        checks.move(policy)
    if fault.startswith("a token"):
        rows = [replace(row, prompt=row.prompt[:-1]) for row in rows]
    found = checks.differences(score(policy, rows, temperature, 8), reported, allowed)
    assert not found[0].is_within, values(found)


def test_differences_are_the_means_that_they_are_called() -> None:
    """x = .3, -.1, 0, .2: mean |x| .15, largest .3, KL the mean of e^x - 1 - x = (.0498588 + .0048374 + 0 + .0214028) / 4."""
    trainer, other = [np.float32([-1.0, -2.1]), np.float32([-3.0, -0.8])], [np.float32([-1.3, -2.0]), np.float32([-3.0, -1.0])]
    found = values(checks.differences(trainer, other, checks.HALF))
    assert found["mean difference"] == pytest.approx(0.15, abs=1e-6)
    assert found["largest"] == pytest.approx(0.3, abs=1e-6)
    assert found["KL"] == pytest.approx(0.0190247, abs=1e-6)
    nan = checks.differences([np.float32([np.nan])], [np.float32([0.0])], checks.HALF)
    assert [figure.is_within for figure in nan] == [False, True, False]  # the largest has no limit at 16 bits
    assert nan[1].value is None


def test_a_step_that_does_not_repeat_itself_is_counted(policy: Policy) -> None:
    """The second policy's weights change by themselves whenever they are put back: the two steps begin at different places."""
    assert passes(checks.same_bits_twice({"a": policy}))
    before = policy.trainable()

    class Drifting(type(policy.model)):  # type: ignore[name-defined,misc]
        def load_weights(self, weights: list[tuple[str, mx.array]], strict: bool = True) -> None:
            super().load_weights([(name, value + 1e-3) for name, value in weights], strict)

    policy.model.__class__ = Drifting
    found = values(checks.same_bits_twice({"a": policy}))
    assert found["a weights"] is not None and found["a weights"] > 0.9 * sum(value.size for value in before.values())


def test_a_gradient_that_is_not_the_losss_is_seen(policy: Policy) -> None:
    """The adapter's output goes through a function whose derivative is wrong by a tenth."""
    assert passes(checks.gradient(policy))

    @mx.custom_function
    def identity(x: mx.array) -> mx.array:
        return x

    @identity.vjp
    def wrong(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return 1.1 * cotangent

    class Wrong(type(policy.model.layers[0])):  # type: ignore[misc]
        def __call__(self, *arguments: object, **named: object) -> mx.array:
            return identity(super().__call__(*arguments, **named))

    policy.model.layers[1].__class__ = Wrong
    error = values(checks.gradient(policy))["relative error"]
    assert error is not None and error > 0.05


def test_an_adapter_that_is_not_the_trained_one_is_seen(policy: Policy, tmp_path: Path) -> None:
    written = checks.write_adapter(policy, tmp_path)
    assert values(checks.read_back(written)) == {"largest logit difference": 0.0}
    nudge(policy)
    checkpoint.write_adapter(tmp_path, policy)
    assert not passes(checks.read_back(written))


def test_sixteen_bits_have_limits_of_their_own(policy: Policy) -> None:
    assert checks.limits(policy) == checks.FLOAT32
    policy.model.set_dtype(mx.bfloat16)
    assert (checks.dtype_of(policy), checks.limits(policy)) == ("bfloat16", checks.HALF)
    assert passes(checks.sampler_and_trainer(policy))


def test_a_figure_that_is_not_finite_passes_no_limit_and_a_miss_of_an_optional_check_is_a_warning() -> None:
    good, bad = checks.figure("x", 0.5, 1.0), checks.figure("x", float("nan"), 1.0)
    required, optional = CHECKS[0], next(check for check in CHECKS if not check.required)
    assert (result(required, [good]).outcome, result(required, [good, bad]).outcome) == ("passed", "failed")
    assert (result(optional, [bad]).outcome, result(optional, broke="RuntimeError: no kernel").outcome) == ("warning", "failed")
    assert result(required, skipped="no reason").outcome == "skipped"
