"""The policy: a model loaded by mlx_lm with its adapter, its reference, and its head apart from its body."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load

from engine import model_rules
from engine.config import AdapterConfig, ChatConfig, QuantizeConfig
from engine.data.template import MODELS_OWN, stop_id, template_source
from engine.errors import InputError
from engine.types import Message
from engine.worker import adapter_keys, added_rows, decoding, keys, parting, prefix, quantised, rendering, starting
from engine.worker.batching import Batch, Sharing
from engine.worker.trees import flat, nested

AS_IT_IS = QuantizeConfig()
NO_CODE = {"trust_remote_code": False}  # said to transformers, which else asks on stdin whether to run a tokenizer's own code


class Policy:
    """The model that is trained, with everything a step asks of it.

    `sequence_logits(tokens)` is the plain forward; `hidden` and `head` are its two halves where the family allows them to be
    parted (checked at load), so that the head runs on completion tokens only.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, adapter: AdapterConfig, folder: Path, chat: ChatConfig = MODELS_OWN
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.folder = folder
        self.added_tokens = tuple(chat.add_tokens)
        self.places: added_rows.Places | None = None  # where the model keeps their rows; None without added tokens
        self.stop_ids = frozenset(
            [int(i) for i in tokenizer.eos_token_ids] + [stop_id(text, tokenizer.get_vocab().get) for text in chat.stop]
        )
        source = None if chat.template is None else template_source(folder, chat.template)
        self.chat = rendering.ModelChat(tokenizer, self.stop_ids, source, chat.variables)
        self.splits = parting.can_be_parted(model)
        self.decoding = decoding.find(model)
        self.sharing: Sharing = prefix.find(self.hidden, model, self.decoding.mode == "grouped")
        self.recomputes = False  # whether the backward pass computes each layer again: engine/worker/recompute.py
        self._reference: dict[str, mx.array] | None = None  # trainable arrays; None: the model without its adapter
        self._reference_moved = False

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states [B, T, D] after the last layer; where the head cannot be parted, the logits [B, T, V]."""
        run = parting.body(self.model) if self.splits else self.model
        return cast(mx.array, run(tokens, cache=cache))

    def shares(self, batch: Batch) -> bool:
        """Whether the batch's prompts are computed once each, and not for each of their completions."""
        is_even = len(set(batch.prompt_lengths.tolist())) == 1
        return len(batch.prompts) < len(batch.prompt_row) and (self.sharing == "any" or (self.sharing == "equal" and is_even))

    def hidden_of_completions(self, batch: Batch) -> mx.array:
        """The hidden states that predict each completion token, [B, C, D], where `shares(batch)`."""
        return prefix.hidden_of_completions(self.hidden, self.model, batch, self.decoding.mode == "grouped")

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [B, T, V] of hidden states; the identity where the head cannot be parted."""
        return parting.head_view(self.model)(hidden) if self.splits else hidden

    @property
    def is_exact(self) -> bool:
        """Whether every floating-point number of the model is float32, so that its own rounding is small."""
        types = {value.dtype for value in flat(self.model.parameters()).values()}
        return not types & {mx.float16, mx.bfloat16}

    def trainable(self) -> dict[str, mx.array]:
        """Trainable arrays by name."""
        return flat(self.model.trainable_parameters())

    def keep_initial(self) -> None:
        """Hold the current weights as the reference of full training (a second copy, made only where beta > 0)."""
        self._reference = self.trainable()  # arrays are never changed in place: these stay what they are

    def sync_reference(self, mix: float) -> None:
        """Move the reference: mix x the current weights + (1 - mix) x the reference (TR-DPO, arXiv 2404.09656, Eq. 4 and 5).

        Low-rank adapters take mix 1 only, since the mean of two adapters is not the adapter of the mean. Raises ValueError for
        another mix there, and where full training holds no reference.
        """
        current = self.trainable()
        if mix < 1:
            if self._reference is None or self.adapter.type != "full":
                raise ValueError("only a reference that full training holds can be mixed")
            held = self._reference
            current = {name: _mixed(value, held[name], mix) for name, value in current.items()}
            mx.eval(current)
        self._reference, self._reference_moved = current, True

    def reference_arrays(self) -> dict[str, mx.array] | None:
        """The reference's trainable arrays once it has moved; None while it is what the model was loaded as."""
        return self._reference if self._reference_moved else None

    def set_reference_arrays(self, arrays: dict[str, mx.array]) -> None:
        """Put back what `reference_arrays` gave. Raises ValueError for another model's."""
        other = set(self.trainable()) ^ set(arrays)
        if other:
            raise ValueError(f"the reference's arrays are not those of the model: {sorted(other)[:3]}")
        self._reference, self._reference_moved = arrays, True

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference: adapters and trained rows of added tokens taken off, or the arrays that are held
        (full training; after a sync)."""
        if self._reference is not None:
            current = self.trainable()
            self.model.update(nested(self._reference))
            try:
                yield
            finally:
                self.model.update(nested(current))
            return
        if self.adapter.type == "full":
            raise ValueError("full training has a reference only after keep_initial()")
        adapted = {name: module for name, module in self.model.named_modules() if "lora_a" in module or added_rows.ROWS in module}
        self.model.update_modules(nested({name: _base(module) for name, module in adapted.items()}))
        try:
            yield
        finally:
            self.model.update_modules(nested(adapted))

    def render(self, messages: Sequence[Message], completion: str | None = None) -> tuple[str, list[int], list[int]]:
        """The prompt's text, its ids, and the completion's ids with the stop token ([] without a completion).

        Raises jinja2's TemplateError where the chat template refuses the messages; how: engine/data/targets.py.
        """
        return rendering.render(self.chat, messages, completion)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of completion ids; a final stop token is left out, every other special token shows."""
        ids = tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens
        return str(self.tokenizer.decode(list(ids)))


def load_policy(
    folder: Path,
    adapter: AdapterConfig,
    seed: int,
    chat: ChatConfig = MODELS_OWN,
    quantize: QuantizeConfig = AS_IT_IS,
) -> Policy:
    """Load the model in `folder`, quantise it where that is asked for, and put the adapter on it, its initial weights keyed by
    `seed` or taken from `adapter.start_from`.

    On a CPU every floating-point weight is held in float32 (half precision runs there without a fast kernel); elsewhere the
    model keeps its own type. Raises InputError where mlx_lm cannot load the folder or the adapter fits no module.
    """
    try:
        model, tokenizer = load(str(folder), tokenizer_config=NO_CODE)[:2]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"mlx_lm cannot load this model: {error}", where=str(folder), remedy="check the folder, or update mlx-lm"
        ) from error
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
    quantise(model, quantize, str(folder))
    quantised.use_blas(model)
    places: added_rows.Places | None = None
    if chat.add_tokens:
        tokenizer, added = added_rows.tokenizer_with(folder, chat.add_tokens)
        places = added_rows.grow(model, added)
    apply_adapter(model, adapter, seed, str(folder))
    if places is not None and adapter.type != "full":
        added_rows.train(model, places)
    if adapter.start_from is not None:
        starting.take_over(model, adapter, chat.add_tokens)
    model.eval()  # dropout off; supervised training switches it on for its own passes
    mx.eval(model.parameters())
    policy = Policy(model, tokenizer, adapter, folder, chat)
    policy.places = places
    if adapter.start_from is not None:
        policy.keep_initial()  # the policy that training begins with, adapter and all, is the reference
    return policy


def quantise(model: nn.Module, quantize: QuantizeConfig, where: str) -> None:
    """Quantise every module that mlx_lm would (in place), where that is asked for. InputError for a model that is already."""
    bits, group_size = quantize.bits, quantize.group_size
    if bits is None:
        return
    if any(hasattr(module, "bits") for _, module in model.named_modules()):
        raise model_rules.quantised_already(where)

    def fits(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size == 0

    if not any(fits(name, module) for name, module in model.named_modules()):
        raise model_rules.no_group(group_size)
    nn.quantize(model, group_size=group_size, bits=bits, class_predicate=fits)


def apply_adapter(model: nn.Module, adapter: AdapterConfig, seed: int, where: str) -> None:
    """Freeze what is not trained and wrap what is (in place)."""
    if adapter.type == "full":
        quantised = [name for name, module in model.named_modules() if hasattr(module, "bits")]
        if quantised:
            raise InputError(
                "a quantised model cannot be trained in full",
                where=where,
                remedy="use adapter.type: lora, or an unquantised model",
            )
        model.unfreeze()
        return
    model.freeze()
    mx.random.seed(keys.key32(seed, "adapter"))
    chosen = adapter.keys if adapter.keys is not None else adapter_keys.default(model, adapter.type)
    layers = len(model.layers) if adapter.layers < 0 else adapter.layers
    if adapter.keys is not None:
        adapter_keys.check(model, adapter.keys, layers, is_dora=adapter.type == "dora", where=where)
    if adapter.type == "dora":
        adapter_keys.check_dora(model, chosen, layers, where)
    linear_to_lora_layers(model, layers, {**lora_parameters(adapter), "keys": set(chosen)}, use_dora=adapter.type == "dora")
    if not flat(model.trainable_parameters()):
        remedy = "name some in adapter.keys, or use adapter.type: full"
        raise InputError("has no linear module inside its layers, for an adapter to go on", where=where, remedy=remedy)


def lora_parameters(adapter: AdapterConfig) -> dict[str, Any]:
    """The part of mlx_lm's adapter_config.json that describes the low-rank factors, without keys."""
    return {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout}


def adapter_config(policy: Policy) -> dict[str, Any]:
    """What mlx_lm needs to put the adapter back: its own adapter_config.json, keys written out; and the added tokens, of which
    mlx_lm knows nothing."""
    adapter = policy.adapter
    added = {"added_tokens": list(policy.added_tokens)} if policy.added_tokens else {}
    if adapter.type == "full":
        return {
            "fine_tune_type": "full",
            "num_layers": len(policy.model.layers),
            "lora_parameters": {},
            "model": str(policy.folder),
            **added,
        }
    chosen = sorted(adapter.keys if adapter.keys is not None else _adapted_keys(policy.model))
    return {
        "fine_tune_type": adapter.type,
        "num_layers": len(policy.model.layers) if adapter.layers < 0 else adapter.layers,
        "lora_parameters": {**lora_parameters(adapter), "keys": chosen},
        "model": str(policy.folder),
        **added,
    }


def _adapted_keys(model: nn.Module) -> set[str]:
    return {path for layer in model.layers for path, module in layer.named_modules() if "lora_a" in module}


def _mixed(new: mx.array, old: mx.array, mix: float) -> mx.array:
    """Computed in float32, held in the weights' own type."""
    return (mix * new.astype(mx.float32) + (1 - mix) * old.astype(mx.float32)).astype(new.dtype)


def _base(module: nn.Module) -> nn.Module:
    """The module that a low-rank wrapper was made from."""
    base: nn.Module = module["embedding"] if "embedding" in module else module["linear"]
    return base
