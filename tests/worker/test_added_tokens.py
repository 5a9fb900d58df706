"""Tokens that a config adds: one id each, a row of embedding and head, and these rows alone trained beside an adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load

from engine.config import AdapterConfig, ChatConfig, QuantizeConfig
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.types import Message
from engine.worker import added_rows, checkpoint, fusing
from engine.worker.heads import read_by_head
from engine.worker.model import Policy, load_policy
from engine.worker.selftest_checks import move
from engine.worker.trees import flat, nested
from tests.support.families import WIDTH, write_family
from tests.support.live import assert_same_bits, finish, outcome, small_config

from .test_resume import killed_run, phase, until

TOKENS = ["<plan>", "</plan>"]
CHAT = ChatConfig(add_tokens=TOKENS)
FIRST = 272  # ids of a blank tokenizer are below
PADDED = 280  # rows of an embedding that is larger than its tokenizer


def padded(folder: Path) -> Path:
    """The model with eight rows that no token has."""
    weights = mx.load(str(folder / "model.safetensors"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = mx.concatenate([weights[name], mx.full((PADDED - FIRST, weights[name].shape[1]), 3.0)])
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": PADDED}))
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policy]:
    """A policy with two added tokens, by family (with a dash: of a padded embedding)."""
    folders: dict[str, Path] = {}

    def policy(name: str, bits: int | None = None, chat: ChatConfig = CHAT, **adapter: Any) -> Policy:
        if name not in folders:
            family, _, is_padded = name.partition("-")
            folders[name] = write_family(tmp_path_factory.mktemp(name), family)
            if is_padded:
                padded(folders[name])
        asked = AdapterConfig.model_validate({"rank": 4, **adapter})
        return load_policy(folders[name], asked, 0, chat, QuantizeConfig(bits=bits, group_size=32))

    return policy


def test_bad_tokens_are_refused_in_plain_words(make: Callable[..., Policy]) -> None:
    """By the check of the data, and by the worker."""
    folder = make("llama").folder
    for texts, said in (
        ([" "], "' ' is no token"),
        (["<plan>", "<plan>"], "'<plan>' is given twice"),
        (["<think>"], r"'<think>' is one token of the model already \(id 261\): it needs no adding"),
        (["a"], r"'a' is one token of the model already \(id 97\)"),
    ):
        with pytest.raises(InputError, match=said):
            ChatTokenizer(folder, ChatConfig(add_tokens=texts))
        with pytest.raises(InputError, match=said):
            load_policy(folder, AdapterConfig(), 0, ChatConfig(add_tokens=texts))


def test_both_sides_read_an_added_token_as_one_and_rewards_see_its_text(make: Callable[..., Policy]) -> None:
    """It may end replies as well, as any token of the model."""
    chat = ChatConfig(add_tokens=TOKENS, stop=["</plan>"])
    policy = make("llama", chat=chat)
    ours = ChatTokenizer(policy.folder, chat)
    messages = (Message("user", "a<plan>b</plan> c"),)
    text, ids, _ = policy.render(messages)
    assert text == ours.render(messages, True)
    assert ids == ours.encode(text) and ids.count(FIRST) == ids.count(FIRST + 1) == 1
    assert policy.stop_ids == ours.stop_ids and FIRST + 1 in policy.stop_ids
    assert policy.decode([97, FIRST, 98]) == "a<plan>b" and policy.decode([FIRST, 98, FIRST + 1]) == "<plan>b"


@pytest.mark.parametrize(
    ("name", "bits", "paths"),
    [
        ("llama", None, ["model.embed_tokens"]),
        ("qwen2-padded", None, ["model.embed_tokens"]),
        ("llama", 4, ["model.embed_tokens"]),
        ("phi3-padded", 8, ["model.embed_tokens", "lm_head"]),
        ("granite", None, ["model.embed_tokens"]),
    ],
)
def test_the_rows_start_as_their_pieces_and_get_the_gradient_that_the_whole_matrix_would(
    name: str, bits: int | None, paths: list[str], make: Callable[..., Policy]
) -> None:
    """To 1e-5 of its largest number, through both uses of a tied matrix; and nothing but adapter and rows is trained."""
    policy, without = make(name, bits), make(name, bits, ChatConfig())
    model: Any = policy.model
    rows = added_rows.split(policy.trainable())[1]
    assert sorted(rows) == sorted(f"{path}.added_rows" for path in paths)
    assert set(policy.trainable()) - set(rows) == set(without.trainable())
    assert set(read_by_head(policy, mx.zeros((1, WIDTH)))) == {f"{paths[-1]}.added_rows"}  # so that a head in chunks keeps them
    tokens, pieces = mx.array([[5, FIRST, 80, FIRST + 1, 101, FIRST]]), [list(text.encode()) for text in TOKENS]
    for path in paths:
        plain = without.model
        for part in path.split("."):
            plain = plain[part]
        table = fusing.unpacked(plain, slice(None), mx.float32) if bits else plain["weight"]
        means = np.array(mx.stack([mx.mean(table[mx.array(ids)], axis=0) for ids in pieces]))
        np.testing.assert_allclose(np.array(rows[f"{path}.added_rows"]), means, atol=0.1 if bits else 1e-6)
    size = PADDED if "padded" in name else FIRST + 2
    assert model(tokens).shape[-1] == size
    own, before = (np.array(each(mx.array([[5, 80, 101]]))[..., :FIRST]) for each in (model, without.model))
    np.testing.assert_array_equal(own, before)

    def loss(_: Any) -> mx.array:
        return nn.losses.cross_entropy(model(tokens)[:, :-1], tokens[:, 1:]).sum()

    ours = flat(nn.value_and_grad(model, loss)(None)[1])
    for path in paths:
        wrapper = model
        for part in path.split("."):
            wrapper = wrapper[part]
        base = wrapper["embedding" if "embedding" in wrapper else "linear"]
        whole = (nn.Embedding if "embedding" in wrapper else nn.Linear)(1, 1)
        whole.weight = fusing.unpacked(base, slice(None), mx.float32) if bits else base.weight
        if "linear" in wrapper:
            del whole["bias"]
        model.update_modules(nested({path: whole}))
    theirs = flat(nn.value_and_grad(model, loss)(None)[1])
    for path in paths:
        wanted = np.array(theirs[f"{path}.weight"][FIRST : FIRST + 2])
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(np.array(ours[f"{path}.added_rows"]), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_the_reference_has_the_first_rows_and_files_bring_the_trained_ones_back(
    kind: str, make: Callable[..., Policy], tmp_path: Path
) -> None:
    policy = make("phi3", type=kind)
    tokens = mx.array([[5, FIRST, 80]])
    before = np.array(policy.model(tokens))
    if kind == "full":
        policy.keep_initial()
    move(policy)
    after = np.array(policy.model(tokens))
    assert np.abs(after - before)[0, :, FIRST:].max() > 1e-3
    with policy.reference():
        np.testing.assert_array_equal(np.array(policy.model(tokens)), before)
    np.testing.assert_array_equal(np.array(policy.model(tokens)), after)
    checkpoint.write_adapter(tmp_path, policy)
    assert (tmp_path / added_rows.FILE).exists() == (kind != "full")
    again = make("phi3", type=kind, start_from=str(tmp_path))
    np.testing.assert_array_equal(np.array(again.model(tokens)), after)
    with again.reference():
        np.testing.assert_array_equal(np.array(again.model(tokens)), after)
    for chat in (ChatConfig(), ChatConfig(add_tokens=["<other>"])):
        with pytest.raises(InputError, match=r"trained with the added tokens \['<plan>', '</plan>'\]") as raised:
            make("phi3", chat=chat, type=kind, start_from=str(tmp_path))
        assert raised.value.remedy == 'set chat.add_tokens: ["<plan>", "</plan>"]'
    if kind == "full":
        return
    known = load(str(policy.folder), adapter_path=str(tmp_path))[0]  # mlx_lm takes its two files, without the rows
    assert known(mx.array([[5, 80]])).shape[-1] == FIRST
    plain = tmp_path / "plain"
    checkpoint.write_adapter(plain, make("phi3", chat=ChatConfig(), type=kind))
    fresh = make("phi3", type=kind, start_from=str(plain))  # an adapter from before: its rows are those at the start
    np.testing.assert_array_equal(np.array(fresh.model(tokens)), before)


def test_what_cannot_be_given_rows_is_refused(make: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that has two embeddings of that size; one whose head is not what it seems; an adapter on the embedding itself."""
    with pytest.raises(InputError, match=r"model\.embed_tokens has an adapter of its own") as raised:
        make("llama", keys=["self_attn.q_proj", "model.embed_tokens"])
    assert raised.value.where == "adapter.keys"
    model = load(str(make("llama").folder))[0]
    tokens = added_rows.tokenizer_with(make("llama").folder, TOKENS)[1]
    model["second"] = nn.Embedding(FIRST, 4)
    with pytest.raises(InputError, match="llama does not keep its vocabulary in one embedding and one head"):
        added_rows.grow(model, tokens)
    del model["second"]
    whole = type(model).__call__
    monkeypatch.setattr(type(model), "__call__", lambda self, *given, **named: mx.nan_to_num(whole(self, *given, **named)))
    with pytest.raises(InputError, match="does not keep its vocabulary"):
        added_rows.grow(model, tokens)


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """GRPO with a reference; checkpoints and the best adapter have the rows, which move."""
    options = {"chat__add_tokens": TOKENS, "objective__beta": 0.02, "run__steps": 3, "run__eval_every": 1}
    config = small_config("grpo", **options, run__checkpoint_every=1, optim__learning_rate=1e-3)
    (whole, state), killed = await asyncio.gather(
        finish(tmp_path / "a", config), killed_run(tmp_path / "b", config, {"rollout": until(phase("rollout", 2))})
    )
    assert state.state == "finished", state.failure
    assert_same_bits(outcome(killed), outcome(whole))
    name = "model.embed_tokens.added_rows"
    folders = [[run.record.adapters_dir, *sorted(run.record.checkpoints_dir.glob("step-*"))] for run in (whole, killed)]
    for one, other in zip(*folders, strict=True):
        rows = [mx.load(str(folder / added_rows.FILE))[name] for folder in (one, other)]
        assert rows[0].shape[0] == 2 and bool(mx.array_equal(*rows))
    first, last = (mx.load(str(folders[0][place] / added_rows.FILE))[name] for place in (1, -1))  # of the oldest checkpoint
    assert not bool(mx.array_equal(first, last))
    assert (folders[0][-1] / "best" / added_rows.FILE).exists()
