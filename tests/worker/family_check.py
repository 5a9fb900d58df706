"""What a model family has to do, tried on a tiny folder of it:

    python -m tests.worker.family_check OUT FAMILY[:KIND][=brief]...

prints a JSON object for each (see `checked`). KIND is lora, dora or full; brief: no runs. A process of its own, since that pays
the imports once for all families, and may preload a fast BLAS.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import utils

from engine import config as configs
from engine.api import Run
from engine.config import AdapterConfig
from engine.objective import Objective
from engine.runs import launch
from engine.runs import record as records
from engine.runs.journal import JournalReader
from engine.worker import run as worker_run
from engine.worker.batching import Batch, Row, Sharing, pack
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import policy_loss
from engine.worker.model import Policy, load_policy
from engine.worker.sampler import sample
from engine.worker.trees import flat, scalar
from tests.support.families import write_family
from tests.support.live import assert_same_bits, outcome

from .rows import nudge, plain, prompts_of

TEXTS = ("Hi", "A longer prompt, well past the window of 16 tokens.", "What is 24+17-9?")
GROUP, TOKENS, TEMPERATURE = 3, 14, 0.8
PLACES = 5  # of the 9 rows: the others take the places of those that stopped
STEPS = 3
REWARD = '''
def letters(prompts, completions, **columns):
    """The share of letters: something that a random model can learn."""
    return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in completions]
'''


def checked(folder: Path, family: str, kind: str, is_brief: bool) -> dict[str, Any]:
    """The figures of a family; the test says what they must be."""
    started = time.perf_counter()
    adapter = AdapterConfig.model_validate({"type": kind, "rank": 4})
    model = write_family(folder / f"{family}-{kind}", family)
    policy = load_policy(model, adapter, seed=0)
    nudge(policy, 0.02)
    rows = _rollouts(policy)
    found = {
        "mode": policy.decoding.mode,
        "refills": policy.decoding.refills,
        "probe": policy.decoding.gap,
        "splits": policy.splits,
        "sharing": policy.sharing,
        "lengths": sorted(len(row.tokens) for row in rows),
        **_agreement(policy, rows),
        **_gradient(policy, rows),
        **({} if is_brief else {"same_alone": _same_alone(policy, rows), **_runs(folder, model, adapter)}),
    }
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _rollouts(policy: Policy) -> list[Row]:
    """Unequal prompts; one token in seven ends a completion, so that rows stop at many moments and others begin."""
    own, policy.stop_ids = policy.stop_ids, frozenset(range(0, 256, 7)) | policy.stop_ids
    prompts = prompts_of(policy, *TEXTS)
    ask = {"max_tokens": TOKENS, "temperature": TEMPERATURE, "seed": 0, "step": 1}
    groups = sample(policy, prompts, GROUP, **ask, rows_at_once=PLACES)
    policy.stop_ids = own
    return [
        Row(number * GROUP + member, prompt.token_ids, rollout.token_ids, number, rollout.logprobs)
        for number, (prompt, members) in enumerate(zip(prompts, groups, strict=True))
        for member, rollout in enumerate(members)
    ]


def _same_alone(policy: Policy, rows: Sequence[Row]) -> float:
    """The share of completions that are the same, id for id, when every row is decoded alone."""
    found, policy.decoding = policy.decoding, replace(policy.decoding, mode="alone")
    again = _rollouts(policy)
    policy.decoding = found
    return sum(one.tokens == other.tokens for one, other in zip(rows, again, strict=True)) / len(rows)


def _agreement(policy: Policy, rows: Sequence[Row]) -> dict[str, Any]:
    """|sampler - plain forward| and |trainer - plain forward| of every token: 0.99 quantile and maximum; the mean entropy."""
    scored = score(policy, rows, TEMPERATURE, len(rows))
    expected = [plain(policy, row, TEMPERATURE) for row in rows]
    sampled = np.concatenate([np.abs(np.array(row.sampler) - values) for row, values in zip(rows, expected, strict=True)])
    trained = np.concatenate([np.abs(found - values) for found, values in zip(scored, expected, strict=True)])
    return {
        "sampler": [float(np.quantile(sampled, 0.99)), float(sampled.max())],
        "trainer": [float(np.quantile(trained, 0.99)), float(trained.max())],
        "surprise": -float(np.concatenate(expected).mean()) / np.log(272),
    }


def _gradient(policy: Policy, rows: Sequence[Row]) -> dict[str, Any]:
    """Which trained arrays have no gradient, what is adapted, and how far the gradient with each prompt computed once is from
    that with a prompt for every row: |difference| / |gradient|, for unequal prompts together and for one prompt's rows."""
    signed = [
        Row(row.index, row.prompt, row.tokens, row.group, row.sampler, advantage=(-1.0) ** row.index, weight=0.1) for row in rows
    ]

    def slope(chosen: Sequence[Row], sharing: Sharing) -> dict[str, mx.array]:
        policy.sharing = sharing
        parts = [_slope(policy, batch) for batch in pack(chosen, len(chosen), sharing=sharing)]
        return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in parts[0]}

    found = policy.sharing
    gaps = []
    for chosen in (signed, [row for row in signed if row.group == 1]):
        whole, shared = slope(chosen, "none"), slope(chosen, found)
        gap = sum(scalar(((shared[name] - value) ** 2).sum()) for name, value in whole.items())
        gaps.append(float(np.sqrt(gap / sum(scalar((value**2).sum()) for value in whole.values()))))
    gradient, held = slope(signed, found), policy.trainable()
    still = [name for name, value in gradient.items() if not scalar(mx.abs(value).max())]
    layers = len(policy.model.layers)
    return {
        "shared_gradient": max(gaps),
        "layers": layers,
        "still": still,
        "adapted": sorted({name.removesuffix(".lora_a") for name in held if name.endswith(".lora_a")}),
    }


def _slope(policy: Policy, batch: Batch) -> dict[str, mx.array]:
    def loss(arrays: dict[str, mx.array]) -> mx.array:
        policy.model.update(utils.tree_unflatten(list(arrays.items())))
        return policy_loss(
            completion_logprobs(policy, batch, TEMPERATURE),
            objective=Objective(),
            mask=mx.array(batch.mask),
            advantage=mx.array(batch.advantage),
            weight=mx.array(batch.weight),
        )[0]

    held = policy.trainable()
    policy.model.train()
    gradient: dict[str, mx.array] = mx.grad(loss)(held)
    policy.model.eval()
    policy.model.update(utils.tree_unflatten(list(held.items())))
    return gradient


def _runs(folder: Path, model: Path, adapter: AdapterConfig) -> dict[str, Any]:
    """GRPO through the worker's own code, once whole and (LoRA) once stopped after a step and resumed; then mlx_lm's loader.

    Raises AssertionError where the resumed run ends with other bits.
    """
    (folder / "letters.py").write_text(REWARD)
    config = configs.parse(
        json.dumps(
            {
                "model": str(model),
                "method": "grpo",
                "data": {"train": "datasets/arithmetic.jsonl"},
                "adapter": adapter.model_dump(),
                "sampling": {"prompts_per_step": 2, "group_size": 3, "max_completion_tokens": 5},
                "rewards": [{"name": "letters", "file": str(folder / "letters.py")}],
                "optim": {"learning_rate": 1e-3 if adapter.type != "full" else 1e-4},
                "run": {"steps": STEPS, "eval_every": STEPS, "eval_rows": 1, "checkpoint_every": 1},
            }
        ),
        base=folder,
    ).config
    whole = records.create(config, folder / f"home-{model.name}")
    found: dict[str, Any] = {"statuses": [_train(whole, False)]}
    left = outcome(Run(whole))
    if adapter.type == "lora":
        parted = records.create(config, folder / f"home-{model.name}-parted")
        found["statuses"].append(_train(parted, False, stop_after=1))
        found["stopped_at"] = parted.summary().step
        found["statuses"].append(_train(parted, True))
        assert_same_bits(left, outcome(Run(parted)))
    warnings = [event.fields["kind"] for event in JournalReader(whole.journal_file).read() if event.type == "warning"]
    return {
        **found,
        "warnings": sorted(set(warnings)),
        "mismatch": max(left["metrics"]["mismatch"][1]),
        "moved": min(value for value in left["metrics"]["moved"][1] if value is not None),
        **_taken_home(folder, model, whole, adapter),
    }


def _train(record: records.RunRecord, resume: bool, stop_after: int | None = None) -> int:
    """The worker's `run` in this process; with `stop_after`, asked by SIGTERM to stop once that step is in the journal."""
    descriptor = os.open(record.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    record.update(state="starting", launched=time.time(), environment=launch.worker_environment(os.environ, {})[1])
    if stop_after is not None:
        threading.Thread(target=_stop, args=(record, stop_after), daemon=True).start()
    try:
        return worker_run.run(record.folder, descriptor, resume)
    finally:
        os.close(descriptor)


def _stop(record: records.RunRecord, step: int) -> None:
    reader = JournalReader(record.journal_file)
    while not any(event.type == "step" and event.fields["step"] >= step for event in reader.read()):
        time.sleep(0.001)  # the poll of another thread's file
    os.kill(os.getpid(), signal.SIGTERM)


def _taken_home(folder: Path, model: Path, record: records.RunRecord, adapter: AdapterConfig) -> dict[str, Any]:
    """Largest differences in logits: the last adapter as mlx_lm loads it against ours, and fused; and ours against the base."""
    tokens = mx.array([[5, 80, 101, 32, 49, 43, 50, 61, 7, 90]])
    last = sorted(record.checkpoints_dir.glob("step-*"))[-1] / "adapters.safetensors"
    ours = load_policy(model, adapter, seed=0)
    base = ours.model(tokens)
    ours.model.load_weights(str(last), strict=False)
    expected = ours.model(tokens)
    taken = folder / f"taken-{model.name}"
    taken.mkdir()
    shutil.copy(record.adapters_dir / "adapter_config.json", taken)
    shutil.copy(last, taken)
    theirs, tokenizer = utils.load(str(model), adapter_path=str(taken))[:2]
    fused = [(name, module.fuse()) for name, module in theirs.named_modules() if hasattr(module, "fuse")]
    adapted = theirs(tokens)
    theirs.update_modules(utils.tree_unflatten(fused))
    out = folder / f"fused-{model.name}"
    with contextlib.redirect_stdout(io.StringIO()):
        utils.save(out, str(model), theirs, tokenizer, json.loads((model / "config.json").read_text()))
    again = utils.load(str(out))[0](tokens)
    return {
        "adapter": scalar(mx.abs(adapted - expected).max()),
        "fused": scalar(mx.abs(again - expected).max()),
        "learned": scalar(mx.abs(expected - base).max()),
        "arrays": len(flat(ours.model.trainable_parameters())),
    }


def main(folder: Path, asked: Sequence[str]) -> None:
    for each in asked:
        name, _, brief = each.partition("=")
        family, _, kind = name.partition(":")
        print(json.dumps({"name": name, **checked(folder, family, kind or "lora", brief == "brief")}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
