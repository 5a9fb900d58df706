"""The verb `verify`: exports as mlx_lm loads them in a fresh process, compared with the run's own policy on fixed tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load, load_adapters

from engine.config import QuantizeConfig
from engine.errors import InputError
from engine.gguf.folder import mlx_folder
from engine.worker import quantised, rendering
from engine.worker.exporting import TEXT, chat_ids, exact_on_cpu
from engine.worker.model import NO_CODE, quantise
from engine.worker.trees import read_arrays

Tell = Callable[[dict[str, Any]], None]


def verify(request: Mapping[str, Any], tell: Tell) -> None:
    """Do the request: {probe, model, quantize, tokens, chat, stops, own_chat, jobs: [{kind, folder, file, cache}]}, as `export`
    left it; `tell` hears the figures of each job. Raises InputError where mlx_lm cannot load one, or it reads texts in another
    way than the run's tokenizer."""
    probe = read_arrays(Path(request["probe"]))
    quantize = QuantizeConfig(**request["quantize"])
    for number, job in enumerate(request["jobs"]):
        tell({"event": "phase", "name": "reading back"})
        folder = Path(job["folder"])
        if job["kind"] == "gguf":
            folder = mlx_folder(folder / job["file"], Path(job["cache"]))
        is_adapter = job["kind"] == "adapter"
        try:
            path, adapter = (request["model"], str(folder)) if is_adapter else (str(folder), None)
            model, tokenizer = load(path, NO_CODE, adapter_path=adapter)[:2]
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            what = f"what was written cannot be loaded by mlx_lm, and was removed: {error}"
            remedy = "is the disk full? Else report this to the project"
            raise InputError(what, where=f"--to {job['kind']}", remedy=remedy) from error
        exact_on_cpu(model)
        _check_texts(request, job["kind"], tokenizer)
        logits = model(probe["tokens"]).astype(mx.float32)[0]  # [T, V]
        found = difference(probe["policy"], logits)
        reload = None
        if f"reload.{number}" in probe:
            reload = difference(probe[f"reload.{number}"], logits)
        elif is_adapter and quantize.bits is not None:
            model = _on_quantised(path, str(adapter), quantize)
            reload = difference(probe["policy"], model(probe["tokens"]).astype(mx.float32)[0])
        tell({"event": "compared", "job": number, "difference": found, "reload": reload})
        del model, logits
        mx.clear_cache()


def _on_quantised(path: str, adapter: str, quantize: QuantizeConfig) -> Any:
    """The base quantised as the run had it, with the adapter."""
    model = load(path, NO_CODE)[0]
    exact_on_cpu(model)
    quantise(model, quantize, path)
    quantised.use_blas(model)
    model = load_adapters(model, adapter)
    model.eval()
    return model


def difference(policy: mx.array, export: mx.array) -> dict[str, float]:
    """The figures of takehome.kinds.Difference for two arrays of logits [T, V]. In float64: a divergence is far smaller than the
    terms that it is the sum of."""
    largest, divergences = 0.0, []
    for row in range(policy.shape[0]):  # one at a time: a vocabulary may have 250,000 tokens
        own, other = (np.array(logits[row], dtype=np.float64) for logits in (policy, export))  # [V]
        largest = max(largest, float(np.abs(own - other).max()))
        p, q = (logits - np.logaddexp.reduce(logits) for logits in (own, other))
        divergences.append(float((np.exp(p) * (p - q)).sum()))
    kl = np.maximum(np.sort(divergences), 0.0)  # [T]; NaN stays
    return {"tokens": len(kl), "largest": largest, "kl": float(kl.mean()), "kl_90": float(kl[9 * (len(kl) - 1) // 10])}


def _check_texts(request: Mapping[str, Any], kind: str, tokenizer: Any) -> None:
    """InputError where the export's tokenizer, chat template or stop tokens are not the run's."""
    stops = frozenset(int(index) for index in tokenizer.eos_token_ids)
    found = [int(index) for index in tokenizer.encode(TEXT, add_special_tokens=False)]
    added = [[int(index) for index in tokenizer.encode(text, add_special_tokens=False)] for text in request["added_tokens"]]
    chat = chat_ids(partial(rendering.render, rendering.ModelChat(tokenizer, stops), completion=None))
    carries_chat = request["own_chat"] or kind != "adapter"  # an adapter has no place for the template of a run
    for same, what in (
        (found == request["tokens"] and added == request["added"], "tokenizer"),
        (chat == request["chat"] or not carries_chat, "chat template"),
        (set(request["stops"]) <= stops or not carries_chat, "stop tokens"),
    ):
        if not same:
            remedy = (
                "report this to the project; --to fused keeps the base's own files"
                if kind == "gguf"
                else "report this to the project"
            )
            raise InputError(
                f"the {what} of what was written is not the run's; it was removed", where=f"--to {kind}", remedy=remedy
            )
