"""Batches, steps and rates: the tools count completions, micro-batches and optimizer updates where we count prompts and rollouts.

mlx_lm.lora, mlx-lm-lora   an iteration is batch_size prompts (rows) of one backward pass; an update is
                           gradient_accumulation_steps of them
TRL                        a micro-batch is per_device_train_batch_size completions (supervised: rows); an update is
                           gradient_accumulation_steps of them, a rollout steps_per_generation of them, used num_iterations times
here                       a step is one rollout of prompts_per_step x group_size and minibatches x updates_per_rollout updates
"""

from __future__ import annotations

import math

from engine.aliases import values
from engine.aliases.draft import Draft
from engine.aliases.objective import effective
from engine.aliases.rows import Kind
from engine.sections import RunSection, SamplingConfig

_NEAR_ZERO = 0.1  # of the peak rate: what a schedule may start or end at and still be called one that starts or ends at 0
_ACCUMULATE = ("gradient_accumulation_steps", "grad_accumulation_steps")


def rollout(draft: Draft, kind: Kind) -> None:
    """Prompts of a step, and TRL's mini-batches."""
    batch = draft.only("per_device_train_batch_size", "batch_size")
    key = draft.only(*_ACCUMULATE)
    accumulate = 1 if key is None else draft.read(key, values.whole)
    if batch is None:
        for name in (key, "steps_per_generation", "generation_batch_size"):
            if name is not None and draft.has(name) and draft.given[name] != 1:
                what = f"{name} counts in batches, and the file does not say how large one is"
                raise draft.error(
                    what, name, "add batch_size (mlx-lm: prompts) or per_device_train_batch_size (TRL: completions)"
                )
        return
    size = draft.read(batch, values.whole)
    keys = (batch, *([] if key is None else [key]))
    if batch == "batch_size" or kind == "sft":
        draft.put("sampling.prompts_per_step", size * accumulate, *keys)
        return
    per_rollout = _per_generation(draft, size, accumulate)
    group = draft.get("sampling.group_size") or SamplingConfig.model_fields["group_size"].default
    completions = size * per_rollout
    if not isinstance(group, int) or completions % group:
        what = f"{size} x {per_rollout} = {completions} completions of a rollout are not whole groups of {group}"
        raise draft.error(what, batch, "make it a multiple of num_generations")
    if per_rollout % accumulate:
        what = f"a rollout of {per_rollout} micro-batches is not whole updates of {accumulate}"
        raise draft.error(what, draft.only("steps_per_generation", "generation_batch_size") or batch, "make it a multiple")
    draft.put("sampling.prompts_per_step", completions // group, *keys)
    draft.notes.append(
        f"sampling.prompts_per_step: {completions // group} prompts of {group} completions; {batch} counts completions"
    )
    name = draft.only("steps_per_generation", "generation_batch_size")
    if name is not None:
        draft.put("objective.minibatches", per_rollout // accumulate, name)
        if per_rollout > accumulate:
            draft.notes.append("objective.minibatches are of whole groups; TRL's mix the completions of all")


def _per_generation(draft: Draft, size: int, accumulate: int) -> int:
    """Micro-batches of one rollout."""
    name = draft.only("steps_per_generation", "generation_batch_size")
    if name is None:
        return accumulate
    value = draft.read(name, values.whole)
    if name == "steps_per_generation":
        return value
    if value % size:
        what = f"{value} completions of a rollout are not whole batches of {size}"
        raise draft.error(what, name, "make it a multiple of per_device_train_batch_size")
    return value // size


def counts(draft: Draft, kind: Kind) -> None:
    """Steps of the run, of evaluations, checkpoints and the reference, in rollouts."""
    updates = _updates(draft, kind)
    accumulate = draft.only(*_ACCUMULATE)
    passes = draft.read(accumulate, values.whole) if accumulate is not None and draft.has("batch_size") else 1
    if draft.has("iters"):
        _steps(draft, "iters", passes, f"updates of {passes} iterations")
    if draft.has("max_steps"):
        if draft.given["max_steps"] in (-1, 0):
            draft.ignore("max_steps", f"TRL takes {draft.given['max_steps']} for no limit")
        else:
            _steps(draft, "max_steps", updates, f"steps of {updates} updates")
    _epochs(draft)
    for key, to, unit in (
        ("steps_per_eval", "run.eval_every", passes),
        ("save_every", "run.checkpoint_every", passes),
        ("eval_steps", "run.eval_every", updates),
        ("save_steps", "run.checkpoint_every", updates),
    ):
        if draft.has(key):
            _every(draft, key, to, unit)
    if draft.has("val_batches"):
        _eval_rows(draft)
    if kind == "rl":
        _reference(draft, updates)


def _updates(draft: Draft, kind: Kind) -> int:
    """Optimizer updates of a step of ours."""
    parts = [effective(draft, "minibatches"), effective(draft, "updates_per_rollout")] if kind == "rl" else []
    return math.prod(part for part in parts if type(part) is int and part > 0)


def _steps(draft: Draft, key: str, unit: int, what: str) -> None:
    value = draft.read(key, values.whole)
    if value % unit:
        raise draft.error(f"{value} {key} are not whole {what}", key, f"make it a multiple of {unit}, or give run: {{steps: N}}")
    draft.put("run.steps", value // unit, key)
    if unit > 1:
        draft.notes.append(f"run.steps: {value // unit}, for {value} {key} in {what}")


def _epochs(draft: Draft) -> None:
    for key in ("epochs", "num_train_epochs"):
        if not draft.has(key):
            continue
        if draft.get("run.steps") is None:
            remedy = "give iters (TRL: max_steps) or run: {steps: N}; an epoch is rows / sampling.prompts_per_step steps"
            raise draft.error("how many steps an epoch has depends on the data", key, remedy)
        draft.ignore(key, "run.steps decides, as the tool's own count of steps does")


def _every(draft: Draft, key: str, to: str, unit: int) -> None:
    """Of evaluations and checkpoints: they train nothing, so that a step more or less is allowed, and said."""
    value = draft.read(key, values.number)
    if 0 < value < 1:
        steps = draft.get("run.steps")
        share = value * (steps if isinstance(steps, int) else RunSection.model_fields["steps"].default)
        draft.put(to, max(1, math.ceil(share)), key)
        return
    every = math.ceil(draft.read(key, values.whole) / unit)
    draft.put(to, every, key)
    if every * unit != value:
        draft.notes.append(f"{to}: {every}, the next whole step after {key} {value}")


def _eval_rows(draft: Draft) -> None:
    batches, size = draft.given["val_batches"], draft.given.get("batch_size")
    if type(batches) is int and batches > 0 and type(size) is int:
        draft.put("run.eval_rows", batches * size, "val_batches")
    else:
        draft.ignore("val_batches", "run.eval_rows says how many held-out rows are used")


def _reference(draft: Draft, updates: int) -> None:
    """TR-DPO's moving reference, arXiv 2404.09656."""
    names = ("ref_model_sync_steps", "ref_model_mixup_alpha")
    if not draft.has("sync_ref_model") or not draft.read("sync_ref_model", values.switch):
        for key in names:
            if draft.has(key):
                draft.ignore(key, "without sync_ref_model the reference never moves")
        return
    every = draft.read(names[0], values.whole) if draft.has(names[0]) else 512
    if every % updates:
        what = f"the reference moves every {every} updates, which are not whole steps of {updates}"
        raise draft.error(what, names[0] if draft.has(names[0]) else "sync_ref_model", f"make it a multiple of {updates}")
    mix = draft.read(names[1], values.number) if draft.has(names[1]) else 0.6
    draft.put("objective.ref_sync_every", every // updates, "sync_ref_model", *[key for key in names[:1] if draft.has(key)])
    draft.put("objective.ref_sync_mix", mix, "sync_ref_model", *[key for key in names[1:] if draft.has(key)])
    if not all(draft.has(key) for key in names):
        draft.notes.append(
            f"sync_ref_model: the reference moves every {every} updates by {mix}, as in TRL (512 and 0.6 by default)"
        )


def rate(draft: Draft, kind: Kind) -> None:
    """Learning rate, schedule and warm-up."""
    updates = _updates(draft, kind)
    if draft.has("lr_schedule"):
        _lr_schedule(draft, updates)
    elif draft.has("learning_rate"):
        draft.put("optim.learning_rate", draft.given["learning_rate"], "learning_rate")
    name = None
    if draft.has("lr_scheduler_type"):
        name = draft.given["lr_scheduler_type"]
        draft.put("optim.schedule", draft.read("lr_scheduler_type", values.scheduler), "lr_scheduler_type")
    key = draft.only("warmup_ratio", "warmup_steps")
    if key is None:
        if name == "constant":
            draft.pin("optim.warmup", 0.0, "lr_scheduler_type")
        return
    value = draft.read(key, values.number)
    if name == "constant" and value:
        raise draft.error("TRL's constant schedule has no warm-up", key, "use constant_with_warmup, or leave the warm-up out")
    if key == "warmup_ratio" or value < 1:
        draft.put("optim.warmup", float(value), key)
    else:
        draft.put("optim.warmup", _share(draft, key, draft.read(key, values.whole), updates), key)


def _total(draft: Draft, key: str, updates: int) -> int:
    steps = draft.get("run.steps")
    if type(steps) is not int:
        raise draft.error("a schedule in steps needs the steps of the run", key, "give iters (TRL: max_steps) or run: {steps: N}")
    return steps * updates


def _share(draft: Draft, key: str, warmup: int, updates: int) -> float:
    """The share of all updates that is `warmup` updates once the trainer has rounded it up."""
    total = _total(draft, key, updates)
    if warmup >= total:
        raise draft.error(f"a warm-up of {warmup} updates leaves none of {total}", key, "shorten it")
    share = warmup / total
    return share if math.ceil(share * total) == warmup else math.nextafter(share, 0.0)


def _lr_schedule(draft: Draft, updates: int) -> None:
    """mlx's {name, arguments, warmup, warmup_init}: arguments of cosine_decay are (rate, updates, end), of linear_schedule
    (rate, end, updates)."""
    key = "lr_schedule"
    given = draft.given[key]
    shape = "write {name: cosine_decay, warmup: 10, arguments: [1e-5, 1000, 0.0]}"
    if not isinstance(given, dict) or not isinstance(given.get("arguments"), list) or not given["arguments"]:
        raise draft.error("expected a name and a list of arguments", key, shape)
    unknown = sorted(set(map(str, given)) - {"name", "arguments", "warmup", "warmup_init"})
    if unknown:
        raise draft.error(f"unknown entry {unknown[0]!r}", key, shape)
    name, arguments = given.get("name"), [draft.checked(key, values.number, value) for value in given["arguments"]]
    if name not in ("cosine_decay", "linear_schedule") or not 2 <= len(arguments) <= 3:
        what = f"there is no schedule {name!r} with {len(arguments)} arguments here"
        raise draft.error(what, key, "use cosine_decay or linear_schedule, or optim: {schedule: cosine, linear or constant}")
    if name == "linear_schedule" and len(arguments) < 3:
        raise draft.error("linear_schedule has three arguments: rate, end, updates", key, shape)
    peak, end, length = (*arguments, 0.0)[:3] if name == "linear_schedule" else (arguments[0], (*arguments, 0.0)[2], arguments[1])
    warmup = draft.checked(key, lambda value: values.whole(value, 0), given.get("warmup", 0))
    start = draft.checked(key, values.number, given.get("warmup_init", 0.0))
    for said, value in (("starts", start), ("ends", end)):
        if value > _NEAR_ZERO * peak:
            remedy = "use 0, or optim: {schedule: constant}"
            raise draft.error(f"the rate {said} at {value:g} of {peak:g}; here it {said} at 0", key, remedy)
        if value:
            draft.notes.append(f"lr_schedule: the rate {said} at 0 here, not at {value:g}")
    total = _total(draft, key, updates)
    if length not in (total, total - warmup):
        what = f"the rate falls for {length:g} updates, but the run has {total}, {warmup} of them warm-up"
        raise draft.error(what, key, "let it fall until the run ends, or use optim: {schedule: constant}")
    if length != total - warmup:
        draft.notes.append(f"lr_schedule: the rate reaches its end with the run, after {total - warmup} updates, not {length:g}")
    if draft.has("learning_rate") and draft.given["learning_rate"] != peak:
        what = f"learning_rate {draft.given['learning_rate']} and the rate {peak:g} of lr_schedule are one setting"
        raise draft.error(what, "learning_rate", "keep one of the two")
    draft.put("optim.learning_rate", peak, key, *(["learning_rate"] if draft.has("learning_rate") else []))
    draft.put("optim.schedule", "cosine" if name == "cosine_decay" else "linear", key)
    draft.put("optim.warmup", _share(draft, key, warmup, updates) if warmup else 0.0, key)
