"""What the backward pass computes again: the loss and the gradient of a pass that keeps everything, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama

from engine.config import AdapterConfig
from engine.objective import Objective
from engine.worker import recompute
from engine.worker.batching import Batch, Row, pack
from engine.worker.blank import Shape, write_blank_model
from engine.worker.logprobs import completion_logprobs
from engine.worker.losses import policy_loss
from engine.worker.model import Policy, load_policy
from engine.worker.trees import flat, scalar
from tests.support.families import write_family

from .rows import nudge

Slope = tuple[float, dict[str, mx.array]]
CASES = (
    ("llama", "full"),
    ("qwen3", "dora"),
    ("gemma3_text", "lora"),
    ("gpt_oss", "lora"),
    ("deepseek_v3", "lora"),
    ("qwen3_next", "lora"),
    ("mamba2", "full"),
    ("falcon_h1", "lora"),
)


def rows_of(lengths: tuple[int, ...], group: int = 2, tokens: int = 6) -> list[Row]:
    """Rows of any tokens, `group` to a prompt, with advantages of either sign; completions of two lengths."""
    drawn = iter(range(7, 10**6, 13))
    prompts = [tuple(next(drawn) % 250 for _ in range(length)) for length in lengths]
    return [
        Row(
            index,
            prompts[index // group],
            tuple(next(drawn) % 250 for _ in range(tokens - index % 2)),
            index // group,
            advantage=(-1.0) ** index,
            weight=0.25,
        )
        for index in range(len(lengths) * group)
    ]


def slope_of(policy: Policy, batch: Batch, *, training: bool = False) -> Slope:
    """The loss and its gradient; dropout draws the same each time."""

    def loss() -> mx.array:
        policy.model.train(training)
        logp = completion_logprobs(policy, batch, 0.8)
        policy.model.eval()
        columns = (mx.array(values) for values in (batch.mask, batch.advantage, batch.weight))
        mask, advantage, weight = columns
        return policy_loss(logp + 0, objective=Objective(), mask=mask, advantage=advantage, weight=weight)[0] + logp.mean()

    mx.random.seed(5)
    value, gradient = nn.value_and_grad(policy.model, loss)()
    mx.eval(value, gradient)
    return scalar(value), flat(gradient)


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Slope]:
    """`slope_of` with everything kept."""

    def slope(policy: Policy, batch: Batch, *, training: bool = False) -> Slope:
        with monkeypatch.context() as patch:
            patch.setattr(policy, "recomputes", False)
            return slope_of(policy, batch, training=training)

    return slope


def apart(found: dict[str, mx.array], wanted: dict[str, mx.array]) -> float:
    """|found - wanted| / |wanted|, norms over all numbers."""
    assert found.keys() == wanted.keys()
    gap = sum(scalar(mx.square(found[name] - value).sum()) for name, value in wanted.items())
    return float((gap / sum(scalar(mx.square(value).sum()) for value in wanted.values())) ** 0.5)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_loss_and_gradient_are_those_of_a_pass_that_keeps_everything(
    family: str, kind: str, tmp_path: Path, keeping: Callable[..., Slope]
) -> None:
    """Prompts past the window of 16 tokens, shared by two completions and repeated for each."""
    policy = load_policy(write_family(tmp_path / family, family), AdapterConfig.model_validate({"type": kind, "rank": 4}), seed=0)
    nudge(policy, 0.02)
    rows = rows_of((20, 9 if policy.sharing == "any" else 20))
    for sharing in (policy.sharing, "none"):
        batch = pack(rows, len(rows), sharing=policy.sharing)[0]
        policy.sharing = sharing
        assert policy.shares(batch) == (sharing != "none")
        loss, gradient = keeping(policy, batch)
        calls = {type(layer): type(layer).__call__ for layer in policy.model.layers}
        policy.recomputes = True
        found, slope = slope_of(policy, batch)
        assert abs(found - loss) <= 1e-6 * abs(loss)
        assert apart(slope, gradient) <= 1e-5
        assert calls == {type(layer): type(layer).__call__ for layer in policy.model.layers}  # as they were
    again = slope_of(policy, batch)[1]
    assert all(mx.array_equal(again[name], value).item() for name, value in slope.items())  # the same bits each time
    assert recompute.is_exact(policy)


def test_dropout_is_drawn_again_as_it_was(make_policy: Callable[..., Policy], keeping: Callable[..., Slope]) -> None:
    """Half of every adapter's inputs are dropped: another draw is another gradient, and what is drawn later stays the same."""
    policy = make_policy("lora", dropout=0.5)
    nudge(policy)
    (batch,) = pack(rows_of((12, 12)), 4, sharing="none")
    loss, gradient = keeping(policy, batch, training=True)
    after = mx.random.uniform(shape=(4,))
    assert apart(keeping(policy, batch)[1], gradient) > 0.05
    policy.recomputes = True
    found, slope = slope_of(policy, batch, training=True)
    assert mx.array_equal(mx.random.uniform(shape=(4,)), after).item()
    assert abs(found - loss) <= 1e-6 * abs(loss) and apart(slope, gradient) <= 1e-5
    assert not policy.model.training


def test_less_memory_is_taken(tmp_path: Path, keeping: Callable[..., Slope]) -> None:
    """Ten layers: each keeps 18 widths and more of each token, of which its input is one."""
    write_blank_model(tmp_path, Shape(64, 10, 256, 4, 4), seed=1)
    policy = load_policy(tmp_path, AdapterConfig(rank=4), seed=0)
    nudge(policy)
    (batch,) = pack(rows_of((96,), group=8, tokens=64), 8, sharing="any")

    def peak(slope: Callable[..., Slope]) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        slope(policy, batch)
        return int(mx.get_peak_memory() - before)

    whole = peak(keeping)
    policy.recomputes = True
    assert peak(slope_of) < 0.5 * whole


def test_a_family_that_hands_arrays_on_unseen_is_found_out(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer adds half of the one before it, from a list beside the arguments: that part would have no gradient."""
    policy = make_policy()
    assert recompute.is_exact(policy)
    unseen: list[Any] = []
    plain = llama.TransformerBlock.__call__

    def call(layer: nn.Module, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        made = plain(layer, x, mask, cache)
        if layer is not policy.model.layers[0]:
            made = made + 0.5 * unseen[-1]
        unseen.append(made)
        return made

    monkeypatch.setattr(llama.TransformerBlock, "__call__", call)
    assert not recompute.is_exact(policy)
    assert not policy.recomputes  # as it was
