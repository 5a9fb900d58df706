"""What a foreign file leaves out: the defaults of its tool that are not ours. None is applied; a note says which one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import methods
from engine.aliases.rows import LORA, MLL, MLX, TRL, Kind, Tool
from engine.sections import RunConfig


@dataclass(frozen=True, slots=True)
class Default:
    """Our key, and what each tool does where it is not given: a value that compares with ours, or words."""

    to: str
    theirs: Mapping[Tool, Any]
    only: Kind | None = None


DEFAULTS: tuple[Default, ...] = (
    Default("data.system", {MLL: "a message that asks for <think> and <answer> before every prompt without one"}, "rl"),
    Default("data.targets", {LORA: "all", MLL: "all"}, "sft"),
    Default("adapter.type", {TRL: "every weight, without use_peft"}),
    Default("adapter.rank", {LORA: 8, MLL: 8, TRL: 16}),
    Default("adapter.scale", {LORA: 20.0, MLL: 10.0, TRL: "lora_alpha / lora_r, 32 / 16"}),
    Default("adapter.layers", {LORA: 16, MLL: -1}),
    Default("sampling.group_size", {MLL: 4, TRL: 8}, "rl"),
    Default("sampling.prompts_per_step", {LORA: 4, MLL: 1, TRL: "8 completions (per_device_train_batch_size)"}, "rl"),
    Default("sampling.prompts_per_step", {LORA: 4, MLL: 1, TRL: 8}, "sft"),
    Default("sampling.max_prompt_tokens", {MLL: 2048, TRL: "no limit"}, "rl"),
    Default(
        "sampling.max_completion_tokens", {LORA: "2048 for the row", MLL: "2048 for the row", TRL: "1024 for the row"}, "sft"
    ),
    Default("sampling.temperature", {MLL: 0.8, TRL: 1.0}, "rl"),
    Default("objective.epsilon_low", {MLL: 1e-4, TRL: 0.2}, "rl"),
    Default("objective.epsilon_high", {MLL: 1e-4, TRL: 0.2}, "rl"),
    Default("objective.beta", {MLL: 0.1, TRL: 0.0}, "rl"),
    Default("objective.kl", {MLL: "k3", TRL: "k3_ratio"}, "rl"),
    Default("optim.name", {LORA: "adam", MLL: "adam", TRL: "adamw"}),
    Default("optim.learning_rate", {LORA: 1e-5, MLL: 1e-5, TRL: 1e-6}, "rl"),
    Default("optim.learning_rate", {LORA: 1e-5, MLL: 1e-5, TRL: 2e-5}, "sft"),
    Default("optim.schedule", {LORA: "constant", MLL: "constant", TRL: "linear"}),
    Default("optim.warmup", {LORA: 0.0, MLL: 0.0, TRL: 0.0}),
    Default("optim.weight_decay", {LORA: "0.01 for adamw", MLL: "0.01 for adamw", TRL: 0.0}),
    Default("optim.max_grad_norm", {LORA: "no clipping", MLL: "no clipping", TRL: 1.0}),
    Default("run.steps", {LORA: "1000 iters", MLL: "iters or epochs from the command line", TRL: "3 epochs"}),
    Default("run.seed", {LORA: 0, MLL: 0, TRL: 42}),
)

# What a tool does that no key of its files says.
ALWAYS: tuple[tuple[tuple[Tool, ...], Kind | None, str], ...] = (
    (MLX, None, "Adam's first steps are corrected for bias here, as its paper has it; mlx's optimizers leave that out"),
    (
        (MLL,),
        "rl",
        "mlx-lm-lora samples with top_p 0.95 and top_k 20 and scores at temperature 1; here both use one distribution",
    ),
    ((MLL,), "rl", "mlx-lm-lora 5.10.2 itself ignores group_size, epsilon and temperature in its YAML; here they count"),
)


def differing(tools: tuple[Tool, ...], config: RunConfig, origin: Mapping[str, str]) -> tuple[str, ...]:
    """A note for each of our defaults that applies and is not the tools' own, where the file leaves it out."""
    kind = methods.method(config.method).kind
    notes = [text for owners, only, text in ALWAYS if set(owners) & set(tools) and only in (None, kind)]
    for default in DEFAULTS:
        if default.only not in (None, kind) or origin.get(default.to) != "default":
            continue
        ours = _value(config, default.to)
        theirs = {tool: value for tool, value in default.theirs.items() if tool in tools and value != ours}
        if theirs and _matters(config, default.to):
            said = "; ".join(f"{tool}: {value}" for tool, value in theirs.items())
            notes.append(f"{default.to}: {'none' if ours is None else ours} applies here (by default; {said})")
    return tuple(notes)


def _value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(config.resolved_objective() if section == "objective" else getattr(config, section), name)


def _matters(config: RunConfig, key: str) -> bool:
    section, name = key.split(".")
    if section == "objective":
        row = config.resolved_objective()
        return (name != "kl" or row.beta > 0) and (name != "epsilon_low" or row.surrogate == "clip")
    return config.adapter.type != "full" or key not in ("adapter.rank", "adapter.scale")
