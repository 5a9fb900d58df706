"""Parts of a file: disjoint, complete, the same everywhere, and never with one prompt in two of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from array import array
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.formats import split_held_out
from engine.data.splits import NO_PART, limits, parse_split, parted, shuffled
from engine.errors import InputError
from engine.types import Example, Message

KEYS = [b"a", b"b", b"a", b"c", b"d", b"d", b"e", b"f", b"g", b"h"]


def test_what_a_split_says() -> None:
    assert parse_split("valid=0.1, train=9/10") == {"train": Fraction(9, 10), "valid": Fraction(1, 10)}
    assert list(parse_split("test=20,train=.5")) == ["train", "test"]
    assert parse_split("test=1")["test"] == 1 and isinstance(parse_split("train=1.0")["train"], Fraction)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "unknown part ''"),
        ("dev=0.1", "unknown part 'dev'"),
        ("train=0.5,train=0.5", "twice"),
        ("train", "neither"),
        ("train=-0.1", "neither"),
        ("train=nan", "neither"),
        ("train=1e999999999", "neither"),
        ("train=٣", "neither"),
        ("train=1/0", "no number"),
        (f"train={'9' * 5000}", "no number"),
        ("train=0", "without rows"),
        ("train=0.0,valid=0.1", "without rows"),
        ("train=0.9,valid=0.11", "1.01 together"),
    ],
)
def test_a_split_that_says_nothing_is_refused(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as refused:
        parse_split(text)
    assert refused.value.where == "--split" and "train=0.9,valid=0.1" in refused.value.remedy


def test_limits_are_exact() -> None:
    """0.7 + 0.2 + 0.1 is 1 here, though not in floating point; of 11 rows: floor(7.7) = 7, floor(9.9) - 7 = 2, 11 - 9 = 2, and
    the first part has no limit. 0.29 of 100 is 29, though 0.29 * 100 is 28.999... Shares below 1 leave the rest."""
    shares = list(parse_split("train=0.7,valid=0.2,test=0.1").values())
    assert limits(shares, 11) == [None, 2, 2]
    assert limits([Fraction("0.29")], 100) == [29]
    assert limits([Fraction("0.5"), Fraction("0.25")], 10) == [5, 2]
    assert limits([5, Fraction("0.5")], 10) == [5, 5]
    assert limits([Fraction(1, 2), Fraction(1, 2)], 3) == [None, 2]
    with pytest.raises(InputError, match="more than all rows") as refused:
        limits([8, Fraction("0.3")], 10)
    assert "10 rows" in refused.value.remedy


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60), st.lists(st.integers(1, 20), min_size=1, max_size=2), st.integers(0, 3)
)
def test_parts_are_disjoint_complete_and_whole(keys: list[int], sizes: list[int], seed: int) -> None:
    """Every row has one part, equal keys the same, no part has more than its limit; renaming the keys changes nothing."""
    part_of = parted(keys, [None, *sizes], seed)
    assert len(part_of) == len(keys) and NO_PART not in part_of
    assert len({(key, part) for key, part in zip(keys, part_of, strict=True)}) == len(set(keys))
    assert all(part_of.count(number) <= size for number, size in enumerate(sizes, start=1))
    assert parted([f"renamed {key}" for key in keys], [None, *sizes], seed) == part_of
    # A set of equal keys that is in no part has room in none of them.
    loose = parted(keys, sizes, seed)
    for key in {key for key, part in zip(keys, loose, strict=True) if part == NO_PART}:
        assert all(keys.count(key) > size - loose.count(number) for number, size in enumerate(sizes))


def test_the_seed_gives_the_parts_in_every_process() -> None:
    """Whatever the hashes of strings are there, and on another day: the expected parts stand here."""
    expected = {0: parted(KEYS, [None, 2, 2], 0), 1: parted(KEYS, [None, 2, 2], 1)}
    assert expected[0] != expected[1]
    assert shuffled(range(8), 0) == [1, 2, 6, 3, 7, 0, 5, 4]
    code = f"from engine.data.splits import parted; print(parted({[key.decode() for key in KEYS]!r}, [None, 2, 2], 1).hex())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected[1].hex()


def example(line: int, prompt: str) -> Example:
    return Example(line, (Message("user", prompt),), None, "1")


def test_what_a_run_holds_out_is_such_a_part() -> None:
    """20 prompts of 2 rows each: at most 40 // 5 = 8 rows are held out, and they are the part with that limit."""
    examples = [example(line, f"prompt {line % 20}") for line in range(40)]
    train, held = split_held_out(examples, None, 64, seed=3)
    part_of = parted([line % 20 for line in range(40)], [8], seed=3)
    assert [each.line for each in held] == [line for line in range(40) if part_of[line] == 0] and len(held) == 8
    assert [each.line for each in train] == [line for line in range(40) if part_of[line] == NO_PART]


def test_texts_without_a_prompt_are_not_one_set() -> None:
    texts = [Example(line, (), f"text {line % 10}", None) for line in range(20)]
    train, held = split_held_out(texts, None, 64, seed=0)
    assert len(held) == 4 and not {each.completion for each in train} & {each.completion for each in held}


def test_memory_grows_by_bytes_not_by_rows() -> None:
    """While parts are made: a table of the keys and their order, under 200 bytes a row; afterwards one byte a row."""
    keys = array("Q", (number * 2654435761 % 2**64 for number in range(20_000)))
    tracemalloc.start()
    part_of = parted(keys, [None, 2000], 0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part_of.count(1) == 2000
    assert peak < 200 * len(keys) and held < 2 * len(keys) + 10_000
