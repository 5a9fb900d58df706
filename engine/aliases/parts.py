"""What several foreign keys say together: the adapter, the optimizer, the rewards."""

from __future__ import annotations

import difflib
import math
from typing import Any

from engine.aliases import values
from engine.aliases.draft import Draft
from engine.aliases.rows import MLL

# mlx-lm-lora's own rewards are built in here under their names; it uses all five where a file names none.
R1 = (
    "r1_accuracy_reward_func",
    "r1_int_reward_func",
    "r1_strict_format_reward_func",
    "r1_soft_format_reward_func",
    "r1_count_xml",
)
# Those of TRL and open-r1 are not, and what comes near.
_THEIRS = {
    **dict.fromkeys(("accuracy_reward", "reasoning_accuracy_reward", "accuracy"), "math or number"),
    "think_format_reward": "format or think_answer_soft",
    "get_soft_overlong_punishment": "objective: {soft_overlong: SHARE}",
}
_LORA_KEYS = ("rank", "scale", "dropout", "keys")


def adapter(draft: Draft) -> None:
    """mlx's lora_parameters, and peft's r, alpha (scale = alpha / r, rsLoRA: alpha / root of r) and target modules."""
    if draft.has("use_peft", "use_dora"):
        _adapter_type(draft)
    peft = [key for key in draft.given if key.removeprefix("lora_") in ("r", "alpha", "dropout", "target_modules", "use_rslora")]
    unused = "adapter.type: full trains every weight"
    if draft.has("num_layers"):
        _layers(draft, unused)
    if draft.has("lora_parameters"):
        if draft.get("adapter.type") == "full":
            draft.ignore("lora_parameters", unused)
        else:
            _lora_parameters(draft)
    _starting_point(draft)
    if draft.get("adapter.type") == "full":
        for key in peft:
            draft.ignore(key, unused)
    elif peft:
        _peft(draft)


def _starting_point(draft: Draft) -> None:
    """The adapter that training goes on from, and the bits that the model is quantised to while it loads."""
    if draft.given.get("resume_adapter_file"):
        draft.put("adapter.start_from", draft.given["resume_adapter_file"], "resume_adapter_file")
    for bits in (4, 6, 8):
        key = f"load_in_{bits}bits"
        if draft.has(key) and draft.read(key, values.switch):
            draft.put("quantize.bits", bits, key)
            draft.notes.append(f"{key}: the reference is quantised as well (mlx-lm-lora's is not)")


def _layers(draft: Draft, unused: str) -> None:
    """Of full training mlx_lm.lora takes the last layers alone, mlx-lm-lora all whatever the number."""
    key = "num_layers"
    if draft.get("adapter.type") != "full":
        draft.put("adapter.layers", draft.given[key], key)
    elif draft.has("fine_tune_type") and draft.given[key] != -1:
        raise draft.error(
            f"full training of {draft.given[key]} layers: here it is of all", key, "set num_layers: -1, or use lora"
        )
    else:
        draft.ignore(key, unused)


def _adapter_type(draft: Draft) -> None:
    dora = draft.has("use_dora") and draft.read("use_dora", values.switch)
    if draft.has("use_peft") and not draft.read("use_peft", values.switch):
        draft.put("adapter.type", "full", "use_peft")
        if dora:
            draft.ignore("use_dora", "adapter.type: full trains every weight")
    elif dora:
        draft.put("adapter.type", "dora", "use_dora")
    else:
        draft.put("adapter.type", "lora", "use_peft" if draft.has("use_peft") else "use_dora")


def _lora_parameters(draft: Draft) -> None:
    key = "lora_parameters"
    given = draft.given[key]
    if not isinstance(given, dict):
        raise draft.error("expected rank, scale, dropout and keys", key, "write {rank: 16, scale: 20.0}")
    for name, value in given.items():
        if name == "alpha":
            raise draft.error("mlx's adapters have a scale, alpha / rank elsewhere", f"{key}.alpha", "write scale: ALPHA / RANK")
        if name not in _LORA_KEYS:
            near = difflib.get_close_matches(str(name), _LORA_KEYS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(_LORA_KEYS)}"
            raise draft.error(f"unknown key {name!r}", f"{key}.{name}", remedy)
        if value is not None:
            draft.put(f"adapter.{name}", value, key)


def _peft(draft: Draft) -> None:
    rank = draft.only("lora_r", "r")
    if rank is not None:
        draft.put("adapter.rank", draft.read(rank, values.whole), rank)
    if draft.has("lora_alpha"):
        if rank is None:
            raise draft.error("the scale is alpha / r, and the file gives no r", "lora_alpha", "add lora_r (TRL's default is 16)")
        rows = draft.read(rank, values.whole)
        rooted = draft.has("use_rslora") and draft.read("use_rslora", values.switch)
        keys = ("lora_alpha", rank, *(["use_rslora"] if rooted else []))
        scale = draft.read("lora_alpha", values.number) / (math.sqrt(rows) if rooted else rows)
        draft.put("adapter.scale", scale, *keys)
    elif draft.has("use_rslora"):
        draft.ignore("use_rslora", "it changes lora_alpha's scale, and the file gives no lora_alpha")
    if draft.has("lora_dropout"):
        draft.put("adapter.dropout", draft.given["lora_dropout"], "lora_dropout")
    modules = draft.only("lora_target_modules", "target_modules")
    if modules is not None:
        draft.put("adapter.keys", draft.read(modules, values.modules), modules)


def optimizer(draft: Draft) -> None:
    """mlx's optimizer with its own entry of optimizer_config, and the two betas of transformers."""
    name = draft.read("optimizer", values.mlx_optimizer) if draft.has("optimizer") else None
    if name is not None:
        draft.put("optim.name", name, "optimizer")
    if draft.has("optim"):
        draft.put("optim.name", draft.read("optim", values.trl_optimizer), "optim")
        if "8bit" in draft.given["optim"]:
            draft.notes.append(f"optim: the state of {draft.given['optim']} is float32 here, not 8 bits")
    if draft.has("optimizer_config"):
        _optimizer_config(draft, name)
    betas = [key for key in ("adam_beta1", "adam_beta2") if draft.has(key)]
    if betas:
        pair = [draft.given.get(key, default) for key, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999))]
        draft.put("optim.betas", pair, *betas)


def _optimizer_config(draft: Draft, name: str | None) -> None:
    key = "optimizer_config"
    given = draft.given[key]
    if not isinstance(given, dict) or not all(isinstance(options, dict | None) for options in given.values()):
        raise draft.error("expected the options of each optimizer", key, "write {adamw: {weight_decay: 0.01}}")
    others = [other for other, options in given.items() if options and other != name]
    if name is None and others:
        raise draft.error("the file names no optimizer", key, f"add optimizer: {others[0]}")
    for other in others:
        draft.ignore(f"{key}.{other}", f"the optimizer is {name}")
    for option, value in (given.get(name) or {}).items():
        place = f"{key}.{name}.{option}"
        if option in ("betas", "eps", "weight_decay"):
            draft.put(f"optim.{option}", value, key)
        elif option == "bias_correction" and name in ("adam", "adamw"):
            if value is not True:
                raise draft.error(
                    "Adam's first steps are always corrected for bias here", place, "set it to true, or leave it out"
                )
        elif value not in (0, None, False) or option == "nesterov":
            raise draft.error(f"{name} has no {option} here", place, "leave it out")


def rewards(draft: Draft) -> None:
    """One list of names, weights and, of functions of one's own, the file."""
    key = draft.only("reward_functions", "reward_funcs")
    if key is None:
        for name in ("reward_weights", "reward_functions_file"):
            if draft.has(name):
                what = f"{name} is there, but no reward_functions"
                raise draft.error(what, name, "add reward_functions: the names, in the order of the weights")
        if draft.tools == (MLL,) and draft.get("method") != "sft" and not draft.get("rewards"):
            what = "the file names no rewards; mlx-lm-lora would use all of its own"
            raise draft.error(what, "reward_functions", f'for these write reward_functions: "{", ".join(R1)}"')
        return
    names = draft.read(key, values.names)
    file = draft.given.get("reward_functions_file")
    found: list[dict[str, Any]] = []
    for name in names:
        if file is None and name in _THEIRS:
            what = f"{name} is a function of {draft.label(key).partition(':')[0]}, not built in here"
            raise draft.error(what, key, f"near it: {_THEIRS[name]}; or copy it to a Python file of yours")
        module, _, function = name.rpartition(".")
        if file is None and module:
            found.append({"name": function, "file": f"{module.replace('.', '/')}.py"})
            draft.notes.append(f"{name} is read from {found[-1]['file']}, beside the config")
        elif file is None or name in R1:
            found.append({"name": name})
            draft.notes.append(f"{name} is the built-in reward of that name")
        else:
            found.append({"name": name, "file": file})
    keys = [key]
    if draft.has("reward_weights"):
        weights = draft.read("reward_weights", values.weights)
        if len(weights) != len(names):
            raise draft.error(f"{len(weights)} weights for {len(names)} functions", "reward_weights", f"give {len(names)}")
        found = [{**reward, "weight": weight} for reward, weight in zip(found, weights, strict=True)]
        keys.append("reward_weights")
    draft.put("rewards", found, *keys, *(["reward_functions_file"] if file is not None else []))
