"""Checks a file of a million rows, in a process of its own, and prints the seconds and the memory that it takes.

    python -m tests.bench.million_rows [--rows 1000000] [--method sft] [--tokenizer demo] [--full]

The file is about 300 MB of .jsonl, with known repeats, rows that cannot be used, and prompts that the held-out file has too;
the report must count exactly those. Exits with 1 where it does not, or where it took over 30 s or 400 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS, LIMIT_MB = 30.0, 400.0
REPEATED, UNUSABLE, SHARED = 1000, 700, 300  # rows of each kind, in a million as in a thousand

CHECK = """
import json, resource, sys, time
from pathlib import Path
from engine.config import model_folder
from engine.data.validate import validate
train, valid, method, tokenizer, full = sys.argv[1:]
began = time.perf_counter()
found = validate(Path(train), method, valid=Path(valid), full=full == "1",
                 tokenizer=model_folder(tokenizer) if tokenizer else None)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps({
    "seconds": seconds, "cpu": time.process_time(), "peak_mb": peak, "rows": found.rows, "usable": found.usable,
    "duplicates": found.duplicates, "warnings": {group.kind: group.count for group in found.warnings},
    "sampled": found.sampled, "verdict": found.verdict,
    "prompt_tokens": None if found.prompt_tokens is None else [found.prompt_tokens.median, found.prompt_tokens.max],
}))
"""


def write_rows(train: Path, valid: Path, rows: int) -> None:
    """`rows` rows of about 300 bytes, among them those that a check has to find."""
    draw = random.Random(0)
    words = [f"{draw.choice('bcdfglmnprst')}{draw.choice('aeiou')}{draw.choice('lnrst')}{place}" for place in range(500)]

    def row(number: int) -> dict[str, str]:
        text = " ".join(draw.choices(words, k=30))
        return {"prompt": f"Question {number}: {text}?", "completion": f"It is {number}: {' '.join(draw.choices(words, k=10))}."}

    first = [row(number) for number in range(REPEATED)]
    with train.open("w") as file:
        for place in range(rows):
            if place < len(first):
                given: object = first[place]
            elif place < len(first) + REPEATED:
                given = first[place - len(first)]
            elif place < len(first) + REPEATED + UNUSABLE:
                given = {"prompt": f"Question {place}", "completion": ""}
            else:
                given = row(place)
            file.write(json.dumps(given) + "\n")
    with valid.open("w") as file:
        for given in first[:SHARED]:  # each is in the training file twice
            file.write(json.dumps(given) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--method", default="sft")
    parser.add_argument("--tokenizer", default="demo", help="a model; empty: no lengths")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train, valid = Path(folder, "train.jsonl"), Path(folder, "valid.jsonl")
        write_rows(train, valid, given.rows)
        size = train.stat().st_size
        call = [sys.executable, "-c", CHECK, str(train), str(valid), given.method, given.tokenizer, str(int(given.full))]
        found = json.loads(subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{given.rows:,} rows, {size / 1e6:.0f} MB, {given.method}, model {given.tokenizer or 'none'}")
    print(f"{found['seconds']:.1f} s ({found['cpu']:.1f} s of processor time), peak {found['peak_mb']:.0f} MB")
    print({name: found[name] for name in ("rows", "usable", "duplicates", "warnings", "sampled", "verdict", "prompt_tokens")})
    expected = (given.rows, given.rows - UNUSABLE, REPEATED, 2 * SHARED)
    counted = (found["rows"], found["usable"], found["duplicates"], found["warnings"].get("overlap"))
    if counted != expected:
        sys.exit(f"expected rows, usable, duplicates, overlap {expected}, counted {counted}")
    if not given.full and (found["seconds"] > LIMIT_SECONDS or found["peak_mb"] > LIMIT_MB):
        sys.exit(f"over the limit of {LIMIT_SECONDS:g} s or {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
