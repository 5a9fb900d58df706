"""The verb `export`: what a run takes home, written into folders that its caller prepared and will name.

A request holds the run, one of its adapters and any number of jobs; the run's own policy is asked once for the logits that
every export is compared with (by `verify`, in a process of its own), then let go: one model is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jinja2 import TemplateError
from mlx_lm.utils import load_adapters, load_model

from engine.config import ChatConfig, QuantizeConfig, RunConfig
from engine.data.template import template_source
from engine.errors import InputError
from engine.types import Message
from engine.worker import added_rows, checkpoint, folder_out, fusing, gguf_out, gguf_words, quantised, summary
from engine.worker.loading import adapter_arrays, base_folder, base_policy, put
from engine.worker.model import Policy, quantise
from engine.worker.trees import flat

Tell = Callable[[dict[str, Any]], None]

# The fixed tokens: read by every tokenizer, of several kinds of text, cut to the same number for all.
TEXT = (
    "What is 12+34-7? 12+30=42, 42+4=46, 46-7=39: the answer is 39. The quick brown fox jumps over the lazy dog, then sleeps. "
    "def mean(values): return sum(values) / len(values)\nWater boils at 100 degrees; on a mountain, where the air is thin, it "
    "boils earlier. A court may annul a contract that one side was forced into."
)
TOKENS = 96
QUESTION = (Message("user", "What is 12+34-7?"),)


@dataclass(frozen=True, slots=True)
class _Source:
    """The run's base, its tokenizer and the adapter, without any weights."""

    folder: Path
    adapter: Path
    is_full: bool
    tokenizer: Any
    stop_ids: tuple[int, ...]
    dtype: str  # that the policy computes in
    quantize: QuantizeConfig  # what the run did to the base while loading it
    template: str | None  # the chat template, where the run's is not the model's own
    more_stops: bool  # the run stops at tokens at which the model alone would not
    added_tokens: tuple[str, ...] = ()


def export(request: Mapping[str, Any], tell: Tell) -> None:
    """Do the request: {run, adapter, step, descends, probe, jobs: [{kind, folder, name, bits, group_size, dequantize}]}; `tell`
    hears of phases, of each job that is written, and last `done`. Raises InputError."""
    run, adapter, jobs = Path(request["run"]), Path(request["adapter"]), request["jobs"]
    tell({"event": "phase", "name": "loading"})
    config, folder = base_folder(run, _told("converting the base", tell))
    _check(jobs, folder, config.quantize.bits is not None)
    policy = base_policy(config, folder)
    put(policy, adapter)
    source = _source(config, policy, adapter)
    tell({"event": "phase", "name": "computing what to compare with"})
    probe, texts = _probe(policy)
    del policy
    mx.clear_cache()
    for number, job in enumerate(jobs):
        tell({"event": "written", "job": number, **_made(job, source, probe, number, tell)})
        mx.clear_cache()
    _save(lambda: mx.save_safetensors(request["probe"], probe), Path(request["probe"]))
    evaluated = _held_out(run, request["step"], -1.0 if request["descends"] else 1.0)
    own_chat = config.chat.model_copy(update={"add_tokens": []}) == ChatConfig()
    about = {"model": str(source.folder), "quantize": config.quantize.model_dump(), "own_chat": own_chat}
    about["added_tokens"] = list(source.added_tokens)
    tell({"event": "done", "held_out": evaluated, **about, **texts})


def _source(config: RunConfig, policy: Policy, adapter: Path) -> _Source:
    template = policy.chat.source
    if template is None and policy.chat.variables:
        template = template_source(policy.folder, None)
    return _Source(
        folder=policy.folder,
        adapter=adapter,
        is_full=config.adapter.type == "full",
        tokenizer=policy.tokenizer,
        stop_ids=tuple(sorted(policy.stop_ids)),
        dtype=_name(fusing.float_type(policy.model)),
        quantize=config.quantize,
        template=None if template is None else folder_out.with_variables(template, policy.chat.variables),
        more_stops=bool(config.chat.stop),
        added_tokens=policy.added_tokens,
    )


def _check(jobs: Sequence[Mapping[str, Any]], folder: Path, was_quantised: bool) -> None:
    """Refuse what the base in `folder` cannot become, before it is loaded. `was_quantised`: by the run, while it was loaded."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_quantised = was_quantised or any(config.get(key) for key in ("quantization", "quantization_config"))
    for job in jobs:
        if job["kind"] == "gguf":
            gguf_out.library()
            gguf_words.check_family(config)
            gguf_words.read_tokenizer(folder)
        elif job["kind"] == "fused" and job["bits"] is not None and is_quantised and not job["dequantize"]:
            remedy = f"add --dequantize (its weights are unpacked, then quantised to {job['bits']} bits), or leave --bits out"
            raise InputError("the base is quantised already", where="--bits", remedy=remedy)
        elif job["dequantize"] and not is_quantised:
            raise InputError("the base is not quantised", where="--dequantize", remedy="leave it out")


def _probe(policy: Policy) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The tokens with the policy's logits, and what the run's tokenizer makes of texts."""
    ids = [int(index) for index in policy.tokenizer.encode(TEXT, add_special_tokens=False)]
    tokens = mx.array([ids[:TOKENS]])
    logits = policy.head(policy.hidden(tokens)).astype(mx.float32)[0]  # [T, V]
    mx.eval(logits)
    return {"tokens": tokens, "policy": logits}, {
        "tokens": ids,
        "chat": chat_ids(policy.render),
        "stops": sorted(policy.stop_ids),
        "added": [[int(i) for i in policy.tokenizer.encode(text, add_special_tokens=False)] for text in policy.added_tokens],
    }


def chat_ids(render: Callable[[Sequence[Message]], tuple[str, list[int], list[int]]]) -> list[int] | None:
    """The ids of a question as the chat template renders it; None where it refuses a chat without a system turn."""
    try:
        return render(QUESTION)[1]
    except TemplateError:
        return None


def _made(job: Mapping[str, Any], source: _Source, probe: dict[str, mx.array], number: int, tell: Tell) -> dict[str, Any]:
    """Write one export; what a quantised model was to be goes into `probe` as reload.N."""
    folder = Path(job["folder"])
    if job["kind"] == "adapter":
        for name in checkpoint.ADAPTER_FILES[:2]:  # runs with added tokens have no export of this kind
            _save(partial(shutil.copyfile, source.adapter / name, folder / name), folder)
        return {"dtype": source.dtype, "quantization": None}
    dequantise = job["dequantize"] or job["kind"] == "gguf"
    model, config = _fused(source, dequantise, tell)
    if job["kind"] == "gguf":
        file = folder / f"{job['name']}-{'Q8_0' if job['bits'] else 'F16'}.gguf"
        told = _told("writing tensors", tell)
        with _tokenizer_folder(source) as words_of:
            words = (job["name"], model, config, words_of, source.tokenizer, source.template, source.stop_ids)
            kind = _save(lambda: gguf_out.write_gguf(file, *words, job["bits"] is not None, told), folder)
        return {"dtype": "float16", "quantization": {"type": "Q8_0"} if kind == "Q8_0" else None, "file": file.name}
    if job["bits"] is not None:
        config = folder_out.quantise(model, config, job["bits"], job["group_size"])
    _save(lambda: folder_out.write_model(folder, source.folder, model, config, _told("writing bytes", tell)), folder)
    _save(lambda: folder_out.write_chat(folder, source.template, source.stop_ids if source.more_stops else ()), folder)
    if source.added_tokens:
        _save(lambda: folder_out.write_vocabulary(folder, source.folder, source.added_tokens, config["vocab_size"]), folder)
    quantisation = config.get("quantization")
    dtype = _name(fusing.float_type(model))
    if quantisation is not None:
        exact_on_cpu(model)
        probe[f"reload.{number}"] = model(probe["tokens"]).astype(mx.float32)[0]
        mx.eval(probe[f"reload.{number}"])
        quantisation = {key: quantisation[key] for key in ("bits", "group_size", "mode") if key in quantisation}
    return {"dtype": dtype, "quantization": quantisation}


def _fused(source: _Source, dequantise: bool, tell: Tell) -> tuple[nn.Module, dict[str, Any]]:
    """The base in its own type with the adapter in its weights, and its config."""
    tell({"event": "phase", "name": "loading the base"})
    model, config = load_model(source.folder)
    types = {name: value.dtype for name, value in flat(model.parameters()).items()}
    own = fusing.float_type(model)
    if source.quantize.bits is not None:
        exact_on_cpu(model)  # as the run did before it quantised
        quantise(model, source.quantize, str(source.folder))
        config["quantization"] = {**source.quantize.model_dump(), "mode": "affine"}
    places = None
    if source.added_tokens:
        with added_rows.folder_with(source.folder, source.added_tokens) as (_, added):
            places = added_rows.grow(model, added)
        config["vocab_size"] = places.size
    if source.is_full:
        fusing.take(model, adapter_arrays(source.adapter))
    else:
        model = load_adapters(model, str(source.adapter))
    fusing.fuse(model, dequantise, _told("fusing modules", tell))
    if places is not None and not source.is_full:
        added_rows.put(model, places, adapter_arrays(source.adapter))
    if dequantise:
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
    if source.quantize.bits is not None:
        floats = {name: value for name, value in flat(model.parameters()).items() if mx.issubdtype(value.dtype, mx.floating)}
        model.load_weights([(name, value.astype(types.get(name, own))) for name, value in floats.items()], strict=False)
    model.eval()
    mx.eval(model.parameters())
    return model, config


def exact_on_cpu(model: nn.Module) -> None:
    """On a CPU, floating-point numbers in float32 and BLAS for quantised weights, as the run's own policy has it there."""
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
        quantised.use_blas(model)


def _held_out(run: Path, step: int | None, sign: float) -> dict[str, Any] | None:
    """Base against the exported step on the held-out rows, with the interval: from what the last checkpoint holds of its
    evaluations. None where none is of that step."""
    latest = checkpoint.latest(run / "checkpoints")
    if latest is None or step is None:
        return None
    try:
        cursor = checkpoint.read_state(latest)["cursor"]
    except FileNotFoundError:  # a run that trains has just deleted it
        return None
    base, last = cursor["base"], cursor["last"]
    found = next((each for each in (cursor["best"], last, base) if each is not None and each["step"] == step), None)
    return None if found is None else summary.summarise(base, found, last, sign)


@contextmanager
def _tokenizer_folder(source: _Source) -> Iterator[Path]:
    """Inside, a folder with the files of the run's tokenizer: the base's, where no tokens are added."""
    if not source.added_tokens:
        yield source.folder
        return
    with added_rows.folder_with(source.folder, source.added_tokens) as (folder, _):
        yield folder


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _phase(name: str, done: int, total: int) -> dict[str, Any]:
    return {"event": "phase", "name": name, "done": done, "total": total}


def _told(name: str, tell: Tell) -> Callable[[int, int], None]:
    return lambda done, total: tell(_phase(name, done, total))


def _save(write: Callable[[], Any], where: Path) -> Any:
    """What `write` gives; a disk that refuses is the user's to mend."""
    try:
        return write()
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(where), remedy=_FREE) from error
    except RuntimeError as error:  # mlx's own, for files
        raise InputError(f"cannot be written: {error}", where=str(where), remedy=_FREE) from error


_FREE = "free the disk, or point --out at another one"
