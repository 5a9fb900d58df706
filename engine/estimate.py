"""How much memory a run needs, before anything is loaded, and whether this machine has it. The arithmetic: engine/memory.py.

What is left out: time. The run measures it; a figure from sizes alone would be a guess.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine import hardware
from engine.config import RunConfig
from engine.hardware import Hardware
from engine.memory import FLOAT32, MEASURED_FAMILIES, Plan
from engine.models.sources import fetched_bytes, fixed, model_folder

Phase = Literal["rollout", "update"]


@dataclass(frozen=True)
class Estimate:
    """A run's memory in bytes, part by part. The phases' peaks include what is held throughout; parts that a method does not
    have are 0, and `rollout_peak_bytes` is None for supervised training."""

    fits: bool
    binding_phase: Phase
    peak_bytes: int
    limit_bytes: int
    rollout_peak_bytes: int | None
    update_peak_bytes: int
    weights_bytes: int  # held throughout, as are the next three
    adapter_bytes: int
    optimizer_bytes: int
    reference_bytes: int
    cache_bytes: int  # of the rollout, with its growth
    rollout_logits_bytes: int
    activation_bytes: int  # of the update, for one micro-batch
    logits_bytes: int
    gradient_bytes: int
    trainable_parameters: int
    micro_batch_rows: int
    backend: str
    dtype: str  # of the activations
    seconds: None
    seconds_reason: str
    assumptions: tuple[str, ...]
    fetch_bytes: int = 0  # weights that are not on this machine: the run fetches them first

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return {**asdict(self), "assumptions": list(self.assumptions)}


def estimate(config: RunConfig, known: Hardware | None = None) -> Estimate:
    """The memory plan of the run on this machine (or on `known`). Raises InputError where the model cannot be read."""
    known = known or hardware.facts()
    config = config.model_copy(update={"model": fixed(config.model)})
    plan = Plan(config, known.backend)
    limit = hardware.memory_limit_bytes(known)
    rows = config.optim.micro_batch_rows or plan.rows_within(limit)
    rollout, update = plan.rollout_peak(), plan.update_peak(rows)
    peak = max(rollout or 0, update)
    return Estimate(
        fits=peak <= limit,
        binding_phase="rollout" if rollout is not None and rollout > update else "update",
        peak_bytes=peak,
        limit_bytes=limit,
        rollout_peak_bytes=rollout,
        update_peak_bytes=update,
        weights_bytes=plan.weights,
        adapter_bytes=plan.adapter,
        optimizer_bytes=plan.optimizer,
        reference_bytes=plan.reference,
        cache_bytes=max((plan.cache(*each) for each in plan.decoded), default=0),
        rollout_logits_bytes=max((plan.draw_logits(prompts * group) for prompts, group in plan.decoded), default=0),
        activation_bytes=plan.activations(rows),
        logits_bytes=plan.logits(rows),
        gradient_bytes=plan.gradients(rows),
        trainable_parameters=plan.trainable,
        micro_batch_rows=rows,
        backend=known.backend,
        dtype="float32" if plan.item == FLOAT32 else "16-bit",
        seconds=None,
        seconds_reason="time is measured by the run itself, from its first step on",
        assumptions=_assumptions(plan),
        fetch_bytes=fetched_bytes(model_folder(config.model)),
    )


def micro_batch_rows(config: RunConfig, known: Hardware | None = None) -> int:
    """The most rows of one forward and backward pass that fit, from 1 to all rows of a mini-batch. Raises InputError."""
    known = known or hardware.facts()
    return Plan(config, known.backend).rows_within(hardware.memory_limit_bytes(known))


def _assumptions(plan: Plan) -> tuple[str, ...]:
    """What the numbers take for granted, in plain words."""
    sampling, adapter = plan.config.sampling, plan.config.adapter
    said = [
        f"prompts of {sampling.max_prompt_tokens} and completions of {sampling.max_completion_tokens} tokens, their maximum",
        "memory of Python and its libraries, and freed buffers that mlx keeps for reuse, are not counted",
    ]
    if plan.casts:
        said.append("16-bit weights are held in float32, which a CPU computes fastest")
    if plan.backend == "cuda":
        said.append("attention scores are stored for the backward pass (a fused kernel would not)")
    if adapter.keys is not None:
        said.append("activations as if every linear module had an adapter; with adapter.keys there are fewer")
    if plan.decoded and plan.decoded[1][0] > sampling.prompts_per_step * sampling.group_size:
        said.append(f"evaluation decodes {plan.config.run.eval_rows} rows at once, more than a step's rollout")
    if plan.shape is None:
        said.append("config.json does not name this family's sizes: activations, logits and cache are NOT counted")
    elif plan.shape.family not in MEASURED_FAMILIES or plan.shape.is_mixture:
        said.append(f"activations as in a llama-type transformer, which {plan.shape.family} is not in every part")
    return tuple(said)
