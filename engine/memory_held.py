"""What a run holds from its first step to its last: weights, what is trained, the optimizer's state, a reference.

Every number follows from config.json and the safetensors headers. Of a 16-bit model a CPU holds float32.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from engine import model_files, optim_rules
from engine.config import RunConfig, model_folder
from engine.errors import InputError
from engine.expert_stacks import stacked
from engine.hardware import Backend
from engine.methods import method
from engine.model_files import LinearModule, ModelShape, TensorHeader
from engine.objective import Objective

FLOAT32 = 4


class Held:
    """Sizes in bytes where a docstring says nothing else. Raises InputError for a model that cannot be read or trained so."""

    def __init__(self, config: RunConfig, backend: Backend) -> None:
        self.backend = backend
        self._folder = model_folder(config.model)
        self._described = model_files.read_json(self._folder / "config.json")
        self.shape: ModelShape | None = model_files.read_shape(self._described)
        self.positions = model_files.context_tokens(self._described)  # that the model was made for; None: it does not say
        tied = self.shape is not None and self.shape.tied
        # mlx_lm drops the copy of a tied head, and the rotary frequencies that old checkpoints carry
        headers = [header for header in model_files.read_headers(self._folder) if not header.name.endswith("rotary_emb.inv_freq")]
        kept = [header for header in headers if not (tied and header.name.startswith("lm_head."))]
        self._stored = stacked(kept, str(self._described.get("model_type")))
        self._configure(config)

    def changed(self, **parts: dict[str, Any]) -> Self:
        """The plan of the same model with fields of these sections changed; nothing is read again. Raises InputError."""
        made = copy.copy(self)
        sections = {name: getattr(self.config, name).model_copy(update=fields) for name, fields in parts.items()}
        config = self.config.model_copy(update=sections)
        if sections.keys() <= {"sampling"}:  # nothing that is held depends on it
            made.config = config
            return made
        for name in [name for name in vars(made) if isinstance(getattr(type(made), name, None), cached_property)]:
            delattr(made, name)
        made._configure(config)
        return made

    def _configure(self, config: RunConfig) -> None:
        self.config = config
        self.headers = self._stored
        self.modules = model_files.linear_modules(self.headers, self._described, str(self._folder))
        if config.quantize.bits is not None:
            self._quantise(config.quantize.bits, config.quantize.group_size)
        self.is_full = config.adapter.type == "full"
        self.casts = self.backend == "cpu" and any(header.is_float and header.dtype != "F32" for header in self.headers)
        self.item = self._held_item()
        self.weights = sum(self._held(header) for header in self.headers)
        if self.is_full and any(module.quantised for module in self.modules):
            remedy = "use adapter.type: lora, or an unquantised model"
            raise InputError("a quantised model cannot be trained in full", where=str(self._folder), remedy=remedy)

    def _quantise(self, bits: int, group_size: int) -> None:
        """Every linear module as it is held once it is quantised: packed weights, and a scale and a bias for each group."""
        fitting = {f"{m.path}.weight" for m in self.modules if not m.quantised and m.inputs % group_size == 0}
        self.headers = [
            part
            for header in self.headers
            for part in (model_files.quantised(header, bits, group_size) if header.name in fitting else [header])
        ]
        self.modules = [replace(m, quantised=m.quantised or f"{m.path}.weight" in fitting) for m in self.modules]

    def _held(self, header: TensorHeader) -> int:
        """On a CPU every floating-point array is held in float32, scales of quantised weights included; else as it is."""
        return header.elements * FLOAT32 if self.backend == "cpu" and header.is_float else header.bytes

    def _held_item(self) -> int:
        """Bytes of an activation: of the floating-point type that most of the model's arrays have."""
        if self.backend == "cpu":
            return FLOAT32
        sizes = [header.bytes // header.elements for header in self.headers if header.is_float and header.elements]
        return max(set(sizes), key=sizes.count, default=FLOAT32)

    @cached_property
    def objective(self) -> Objective | None:
        """None for supervised training."""
        return None if method(self.config.method).kind == "sft" else self.config.resolved_objective()

    @property
    def is_supervised(self) -> bool:
        return self.objective is None

    @cached_property
    def adapted(self) -> list[LinearModule]:
        adapter = self.config.adapter
        if self.is_full:
            return []
        found = model_files.adapted_modules(self.modules, self.layers, kind=adapter.type, last=adapter.layers, keys=adapter.keys)
        if not found:
            remedy = "give paths inside a layer, such as self_attn.q_proj"
            raise InputError("match no module of the model", where="adapter.keys", remedy=remedy)
        return found

    @cached_property
    def layers(self) -> int:
        return max((module.layer for module in self.modules), default=-1) + 1

    @cached_property
    def passed(self) -> int:
        """Layers that gradients pass through: those below the first adapter keep nothing."""
        lowest = 0 if self.is_full else max(0, min(module.layer for module in self.adapted))
        return max(0, (self.layers if self.shape is None else self.shape.layers) - lowest)

    @cached_property
    def trainable(self) -> int:
        """Parameters: of a low-rank adapter rank x (inputs + outputs) for each module, for DoRA and its magnitudes; the rows of
        added tokens."""
        return sum(map(math.prod, self.trainable_shapes.values()))

    @cached_property
    def trainable_bytes(self) -> int:
        """Adapters are float32 on every base; full training keeps the model's own type."""
        return sum(self._held(header) for header in self.headers if header.is_float) if self.is_full else self.trainable * FLOAT32

    @property
    def adapter(self) -> int:
        return 0 if self.is_full else self.trainable_bytes

    @cached_property
    def trainable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that are trained, by path, as mlx_lm lays them out."""
        if self.is_full:
            return {header.name: header.shape for header in self.headers if header.is_float}
        rank = self.config.adapter.rank
        found: dict[str, tuple[int, ...]] = {}
        for m in self.adapted:
            stack = m.experts > 1
            found[f"{m.path}.lora_a"] = (rank * m.experts, m.inputs) if stack else (m.inputs, rank)
            found[f"{m.path}.lora_b"] = (m.experts, m.outputs, rank) if stack else (rank, m.outputs)
            if self.config.adapter.type == "dora":
                found[f"{m.path}.m"] = (m.outputs,)
        added, vocabulary = len(self.config.chat.add_tokens), max((m.outputs for m in self.modules if m.layer < 0), default=0)
        if added:  # the embedding and, where it is another, the head: the widest modules outside the layers
            rows = [m for m in self.modules if m.layer < 0 and m.outputs == vocabulary]
            found.update({f"{m.path}.added_rows": (added, m.inputs) for m in rows})
        return found

    @cached_property
    def optimizer(self) -> int:
        """Its state is float32 whatever type the weights have."""
        return optim_rules.state_numbers(self.config.optim.name, self.trainable_shapes) * FLOAT32

    @property
    def reference(self) -> int:
        """A second copy of what is trained, only where there is a KL term and the reference is not just the model without its
        adapter: in full training, and once it has moved."""
        objective = self.objective
        moves = objective is not None and objective.beta and (self.is_full or objective.ref_sync_every)
        return self.trainable_bytes if moves else 0

    @property
    def held(self) -> int:
        return self.weights + self.adapter + self.optimizer + self.reference
