"""Three ways to one number: a batched rollout with a cache, the trainer's scores, and one unpadded forward of each row.

    python -m tests.worker.agreement MODEL_FOLDER

asks it of a real model. A process of its own, since a large model needs the BLAS that only a fresh process can preload.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.config import AdapterConfig
from engine.worker.batching import Row
from engine.worker.logprobs import score
from engine.worker.model import Policy, load_policy
from engine.worker.sampler import sample

from .rows import plain, prompts_of

LIMIT = 1e-4


def apart(policy: Policy, texts: Sequence[str], group: int, max_tokens: int, temperature: float) -> tuple[float, int]:
    """The largest difference to the plain forward, of sampler and of scores, and how many tokens were compared."""
    prompts = prompts_of(policy, *texts)
    groups = sample(policy, prompts, group, max_tokens=max_tokens, temperature=temperature, seed=0, step=1)
    rows = [
        Row(number * group + member, prompt.token_ids, rollout.token_ids, sampler=rollout.logprobs)
        for number, (prompt, members) in enumerate(zip(prompts, groups, strict=True))
        for member, rollout in enumerate(members)
    ]
    scored = score(policy, rows, temperature, len(rows))
    largest = 0.0
    for row in rows:
        expected = plain(policy, row, temperature)
        for found in (np.array(row.sampler), scored[row.index]):
            largest = max(largest, float(np.abs(found - expected).max()))
    return largest, sum(len(row.tokens) for row in rows)


def main(folder: Path) -> None:
    policy = load_policy(folder, AdapterConfig(), seed=0)
    largest, tokens = apart(policy, ("What is 2+2?", "Name a river, and say where it flows."), 2, 12, 1.0)
    print(f"{tokens} tokens, at most {largest:.2e} apart")
    sys.exit(0 if tokens > 20 and largest <= LIMIT else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
