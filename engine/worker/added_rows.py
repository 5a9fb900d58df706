"""Rows of embedding and head for tokens that a config adds, and these rows alone trained beside an adapter.

A row starts as the mean of those of the pieces that the token's text was before (Fast Vocabulary Transfer, arXiv 2402.09977),
in the matrix itself: in rows that the tokenizer left free, else in new ones. Trained are arrays of their own [added tokens, D],
read in their place: the matrix gets neither gradient nor optimizer state, and without them the model is the one before training.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_config, load_tokenizer

from engine.data import added_tokens
from engine.data.added_tokens import WHERE, Added
from engine.errors import InputError
from engine.worker.fusing import is_quantised, unpacked
from engine.worker.trees import nested

ROWS = "added_rows"  # what the trained arrays are called, below their module's path
FILE = "added_tokens.safetensors"  # that holds them, beside mlx_lm's two files of an adapter, which have no place for them

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_PACKED = ("weight", "scales", "biases")  # what a matrix is made of, row by row
_NEAR = 0.02  # of the largest logit: how far one summed in another order may be off in 16 bits


class AddedEmbedding(nn.Module):
    """An embedding, frozen, with rows of its own for the tokens from `first` on."""

    def __init__(self, embedding: nn.Module, first: int, rows: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = embedding
        self.first = first
        self.added_rows = rows  # [n, D]

    def __call__(self, tokens: mx.array) -> mx.array:
        base: mx.array = self.embedding(tokens)
        count = self.added_rows.shape[0]
        place = tokens.astype(mx.int32) - self.first
        own = self.added_rows[mx.clip(place, 0, count - 1)].astype(base.dtype)
        return mx.where(((place >= 0) & (place < count))[..., None], own, base)

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits of a tied head."""
        base: Any = self.embedding
        return _with_logits(base.as_linear(x), x, self.first, self.added_rows)


class AddedHead(nn.Module):
    """A head, frozen, with rows of its own for the tokens from `first` on."""

    def __init__(self, linear: nn.Module, first: int, rows: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.first = first
        self.added_rows = rows  # [n, D]

    def __call__(self, x: mx.array) -> mx.array:
        base: Any = self.linear
        return _with_logits(base(x), x, self.first, self.added_rows, base.get("bias"))


def _with_logits(logits: mx.array, x: mx.array, first: int, rows: mx.array, bias: mx.array | None = None) -> mx.array:
    end = first + rows.shape[0]
    own = x @ rows.T.astype(x.dtype)
    logits[..., first:end] = (own if bias is None else own + bias[first:end]).astype(logits.dtype)
    return logits


@dataclass(frozen=True, slots=True)
class Places:
    """Where a model keeps its vocabulary: the paths of its embedding and of its head (None: the head is the embedding), with
    the rows of each once the tokens are in."""

    embedding: str
    head: str | None
    tokens: tuple[Added, ...]
    size: int

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.embedding,) if self.head is None else (self.embedding, self.head)

    @property
    def first(self) -> int:
        """The first added id; the others follow on it."""
        return self.tokens[0].id


def tokenizer_with(folder: Path, texts: Sequence[str]) -> tuple[Any, tuple[Added, ...]]:
    """The tokenizer of the model folder as mlx_lm loads it from one that has the texts as tokens. Raises InputError."""
    with folder_with(folder, texts) as (changed, made):
        tokenizer: Any = load_tokenizer(changed, eos_token_ids=load_config(changed).get("eos_token_id"))
    for each in made:
        if [int(i) for i in tokenizer.encode(each.text, add_special_tokens=False)] != [each.id]:
            raise added_tokens.no_place(each.text)
        if tokenizer.decode([each.id]) != each.text:
            raise added_tokens.no_place(each.text)
    return tokenizer, made


@contextmanager
def folder_with(folder: Path, texts: Sequence[str]) -> Iterator[tuple[Path, tuple[Added, ...]]]:
    """Inside, a folder like the model's, without its weights, whose tokenizer has the texts. Raises InputError."""
    with tempfile.TemporaryDirectory() as name:
        changed, written = Path(name), Path(name) / ".written"
        written.mkdir()
        made = added_tokens.write_tokenizer(folder, written, texts)
        for path in folder.iterdir():
            if path.suffix not in _WEIGHTS and not (written / path.name).exists():
                (changed / path.name).symlink_to(path.resolve())
        for path in written.iterdir():
            os.replace(path, changed / path.name)
        yield changed, made


def grow(model: nn.Module, tokens: Sequence[Added]) -> Places:
    """Give the tokens rows in the model's matrices (in place, more rows where there are too few).

    InputError for a family whose embedding or head is not one plain or quantised module, or is read in another way than by it.
    """
    places = _find(model, tuple(tokens))
    fill(model, places)
    train(model, places)
    _check(model, places)
    untrained(model, places)
    return places


def fill(model: nn.Module, places: Places) -> None:
    """Write the first rows of the tokens into the model's matrices, which grow where they must. Nothing else is computed."""
    pieces = [mx.array(each.pieces) for each in places.tokens]
    held = _at(model, places.embedding)["weight"].shape[0]
    for module in [_at(model, path) for path in places.paths]:
        rows = mx.stack([mx.mean(_taken(module, ids), axis=0) for ids in pieces])  # [n, D]
        gap = mx.repeat(mx.mean(rows, axis=0, keepdims=True), max(places.first - held, 0), axis=0)  # ids that nothing has
        _put(module, places.first - gap.shape[0], mx.concatenate([gap, rows]))
        if "bias" in module:
            bias = module["bias"]
            own = mx.stack([mx.mean(bias[ids]) for ids in pieces]).astype(bias.dtype)
            own = mx.concatenate([mx.repeat(mx.mean(own, keepdims=True), gap.shape[0]).astype(bias.dtype), own])
            module["bias"] = _replaced(bias, places.first - gap.shape[0], own)
        mx.eval(module.parameters())
    part: Any = model
    while part is not None:  # a language model may lie inside
        if hasattr(getattr(part, "args", None), "vocab_size"):
            part.args.vocab_size = places.size
        part = part.get("language_model")


def train(model: nn.Module, places: Places) -> None:
    """Put the trained arrays over the rows, in place; they start as what the matrices hold."""
    ids = mx.arange(places.first, places.first + len(places.tokens))
    for path in places.paths:
        module = _at(model, path)
        if not _is_table(module):
            what = f"{path} has an adapter of its own, and the rows of added tokens there are trained by themselves"
            raise InputError(what, where="adapter.keys", remedy="leave it out of adapter.keys, or leave chat.add_tokens out")
        kind = AddedEmbedding if path == places.embedding else AddedHead
        model.update_modules(nested({path: kind(module, places.first, _taken(module, ids))}))


def untrained(model: nn.Module, places: Places) -> None:
    """Take the trained arrays off again."""
    for path in places.paths:
        module = _at(model, path)
        model.update_modules(nested({path: module["embedding" if "embedding" in module else "linear"]}))


def put(model: nn.Module, places: Places, arrays: Mapping[str, mx.array]) -> None:
    """Write trained rows, by the names that they are trained under, into the matrices (packed where these are)."""
    for path in places.paths:
        module = _at(model, path)
        _put(module, places.first, arrays[f"{path}.{ROWS}"])
        mx.eval(module.parameters())


def split(arrays: Mapping[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Trained arrays as (those that mlx_lm's adapter layout can hold, rows of added tokens)."""
    rows = {name: value for name, value in arrays.items() if name.endswith(f".{ROWS}")}
    return {name: value for name, value in arrays.items() if name not in rows}, rows


def _find(model: nn.Module, tokens: tuple[Added, ...]) -> Places:
    """Embedding and head by their size: as many rows as the model has logits."""
    size = int(model(mx.array([[1]])).shape[-1])
    tables = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module.get("weight"), mx.array)
        and module["weight"].ndim > 1
        and not any(part.isdecimal() for part in path.split("."))
    }
    embeddings = [path for path, module in tables.items() if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))]
    own = [path for path in embeddings if tables[path]["weight"].shape[0] == size]
    others = [path for path in embeddings if path not in own and 2 * tables[path]["weight"].shape[0] >= size]
    heads = [path for path, module in tables.items() if path not in embeddings and module["weight"].shape[0] == size]
    if len(own) != 1 or others or len(heads) > 1 or not all(_is_table(tables[path]) for path in (*own, *heads)):
        raise _unknown(model)
    return Places(own[0], heads[0] if heads else None, tokens, max(size, tokens[-1].id + 1))


def _check(model: nn.Module, places: Places) -> None:
    """InputError unless the head reads the trained rows for their logits and nothing else, and the embedding does for theirs."""
    first, end = places.first, places.first + len(places.tokens)
    others = [place for place in range(4) if not first <= place < end][:2]
    tokens = mx.array([[*others, first]])
    try:
        logits = model(tokens)[0].astype(mx.float32)  # [3, V]
        before = _at(model, places.paths[-1])
        with _rows(before, mx.full(before[ROWS].shape, mx.nan, before[ROWS].dtype)):
            broken = mx.isnan(model(tokens[:, :2])[0])  # [2, V]
        embedding = _at(model, places.embedding)
        with _rows(embedding, -embedding[ROWS] + 1):
            moved = model(tokens)[0].astype(mx.float32)
        untrained(model, places)
        plain = model(tokens)[0].astype(mx.float32)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise _unknown(model) from error
    train(model, places)
    columns = mx.arange(logits.shape[-1])
    own = (columns >= first) & (columns < end)
    is_head = bool(mx.array_equal(broken, mx.broadcast_to(own, broken.shape)).item())
    rest = mx.where(own, 0.0, logits - moved)  # [3, V]
    is_embedding = bool((mx.abs(rest[2]).max() > 0).item()) and bool((mx.abs(rest[:2]).max() == 0).item())
    is_same = bool((mx.abs(logits - plain).max() <= _NEAR * mx.abs(plain).max()).item())
    if logits.shape[-1] < end or not (is_head and is_embedding and is_same):
        raise _unknown(model)


@contextmanager
def _rows(module: nn.Module, rows: mx.array) -> Iterator[None]:
    own = module[ROWS]
    module[ROWS] = rows
    try:
        yield
    finally:
        module[ROWS] = own


def _unknown(model: nn.Module) -> InputError:
    family = type(model).__module__.rpartition(".")[2]
    what = f"{family} does not keep its vocabulary in one embedding and one head that can be given rows"
    return InputError(what, where=WHERE, remedy="leave it out, or use another model")


def _at(model: nn.Module, path: str) -> nn.Module:
    found: Any = model
    for part in path.split("."):
        found = found[part]
    module: nn.Module = found
    return module


def _is_table(module: nn.Module) -> bool:
    """Whether it is a matrix with a row for each token, plain or packed, and nothing else."""
    return isinstance(module, (nn.Embedding, nn.Linear, nn.QuantizedEmbedding, nn.QuantizedLinear))


def _taken(module: nn.Module, ids: mx.array) -> mx.array:
    """Rows of the matrix, in float32: [ids, D]."""
    rows: mx.array = unpacked(module, ids, mx.float32) if is_quantised(module) else module["weight"][ids]
    return rows.astype(mx.float32)


def _put(module: nn.Module, first: int, rows: mx.array) -> None:
    """Write rows from `first` on, in the matrix's own form."""
    parts: Sequence[mx.array] = [rows]
    if is_quantised(module):
        packed: Any = module
        scales = packed.scales.dtype
        whole = rows.astype(scales) if mx.issubdtype(scales, mx.floating) else rows
        parts = mx.quantize(whole, packed.group_size, packed.bits, packed.mode, global_scale=packed.get("global_scale"))
    for name, part in zip(_PACKED, parts, strict=False):
        module[name] = _replaced(module[name], first, part.astype(module[name].dtype))


def _replaced(table: mx.array, first: int, rows: mx.array) -> mx.array:
    return mx.concatenate([table[:first], rows, table[first + rows.shape[0] :]])
