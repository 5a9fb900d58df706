"""Forms of a model: quantised as it is loaded, an adapter to go on from, other chat templates, more tokens that end a reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.config import AdapterConfig, ChatConfig, QuantizeConfig, RunConfig
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.memory import Plan
from engine.types import Message
from engine.worker.blank import Shape, write_blank_model
from engine.worker.model import Policy, adapter_config, load_policy
from engine.worker.trees import flat
from tests.support.families import write_family

from .agreement import LIMIT, apart
from .rows import nudge

CHAT = (Message("user", "What is 2+2?"),)
TOKENS = mx.array([[5, 80, 101, 32, 49, 43]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "blank"
    write_blank_model(folder, Shape(64, 2, 128, 4, 2), seed=1)
    return folder


def saved(policy: Policy, folder: Path) -> Path:
    """The policy's adapter as a run leaves it."""
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), policy.trainable())
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(policy)))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_model_is_quantised_as_it_is_loaded(family: str, bits: int, tmp_path: Path) -> None:
    """The plan knows every byte of it, rollouts and scores agree, and its adapter trains on it."""
    folder, quantize = write_family(tmp_path / family, family), QuantizeConfig(bits=bits, group_size=32)
    policy = load_policy(folder, AdapterConfig(rank=4), 0, quantize=quantize)
    trained = set(policy.trainable())
    held = {name: value for name, value in flat(policy.model.parameters()).items() if name not in trained}
    data = {"train": "datasets/arithmetic.jsonl"}
    asked = {"model": str(folder), "method": "sft", "data": data, "quantize": quantize.model_dump(), "adapter": {"rank": 4}}
    plan = Plan(RunConfig.model_validate(asked), "cpu")
    assert plan.weights == sum(value.nbytes for value in held.values())
    assert plan.trainable == sum(value.size for value in policy.trainable().values())
    assert held["model.layers.0.self_attn.q_proj.linear.weight"].dtype == mx.uint32
    nudge(policy, 0.02)
    largest, tokens = apart(policy, ("Hi", "A longer prompt"), 2, 8, 1.0)
    assert tokens > 8 and largest <= LIMIT


def test_what_cannot_be_quantised_is_refused(model: Path) -> None:
    bits = QuantizeConfig(bits=4, group_size=32)
    once = load_policy(model, AdapterConfig(), 0, quantize=bits)
    assert any(hasattr(module, "bits") for _, module in once.model.named_modules())
    from engine.worker.model import quantise

    with pytest.raises(InputError, match="quantised already"):
        quantise(once.model, bits, "m")


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_training_goes_on_from_an_adapter_which_is_the_reference_too(kind: str, model: Path, tmp_path: Path) -> None:
    first = load_policy(model, AdapterConfig.model_validate({"type": kind, "rank": 4}), 0)
    nudge(first)
    folder = saved(first, tmp_path / "adapter")
    expected = np.array(first.model(TOKENS))
    for place in (folder, folder / "adapters.safetensors"):
        again = load_policy(model, AdapterConfig.model_validate({"type": kind, "rank": 4, "start_from": str(place)}), 1)
        np.testing.assert_array_equal(np.array(again.model(TOKENS)), expected)
    nudge(again)
    assert not np.array_equal(np.array(again.model(TOKENS)), expected)
    with again.reference():
        np.testing.assert_array_equal(np.array(again.model(TOKENS)), expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank": 8}, "rank 4, and adapter.rank is 8"),
        ({"scale": 10.0}, "scale 20.0, and adapter.scale is 10.0"),
        ({"type": "dora"}, "type lora, and adapter.type is dora"),
        ({"layers": 1}, "the adapter has model.layers.0"),
        ({"keys": ["self_attn.q_proj", "mlp.nothing"]}, "the adapter has model.layers.0.mlp"),
        ({"start_from": "nowhere"}, "no such adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    changed: dict[str, object], said: str, model: Path, make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    folder = saved(load_policy(model, AdapterConfig(rank=4), 0), tmp_path / "adapter")
    with pytest.raises(InputError, match=said):
        load_policy(model, AdapterConfig.model_validate({"rank": 4, "start_from": str(folder), **changed}), 0)
    with pytest.raises(InputError, match=r"lacks|shape"):  # of another model
        load_policy(make_policy().folder, AdapterConfig(rank=4, start_from=str(folder)), 0)


def test_templates_variables_and_stops_are_those_of_the_config(model: Path, tmp_path: Path) -> None:
    """On both sides: the check of the data, without mlx, and the worker."""
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ mood }}{% if add_generation_prompt %}>{% endif %}")
    config = json.loads((model / "tokenizer_config.json").read_text())
    named = tmp_path / "named"
    named.mkdir()
    for path in model.iterdir():
        (named / path.name).write_bytes(path.read_bytes())
    templates = [
        {"name": "default", "template": config["chat_template"]},
        {"name": "terse", "template": "{{ messages[0].content }}"},
    ]
    (named / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
    for folder, chat, expected in (
        (model, ChatConfig(), "<|user|>What is 2+2?<|end|><|assistant|>"),
        (model, ChatConfig(template=str(file), variables={"mood": "calm"}), "[What is 2+2?]calm>"),
        (named, ChatConfig(template="terse"), "What is 2+2?"),
        (named, ChatConfig(stop=["<|user|>", "<answer>"]), "<|user|>What is 2+2?<|end|><|assistant|>"),
    ):
        ours, policy = ChatTokenizer(folder, chat), load_policy(folder, AdapterConfig(), 0, chat)
        assert ours.render(CHAT, True) == policy.render(CHAT)[0] == expected
        assert ours.stop_ids == policy.stop_ids
        assert len(policy.stop_ids) == 1 + len(chat.stop)
    for chat, said in (
        (ChatConfig(template="wordy"), r"no chat template called 'wordy'.*default, terse"),
        (ChatConfig(template=str(tmp_path / "none.jinja")), "cannot be read"),
        (ChatConfig(stop=["four tokens"]), "'four tokens' is no token of the model"),
    ):
        with pytest.raises(InputError, match=said):
            ChatTokenizer(named, chat)
        with pytest.raises(InputError, match=said):
            load_policy(named, AdapterConfig(), 0, chat)


def test_a_family_that_cannot_batch_is_decoded_row_by_row_with_the_same_draws(model: Path) -> None:
    policy = load_policy(model, AdapterConfig(), 0)
    policy.decoding = replace(policy.decoding, mode="alone")
    assert apart(policy, ("Hi", "A longer prompt"), 2, 8, 1.0)[0] <= LIMIT
