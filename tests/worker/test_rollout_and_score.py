"""The sampler's log-probabilities, the trainer's, and a plain forward: three ways to one number."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from engine.types import Example, Message
from engine.worker import lean
from engine.worker.logprobs import score
from engine.worker.model import Policy
from engine.worker.sampler import sample
from engine.worker.step import prompts_within
from engine.worker.supervised import rows_within
from tests.support.live import small_config

from .rows import nudge, plain, prompts_of, rollout_rows

TEXTS = ("What is 24+17-9?", "Hi", "A longer prompt, so that lengths differ by a lot: 0123456789")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_sampler_and_trainer_agree_with_a_plain_forward(
    make_policy: Callable[..., Policy], kind: str, temperature: float
) -> None:
    policy = make_policy(kind)
    nudge(policy)
    rows = rollout_rows(policy, prompts_of(policy, *TEXTS), temperature)
    scored = score(policy, rows, temperature, micro_batch_rows=5)
    for row in rows:
        expected = plain(policy, row, temperature)
        assert row.sampler is not None
        np.testing.assert_allclose(row.sampler, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(scored[row.index], expected, rtol=0, atol=1e-5)


def test_the_head_is_parted_from_the_body_and_gives_the_same_logits(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("full")
    tokens = mx.array([[5, 9, 200, 7]])
    assert policy.splits
    assert mx.array_equal(policy.head(policy.hidden(tokens)), policy.model(tokens)).item()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_reference_is_the_base_model_and_comes_off_again(make_policy: Callable[..., Policy], kind: str) -> None:
    base, policy = make_policy("full"), make_policy(kind)
    nudge(policy)
    tokens = mx.array([[5, 9, 200, 7]])
    tuned = policy.model(tokens)
    with policy.reference():
        assert mx.array_equal(policy.model(tokens), base.model(tokens)).item()
    assert mx.array_equal(policy.model(tokens), tuned).item()
    assert not mx.allclose(tuned, base.model(tokens), atol=1e-3).item()


def test_the_reference_of_full_training_is_the_initial_weights(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("full")
    tokens = mx.array([[5, 9, 200, 7]])
    initial = policy.model(tokens)
    policy.keep_initial()
    nudge(policy)
    with policy.reference():
        assert mx.array_equal(policy.model(tokens), initial).item()
    assert not mx.array_equal(policy.model(tokens), initial).item()


def test_a_draw_depends_on_its_key_alone(make_policy: Callable[..., Policy]) -> None:
    """The same prompt and member sample the same tokens in another batch; another step or seed samples others."""
    policy = make_policy("lora")
    prompts = prompts_of(policy, *TEXTS)
    draw = lambda chosen, seed, step, size: [  # noqa: E731
        [r.token_ids for r in group]
        for group in sample(policy, chosen, size, max_tokens=16, temperature=1.0, seed=seed, step=step)
    ]
    everything = draw(prompts, 0, 1, 4)
    assert draw(prompts, 0, 1, 4) == everything
    assert draw(prompts[1:2], 0, 1, 2) == [everything[1][:2]]
    assert draw(prompts, 0, 2, 4) != everything
    twice = draw([prompts[1], prompts[1]], 0, 1, 4)
    assert twice[0] == everything[1] and twice[1] != twice[0]
    assert draw(prompts, 1, 1, 4) != everything
    assert len({ids for group in everything for ids in group}) == 12


def test_the_stop_token_is_kept_and_the_limit_is_a_finish_of_its_own(make_policy: Callable[..., Policy]) -> None:
    """With token 65 declared a stop, some of 64 rows of 256-way sampling end on it, and none goes on after it."""
    policy = make_policy("full")
    policy.stop_ids = frozenset(range(60, 80))
    (members,) = sample(policy, prompts_of(policy, "Hi"), 64, max_tokens=12, temperature=1.0, seed=0, step=1)
    stopped = [r for r in members if r.finish == "stop"]
    assert 0 < len(stopped) < 64
    for rollout in members:
        body, last = rollout.token_ids[:-1], rollout.token_ids[-1]
        assert not policy.stop_ids & set(body)
        assert (last in policy.stop_ids) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(rollout.token_ids) == 12


def test_each_prompt_is_prefilled_once(make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts x 4: three forwards over more than one token, however large the group."""
    policy = make_policy("full")
    prompts = prompts_of(policy, *TEXTS)
    widths: list[int] = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda tokens, cache=None: widths.append(tokens.size) or hidden(tokens, cache))
    sample(policy, prompts, 4, max_tokens=3, temperature=1.0, seed=0, step=1)
    assert widths == [len(prompt.token_ids) for prompt in prompts]


def test_rows_that_wait_take_the_freed_places(make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """12 rows in 5 places sample what 12 in one batch do; no forward decodes more than 5 rows, each prompt is prefilled once, and
    places are filled while others go on: fewer forwards than three batches of 5, 5 and 2 one after the other would take."""
    policy = make_policy("lora")
    nudge(policy)
    policy.stop_ids = frozenset(range(0, 256, 9))
    prompts = prompts_of(policy, *TEXTS)
    together = sample(policy, prompts, 4, max_tokens=20, temperature=1.0, seed=0, step=1)
    shapes: list[tuple[int, ...]] = []  # of the tokens of each pass through the body
    body = type(policy.model.model)
    run = body.__call__
    monkeypatch.setattr(body, "__call__", lambda self, tokens, *a, **k: shapes.append(tokens.shape) or run(self, tokens, *a, **k))
    parted = sample(policy, prompts, 4, max_tokens=20, temperature=1.0, seed=0, step=1, rows_at_once=5)
    assert [[r.token_ids for r in group] for group in parted] == [[r.token_ids for r in group] for group in together]
    for groups in zip(parted, together, strict=True):
        for one, other in zip(*groups, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
    prefills, decoded = [s for s in shapes if s[1] > 1], [s for s in shapes if s[1] == 1]
    assert len(prefills) == 3
    assert max(rows for rows, _ in decoded) == 5
    lengths = [len(r.token_ids) for group in together for r in group]
    one_after_the_other = sum(max(lengths[start : start + 5]) - 1 for start in (0, 5, 10))
    assert min(lengths) < max(lengths) and len(decoded) < one_after_the_other


def test_lean_adapters_compute_what_the_modules_do(make_policy: Callable[..., Policy]) -> None:
    """LoRA and DoRA (with and without a bias), and the modules are back afterwards; dropout keeps them in place."""
    for kind in ("lora", "dora"):
        policy = make_policy(kind)
        nudge(policy)
        for _, module in policy.model.named_modules():
            if "lora_a" in module:
                module.linear.bias = mx.random.normal(module.linear.weight.shape[:1]) * 0.1
        tokens = mx.array([[5, 9, 200, 7]])
        expected = policy.model(tokens)
        names = [name for name, module in policy.model.named_modules() if "lora_a" in module]
        with lean.adapters(policy.model):
            assert sum(isinstance(module, lean.LeanLinear) for _, module in policy.model.named_modules()) == len(names) > 0
            np.testing.assert_allclose(np.array(policy.model(tokens)), np.array(expected), rtol=0, atol=2e-5)
        assert mx.array_equal(policy.model(tokens), expected).item()
        policy.model.train()
        with lean.adapters(policy.model):
            assert [name for name, module in policy.model.named_modules() if "lora_a" in module] == names
        policy.model.eval()


def test_greedy_takes_the_likeliest_token(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("full")
    (prompt,) = prompts_of(policy, "Hi")
    ((rollout,),) = sample(policy, [prompt], 1, max_tokens=5, temperature=1.0, seed=0, step=1, greedy=True)
    tokens = list(prompt.token_ids)
    for token in rollout.token_ids:
        assert token == mx.argmax(policy.model(mx.array([tokens]))[0, -1]).item()
        tokens.append(token)


def test_rows_that_the_chat_template_refuses_are_left_out(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("lora")
    policy.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<|user|>x<|end|>"
    )
    fine = Example(1, (Message("user", "Hi"),), "a", "a")
    refused = Example(2, (Message("system", "s"), Message("user", "Hi")), "a", "a")
    assert [prompt.id for prompt, _ in prompts_within(policy, [refused, fine], 64)] == [1]
    config = small_config("sft", run__steps=1)
    assert len(rows_within(policy, [refused, fine, fine], config)) == 2


def test_rendering_ends_the_target_with_the_stop_token(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("lora")
    text, ids, target = policy.render([Message("user", "Hi")], "Yes")
    assert text == "<|user|>Hi<|end|><|assistant|>"
    assert policy.tokenizer.decode(ids) == text
    assert target[-1] in policy.stop_ids and policy.decode(target) == "Yes"
    assert policy.render([Message("user", "Hi")])[2] == []
