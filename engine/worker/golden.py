"""The packaged reference values, computed by the product's own functions: for the tests and for the self-test.

What the fields of a case mean, and where its numbers come from, is in tests/golden/README.md.
"""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np

from engine import share
from engine.objective import Objective
from engine.worker.advantages import advantages
from engine.worker.batching import Floats
from engine.worker.losses import policy_loss
from engine.worker.trees import scalar


def fixture(name: str) -> dict[str, Any]:
    """A file of reference values: `policy_losses` or `advantages`."""
    found: dict[str, Any] = json.loads((share.share_root("golden") / f"{name}.json").read_text(encoding="utf-8"))
    return found


def loss_and_gradient(case: dict[str, Any]) -> tuple[float, Floats]:
    """The policy loss of a case and d loss / d logp [B, T], in float32 on the default device."""
    arguments = _arguments(case)
    value, gradient = mx.value_and_grad(lambda logp: policy_loss(logp, **arguments)[0])(_array(case["inputs"]["logp"]))
    return scalar(value), np.array(gradient)


def advantage_error(case: dict[str, Any]) -> float:
    """The largest |difference| between a case's advantages and ours, over all of its modes."""
    errors = [
        abs(got - want)
        for mode, expected in case["expected"].items()
        for found, wanted in zip(advantages(case["rewards"], mode), expected, strict=True)
        for got, want in zip(found, wanted, strict=True)
    ]
    return float(np.max(errors))  # as max(), but a nan wins


def _arguments(case: dict[str, Any]) -> dict[str, Any]:
    """A case as keyword arguments of policy_loss; its weights are w_it of the README."""
    inputs, spec = case["inputs"], case["spec"]
    mask = np.array(inputs["mask"])
    lengths = [int(n) for n in mask.sum(axis=1)]
    weight = {
        "seq_mean": [1 / (inputs["num_sequences"] * max(n, 1)) for n in lengths],
        "constant": [1 / (inputs["num_sequences"] * inputs["max_completion_length"])] * len(lengths),
        "token_mean": [1 / inputs["num_items"]] * len(lengths),
    }[spec["aggregate"]]
    options = {name: spec[name] for name in ("ratio", "surrogate", "aggregate", "epsilon_low", "epsilon_high", "delta", "beta")}
    given = {name: spec[name] for name in ("kl", "tis", "tis_cap") if spec[name] is not None}
    return {
        "objective": Objective(**options, **given),
        "mask": _array(mask),
        "advantage": _array(np.broadcast_to(np.array(inputs["advantage"])[:, None], mask.shape)),
        "weight": _array(weight),
        "old": _array(inputs["old_logp"]),
        "sampler": _optional(inputs["sampler_logp"]),
        "ref": _optional(inputs["ref_logp"]),
    }


def _array(values: Any) -> mx.array:
    return mx.array(np.array(values, dtype=np.float32))


def _optional(values: Any) -> mx.array | None:
    return None if values is None else _array(values)
