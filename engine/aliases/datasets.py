"""What the foreign keys say of the data: a path or a data set of the hub, its configuration and splits, the names of fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.aliases.draft import Draft
from engine.aliases.rows import Kind
from engine.aliases.table import FEATURES
from engine.data_names import HubId, RowRange, cut, hub_id

# mlx_lm.lora parts the data sets of its hf_dataset so, where the file says nothing.
_MLX_SPLITS = {"train_split": "train[:80%]", "valid_split": "train[-10%:]"}
_HF_KEYS = ("path", "config", "train_split", "valid_split", "test_split")


def data(draft: Draft, kind: Kind) -> None:
    """The folder, file or data set; fields by their names; row lengths."""
    key = draft.only("data", "dataset_name")
    if draft.has("hf_dataset"):
        if key is not None:
            raise draft.error(f"{key} and hf_dataset are one setting", "hf_dataset", "keep one of the two")
        _hf_dataset(draft)
    elif key is not None:
        draft.put("data.train", _named(draft, key), *_keys(draft, key))
    else:
        for name in ("dataset_config", "dataset_train_split"):
            if draft.has(name):
                raise draft.error("the file names no data set", name, "write data: {train: owner/name:config#split}")
    for feature, (ours, _) in FEATURES.items():
        if draft.has(feature) and draft.given[feature] != ours:
            draft.put(f"data.columns.{ours}", draft.given[feature], feature)
    length = draft.only("max_seq_length", "max_length")
    if length is not None:
        draft.put("sampling.max_prompt_tokens", draft.given[length], length)
        if kind == "sft":
            draft.put("sampling.max_completion_tokens", draft.given[length], length)
        limits = "prompts and for what follows them" if kind == "sft" else "prompts"
        draft.notes.append(f"{length} is the limit for {limits}; longer rows are left out and counted, not cut")


def _keys(draft: Draft, key: str) -> tuple[str, ...]:
    return (key, *(name for name in ("dataset_config", "dataset_train_split") if draft.has(name)))


def _named(draft: Draft, key: str) -> str:
    """TRL's three keys as one name; a path stands alone."""
    path = _text(draft, key, draft.given[key])
    others = _keys(draft, key)[1:]
    if not others:
        return path
    config, split = (draft.given.get(name) for name in ("dataset_config", "dataset_train_split"))
    if config in (None, "default") and split in (None, "train"):
        return path  # what a path and a data set have without being asked
    named = _of_hub(draft, path, others[0])
    if config is not None:
        named = replace(named, config=_text(draft, "dataset_config", config))
    return str(named if split is None else _with_split(draft, named, split, "dataset_train_split"))


def _hf_dataset(draft: Draft) -> None:
    """mlx_lm.lora's and mlx-lm-lora's description of one data set of the hub."""
    key, given = "hf_dataset", draft.given["hf_dataset"]
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, list):
        raise draft.error(f"{len(given)} data sets, and a run trains on one", key, "write their rows into one file")
    if not isinstance(given, dict):
        raise draft.error("expected path, config, train_split and valid_split", key, "write {path: owner/name}")
    features = {name: ours for name, (ours, tools) in FEATURES.items() if set(tools) & set(draft.rows[key].tools)}
    known = (*_HF_KEYS, *features)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            raise draft.error(f"unknown key {name!r}", f"{key}.{name}", remedy)
    path = _text(draft, f"{key}.path", given.get("path"))
    config, splits = _hf_config(draft, given.get("config")), {name: given.get(name) for name in _MLX_SPLITS}
    if config == HubId("") and set(splits.values()) == {None} and draft.exists(path):
        draft.put("data.train", path, key)
    else:
        named = replace(_of_hub(draft, path, f"{key}.path"), config=config.config, revision=config.revision)
        for name, to in (("train_split", "data.train"), ("valid_split", "data.valid")):
            split = splits[name]
            if split is not None:
                draft.put(to, str(_with_split(draft, named, split, f"{key}.{name}")), key)
            elif to == "data.train":
                draft.put(to, str(named), key)
    for name, theirs in _MLX_SPLITS.items():
        if splits[name] is None:
            ours = "the whole train split" if name == "train_split" else "the validation split, else a part of the train split"
            draft.notes.append(f"{key}.{name}: without it {ours} is taken here, and {theirs} there")
    if given.get("test_split") is not None:
        draft.ignore(
            f"{key}.test_split", "held-out rows are evaluated every run.eval_every steps, and there is no test after the training"
        )
    for name, ours in features.items():
        if given.get(name) not in (None, ours):
            draft.put(f"data.columns.{ours}", given[name], key)


def _hf_config(draft: Draft, given: Any) -> HubId:
    """Configuration and revision of the options for load_dataset, without a name."""
    if isinstance(given, str):
        given = {"name": given}
    if given is None:
        return HubId("")
    if not isinstance(given, Mapping):
        raise draft.error("expected the options of load_dataset", "hf_dataset.config", "write {name: CONFIG}")
    other = next((name for name, value in given.items() if name not in ("name", "revision") and value is not None), None)
    if other is not None:
        remedy = "keep name and revision; of other files name one, as in data: {train: owner/name#FILE}"
        raise draft.error(f"load_dataset's option {other!r} has no counterpart here", f"hf_dataset.config.{other}", remedy)
    texts = [_text(draft, f"hf_dataset.config.{name}", given[name]) if given.get(name) else "" for name in ("name", "revision")]
    return HubId("", config=texts[0], revision=texts[1])


def _of_hub(draft: Draft, path: str, key: str) -> HubId:
    named = None if draft.exists(path) else hub_id(path)
    if named is None:
        what = f"{path!r} is a path, which has neither configurations nor splits"
        raise draft.error(what, key, "name the file itself in data: {train: FILE}")
    return named


def _with_split(draft: Draft, named: HubId, split: Any, key: str) -> HubId:
    """The data set with what `split` says, such as train or train[:80%]."""
    text = _text(draft, key, split)
    name, rows = cut(text)
    found = hub_id(f"{named.repo}#{name}")
    if found is None or found.split != name:
        remedy = "write one split's name, with rows such as [:1000] or [10%:] behind it"
        raise draft.error(f"{text!r} is not one split", key, remedy)
    return replace(named, split=name, rows=rows if rows != RowRange() else None)


def _text(draft: Draft, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise draft.error(f"expected a name or a path, got {value!r}", key, "name a file, a folder or owner/name")
    return value
