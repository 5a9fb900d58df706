"""Forms of a model: quantised as it is loaded, an adapter to go on from, other chat templates, more tokens that end a reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load, quantize_model, save

from engine.config import AdapterConfig, ChatConfig, QuantizeConfig, RunConfig
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.memory import Plan
from engine.model_files import context_tokens
from engine.preflight import preflight
from engine.types import Message
from engine.worker import quantised
from engine.worker.blank import Shape, write_blank_model
from engine.worker.decoding import Decoding
from engine.worker.fusing import fuse
from engine.worker.generating import rendered
from engine.worker.model import Policy, adapter_config, load_policy, quantise
from engine.worker.run import warn_of_fallbacks, warn_of_plain_weights
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
    with pytest.raises(InputError, match="quantised already"):
        quantise(once.model, bits, "m")


def test_groups_that_no_row_can_be_cut_into_are_refused(tmp_path: Path) -> None:
    """Its rows are 64 or 96 wide: the model would stay as it is. By the check before a run, too, which reads headers alone."""
    folder, groups = write_family(tmp_path / "m", "llama"), {"bits": 4, "group_size": 128}
    with pytest.raises(InputError, match="cut into groups of 128"):
        load_policy(folder, AdapterConfig(), 0, quantize=QuantizeConfig.model_validate(groups))
    asked = {"model": str(folder), "method": "sft", "data": {"train": "datasets/arithmetic.jsonl"}, "quantize": groups}
    with pytest.raises(InputError, match="cut into groups of 128"):
        preflight(RunConfig.model_validate(asked))


def test_what_a_quantised_folder_cannot_have_is_refused_before_the_run(tmp_path: Path) -> None:
    """By its config.json; and by the worker, which sees each module's own bits."""
    folder = write_family(tmp_path / "m", "llama")
    made, out = load(str(folder), return_config=True), tmp_path / "q"
    model, config = quantize_model(made[0], made[2], 32, 3)
    save(out, folder, model, made[1], config)
    asked = {"model": str(out), "method": "sft", "data": {"train": "datasets/arithmetic.jsonl"}}
    for changed, said in (({"adapter": {"type": "dora"}}, "no DoRA on 3 bits"), ({"quantize": {"bits": 4}}, "quantised already")):
        with pytest.raises(InputError, match=said):
            preflight(RunConfig.model_validate({**asked, **changed}))
    with pytest.raises(InputError, match="no DoRA on 3 bits"):
        load_policy(out, AdapterConfig(type="dora"), 0)
    with pytest.raises(InputError, match=r"no DoRA on a quantised embedding \(model.embed_tokens\)"):
        embedding = AdapterConfig(type="dora", keys=["model.embed_tokens"])
        load_policy(folder, embedding, 0, quantize=QuantizeConfig(bits=4, group_size=32))


def test_a_prompt_longer_than_the_model_was_made_for_is_refused(model: Path) -> None:
    policy = load_policy(model, AdapterConfig(), 0)
    limit = context_tokens(json.loads((model / "config.json").read_text()))
    assert limit is not None and context_tokens({"text_config": {"max_position_embeddings": 7}}) == 7
    assert len(rendered(policy, [{"role": "user", "content": "a" * limit}], "prompt 1", plain=True)[1]) == limit
    with pytest.raises(InputError, match=rf"prompt 2: {limit + 1:,} tokens, and the model was made for {limit:,} "):
        rendered(policy, [{"role": "user", "content": "a" * (limit + 1)}], "prompt 2", plain=True)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"keys": ["self_attn.q_proj", "self_attn.qproj"]}, r"\['self_attn.qproj'\] match no module"),  # one of two
        ({"keys": ["self_attn.q_proj", "input_layernorm"]}, r"\['input_layernorm'\] match no module"),
        ({"keys": ["mlp.switch_mlp.up_proj"], "type": "dora"}, r"no DoRA on experts \(mlp.switch_mlp.up_proj\)"),
    ],
)
def test_a_key_that_names_nothing_is_refused(adapter: dict[str, object], said: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "m", "qwen3_moe")
    with pytest.raises(InputError, match=said):
        load_policy(folder, AdapterConfig.model_validate({"rank": 4, **adapter}), 0)


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
        ({"keys": ["self_attn.q_proj"]}, "the adapter has model.layers.0.mlp"),
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


KINDS = [(4, 32, "affine"), (8, 64, "affine"), (3, 64, "affine"), (4, 32, "mxfp4"), (8, 32, "mxfp8")]


def rows_model(bits: int, group_size: int, mode: str) -> nn.Module:
    """An embedding that is the head too, and a linear module with a bias between: 320 and 64 rows of 128 numbers."""
    mx.random.seed(bits)
    model = nn.Sequential(nn.Embedding(320, 128), nn.Linear(128, 128))
    model.layers[1].bias = mx.random.normal((128,))
    nn.quantize(model, group_size=group_size, bits=bits, mode=mode)
    return model


@pytest.mark.parametrize(("bits", "group_size", "mode"), KINDS)
def test_many_rows_go_through_blas_with_the_same_numbers(
    bits: int, group_size: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and the gradient of x are those of mlx's own product to 1e-5, in blocks of 4096 numbers (32 rows of 128). An x of
    too few rows goes through mlx's own product: the same bits. Unpacked blocks are mx.dequantize's, bit for bit."""
    monkeypatch.setattr(quantised, "BLOCK_NUMBERS", 4096)
    model = rows_model(bits, group_size, mode)
    least = quantised.least_rows(bits, mode)
    many, few = (mx.random.normal((1, rows, 128)) for rows in (least, least - 1))
    slope = mx.random.normal((1, least, 320))

    def run(x: mx.array) -> mx.array:
        return model.layers[0].as_linear(model.layers[1](x))

    own, stock_few = [*mx.vjp(run, [many], [slope])[0], *mx.vjp(run, [many], [slope])[1]], run(few)
    mx.eval(own, stock_few)
    quantised.use_blas(model)
    assert isinstance(model.layers[1], nn.QuantizedLinear) and isinstance(model.layers[0], nn.QuantizedEmbedding)
    fast = [*mx.vjp(run, [many], [slope])[0], *mx.vjp(run, [many], [slope])[1]]
    for ours, theirs in zip(fast, own, strict=True):
        assert (mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)).item() < 1e-5
        assert not mx.array_equal(ours, theirs).item()  # another order of summing: BLAS did it
    assert mx.array_equal(run(few), stock_few).item()
    linear = model.layers[1]
    whole = mx.dequantize(linear.weight, linear.scales, linear.get("biases"), group_size, bits, mode, dtype=mx.float32)
    assert [block.stop - block.start for block in quantised._blocks(linear)] == [32] * 4
    rows = [quantised._unpacked(linear, block, many) for block in quantised._blocks(linear)]
    assert mx.array_equal(mx.concatenate(rows), whole).item()


def test_a_gpu_keeps_its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mlx's default device is no CPU the modules stay mlx's own (the device is said to be one: there is none here)."""
    model = rows_model(4, 32, "affine")
    monkeypatch.setattr("engine.worker.quantised.mx.default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    quantised.use_blas(model)
    assert type(model.layers[0]) is nn.QuantizedEmbedding and type(model.layers[1]) is nn.QuantizedLinear
    monkeypatch.undo()
    quantised.use_blas(model)
    assert type(model.layers[0]) is quantised.RowsEmbedding and type(model.layers[1]) is quantised.RowsLinear


def test_no_more_than_a_few_blocks_are_unpacked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 8192 x 256 numbers is 8.4 MB in float32, in 64 blocks of 131 kB. Forward and backward of 4 rows hold what mlx
    makes of some blocks that it starts ahead, a third of it at most; were they not to wait for one another, they would hold more
    than half of it."""
    monkeypatch.setattr(quantised, "BLOCK_NUMBERS", 1 << 15)
    model = nn.Embedding(8192, 256).to_quantized(32, 4)
    mx.eval(model.parameters())
    quantised.use_blas(model)
    x = mx.random.normal((4, 256))

    def peak() -> int:
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(lambda x: mx.logsumexp(model.as_linear(x), axis=-1).sum())(x))
        return mx.get_peak_memory() - before

    peak()
    found = max(peak() for _ in range(3))
    assert found < 8192 * 256 * 4 / 3, found


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_on_packed_weights_is_kept_taken_off_and_fused(kind: str, model: Path, tmp_path: Path) -> None:
    """Gradients are those of mlx's own product; the reference is the model without its adapter; saved weights are read by a
    policy and by mlx_lm's load_adapters; fused and dequantised it has plain modules and the same logits."""
    quantize = QuantizeConfig(bits=4, group_size=32)
    policy = load_policy(model, AdapterConfig.model_validate({"type": kind, "rank": 4}), 0, quantize=quantize)
    base = np.array(policy.model(TOKENS))
    assert any(type(module) is quantised.RowsLinear for _, module in policy.model.named_modules())
    nudge(policy)
    tuned = np.array(policy.model(TOKENS))
    with policy.reference():
        np.testing.assert_array_equal(np.array(policy.model(TOKENS)), base)

    def gradient() -> dict[str, mx.array]:
        return flat(nn.value_and_grad(policy.model, lambda m: (m(TOKENS) ** 2).mean())(policy.model)[1])

    fast = gradient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised, "_is_worth_unpacking", lambda *_: False)
        stock, plain = gradient(), np.array(policy.model(TOKENS))
        mx.eval(stock)
    assert np.abs(tuned - plain).max() < 1e-4
    scale = sum(mx.square(value).sum().item() for value in stock.values()) ** 0.5
    gap = sum(mx.square(value - fast[name]).sum().item() for name, value in stock.items()) ** 0.5
    assert 0 < gap < 1e-5 * scale
    folder = saved(policy, tmp_path / "adapter")
    again = load_policy(
        model, AdapterConfig.model_validate({"type": kind, "rank": 4, "start_from": str(folder)}), 1, quantize=quantize
    )
    np.testing.assert_array_equal(np.array(again.model(TOKENS)), tuned)
    bare = load(str(model))[0]
    quantise(bare, quantize, "m")
    assert np.abs(np.array(load_adapters(bare, str(folder))(TOKENS)) - tuned).max() < 1e-4
    fuse(policy.model, True, lambda *_: None)
    assert not any(hasattr(module, "bits") for _, module in policy.model.named_modules())
    assert np.abs(np.array(policy.model(TOKENS)) - tuned).max() < 1e-4


def test_a_model_that_is_quantised_in_part_is_told(blank_folder: Path) -> None:
    """Rows of 32 and 64 numbers: groups of 64 leave all but the down projections as they are, groups of 32 nothing."""
    said: list[str] = []
    for group_size in (64, 32):
        chosen = QuantizeConfig.model_validate({"bits": 4, "group_size": group_size})
        policy = load_policy(blank_folder, AdapterConfig(rank=4), 0, quantize=chosen)
        warn_of_plain_weights(policy, group_size, lambda kind, message, remedy: said.append(f"{kind}: {message}"))
    assert len(said) == 1
    layers, each = len(policy.model.layers), 6  # q, k, v, o, gate, up; and the embedding, which is the head, too
    assert said[0].startswith(f"partly-quantised: {layers * each + 1} modules")


def test_a_fallback_is_told(make_policy: Callable[..., Policy]) -> None:
    """Nothing where rows and prompts are together; else which of them is not, and that the figures are right, or are not."""
    policy = make_policy("lora")

    def told(**found: Any) -> list[str]:
        policy.sharing = found.pop("sharing", "any")
        policy.decoding = Decoding(**{"mode": "batch", "gap": 0.0, "limit": 1e-3, **found})
        kinds: list[str] = []
        warn_of_fallbacks(policy, lambda kind, message, remedy: kinds.append(kind))
        return kinds

    assert told() == told(sharing="equal") == told(mode="grouped") == []
    assert told(mode="alone") == ["decodes-alone"]
    assert told(sharing="none") == ["prompts-repeated"]
    assert told(sharing="none", mode="alone") == ["prompts-repeated", "decodes-alone"]
    assert told(gap=0.5) == ["cache-disagrees"] == told(mode="alone", gap=0.5)
