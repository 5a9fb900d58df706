"""What the benchmark runs on: a model, prompts and replies of exactly the wanted lengths, and the config of a run on them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import yaml
from jinja2 import TemplateError

from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.models.sources import with_weights
from engine.sections import AdapterConfig
from engine.splitting import split
from engine.types import Example, Message
from engine.worker import recompute, selftest_checks
from engine.worker.blank import Shape, write_blank_model
from engine.worker.guard import MemoryGuard
from engine.worker.model import Policy, load_policy
from engine.worker.trees import flat

BLANK = Shape(
    hidden_size=256,
    num_hidden_layers=4,
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=4096,
)
SEED = 0
Length = Callable[[str], int]  # tokens of a text
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TRIES = 64  # candidates for each text that is wanted
REWARD = '''
"""Every other completion of a step is right: no group is without contrast, and no completion without an advantage."""

def alternating(prompts, completions):
    return [float(place % 2) for place in range(len(completions))]
'''


@dataclass(frozen=True, slots=True)
class Settings:
    """What is benched. Every row has exactly `prompt_tokens`, as near as the tokenizer allows from below, and `max_tokens`."""

    prompts: int = 4
    group: int = 8
    prompt_tokens: int = 160
    max_tokens: int = 64
    rank: int = 8
    repeats: int = 3
    method: str = "grpo"
    lengths: tuple[int, ...] = ()  # completion tokens of the table of costs
    steps: int = 20  # of the journal's run
    bare: bool = True  # time the floor too
    warm: bool = True  # a pass of each side that is not counted comes first; memory needs none
    micro_batch_rows: int | None = None  # of a step's update; None: as a run would choose
    grad_checkpoint: bool | None = None  # each layer is computed again in the backward pass; None: as a run would choose

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Completion tokens of one rollout."""
        return self.rows * self.max_tokens


def blank_folder(folder: Path) -> Path:
    """The random model of 4 million parameters in `folder`, made where it is not there. Raises InputError."""
    if (folder / "model.safetensors").is_file():
        return folder
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write_blank_model(aside, BLANK, SEED)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
        raise InputError(
            f"the model for the benchmark cannot be written: {error.strerror}", where=str(folder), remedy=remedy
        ) from error
    return folder


def load(model: str, rank: int) -> Policy:
    """The model (a folder, an HF id on this machine or demo) with a low-rank adapter that is moved off zero; it never stops by
    itself. Raises InputError."""
    folder = with_weights(configs.model_folder(configs.model_path(model, Path.cwd())))
    policy = load_policy(folder, AdapterConfig(rank=rank), SEED)
    policy.stop_ids = frozenset()  # a row that ended early would count as speed
    selftest_checks.move(policy)
    mx.eval(policy.model.parameters())
    return policy


def facts(policy: Policy) -> dict[str, Any]:
    """The model for JSON."""
    arrays = flat(policy.model.parameters())
    adapter = policy.trainable()
    return {
        "folder": policy.folder.name,
        "dtype": selftest_checks.dtype_of(policy),
        "parameters": sum(array.size for name, array in arrays.items() if name not in adapter),
        "adapter_parameters": sum(array.size for array in adapter.values()),
        "weights_bytes": weights_bytes(policy),
        "layers": len(policy.model.layers),
        "decoding": policy.decoding.mode,
        "device": str(mx.default_device()),
    }


def weights_bytes(policy: Policy) -> int:
    """Of the model with its adapter."""
    return sum(array.nbytes for array in flat(policy.model.parameters()).values())


def run_config(policy: Policy, settings: Settings, folder: Path, **objective: Any) -> RunConfig:
    """The config of a run with these settings; its reward is written into `folder`. Raises InputError where the method's rules
    refuse them."""
    is_supervised = settings.method == "sft"
    tree: dict[str, Any] = {
        "model": str(policy.folder),
        "method": settings.method,
        "data": {"train": "rows.jsonl"},
        "adapter": {"type": "lora", "rank": settings.rank},
        "sampling": {
            "prompts_per_step": settings.rows if is_supervised else settings.prompts,
            "group_size": settings.group,
            "max_prompt_tokens": settings.prompt_tokens,
            "max_completion_tokens": settings.max_tokens,
        },
        "optim": {
            "learning_rate": 1.0e-5,
            "schedule": "constant",
            "warmup": 0.0,
            "micro_batch_rows": settings.micro_batch_rows,
            "grad_checkpoint": "auto" if settings.grad_checkpoint is None else settings.grad_checkpoint,
        },
    }
    if not is_supervised:
        (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
        tree["rewards"] = [{"name": "alternating", "file": "rewards.py"}]
        # every row is cut at the limit, since none stops: masked or punished for it, it would train nothing
        tree["objective"] = {"truncated": "keep", **objective}
    return configs.parse(yaml.safe_dump(tree), base=folder, where="bench").config


def guard(config: RunConfig) -> MemoryGuard:
    """Rows at once as a run would choose them."""
    found = split(config)
    return MemoryGuard(found.micro_batch_rows, found.decode_rows)


def recomputes(config: RunConfig, policy: Policy) -> bool:
    """Whether a run would compute each layer again in the backward pass. Raises InputError where that is asked for and this
    model's layers cannot be."""
    if not split(config).recomputes:
        return False
    exact = recompute.is_exact(policy)
    if not exact and config.optim.grad_checkpoint is True:
        what, remedy = "this model's layers cannot be computed again exactly", "leave grad_checkpoint out"
        raise InputError(what, where="bench: grad_checkpoint", remedy=remedy)
    return exact


# Texts of a wanted length.


def prompts(policy: Policy, number: int, tokens: int) -> list[Example]:
    """`number` different questions, all of the same length: `tokens` with the chat template, or the most below that which the
    tokenizer allows. Raises InputError."""
    rendered = _measured(policy)
    return [
        Example(place + 1, (Message("user", text),), None, None) for place, text in enumerate(_texts(number, tokens, rendered))
    ]


def replies(policy: Policy, asked: Sequence[Example], tokens: int) -> list[Example]:
    """The questions with replies, all of the same length, the token that ends them included: at most `tokens`."""

    def length(text: str) -> int:
        return len(policy.render(asked[0].messages, text)[2])

    texts = _texts(len(asked), tokens, length)
    return [replace(one, completion=text) for one, text in zip(asked, texts, strict=True)]


def _measured(policy: Policy) -> Length:
    def length(text: str) -> int:
        try:
            return len(policy.render([Message("user", text)])[1])
        except TemplateError as error:
            remedy = "give a model that takes a question without a system message, or `demo`"
            raise InputError(
                f"its chat template refuses a plain question: {error}", where=str(policy.folder), remedy=remedy
            ) from error

    return length


def _texts(number: int, tokens: int, length: Length) -> list[str]:
    """`number` different texts of one length, the nearest to `tokens` from below that enough of them have."""
    lead = len(str(number * _TRIES))
    made = [_grown(name, tokens, length) for name in islice(_names(lead), number)]
    by_length: dict[int, list[str]] = {}
    for text in made:
        by_length.setdefault(length(text), []).append(text)
    best = Counter({size: len(found) for size, found in by_length.items()}).most_common(1)[0][0]
    chosen = by_length[best]
    for name in islice(_names(lead), number, number * _TRIES):
        if len(chosen) >= number:
            break
        text = _grown(name, best, length)
        if length(text) == best:
            chosen.append(text)
    if len(chosen) < number:
        raise InputError(f"no {number} texts of one length were found", where="bench", remedy="take another --prompt-tokens")
    return chosen


def _names(width: int) -> Iterator[str]:
    """Different first words of one width."""
    for place in count():
        yield "".join(_LETTERS[place // 26**digit % 26] for digit in reversed(range(width)))


def _grown(name: str, tokens: int, length: Length) -> str:
    """`name` and as many single letters as fit into `tokens`. Raises InputError where not even the name does."""
    if length(name) > tokens:
        remedy = f"give at least {length(name)}"
        raise InputError(f"{tokens} tokens do not hold the chat template and a word", where="--prompt-tokens", remedy=remedy)
    low, high = 0, max(tokens, 1)  # units that fit, units that do not or are never needed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(name + " a" * middle) <= tokens else (low, middle)
    text = name + " a" * low
    return text + "." if length(text + ".") <= tokens else text
