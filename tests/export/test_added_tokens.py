"""Runs that added tokens, taken home: folders and files whose tokenizer, embedding and head have them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load

from engine import config as configs
from engine.errors import InputError
from engine.takehome.export import export
from engine.takehome.kinds import Job
from engine.worker import checkpoint
from engine.worker.generating import opened
from engine.worker.loading import base_folder, base_policy, put
from tests.support.families import write_family

from .support import exported, hand_made, quantised, with_merges

TOKENS = ["<plan>", "</plan>"]


@pytest.mark.parametrize(
    ("family", "form", "adapter"),
    [
        ("llama", "", {}),
        ("qwen2", "padded", {"type": "dora"}),
        ("phi3", "", {}),
        ("phi3", "", {"type": "full"}),
        ("llama", "quantised", {}),
        ("phi3", "while loading", {}),
    ],
)
def test_a_fused_folder_is_the_policy_with_its_tokens(family: str, form: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    """Logits of texts with and without them, as plain mlx_lm loads it; of a quantised base once it is unpacked."""
    folder = write_family(tmp_path / "base", family)
    if form == "padded":  # two rows that no token has
        tree = json.loads((folder / "tokenizer.json").read_text())
        tree["added_tokens"] = tree["added_tokens"][:-2]
        (folder / "tokenizer.json").write_text(json.dumps(tree))
    if form == "quantised":
        (tmp_path / "packed").mkdir()
        folder = quantised(folder, tmp_path / "packed")
    quantize = {"quantize": {"bits": 8, "group_size": 32}} if form == "while loading" else {}
    made = hand_made(tmp_path / "home", folder, adapter, chat__add_tokens=TOKENS, **quantize)
    is_packed = form in ("quantised", "while loading")
    jobs: list[dict[str, Any]] = [{"kind": "fused", "dequantize": is_packed}]
    if is_packed:
        jobs.append({"kind": "fused"})
    found = exported(made, tmp_path / "out", *jobs)
    assert found[0]["difference"]["largest"] < 1e-3
    assert not is_packed or found[1]["reload"]["largest"] < 1e-3
    policy = base_policy(*base_folder(made.folder))
    put(policy, made.adapters_dir)
    out = tmp_path / "out" / "0"
    model, tokenizer = load(str(out))[:2]
    ids = tokenizer.encode("a<plan>b</plan>c", add_special_tokens=False)
    first = 270 if form == "padded" else 272
    assert ids == [97, first, 98, first + 1, 99] and tokenizer.decode(ids) == "a<plan>b</plan>c"
    np.testing.assert_allclose(np.array(model(mx.array([ids]))), np.array(policy.model(mx.array([ids]))), atol=1e-3)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == first + 2 == model(mx.array([ids])).shape[-1]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_chat_has_both_sides(kind: str, tmp_path: Path) -> None:
    """The base with the rows that training began with, and the tuned model."""
    made = hand_made(tmp_path, write_family(tmp_path / "base", "phi3"), {"type": kind}, chat__add_tokens=TOKENS)
    tokens = mx.array([[97, 272, 98]])
    wanted = {"base": base_policy(*base_folder(made.folder)), "tuned": base_policy(*base_folder(made.folder))}
    put(wanted["tuned"], made.adapters_dir)
    sides = opened({"run": made.folder, "adapter": made.adapters_dir}, lambda line: None)
    for side in ("base", "tuned", "base"):
        with sides.of(side):
            np.testing.assert_array_equal(np.array(sides.policy.model(tokens)), np.array(wanted[side].model(tokens)))


def test_a_gguf_file_has_the_tokens_and_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    folder = with_merges(write_family(tmp_path / "base", "llama"))
    made = hand_made(tmp_path / "home", folder, {}, chat__add_tokens=[*TOKENS, "<note>"])
    found = exported(made, tmp_path / "out", {"kind": "gguf"})  # read back, with the tokens as the run reads them
    assert found[0]["difference"]["largest"] < 0.1
    with pytest.raises(InputError, match="the run added tokens to the model") as raised:
        asyncio.run(export(made, [Job("adapter", tmp_path / "adapter")]))
    assert "--to fused" in raised.value.remedy and str(made.adapters_dir) in raised.value.remedy
    assert (made.adapters_dir / checkpoint.ADAPTER_FILES[2]).exists() and configs.load(made.config_file).config.chat.add_tokens
