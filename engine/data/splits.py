"""Parts of a data file that share no prompt: the rows that a run holds out, and the files that `convert --split` writes.

The same rows, shares and seed give the same parts everywhere: the order comes from a hash, not from a generator whose
algorithm could change between versions.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction

from engine.errors import InputError

NAMES = ("train", "valid", "test")
NO_PART = 255
_REMEDY = "such as train=0.9,valid=0.1 (shares) or valid=200 (rows)"

_SHARE = re.compile(r"\d*\.\d+|\d+/\d+", re.ASCII)

Share = Fraction | int  # a part of the rows, or their number


def parse_split(text: str) -> dict[str, Share]:
    """What `train=0.9,valid=0.1` says, in the order of NAMES: 0.9 and 9/10 are shares, 200 a number of rows.

    InputError for another name, one that is given twice, a part without rows, and shares of more than 1 together.
    """
    shares: dict[str, Share] = {}
    for given in text.split(","):
        name, _, value = (part.strip() for part in given.partition("="))
        if name not in NAMES:
            raise InputError(f"unknown part {name!r}", where="--split", remedy=f"one of {', '.join(NAMES)}, {_REMEDY}")
        if name in shares:
            raise InputError(f"{name} is given twice", where="--split", remedy=_REMEDY)
        if _SHARE.fullmatch(value) is None and not (value.isascii() and value.isdigit()):
            raise InputError(f"{name}={value} is neither a share nor a number of rows", where="--split", remedy=_REMEDY)
        try:
            shares[name] = int(value) if value.isdigit() else Fraction(value)
        except (ValueError, ZeroDivisionError):  # thousands of digits; 1/0
            raise InputError(f"{name}={value:.20} is no number", where="--split", remedy=_REMEDY) from None
        if not shares[name]:
            raise InputError(f"{name}={value} is a part without rows", where="--split", remedy=_REMEDY)
    whole = sum(share for share in shares.values() if isinstance(share, Fraction))
    if whole > 1:
        raise InputError(f"the shares are {float(whole):g} together, which is more than 1", where="--split", remedy=_REMEDY)
    return {name: shares[name] for name in NAMES if name in shares}


def limits(shares: Sequence[Share], rows: int) -> list[int | None]:
    """How many of `rows` rows each part may have. Sums of shares are rounded down, not each share: 0.5 and 0.5 of 3 are 1 and 2.

    Where the shares are 1 together, the first part has no limit: rows with the same prompt may not fit the others exactly.
    InputError where the parts are more than there are rows.
    """
    found: list[int | None] = []
    upto = Fraction(0)
    for share in shares:
        before = upto
        upto += share if isinstance(share, Fraction) else 0
        found.append(share if isinstance(share, int) else int(upto * rows) - int(before * rows))
    if sum(limit or 0 for limit in found) > rows:
        remedy = f"the file has {rows} rows that can be written: ask for fewer"
        raise InputError("the parts are more than all rows", where="--split", remedy=remedy)
    if upto == 1:
        found[0] = None
    return found


def parted(keys: Iterable[Hashable], limits: Sequence[int | None], seed: int) -> bytearray:
    """For every key the number of its part, NO_PART where it is in none. Equal keys are in the same part.

    Sets of equal keys go, in the order that `seed` gives, to the last part that still has room for all of them; a part whose
    limit is None always has.
    """
    first: dict[Hashable, int] = {}
    members = array("Q", (first.setdefault(key, place) for place, key in enumerate(keys)))
    firsts = array("Q", first.values())
    first.clear()
    sizes = array("Q", bytes(8 * len(members)))
    for leader in members:
        sizes[leader] += 1
    room = list(limits)
    part_of = bytearray([NO_PART]) * len(members)
    for leader in shuffled(firsts, seed):
        for part in reversed(range(len(room))):
            left = room[part]
            if left is None or sizes[leader] <= left:
                part_of[leader] = part
                room[part] = None if left is None else left - sizes[leader]
                break
    for place, leader in enumerate(members):
        part_of[place] = part_of[leader]
    return part_of


def shuffled(indices: Iterable[int], seed: int) -> list[int]:
    """The indices ordered by a hash of (seed, index)."""
    return sorted(indices, key=lambda index: hashlib.sha256(f"held-out:{seed}:{index}".encode()).digest())
