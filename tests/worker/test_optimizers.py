"""Each optimizer against the formulas of its paper, its state's bytes against the plan, and what no optimizer may do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.config import OptimConfig, RunConfig
from engine.memory import Plan
from engine.optim_rules import USES, muon_names, refusal, state_numbers
from engine.worker.batching import Batch, Row, pack
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.optimizers import make_optimizer
from engine.worker.trainer import WATCHED_BYTES, Trainer, clipped, strides
from engine.worker.trees import flat, nested

from .test_keys_trainer_summary import ROWS, nll

NAMES = tuple(USES)
RATE, DECAY, EPS = 0.02, 0.1, 1e-6
B1, B2 = 0.8, 0.95
UPDATES = 3
MATRIX, EMBEDDING, NORM = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.layers.0.norm.weight"
SHAPES = {MATRIX: (5, 3), EMBEDDING: (4, 3), NORM: (6,)}


def config(name: str, **changes: Any) -> OptimConfig:
    options = {"weight_decay": DECAY, "betas": (B1, B2), "eps": EPS}
    used = {key: value for key, value in options.items() if key in USES[name]}
    return OptimConfig.model_validate({"name": name, "learning_rate": RATE, **used, **changes})


def draws(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def adamw(w: np.ndarray, gradients: list[np.ndarray], decay: float = DECAY) -> np.ndarray:
    """Decoupled Weight Decay Regularization, arXiv 1711.05101, Alg. 2 (decay 0: Adam, arXiv 1412.6980, Alg. 1)."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        corrected = (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        w = w - RATE * (corrected + decay * w)
    return w


def adafactor(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """arXiv 1804.04235: Alg. 4 (matrices) and 5 (vectors), decay 1 - t^-0.8 (Sec. 7.2), update clipping at 1 (Sec. 6)."""
    matrix = w.ndim == 2
    r, c, v = np.zeros(w.shape[0]), np.zeros(w.shape[-1]), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        beta = 1 - t**-0.8
        squares = g**2 + 1e-30
        if matrix:
            r, c = beta * r + (1 - beta) * squares.sum(axis=1), beta * c + (1 - beta) * squares.sum(axis=0)
            v = np.outer(r, c) / r.sum()
        else:
            v = beta * v + (1 - beta) * squares
        u = g / np.sqrt(v)
        u = u / max(1.0, float(np.sqrt(np.mean(u**2))))
        w = w - RATE * (u + DECAY * w)
    return w


def muon(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Muon is Scalable, arXiv 2502.16982: Eq. 1 (momentum 0.95, Nesterov as in Jordan's code), Eq. 2 (five steps of the quintic
    with Jordan's coefficients), Eq. 3 and 4 (decoupled decay, steps times 0.2 sqrt(max(rows, columns)))."""
    m = np.zeros_like(w)
    for g in gradients:
        m = 0.95 * m + g
        x = g + 0.95 * m
        x = x / np.linalg.norm(x)
        for _ in range(5):
            xx = x @ x.T
            x = 3.4445 * x - 4.7750 * xx @ x + 2.0315 * xx @ xx @ x
        w = w - RATE * (0.2 * math.sqrt(max(w.shape)) * x + DECAY * w)
    return w


def lion(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, Alg. 2."""
    m = np.zeros_like(w)
    for g in gradients:
        w = w - RATE * (np.sign(B1 * m + (1 - B1) * g) + DECAY * w)
        m = B2 * m + (1 - B2) * g
    return w


def sgd(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Gradient descent on the loss + decay / 2 |w|^2."""
    for g in gradients:
        w = w - RATE * (g + DECAY * w)
    return w


NAIVE: dict[str, Callable[[str, np.ndarray, list[np.ndarray]], np.ndarray]] = {
    "adamw": lambda _, w, g: adamw(w, g),
    "adam": lambda _, w, g: adamw(w, g, decay=0.0),
    "adafactor": lambda _, w, g: adafactor(w, g),
    "muon": lambda name, w, g: muon(w, g) if name == MATRIX else adamw(w, g),
    "lion": lambda _, w, g: lion(w, g),
    "sgd": lambda _, w, g: sgd(w, g),
}


@pytest.mark.parametrize("name", NAMES)
def test_three_updates_follow_the_paper(name: str) -> None:
    """A tall matrix inside a layer, an embedding and a norm, three updates with their own gradients; naive loops in float64."""
    start, gradients = draws(0), [draws(seed) for seed in range(1, 1 + UPDATES)]
    weights = nested({key: mx.array(value.astype(np.float32)) for key, value in start.items()})
    optimizer = make_optimizer(config(name), flat(weights))
    for gradient in gradients:
        weights = optimizer.apply_gradients(nested({k: mx.array(v.astype(np.float32)) for k, v in gradient.items()}), weights)
    for key, value in flat(weights).items():
        expected = NAIVE[name](key, start[key], [gradient[key] for gradient in gradients])
        np.testing.assert_allclose(np.array(value), expected, atol=2e-6, err_msg=key)


def test_muon_steps_have_the_size_of_adamws() -> None:
    """Near 0.2 x rate by root mean square for a tall, a square and a wide matrix: singular values end in 0.7 .. 1.2."""
    for shape in ((64, 16), (32, 32), (16, 64)):
        key = "model.layers.3.q_proj.lora_a"
        weights = {key: mx.zeros(shape)}
        gradient = nested({key: mx.random.normal(shape, key=mx.random.key(1))})
        moved = flat(make_optimizer(config("muon"), weights).apply_gradients(gradient, nested(weights)))[key]
        assert 0.6 < math.sqrt(float(mx.square(moved).mean().item())) / (0.2 * RATE) < 1.25


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_are_updated_as_float32_would_be(name: str, dtype: str) -> None:
    """A gradient with zeros, 300 times: in float16 Adam's epsilon 1e-8 alone would be 0 and give 0 / 0. The state is float32, the
    weights keep their type, and one update is float32's, rounded (relative 2^-8 at most)."""
    kind = getattr(mx, dtype)
    gradient = {MATRIX: mx.concatenate([mx.zeros((2, 3)), mx.full((3, 3), 0.01)])}
    weights = {MATRIX: mx.ones((5, 3)).astype(kind)}
    changes = {"eps": 1e-8} if "eps" in USES[name] else {}
    optimizer = make_optimizer(config(name, **changes), weights)
    wide = make_optimizer(config(name, **changes), weights)
    narrow = optimizer.apply_gradients(nested({MATRIX: gradient[MATRIX].astype(kind)}), nested(weights))
    exact = wide.apply_gradients(nested(gradient), nested({MATRIX: weights[MATRIX].astype(mx.float32)}))
    np.testing.assert_allclose(
        np.array(flat(narrow)[MATRIX].astype(mx.float32)), np.array(flat(exact)[MATRIX]), rtol=2**-8, atol=2e-4
    )
    for _ in range(299):
        narrow = optimizer.apply_gradients(nested({MATRIX: gradient[MATRIX].astype(kind)}), narrow)
        mx.eval(narrow, optimizer.state)
    assert flat(narrow)[MATRIX].dtype == kind and mx.isfinite(flat(narrow)[MATRIX]).all().item()
    assert {value.dtype for key, value in flat(optimizer.state).items() if value.ndim} <= {mx.float32}


def test_which_matrices_are_muons() -> None:
    """Matrices inside layers, single ones only: the factors on a stack of 8 experts are 8 matrices each (rank 4)."""
    own = {
        "model.layers.0.self_attn.q_proj.weight": (32, 32),
        "transformer.h.3.mlp.c_fc.weight": (64, 32),
        "model.layers.1.self_attn.v_proj.lora_a": (32, 4),
        "model.layers.1.self_attn.v_proj.lora_b": (4, 16),
    }
    others = {
        "model.embed_tokens.weight": (272, 32),
        "lm_head.weight": (272, 32),
        "model.norm.weight": (32,),
        "model.layers.0.input_layernorm.weight": (32,),
        "model.layers.0.self_attn.q_proj.bias": (32,),
        "model.layers.1.self_attn.v_proj.m": (16,),
        "model.layers.0.mlp.switch_mlp.up_proj.weight": (8, 64, 32),
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a": (8 * 4, 32),
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b": (8, 64, 4),
        "model.layers.0.mlp.experts.5.up_proj.weight": (64, 32),
    }
    assert muon_names({**own, **others}) == set(own)


def test_an_option_without_effect_is_refused() -> None:
    """adam has no decay; adafactor and sgd no betas; adafactor, lion and sgd no eps. Each has every default."""
    refused = {
        (name, option)
        for name in NAMES
        for option, value in (("weight_decay", 0.1), ("betas", (0.9, 0.99)), ("eps", 1e-6))
        if refusal(OptimConfig.model_validate({"name": name, option: value})) is not None
    }
    eps = {("adafactor", "eps"), ("lion", "eps"), ("sgd", "eps")}
    assert refused == {("adam", "weight_decay"), ("adafactor", "betas"), ("sgd", "betas"), *eps}
    assert all(refusal(OptimConfig.model_validate({"name": name})) is None for name in NAMES)
    found = refusal(OptimConfig(name="adam", weight_decay=0.1))
    assert found is not None and found.where == "optim.weight_decay" and "adamw" in found.remedy and "sgd" in found.remedy


def test_state_by_hand() -> None:
    """A 5 x 3 matrix in a layer, a 4 x 3 embedding, a norm of 6: 15 + 12 + 6 = 33 numbers. Adafactor: 5 + 3, 4 + 3 and 6 = 21.
    Muon: 15 + 2 x 18 = 51."""
    found = {name: state_numbers(name, SHAPES) for name in NAMES}
    assert found == {"adamw": 66, "adam": 66, "adafactor": 21, "muon": 51, "lion": 33, "sgd": 0}
    assert state_numbers("adafactor", {"stack": (8, 5, 3)}) == 8 * 5 + 8 * 3


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_the_plan_knows_the_state_to_the_byte(make_policy: Callable[..., Policy], blank_folder: Path, kind: str) -> None:
    """Everything but the scalars (step and rate), after an update."""
    for name in NAMES:
        policy = make_policy(kind)
        trainer = Trainer(policy, config(name), total_updates=1, seed=0)
        trainer.update(0, pack(ROWS, 2), nll(policy))
        tree = {"model": str(blank_folder), "method": "sft", "data": {"train": "rows.jsonl"}}
        adapter = {"type": kind, "rank": 4}
        plan = Plan(RunConfig.model_validate({**tree, "adapter": adapter, "optim": config(name).model_dump()}), "cpu")
        assert plan.optimizer == sum(value.nbytes for value in trainer.state().values() if value.ndim), name
        assert plan.trainable == sum(value.size for value in policy.trainable().values())


def test_the_schedule_sets_every_inner_rate(make_policy: Callable[..., Policy]) -> None:
    """Half of 4 updates is warm-up: the first runs at half of the rate, in Muon and in AdamW."""
    policy = make_policy("full")
    trainer = Trainer(policy, config("muon", schedule="constant", warmup=0.5), total_updates=4, seed=0)
    for number, rate in enumerate((RATE / 2, RATE)):
        assert trainer.update(number, pack(ROWS, 2), nll(policy)).lr == rate
        rates = [value.item() for name, value in trainer.state().items() if name.endswith("learning_rate")]
        assert rates == [pytest.approx(rate)] * 2


def test_a_clipped_gradient_has_the_norm_that_was_configured() -> None:
    """|(3, 4)| = 5: over a limit of 2 it becomes (1.2, 1.6); at a limit of 5 or more it stays as it is."""
    gradient = {"a": mx.array([3.0]), "b": mx.array([[4.0]])}
    found = clipped(gradient, 5.0, 2.0)
    assert (found["a"].item(), found["b"].item()) == (pytest.approx(1.2), pytest.approx(1.6))
    assert clipped(gradient, 5.0, 5.0) is gradient


def test_the_norm_of_a_large_array_is_exact(make_policy: Callable[..., Policy]) -> None:
    """2048 x 2048 numbers 0.1: the norm is 2048 x 0.1. (One long float32 sum on a CPU is off by more.)"""
    policy = make_policy("full")
    policy.model["extra"] = mx.zeros((2048, 2048))
    trainer = Trainer(policy, config("sgd", max_grad_norm=1e9), total_updates=1, seed=0)

    def loss(batch: Batch) -> tuple[mx.array, mx.array]:
        return (0.1 * policy.model["extra"]).sum(), mx.zeros(len(STATS))

    assert trainer.update(0, pack(ROWS, 2), loss).grad_norm == pytest.approx(204.8, rel=1e-4)


def test_a_clipped_step_is_the_same_for_any_number_of_micro_batches(make_policy: Callable[..., Policy]) -> None:
    """Under SGD the step is rate x gradient: its length is rate x limit, and its direction does not know the micro-batches."""
    rows = [Row(n, (5, 6, 7 + n), tuple(range(8, 12 + n)), weight=0.1) for n in range(4)]
    steps = []
    for micro_batch_rows in (1, 2, 4):
        policy = make_policy("full")
        options = {"name": "sgd", "learning_rate": 64.0, "schedule": "constant", "warmup": 0, "max_grad_norm": 0.25}
        trainer = Trainer(policy, OptimConfig.model_validate(options), total_updates=1, seed=0)
        before = {name: np.array(value, dtype=np.float64) for name, value in policy.trainable().items()}
        assert trainer.update(0, pack(rows, micro_batch_rows), nll(policy)).grad_norm > 0.25
        steps.append(np.concatenate([(np.array(v, np.float64) - before[k]).ravel() for k, v in policy.trainable().items()]))
        assert np.linalg.norm(steps[-1]) == pytest.approx(64 * 0.25, rel=1e-6)
    assert np.linalg.norm(steps[0] - steps[1]) < 1e-5 * 16 and np.linalg.norm(steps[0] - steps[2]) < 1e-5 * 16


@pytest.mark.parametrize(("rate", "low", "high"), [(1e-12, 0.0, 0.0), (1e-3, 0.9, 0.999), (1.0, 0.99, 1.0)])
def test_moved_tells_whether_16_bit_weights_move_at_all(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch, rate: float, low: float, high: float
) -> None:
    """Lion steps by +-rate wherever the gradient is not 0: in every matrix, and in all of the embedding, which is the head too.
    bfloat16 has 8 bits: a step of less than a 512th of a weight rounds away, so that at 1e-3 the norms' ones stand still
    (5 norms x 32 of some 26,000 numbers) and the matrices move. Watching 50 bytes of each array sees nearly the same."""
    for limit, tolerance in ((WATCHED_BYTES, 0.0), (1000, 0.25)):
        monkeypatch.setattr("engine.worker.trainer.WATCHED_BYTES", limit)
        policy = make_policy("full")
        policy.model.set_dtype(mx.bfloat16)
        trainer = Trainer(policy, config("lion", learning_rate=rate, weight_decay=0.0, warmup=0), total_updates=1, seed=0)
        before = policy.trainable()
        found = trainer.update(0, pack(ROWS, 2), nll(policy)).moved
        changed = sum(int(mx.not_equal(value, before[name]).sum().item()) for name, value in policy.trainable().items())
        share = changed / sum(value.size for value in before.values())
        assert low <= share <= high and found == pytest.approx(share, abs=tolerance)


def test_what_is_watched_is_bounded_and_leaves_nothing_out() -> None:
    """1,000,000 bytes for 4 arrays: 250,000 each. Of 2,000,000 every 8th number is watched, of 250,004 every 2nd, of 40 all."""
    arrays = {"a": mx.zeros(500_000), "b": mx.zeros((250, 2000)), "c": mx.zeros(62_501), "d": mx.zeros(10)}
    assert strides(arrays, 1_000_000) == {"a": 8, "b": 8, "c": 2, "d": 1}
    assert WATCHED_BYTES <= 64 * 2**20
