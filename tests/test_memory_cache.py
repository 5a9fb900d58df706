"""When prompts are shared, and what their keys take then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.memory_cache import KeyCache
from engine.model_files import ModelShape
from engine.prompt_sharing import GPU_BYTES, saved_bytes, shares_prompts

SHAPE = ModelShape(
    family="llama",
    layers=4,
    hidden=64,
    intermediate=128,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=300,
    tied=True,
    window=None,
    sliding_layers=0,
    is_mixture=False,
)


@pytest.mark.parametrize(
    ("asked", "on_cpu", "saved", "shares"),
    [
        ("auto", True, 1, True),
        ("auto", True, 0, False),  # one completion of each prompt
        ("auto", False, GPU_BYTES - 1, False),
        ("auto", False, GPU_BYTES, True),
        (True, False, 1, True),
        (False, True, GPU_BYTES, False),
    ],
)
def test_when_prompts_are_shared(asked: bool, on_cpu: bool, saved: int, shares: bool) -> None:
    assert shares_prompts(asked, on_cpu, saved) is shares


def test_what_sharing_spares_a_layer() -> None:
    """8 completions of prompts that have 640 tokens together, 2,048 bytes a token: 7 copies that need not be there."""
    assert saved_bytes(640, 8, 2048) == 7 * 640 * 2048
    assert saved_bytes(640, 1, 2048) == 0


def test_keys_of_shared_prompts() -> None:
    """A token takes 2 x 2 x 16 x 4 = 256 bytes a layer, 1,024 in all. 2 prompts of 100 tokens: 204,800 once merged. 16 rows of
    130 tokens, in steps of 64: 192 x 16 x 1,024 = 3,145,728 and a quarter more while a layer grows: 3,932,160."""
    keys = KeyCache(SHAPE, item=4, length=100, new=130, shares=True)
    assert keys.peak(2, 8, 16) == 204_800 + 3_932_160
    apart = replace(keys, shares=False)
    assert apart.peak(2, 8, 16) == 16 * (100 + 256) * 1024 * 5 // 4
    # a single token: what counts is the moment after the prompts, their own caches (256 tokens each) beside the merged ones
    assert replace(keys, new=1, length=500).peak(2, 8, 2) == 2 * 512 * 1024 + 2 * 500 * 1024


def test_layers_with_a_window_keep_a_copy_for_each_row() -> None:
    """3 of 4 layers keep 32 tokens of each of 16 rows, 3 x 256 x 32 x 16 = 393,216; the other shares: 2 x 100 x 256 = 51,200, and
    16 x 192 x 256 = 786,432 with a quarter more."""
    sliding = replace(SHAPE, window=32, sliding_layers=3)
    assert KeyCache(sliding, 4, 100, 130, shares=True).peak(2, 8, 16) == 393_216 + 51_200 + 983_040


def test_rows_that_wait_bring_their_prompt_along() -> None:
    """6 of 16 rows at once: up to 2 prompts, each there twice at most."""
    keys = KeyCache(SHAPE, item=4, length=100, new=130, shares=True)
    assert keys.peak(2, 8, 6) == 4 * 100 * 1024 + 6 * 192 * 1024 * 5 // 4
