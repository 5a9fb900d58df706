"""Which method a foreign file asks for, and the objective that its tool computes under that name.

A row of ours that bears the tool's name may do more than the tool (DAPO's refilled groups) or something else (TRL's dr_grpo keeps
dividing by the group's deviation): the overrides say exactly what the tool does. What the file leaves out and is a number, such
as beta, keeps the row's value; engine/aliases/defaults.py says where that is not the tool's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine import methods
from engine.aliases import values
from engine.aliases.draft import Draft
from engine.aliases.rows import MLL, TRL, Kind, Tool
from engine.aliases.table import ROWS

_PLAIN = {"minibatches": 1, "truncated": "keep", "soft_overlong": 0.0, "dynamic_sampling": 0}

# loss -> (method, overrides). The advantage is the group's in both tools: TRL's deviation has ddof 1, mlx-lm-lora's ddof 0.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"aggregate": "seq_mean"}),
    "dr_grpo": ("dr_grpo", {"aggregate": "constant"}),
    "dapo": ("dapo", {"aggregate": "token_mean"}),
    "cispo": ("cispo", {"aggregate": "token_mean"}),
    "luspo": ("gspo", {"aggregate": "seq_sum"}),
}
_LOSSES_OF: dict[Tool, tuple[str, ...]] = {MLL: ("grpo", "dr_grpo"), TRL: tuple(LOSSES)}
_ADVANTAGE: dict[Tool, str] = {MLL: "group_ddof0", TRL: "group"}
_BNPO = (
    "bnpo is two things: the paper's Beta Normalization (arXiv 2506.02864) changes the advantage, the tools' bnpo is a mean over "
    "the tokens of a micro-batch, so the gradient depends on how a batch is split"
)
_NLL = ("nll", "chunked_nll")
_METHODS = "`droid-tune methods` lists those there are"
_RL_SIGNS = frozenset(key for key, rows in ROWS.items() if all(row.only == "rl" for row in rows))
_SFT_SIGNS = frozenset(key for key, rows in ROWS.items() if all(row.only == "sft" for row in rows))


@dataclass(frozen=True, slots=True)
class Choice:
    """The kind of the method, and what the tool's loss implies besides: our dotted keys with their values."""

    kind: Kind
    implied: dict[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # that imply it


def choose(draft: Draft) -> Choice:
    """Set the method, from train_mode or the loss where the file has no `method` of ours."""
    own = draft.tree.get("method")
    if "method" in draft.tree:
        for key in ("train_mode", "grpo_loss_type", "loss_type"):
            if draft.has(key):
                raise draft.error(f"{key} and method are one setting, and the file has both", key, "keep one of the two")
        row = methods.METHODS.get(own) if isinstance(own, str) else None
        return Choice("rl" if row is None else row.kind)
    if draft.has("train_mode"):
        return _train_mode(draft)
    if draft.has("grpo_loss_type"):
        raise draft.error("grpo_loss_type is there, but no train_mode", "grpo_loss_type", "add train_mode: grpo")
    if draft.has("loss_type") or draft.tools == (TRL,):
        return _trl(draft)
    return _supervised(draft)


def _train_mode(draft: Draft) -> Choice:
    mode = draft.given["train_mode"]
    if mode == "sft":
        draft.put("method", "sft", "train_mode")
        return Choice("sft")
    if mode != "grpo":
        raise draft.error(f"there is no method for train_mode {mode!r} here", "train_mode", f"use sft or grpo; {_METHODS}")
    keys = ("train_mode", "grpo_loss_type") if draft.has("grpo_loss_type") else ("train_mode",)
    return _form(draft, MLL, draft.given.get("grpo_loss_type", "grpo"), *keys)


def _trl(draft: Draft) -> Choice:
    """TRL's files name no trainer; the loss, or a key that only one trainer has, tells which it is."""
    signs = [key for key in draft.given if key in _RL_SIGNS]
    supervised = [key for key in draft.given if key in _SFT_SIGNS]
    loss = draft.given.get("loss_type")
    if loss in _NLL or (supervised and not signs and loss is None):
        draft.put("method", "sft", "loss_type" if loss is not None else supervised[0])
        return Choice("sft")
    if loss is not None:
        return _form(draft, TRL, loss, "loss_type")
    if not signs:
        raise draft.error("TRL's keys do not say which trainer is meant", "method", "add method: grpo, sft or another of ours")
    draft.notes.append(
        "method: grpo applies here (a mean for each completion); TRL's own default is loss_type: dapo (a mean over all tokens)"
    )
    return _form(draft, TRL, "grpo", signs[0])


def _supervised(draft: Draft) -> Choice:
    """mlx_lm.lora has no other method, and without train_mode neither has mlx-lm-lora."""
    if TRL in draft.tools:
        raise draft.error("'method' is missing", "method", f"add it; {_METHODS}")
    signs = [key for key in draft.given if key in _RL_SIGNS]
    if signs:
        what = f"{signs[0]} is for grpo, but without train_mode mlx-lm-lora trains by sft"
        raise draft.error(what, signs[0], "add train_mode: grpo, or method: with one of ours")
    draft.put("method", "sft", next(iter(draft.rows)))
    draft.origin["method"] = f"{', '.join(draft.tools)}: no train_mode"
    draft.notes.append("method: sft, the only one of mlx_lm.lora and mlx-lm-lora's default")
    return Choice("sft")


def _form(draft: Draft, tool: Tool, loss: Any, *keys: str) -> Choice:
    """Set the method, and find what its row does otherwise than the tool's loss."""
    key = keys[-1]
    if loss == "bnpo":
        remedy = "use another loss; the mean over an update's tokens is method: grpo with objective.aggregate: token_mean"
        raise draft.error(_BNPO, key, remedy)
    if loss not in _LOSSES_OF[tool]:
        raise draft.error(f"there is no loss {loss!r} here", key, f"one of: {', '.join(_LOSSES_OF[tool])}")
    sampling = "importance_sampling_level"
    level = draft.read(sampling, values.ratio) if draft.has(sampling) else "token"
    name, overrides = LOSSES[loss]
    if level == "sequence":
        name = "gspo" if name == "grpo" else name
    draft.put("method", name, *keys)
    wanted = {"advantage": _ADVANTAGE[tool], "ratio": level, **_PLAIN, **overrides}
    row = methods.METHODS[name].objective
    implied = {f"objective.{option}": value for option, value in wanted.items() if getattr(row, option) != value}
    if draft.has(sampling):  # then it is `options` that sets the ratio
        implied.pop("objective.ratio", None)
    return Choice("rl", implied, keys)


def options(draft: Draft) -> None:
    """The clip, the ratio, the KL and the entropy bonus, whose meaning depends on the loss."""
    if draft.has("importance_sampling_level"):
        draft.put("objective.ratio", draft.read("importance_sampling_level", values.ratio), "importance_sampling_level")
    _clip(draft)
    if draft.has("use_bias_correction_kl"):
        _kl(draft)
    if draft.has("entropy_coef"):
        _entropy(draft)


def effective(draft: Draft, option: str) -> Any:
    """An objective's option as the config has it so far: its own value, else that of the method's row."""
    own = draft.get(f"objective.{option}")
    if own is not None:
        return own
    row = methods.METHODS.get(str(draft.get("method")))
    return None if row is None or row.objective is None else getattr(row.objective, option)


def _clip(draft: Draft) -> None:
    """Both tools take epsilon for epsilon_high where that is left out; TRL's cispo has a cap in its place."""
    high = draft.read("epsilon_high", values.number) if draft.has("epsilon_high") else None
    low = draft.read("epsilon", values.number) if draft.has("epsilon") else None
    if effective(draft, "surrogate") == "cispo":
        if high is None and low is not None:
            remedy = "give epsilon_high: the cap, such as 5.0"
            raise draft.error(f"TRL's cispo takes epsilon {low} for the cap of every weight: all shrink to it", "epsilon", remedy)
        if low is not None:
            draft.ignore("epsilon", "TRL's cispo has no lower bound")
        if high is not None and high <= 1:
            what = f"TRL's cispo takes epsilon_high for the cap of the weight itself: {high} would shrink every weight"
            raise draft.error(what, "epsilon_high", "give the cap, such as 5.0, or objective: {epsilon_high: CAP - 1}")
        if high is not None:
            draft.put("objective.epsilon_high", high - 1, "epsilon_high")
            draft.notes.append(
                f"epsilon_high {high} is TRL's cap of the weight: objective.epsilon_high, the cap - 1, is {high - 1:g}"
            )
        return
    if low is not None:
        draft.put("objective.epsilon_low", low, "epsilon")
        if high is None:
            draft.pin("objective.epsilon_high", low, "epsilon")
    if high is not None:
        draft.put("objective.epsilon_high", high, "epsilon_high")


def _kl(draft: Draft) -> None:
    """TRL's correction multiplies k3 by the ratio that its loss uses; here k3_ratio has the token's."""
    key = "use_bias_correction_kl"
    corrected = draft.read(key, values.switch)
    if not effective(draft, "beta"):
        draft.ignore(key, "at beta 0 there is no KL")
        return
    if corrected and effective(draft, "ratio") == "sequence":
        what = "TRL multiplies the KL by the sequence's ratio, kl: k3_ratio by the token's"
        raise draft.error(what, key, "set it to false, or objective: {kl: k3_ratio} without it")
    draft.put("objective.kl", "k3_ratio" if corrected else "k3", key)


def _entropy(draft: Draft) -> None:
    """TRL's bonus is the mean over the tokens that the policy term trains, whatever the loss; ours is weighted as the loss."""
    key = "entropy_coef"
    value = draft.read(key, values.number)
    same = effective(draft, "aggregate") == "token_mean" and effective(draft, "entropy_quantile") == 1
    if value and not same:
        what = "TRL's bonus is a mean over the trained tokens, ours weighs all as the loss does: one only for a token mean"
        remedy = "use loss_type: dapo or cispo without top_entropy_quantile, or objective: {entropy_bonus: ...}"
        raise draft.error(what, key, remedy)
    draft.put("objective.entropy_bonus", value, key)
