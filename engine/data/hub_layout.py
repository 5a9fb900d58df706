"""Which files of a data set's repository are which split of which configuration, told from its card or from the files' names.

The card (README.md) may list them: `configs` in its front matter. Without that the names tell, in the layouts that are in use:
`train.jsonl`, `data/train-00000-of-00004.parquet`, `CONFIG/train-*.parquet`, `train/0000.parquet`; a file that is alone is train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from engine.data.files import PARTS, READABLE, SUPPORTED, ending, one_name, stem, whole_ending
from engine.data_names import HubId
from engine.errors import InputError

Splits = dict[str, tuple[str, ...]]  # a split's name: its files
CARD = "README.md"
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")  # no rows in these
_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
_SHOWN = 12


def choose(paths: Iterable[str], card: str, wanted: HubId, kind: str) -> tuple[HubId, str] | None:
    """The data set named in full, and its files of a split as one path in the repository (with a * for several); None where it
    has no such split.

    `kind`, train, valid or test, is the split where `wanted` names none. InputError where several configurations, splits or files
    could be meant, for names that are not there, for a missing train split, and for a repository that needs a program to be read.
    """
    every = tuple(paths)
    if wanted.split in every:
        return wanted, wanted.split
    configs, default = _configs(every, card)
    if not configs:
        raise _no_data(every, wanted.repo)
    config = _config(configs, default, wanted)
    split = _split(configs[config], wanted, kind)
    if split is None:
        return None
    found = replace(wanted, config=config, split=split)
    return found, _one_path(configs[config][split], every, found)


def fits(path: str, pattern: str) -> bool:
    """Whether a path in the repository is one of those that `choose` gave as one."""
    return _glob(pattern).fullmatch(path) is not None


def _configs(paths: Sequence[str], card: str) -> tuple[dict[str, Splits], str | None]:
    """The splits of each configuration, and the one that the card calls the default."""
    data = [path for path in paths if _has_rows(path)]
    found: dict[str, Splits] = {}
    default = None
    for each in _card_configs(card):
        splits, name = _card_splits(each, data), str(each.get("config_name", "default"))
        if splits:
            found[name] = splits
            default = name if each.get("default") is True else default
    return found or _by_names(data), default


def _has_rows(path: str) -> bool:
    *folders, name = path.split("/")
    hidden = any(part[0] in "._" for part in (*folders, name) if part)
    return not hidden and ending(name) in READABLE and name not in _ABOUT


def _card_configs(card: str) -> list[Mapping[str, Any]]:
    match = _FRONT.match(card)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:  # a card that only its author can mend: the files' names are there still
        return []
    configs = front.get("configs") if isinstance(front, dict) else None
    return [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []


def _card_splits(config: Mapping[str, Any], paths: Sequence[str]) -> Splits:
    given = config.get("data_files")
    inside = f"{config['data_dir'].strip('/')}/" if isinstance(config.get("data_dir"), str) else ""
    if given is None:
        below = [path for path in paths if inside and path.startswith(inside)]
        return {split: files for splits in _by_names(below).values() for split, files in splits.items()}
    entries: list[tuple[str, Any]] = []
    if isinstance(given, dict):
        entries = [(str(split), path) for split, path in given.items()]
    elif isinstance(given, list) and all(isinstance(each, dict) for each in given):
        entries = [(str(each.get("split", "train")), each.get("path")) for each in given]
    else:
        entries = [("train", given)]
    found: Splits = {}
    for split, patterns in entries:
        globs = [_glob(inside + str(each)) for each in (patterns if isinstance(patterns, list) else [patterns])]
        files = tuple(path for path in paths if any(glob.fullmatch(path) for glob in globs))
        if files:
            found[split] = (*found.get(split, ()), *files)
    return found


def _glob(pattern: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(part, re.escape(part)) for part in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", pattern)))


def _by_names(paths: Sequence[str]) -> dict[str, Splits]:
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        *folders, name = path.split("/")
        split = stem(name)
        kept = [folder for folder in folders if folder != "data"]
        if not _kind(split) and kept and _kind(kept[-1]):
            split = kept.pop()
        found.setdefault("/".join(kept), {}).setdefault(split, []).append(path)
    return {config: {split: tuple(files) for split, files in splits.items()} for config, splits in found.items()}


def _kind(name: str) -> str:
    """train, valid or test, where the name is one of theirs; else empty."""
    return next((kind for kind, names in PARTS.items() if name.lower() in names), "")


def _words(name: str) -> set[str]:
    """The kinds that are named by a word in the name: train in gsm8k-train."""
    return {kind for word in re.split(r"[^A-Za-z]+", name) if (kind := _kind(word))}


def _config(configs: Mapping[str, Splits], default: str | None, wanted: HubId) -> str:
    """The configuration that is meant; files at the top belong to none, which is the empty one. Raises InputError."""
    named = [name for name in configs if name]
    shown = f"{', '.join(named[:_SHOWN])}{', ...' if len(named) > _SHOWN else ''}"
    if wanted.config:
        if wanted.config in configs:
            return wanted.config
        if wanted.config == "default" and "" in configs:
            return ""
        remedy = f"it has: {shown}" if named else f"write {wanted.repo} alone"
        raise InputError(f"has no configuration {wanted.config!r}", where=wanted.repo, remedy=remedy)
    if default is not None or len(configs) == 1:
        return default or next(iter(configs))
    for usual in ("default", ""):
        splits = configs.get(usual, {})
        if wanted.split in splits or any(_kind(split) == "train" for split in splits):
            return usual
    remedy = f"name one, as in {wanted.repo}:{named[0]}"
    raise InputError(f"has several configurations: {shown}", where=wanted.repo, remedy=remedy)


def _split(splits: Splits, wanted: HubId, kind: str) -> str | None:
    """The name of the split that is meant; None where there is none and none is needed. Raises InputError."""
    if wanted.split in splits:
        return wanted.split
    asked = wanted.split or kind
    of_kind = _kind(asked)
    found = [name for name in splits if of_kind and _kind(name) == of_kind]
    if not found and not wanted.split:
        found = [name for name in splits if kind in _words(name)]
        if not found and kind == "train" and len(splits) == 1 and not _words(next(iter(splits))):
            found = list(splits)
    if len(found) == 1:
        return found[0]
    place = f"{wanted.repo}:{wanted.config}" if wanted.config else wanted.repo
    if found:
        what = f"several of its splits could be {asked}: {', '.join(found[:_SHOWN])}"
        raise InputError(what, where=place, remedy=f"name one, as in {place}#{found[0]}")
    if not wanted.split and kind != "train":
        return None
    remedy = f"name one that it has, as in {place}#{next(iter(splits))}"
    raise InputError(f"has no split {asked!r}, but {', '.join(list(splits)[:_SHOWN])}", where=place, remedy=remedy)


def _one_path(files: Sequence[str], every: Sequence[str], found: HubId) -> str:
    """The files as one path: the only one, the pattern of shards, or a pattern that fits these files and no other."""
    folders = {file.rpartition("/")[0] for file in files}
    names = [file.rpartition("/")[2] for file in files]
    inside = f"{next(iter(folders))}/" if folders != {""} else ""
    if len(folders) == 1:
        one = one_name(names, found.repo)
        if one is not None:
            return inside + one
        kinds = {whole_ending(name) for name in names}
        if len(kinds) == 1 and len({stem(name) for name in names}) == len(names):
            for begin in (_common(names), ""):
                pattern = f"{inside}{begin}*{min(kinds)}"
                if {path for path in every if _glob(pattern).fullmatch(path)} == set(files):
                    return pattern
    what = f"several files could be the split {found.split!r}: {', '.join(files[:_SHOWN])}"
    raise InputError(what, where=found.repo, remedy=f"name one, as in {found.repo}#{files[0]}")


def _common(names: Sequence[str]) -> str:
    """What all names begin with."""
    low, high = min(names), max(names)
    return low[: next((place for place, letter in enumerate(low) if not high.startswith(letter, place)), len(low))]


def _no_data(paths: Sequence[str], repo: str) -> InputError:
    script = next((path for path in paths if path.endswith(".py")), None)
    if script is not None:
        what = f"is made by a loading script, {script}, and programs of others are not run"
        remedy = f"try {repo}@refs/convert/parquet, which the hub makes of many such data sets, or save the rows as a file"
        return InputError(what, where=repo, remedy=remedy)
    return InputError("has no file with rows", where=repo, remedy=f"{SUPPORTED}; save the rows as one of them")
