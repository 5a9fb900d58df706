"""The policy: a model loaded by mlx_lm with its adapter, its reference, and its head apart from its body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load

from engine.config import AdapterConfig
from engine.errors import InputError
from engine.model_files import ROUTERS
from engine.types import Message
from engine.worker import keys
from engine.worker.trees import flat, nested

_BODIES = ("model", "backbone", "transformer")  # names under which mlx_lm's models keep everything below the head


class Policy:
    """The model that is trained, with everything a step asks of it.

    `sequence_logits(tokens)` is the plain forward; `hidden` and `head` are its two halves where the family allows them to be
    parted (checked at load), so that the head runs on completion tokens only.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, adapter: AdapterConfig, folder: Path) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.folder = folder
        self.stop_ids = frozenset(int(i) for i in tokenizer.eos_token_ids)
        self.splits = _head_can_be_split(model)
        self._initial: dict[str, mx.array] | None = None  # full training with a reference only

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states [B, T, D] after the last layer; where the head cannot be parted, the logits [B, T, V]."""
        run = _body(self.model) if self.splits else self.model
        return cast(mx.array, run(tokens, cache=cache))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [B, T, V] of hidden states; the identity where the head cannot be parted."""
        return _head_view(self.model)(hidden) if self.splits else hidden

    def trainable(self) -> dict[str, mx.array]:
        """Trainable arrays by name."""
        return flat(self.model.trainable_parameters())

    def keep_initial(self) -> None:
        """Hold the current weights as the reference of full training (a second copy, made only where beta > 0)."""
        self._initial = self.trainable()  # arrays are never changed in place: these stay what they are

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference: adapters taken off, or under full training the initial weights."""
        if self.adapter.type == "full":
            if self._initial is None:
                raise ValueError("full training has a reference only after keep_initial()")
            current = self.trainable()
            self.model.update(nested(self._initial))
            try:
                yield
            finally:
                self.model.update(nested(current))
            return
        adapted = {name: module for name, module in self.model.named_modules() if "lora_a" in module}
        self.model.update_modules(nested({name: _base(module) for name, module in adapted.items()}))
        try:
            yield
        finally:
            self.model.update_modules(nested(adapted))

    def render(self, messages: Sequence[Message], completion: str | None = None) -> tuple[str, list[int], list[int]]:
        """The prompt's text, its ids, and the completion's ids with the stop token ([] without a completion).

        The completion is encoded apart from the prompt, so that the prompt's ids are exactly those of generation. Without a
        chat template the contents are joined as they are.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not self.tokenizer.has_chat_template:
            text = "".join(message.content for message in messages)
            rest = completion or ""
        else:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            rest = completion or ""
            if completion is not None:
                whole = self.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": completion}], tokenize=False)
                rest = whole[len(text) :] if whole.startswith(text) else completion
        # special tokens as mlx_lm.generate adds them: a chat template brings its own
        ids = self._encode(text, special=not self.tokenizer.has_chat_template)
        if completion is None:
            return text, ids, []
        target = self._encode(rest)
        stop = next((place for place, token in enumerate(target) if token in self.stop_ids), None)
        target = target[: stop + 1] if stop is not None else [*target, int(self.tokenizer.eos_token_id)]
        return text, ids, target

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of completion ids; a final stop token is left out, every other special token shows."""
        ids = tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens
        return str(self.tokenizer.decode(list(ids)))

    def _encode(self, text: str, special: bool = False) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=special)]


def load_policy(folder: Path, adapter: AdapterConfig, seed: int) -> Policy:
    """Load the model in `folder` and put the adapter on it, its initial weights keyed by `seed`.

    On a CPU every floating-point weight is held in float32 (half precision runs there without a fast kernel); elsewhere the
    model keeps its own type. Raises InputError where mlx_lm cannot load the folder or the adapter fits no module.
    """
    try:
        model, tokenizer = load(str(folder))[:2]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"mlx_lm cannot load this model: {error}", where=str(folder), remedy="check the folder, or update mlx-lm"
        ) from error
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
    apply_adapter(model, adapter, seed, str(folder))
    model.eval()  # dropout off; supervised training switches it on for its own passes
    mx.eval(model.parameters())
    return Policy(model, tokenizer, adapter, folder)


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
    chosen = adapter.keys if adapter.keys is not None else default_keys(model, adapter.type)
    layers = len(model.layers) if adapter.layers < 0 else adapter.layers
    linear_to_lora_layers(model, layers, {**lora_parameters(adapter), "keys": set(chosen)}, use_dora=adapter.type == "dora")
    if not flat(model.trainable_parameters()):
        known = ", ".join(default_keys(model, adapter.type)[:8])
        raise InputError(
            f"adapter.keys {adapter.keys} match no module", where=where, remedy=f"paths inside a layer, such as {known}"
        )


def default_keys(model: nn.Module, kind: str) -> list[str]:
    """Paths of every linear module inside the layers, routers left out (and expert stacks for DoRA, which has none)."""
    types: tuple[type, ...] = (nn.Linear, nn.QuantizedLinear)
    if kind == "lora":
        types += (SwitchLinear, QuantizedSwitchLinear)
    found: set[str] = set()
    for layer in model.layers:
        for path, module in layer.named_modules():
            parts = path.split(".")
            if isinstance(module, types) and parts[-1] not in ROUTERS and (len(parts) < 2 or parts[-2] != "router"):
                found.add(path)
    return sorted(found)


def lora_parameters(adapter: AdapterConfig) -> dict[str, Any]:
    """The part of mlx_lm's adapter_config.json that describes the low-rank factors, without keys."""
    return {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout}


def adapter_config(policy: Policy) -> dict[str, Any]:
    """What mlx_lm needs to put the adapter back: its own adapter_config.json, keys written out."""
    adapter = policy.adapter
    if adapter.type == "full":
        return {
            "fine_tune_type": "full",
            "num_layers": len(policy.model.layers),
            "lora_parameters": {},
            "model": str(policy.folder),
        }
    chosen = sorted(adapter.keys if adapter.keys is not None else _adapted_keys(policy.model))
    return {
        "fine_tune_type": adapter.type,
        "num_layers": len(policy.model.layers) if adapter.layers < 0 else adapter.layers,
        "lora_parameters": {**lora_parameters(adapter), "keys": chosen},
        "model": str(policy.folder),
    }


def _adapted_keys(model: nn.Module) -> set[str]:
    return {path for layer in model.layers for path, module in layer.named_modules() if "lora_a" in module}


def _base(module: nn.Module) -> nn.Module:
    """The module that a low-rank wrapper was made from."""
    base: nn.Module = module["embedding"] if "embedding" in module else module["linear"]
    return base


def _body(model: nn.Module) -> nn.Module:
    while "language_model" in model:
        model = model["language_model"]
    name = next(name for name in _BODIES if name in model)
    body: nn.Module = model[name]
    return body


def _head_view(model: nn.Module) -> Callable[[mx.array], mx.array]:
    """The model's own class with its body replaced by an identity: so every scale, cap and tied head is kept.

    The view is made anew on each call, inside the loss, so that it always holds the current arrays.
    """
    while "language_model" in model:
        model = model["language_model"]
    name = next(name for name in _BODIES if name in model)
    view = type(model).__new__(type(model))
    nn.Module.__init__(view)
    for key, value in vars(model).items():
        if not key.startswith("_"):
            object.__setattr__(view, key, value)
    dict.update(view, model)
    view[name] = _Lender(model[name])
    head: Callable[[mx.array], mx.array] = view
    return head


class _Lender(nn.Module):
    """Gives its input back unchanged, and the wrapped body's attributes (a tied embedding, say) to whoever asks."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_wrapped", body)

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_wrapped"), name)


def _head_can_be_split(model: nn.Module) -> bool:
    """Whether head(hidden(x)) equals model(x) to the bit on a small probe (families differ in what sits in the head)."""
    inner = model
    while "language_model" in inner:
        inner = inner["language_model"]
    if not any(name in inner for name in _BODIES):
        return False
    probe = mx.array([[1, 2, 3, 4, 5]])
    try:
        parted = _head_view(model)(_body(model)(probe))
    except (TypeError, ValueError, AttributeError):
        return False  # the family's head wants more than hidden states; full logits are always right
    whole = model(probe)
    return parted.shape == whole.shape and bool(mx.array_equal(parted, whole).item())
