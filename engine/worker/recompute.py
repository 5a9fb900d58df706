"""Layers that the backward pass computes again instead of keeping what is inside them: gradient checkpointing (arXiv 1604.06174).

A layer follows from its input: the forward pass runs once more. Only values are kept or not: the gradient is that of the same
function of the same arrays.

mlx gives gradients to explicit arguments alone. So every array that a layer reads and that a gradient may pass through is made
one: what is trained in it, what it is called with, and what its cache holds, before and after. A family that hands arrays on by
another way would lose a gradient silently: `is_exact` tries it. What is left out: computing attention's softmax and the gated
activation alone again, which costs a small model a third of its time on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList, ConcatenateKVCache

from engine.worker import prefix
from engine.worker.decoding import REFUSALS
from engine.worker.heads import mode, noise
from engine.worker.model import Policy
from engine.worker.trees import flat, nested, scalar

Run = Callable[..., Any]
_CACHES = (ArraysCache, CacheList, ConcatenateKVCache)  # those that prefix.py gives to layers are kinds of these
_LIMIT = 1e-5  # of the difference of two gradients, relative


@dataclass(frozen=True, slots=True)
class _Place:
    """Stands for an array: where it is in the list of them."""

    number: int
    is_given: bool = False  # among the arguments, not the results


@dataclass(frozen=True, slots=True)
class _Cache:
    """Stands for a cache: its class and its attributes."""

    kind: type
    attributes: dict[str, Any]


@contextmanager
def saving(policy: Policy) -> Iterator[None]:
    """Inside, where `policy.recomputes`, what the model computes keeps of each layer what it was called with alone."""
    with _layer_by_layer(policy) if policy.recomputes else nullcontext():
        yield


def is_exact(policy: Policy) -> bool:
    """Whether recomputing layers gives this model's gradient, tried on a few tokens, with prompts that are shared and without."""
    batch = prefix.probe("any" if policy.sharing == "any" else "equal")
    tokens = mx.array(batch.sequences()[0])

    def loss() -> mx.array:
        parts = [policy.hidden(tokens)]
        if policy.sharing != "none":
            parts.append(policy.hidden_of_completions(batch))
        return mx.stack([(mx.sin(mx.arange(part.size)).reshape(part.shape) * part).mean() for part in parts]).sum()

    def slope() -> list[mx.array]:
        with saving(policy):
            return [value.astype(mx.float32) for value in flat(nn.value_and_grad(policy.model, loss)()[1]).values()]

    wanted, policy.recomputes = policy.recomputes, False
    try:
        plain = slope()
        policy.recomputes = True
        found = slope()
        apart = _squares([a - b for a, b in zip(found, plain, strict=True)])
        return apart <= _LIMIT**2 * _squares(plain)
    except REFUSALS:
        return False
    finally:
        policy.recomputes = wanted


def _squares(arrays: list[mx.array]) -> float:
    return scalar(mx.stack([mx.square(array).sum() for array in arrays]).sum())


@contextmanager
def _layer_by_layer(policy: Policy) -> Iterator[None]:
    """Inside, every layer keeps its arguments alone."""
    layers = {id(layer) for layer in policy.model.layers}
    own = {kind: vars(kind).get("__call__") for kind in {type(layer) for layer in policy.model.layers}}
    for kind in own:
        kind.__call__ = _layer(policy, kind.__call__, layers)
    try:
        yield
    finally:
        for kind, call in own.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call


def _layer(policy: Policy, call: Run, layers: set[int]) -> Run:
    def outer(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
        if id(layer) not in layers:
            return call(layer, *arguments, **named)
        training = policy.model.training
        drawn = noise() if training else 0

        def run(trained: dict[str, mx.array], arguments: Any, named: Any) -> Any:
            held = layer.trainable_parameters()
            layer.update(nested(trained))
            try:
                result = call(layer, *arguments, **named)
            finally:
                layer.update(held)
            return result, [vars(cache) for cache in _caches((arguments, named))]

        again = partial(mode, policy, training, drawn)
        result, after = recomputed(run, flat(layer.trainable_parameters()), arguments, named, again=again)
        for cache, attributes in zip(_caches((arguments, named)), after, strict=True):
            vars(cache).update(attributes)
        return result

    return outer


def _caches(value: Any) -> list[Any]:
    """The caches among a layer's arguments."""
    if isinstance(value, _CACHES):
        return [value]
    parts = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    return [cache for part in parts for cache in _caches(part)]


def recomputed(run: Run, *arguments: Any, again: Callable[[], AbstractContextManager[None]] = nullcontext) -> Any:
    """`run(*arguments)`, whose backward pass runs it once more, inside `again()`. Gradients reach the floating-point arrays
    among the arguments, in lists, dictionaries and caches, and no others; what `run` changes in caches it has to return."""
    given: list[mx.array] = []
    form = _apart(arguments, given)
    made: list[Any] = []  # the form of the result

    def once(arrays: list[mx.array]) -> list[mx.array]:
        results: list[mx.array] = []
        made[:] = [_apart(run(*_together(form, arrays)), results, arrays)]
        return results

    @mx.custom_function
    def differentiable(arrays: list[mx.array]) -> list[mx.array]:
        return once(arrays)

    @differentiable.vjp
    def backward(arrays: list[mx.array], cotangents: list[mx.array], _: list[mx.array]) -> list[mx.array]:
        with again():  # not before its turn, or all would be there again at once
            return mx.vjp(lambda *inputs: once(list(inputs)), mx.depends(arrays, cotangents), cotangents)[1]

    results = cast("list[mx.array]", differentiable(given))
    return _together(made[0], results, given)


def _apart(value: Any, found: list[mx.array], given: list[mx.array] | None = None) -> Any:
    """`value` with every floating-point array, also in caches, replaced by its place: in `given` if it is one of these, else in
    `found`, to which it is added."""
    if isinstance(value, mx.array):
        if not mx.issubdtype(value.dtype, mx.inexact):
            return value
        for number, array in enumerate(given or ()):
            if array is value:
                return _Place(number, is_given=True)
        found.append(value)
        return _Place(len(found) - 1)
    if isinstance(value, _CACHES):
        return _Cache(type(value), _apart(vars(value), found, given))
    if type(value) in (list, tuple):
        return type(value)(_apart(each, found, given) for each in value)
    if type(value) is dict:
        return {name: _apart(each, found, given) for name, each in value.items()}
    return value


def _together(form: Any, found: list[mx.array], given: list[mx.array] | None = None) -> Any:
    """What `_apart` took apart, with these arrays; caches are new ones."""
    if isinstance(form, _Place):
        return (given or [])[form.number] if form.is_given else found[form.number]
    if isinstance(form, _Cache):
        made: Any = object.__new__(form.kind)
        vars(made).update(_together(form.attributes, found, given))
        return made
    if type(form) in (list, tuple):
        return type(form)(_together(each, found, given) for each in form)
    if type(form) is dict:
        return {name: _together(each, found, given) for name, each in form.items()}
    return form
