"""Runs to take home, made by hand: model, config, an adapter that does something; and a tokenizer that GGUF files can hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load, quantize_model, save_config, save_model

from engine import config as configs
from engine.runs import record
from engine.runs.record import RunRecord
from engine.takehome.export import ABOUT
from engine.worker import checkpoint, exporting, verifying
from engine.worker.model import load_policy
from engine.worker.selftest_checks import move
from tests.support.live import small_config

MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("1", "2"), ("Ġ", "the"))


def with_merges(folder: Path) -> Path:
    """Give a byte-level tokenizer merges in the place of its reserved tokens, and GPT-2's way to part texts."""
    tree = json.loads((folder / "tokenizer.json").read_text())
    kept = [entry for entry in tree["added_tokens"] if not entry["content"].startswith("<|reserved")]
    free = [entry["id"] for entry in tree["added_tokens"] if entry not in kept]
    tree["added_tokens"] = kept
    tree["model"]["vocab"] |= {entry["content"]: entry["id"] for entry in kept}  # no gap before the merged tokens' ids
    tree["model"]["merges"] = [list(pair) for pair in MERGES]
    tree["model"]["vocab"] |= {left + right: index for (left, right), index in zip(MERGES, free, strict=False)}
    tree["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    return folder


def quantised(source: Path, folder: Path, bits: int = 4, group_size: int = 32) -> Path:
    """The model in `source`, quantised as mlx_lm.convert does it."""
    model, _, config = load(str(source), return_config=True)
    model, config = quantize_model(model, config, group_size, bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def in_type(folder: Path, dtype: mx.Dtype) -> Path:
    """The model in `folder`, its weights in another type."""
    path = folder / "model.safetensors"
    weights = {name: value.astype(dtype) for name, value in mx.load(str(path)).items()}
    mx.eval(weights)
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    return folder


def hand_made(home: Path, model: Path | str, adapter: dict[str, Any], **overrides: Any) -> RunRecord:
    """A run folder as training leaves it: config, journal-less, its adapter moved off zero."""
    settings = {"model": str(model), "adapter": {"rank": 4, **adapter}, "run__name": "made", **overrides}
    made = record.create(small_config("grpo", **settings), home)
    config = configs.load(made.config_file).config
    policy = load_policy(configs.model_folder(config.model), config.adapter, 0, config.chat, config.quantize)
    move(policy)
    checkpoint.write_adapter(made.adapters_dir, policy)
    return made


def exported(made: RunRecord, out: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What both workers say of each job, asked in this process; jobs are written into out/0, out/1, ..."""
    whole = []
    for number, job in enumerate(jobs):
        folder = out / str(number)
        folder.mkdir(parents=True)
        plain = {"folder": str(folder), "name": "made", "bits": None, "group_size": 32, "dequantize": False}
        whole.append(plain | job)
    said: list[dict[str, Any]] = []
    request = {"run": str(made.folder), "adapter": str(made.adapters_dir), "probe": str(out / "probe.safetensors")}
    exporting.export({**request, "step": None, "descends": False, "jobs": whole}, said.append)
    written = [line for line in said if line["event"] == "written"]
    about = {key: said[-1][key] for key in ABOUT}
    read = [{**job, "file": line.get("file"), "cache": str(out / "cache")} for job, line in zip(whole, written, strict=True)]
    found: list[dict[str, Any]] = []
    verifying.verify({**request, **about, "jobs": read}, found.append)
    compared = [line for line in found if line["event"] == "compared"]
    return [{**first, **second} for first, second in zip(written, compared, strict=True)]
