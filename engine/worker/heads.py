"""What recomputing a model's head asks for: its width, the trained arrays that it reads, its mode and its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import mlx.core as mx

from engine.worker.model import Policy
from engine.worker.trees import floats, nested

_READ: WeakKeyDictionary[Policy, tuple[tuple[str, ...], tuple[str, ...]]] = WeakKeyDictionary()  # trained arrays, those read


def vocabulary(policy: Policy, hidden: mx.array) -> int:
    """The head's outputs for hidden states [N, D]; nothing is computed, since a shape is known beforehand."""
    with mode(policy, False, 0):
        return int(policy.head(hidden[:1, None]).shape[-1])


def read_by_head(policy: Policy, hidden: mx.array) -> dict[str, mx.array]:
    """The trained arrays that the head reads by name, found by trial: one that it reads makes its logits NaN when it is NaN.

    Families name and tie their heads in their own ways; a name overlooked would lose its gradient silently. The trial is made
    once for a policy, with zeros in place of `hidden` [N, D], and draws no noise.
    """
    trained = policy.trainable()
    known = _READ.get(policy)
    if known is None or known[0] != tuple(trained):
        probe = mx.zeros((1, 1, hidden.shape[-1]), dtype=hidden.dtype)

        def reads(names: Sequence[str]) -> bool:
            with holding(policy, {name: mx.full(trained[name].shape, mx.nan, trained[name].dtype) for name in names}):
                return bool(mx.isnan(policy.head(probe)).any().item())

        with mode(policy, False, 0):
            known = _READ[policy] = (tuple(trained), tuple(_those(list(trained), reads)))
    return {name: trained[name] for name in known[1]}


def _those(names: list[str], reads: Callable[[Sequence[str]], bool]) -> list[str]:
    """The names that are read one by one, found by halving."""
    if not names or not reads(names):
        return []
    half = len(names) // 2
    return names if len(names) == 1 else _those(names[:half], reads) + _those(names[half:], reads)


@contextmanager
def holding(policy: Policy, arrays: Mapping[str, mx.array]) -> Iterator[None]:
    """Inside, the model's arrays of these names are the given ones."""
    current = policy.trainable()
    policy.model.update(nested(arrays))
    try:
        yield
    finally:
        policy.model.update(nested({name: current[name] for name in arrays}))


@contextmanager
def mode(policy: Policy, training: bool, drawn: int) -> Iterator[None]:
    """Inside, dropout (an adapter on the head may have it) is on or off, and goes on from what `noise` gave before. Afterwards
    it is as if nothing had been drawn."""
    before = policy.model.training
    if not training and not before:  # nothing is drawn
        yield
        return
    current = noise()
    policy.model.train(training)
    mx.random.seed(drawn)
    try:
        yield
    finally:
        policy.model.train(before)
        mx.random.seed(current)


def noise() -> int:
    """The seed that puts mlx's random state where it stands: its two words, the high one first."""
    high, low = floats(cast("list[mx.array]", mx.random.state)[0])
    return int(high) << 32 | int(low)
