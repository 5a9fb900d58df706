"""What an optimizer needs to know before any array exists: which options it uses, what it holds, which matrices Muon takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from engine.errors import InputError
from engine.sections import OptimConfig

Shapes = Mapping[str, Sequence[int]]  # of the trainable arrays, by their path in the model

# The options of OptimConfig that not every optimizer has. Weight decay is decoupled from the gradient wherever there is one.
USES: dict[str, frozenset[str]] = {
    "adamw": frozenset({"betas", "eps", "weight_decay"}),
    "adam": frozenset({"betas", "eps"}),
    "adafactor": frozenset({"weight_decay"}),
    "muon": frozenset({"betas", "eps", "weight_decay"}),  # betas and eps: of its AdamW part
    "lion": frozenset({"betas", "weight_decay"}),
    "sgd": frozenset({"weight_decay"}),
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")


def refusal(config: OptimConfig) -> InputError | None:
    """The error of a config that sets an option which its optimizer does not have; None where every option has an effect."""
    for option in ("weight_decay", "betas", "eps"):
        if option not in USES[config.name] and getattr(config, option) != OptimConfig.model_fields[option].default:
            users = ", ".join(name for name, used in USES.items() if option in used)
            what = f"{config.name} has no {option}, so the value has no effect"
            return InputError(what, where=f"optim.{option}", remedy=f"leave it out, or use optim.name: {users}")
    return None


def muon_names(shapes: Shapes) -> frozenset[str]:
    """The arrays that Muon updates: single matrices inside a layer, low-rank factors among them.

    AdamW takes the rest: embeddings, heads and what else lies outside the layers, norms, biases, DoRA's magnitudes, and stacks of
    experts, which are many matrices in one array (the first factor of an adapter on a stack is one too, though it has two axes;
    weights under `experts.0.` become a stack when they are loaded).
    """

    def is_stack(name: str) -> bool:
        twin = shapes.get(f"{name.removesuffix('lora_a')}lora_b", ()) if name.endswith(".lora_a") else ()
        return len(twin) > 2 or "experts" in name.split(".")

    return frozenset(n for n, shape in shapes.items() if len(shape) == 2 and _LAYER.search(n) and not is_stack(n))


def state_numbers(optimizer: str, shapes: Shapes) -> int:
    """How many numbers the optimizer's state holds for arrays of these shapes, its step and rate left out.

    Two moments for Adam and AdamW, one for Lion and for Muon's own matrices, none for SGD (it has no momentum). Adafactor holds a
    number for each row and for each column of a matrix (arXiv 1804.04235, Alg. 4), one for each number of a vector.
    """
    if optimizer == "sgd":
        return 0
    if optimizer == "adafactor":
        return sum(_factored(shape) for shape in shapes.values())
    own = muon_names(shapes) if optimizer == "muon" else frozenset()
    moments = {"adamw": 2, "adam": 2, "muon": 2, "lion": 1}[optimizer]
    return sum(math.prod(shape) * (1 if name in own else moments) for name, shape in shapes.items())


def _factored(shape: Sequence[int]) -> int:
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod([*shape[:-2], shape[-1]])
