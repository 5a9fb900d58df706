"""The models on this machine, each in a row: what a config calls it, where it lies, what it is, whether it trains here.

Only headers are read, and nothing is written. huggingface_hub's own scan of its cache is not used: it leaves out a repository
with a broken link, and here such a one gets a row that says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine import config as configs
from engine import hardware, share
from engine.data.template import template_source
from engine.errors import InputError
from engine.estimate import estimate
from engine.gguf import folder as converted
from engine.gguf.header import read_header
from engine.gguf.plan import plan
from engine.hardware import Hardware
from engine.model_files import TensorHeader, linear_modules, read_headers, read_json
from engine.model_names import ModelId
from engine.models import families, places

Place = Literal["demo", "hub cache", "lm studio", "converted"]
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What a run is like whose config names a model and a method alone.
_RUN = {"method": "grpo", "data": {"train": "rows.jsonl"}, "rewards": [{"name": "answer"}]}


@dataclass(frozen=True)
class ModelRow:
    """One model. What could not be read is None, and then `problem` says why."""

    name: str  # as a config's `model` says it
    place: Place
    path: str
    bytes: int  # on the disk
    family: str | None = None  # config.json's model_type
    parameters: int | None = None
    bits: int | None = None  # of quantised weights
    group_size: int | None = None
    dtype: str | None = None  # of the weights that are not quantised
    chat_template: bool | None = None
    trains: tuple[str, ...] = ()  # lora, full
    obstacle: str = ""  # why it does not train
    peak_bytes: int | None = None  # of a GRPO run with a LoRA adapter and every default
    fits: bool | None = None
    no_peak: str = ""  # why no peak is told
    problem: str = ""  # what is damaged or missing
    is_older: bool = False  # a newer snapshot of it is what its plain name means

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return {**asdict(self), "trains": list(self.trains)}


def rows(models: Path, known: Hardware | None = None) -> list[ModelRow]:
    """Every model found: the embedded one, the hub's cache, LM Studio's folders, and the conversions in the folder `models`."""
    known = known or hardware.facts()
    found = [_folder_row("demo", "demo", share.demo_model(), known)]
    found += _cached(known)
    found += _of_lm_studio(known, {row.name for row in found})
    for made in converted.cached_folders(models):
        name = str(made.source if made.source.is_file() else made.folder)
        found.append(_folder_row(name, "converted", made.folder, known))
    return found


def _cached(known: Hardware) -> Iterator[ModelRow]:
    """Every snapshot in the hub's cache. Those that lack everything but their small files are left out: nothing was fetched."""
    for repo, folders in places.snapshots():
        try:
            meant = places.snapshot(ModelId(repo))
            small = [folder for folder in folders if _has_no_weights(folder)]
        except OSError as error:
            yield from (ModelRow(repo, "hub cache", str(folder), 0, problem=_unread(error)) for folder in folders[:1])
            continue
        for folder in folders:
            name = repo if folder == meant or meant is None else f"{repo}@{folder.name}"
            if folder in small:
                continue
            row = _folder_row(name, "hub cache", folder, known)
            yield replace(row, is_older=folder != meant and not row.problem)


def _of_lm_studio(known: Hardware, taken: set[str]) -> Iterator[ModelRow]:
    for models in places.lm_studio_folders():
        for folder in sorted(models.glob("*/*")):
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            name = f"{folder.parent.name}/{folder.name}"
            try:
                ggufs = places.gguf_files(folder)
                is_folder = not ggufs or places.is_whole(folder)
            except OSError as error:
                yield ModelRow(name, "lm studio", str(folder), 0, problem=_unread(error))
                continue
            if is_folder:
                yield _folder_row(str(folder) if name in taken else name, "lm studio", folder, known)
            else:
                for path in ggufs:
                    alone = len(ggufs) == 1 and name not in taken
                    yield _gguf_row(name if alone else str(path), path)


def _folder_row(name: str, place: Place, folder: Path, known: Hardware) -> ModelRow:
    row = ModelRow(name, place, str(folder), 0)
    try:
        row, lacking = replace(row, bytes=_size(folder)), places.missing(folder)
    except OSError as error:
        return replace(row, problem=_unread(error))
    if lacking and place == "hub cache":  # which has models of every kind
        return replace(row, obstacle=f"no {lacking}: not a language model that mlx_lm loads")
    if lacking:
        return replace(row, problem=f"incomplete: no {lacking}")
    try:
        config = read_json(folder / "config.json")
        row = _described(row, config, read_headers(folder), str(folder))
        row = replace(row, chat_template=template_source(folder, None) is not None)
    except InputError as error:
        return replace(row, problem=str(error), trains=())
    return _with_peak(row, folder, known) if row.trains else row


def _gguf_row(name: str, path: Path) -> ModelRow:
    row = ModelRow(name, "lm studio", str(path), path.stat().st_size)
    try:
        header = read_header(path)
    except InputError as error:
        return replace(row, problem=str(error))
    row = replace(row, family=header.architecture, chat_template="tokenizer.chat_template" in header.metadata)
    try:
        planned = plan(header, None, {})
    except InputError as error:
        return replace(row, obstacle=error.what, no_peak=error.what)
    row = _described(row, planned.config, planned.written(), str(path))
    told = ["a .gguf file is converted first; `droid-tune estimate` tells it", planned.note]
    return replace(row, no_peak="; ".join(filter(None, told)))


def _described(row: ModelRow, config: Mapping[str, Any], headers: Sequence[TensorHeader], where: str) -> ModelRow:
    """The row with what config.json and the weights' headers say. Raises InputError for damage."""
    quantised = {f"{m.path}.weight": m for m in linear_modules(headers, config, where) if m.quantised}
    packed = {f"{m.path}.{part}" for m in quantised.values() for part in ("scales", "biases")}
    plain = [header for header in headers if header.name not in quantised and header.name not in packed]
    weights = sum(m.experts * m.inputs * m.outputs for m in quantised.values())
    types = Counter(header.dtype for header in headers if header.is_float)
    quantisation = config.get("quantization") or config.get("quantization_config") or {}
    bits, group = (quantisation.get(key) if isinstance(quantisation, dict) else None for key in ("bits", "group_size"))
    refused = families.refusal(config, where)
    obstacle = "" if refused is None else refused.what
    return replace(
        row,
        family=str(config.get("model_type")),
        parameters=weights + sum(header.elements for header in plain),
        bits=bits if quantised and isinstance(bits, int) else None,
        group_size=group if quantised and isinstance(group, int) else None,
        dtype=_DTYPES[types.most_common(1)[0][0]] if types else None,
        trains=() if refused else ("lora",) if quantised else ("lora", "full"),
        obstacle=obstacle,
        no_peak=obstacle,
    )


def _with_peak(row: ModelRow, folder: Path, known: Hardware) -> ModelRow:
    """The row with the memory that a run with every default takes."""
    try:
        config = configs.RunConfig.model_validate({**_RUN, "model": str(folder)})
        found = estimate(config, known)
    except InputError as error:
        return replace(row, no_peak=error.what)
    if not found.knows_sizes:
        return replace(row, no_peak="config.json does not name this family's sizes")
    return replace(row, peak_bytes=found.peak_bytes, fits=found.fits)


def _has_no_weights(folder: Path) -> bool:
    """Whether it lacks everything but its small files."""
    return places.missing(folder) == "model*.safetensors" and not any(folder.glob("*.safetensors"))


def _unread(error: OSError) -> str:
    return f"cannot be read: {error.strerror}: {error.filename}"


def _size(folder: Path) -> int:
    """Bytes of what the folder has, links followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
