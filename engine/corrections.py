"""What measured steps corrected, and for which runs it holds: phases for the same model, adapter type and kind of training, the
seconds of rewards for the same rewards section. A step of another model or with other rewards corrects nothing.

The keys leave out what the arithmetic of engine/timing.py is to account for: lengths, groups, ranks, micro-batches, the method.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engine.config import RunConfig
from engine.machine_rates import Correction, Rates, with_learned
from engine.memory import Plan
from engine.reward_rules import is_path
from engine.sections import RewardConfig

REWARD = "reward"
PEAK = "peak"  # of memory, over the planned one; it is told and corrects nothing
STEP = "a measured step"  # of `estimate --measure`


def model_key(plan: Plan, *, supervised: bool | None = None) -> str:
    """Under which the phases' factors are kept: the model's sizes and bits, the adapter's type, and whether it samples
    (`supervised`, None: as the plan's method)."""
    shape = plan.shape
    kind = "sft" if (plan.is_supervised if supervised is None else supervised) else "rl"
    sizes = "unknown" if shape is None else f"{shape.family} {shape.layers} x {shape.hidden}, vocabulary {shape.vocabulary}"
    return f"{sizes}, {_bits(plan)} bits, {plan.item} bytes, {plan.config.adapter.type} {kind}"


def rewards_key(config: RunConfig) -> str:
    """Under which the rewards' seconds are kept: a digest of their names and options and of what is in their files. A file that
    cannot be read counts as none. Weights, and how long a call may take, do not change what it takes."""
    parts = [[each.name, each.steps, each.options, _contents(each)] for each in config.rewards]
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"rewards {hashlib.sha256(text.encode()).hexdigest()[:24]}"


def known(plan: Plan, rates: Rates) -> dict[str, Correction]:
    """By phase what earlier steps correct in this plan's run; {} where none was measured."""
    return {**_phases(rates, model_key(plan)), **rates.learned.get(rewards_key(plan.config), {})}


def alike(plan: Plan, rates: Rates) -> dict[str, Correction]:
    """What every method in this run's place can be corrected by, supervised training too, so that their ratios stay those of
    like with like: factors of this model's steps that sampled. Rewards take no part."""
    return _phases(rates, model_key(plan, supervised=False))


def _phases(rates: Rates, key: str) -> dict[str, Correction]:
    """Scores are passes as those of the updates: where none was measured, they are corrected as these."""
    found = dict(rates.learned.get(key, {}))
    if "update" in found and "score" not in found:
        found["score"] = replace(found["update"], by=f"{found['update'].by} (its updates)")
    return found


def kept(plan: Plan, rates: Rates, found: Mapping[str, Correction]) -> Rates:
    """The rates with what one step of the plan's run found, under the keys of its model and its rewards."""
    dated = {name: replace(each, measured_t=time.time()) for name, each in found.items()}
    phases = {name: each for name, each in dated.items() if name != REWARD}
    rates = with_learned(rates, model_key(plan), phases) if phases else rates
    return with_learned(rates, rewards_key(plan.config), {REWARD: dated[REWARD]}) if REWARD in dated else rates


def _bits(plan: Plan) -> str:
    """Of a weight in the linear modules, each once: 32 bits of a packed row hold 32 / bits weights."""
    columns = {header.name: header.shape[-1] for header in plan.headers if header.shape}
    packed = {round(32 * columns[f"{m.path}.weight"] / m.inputs) for m in plan.modules if m.quantised}
    plain = {8 * plan.item} if any(not m.quantised for m in plan.modules) else set()
    return "+".join(map(str, sorted(packed | plain)))


def _contents(reward: RewardConfig) -> list[str]:
    """Digests of the files that a reward consists of; a judge's cache is none."""
    named = [reward.file, *(value for name, value in reward.options.items() if name != "cache" and is_path(name, value))]
    return [_digest(name) for name in named if name is not None]


def _digest(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # the run itself will say so
        return ""
