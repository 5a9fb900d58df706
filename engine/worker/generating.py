"""The verb `generate`: prompts answered in one batch, by the base and by the tuned model, with one copy of it in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from jinja2 import TemplateError
from mlx_lm.utils import load_model

from engine.errors import InputError
from engine.model_files import context_tokens, read_json
from engine.types import Message, Prompt
from engine.worker import added_rows
from engine.worker.exporting import exact_on_cpu
from engine.worker.loading import base_folder, base_policy, put
from engine.worker.model import Policy
from engine.worker.sampler import sample
from engine.worker.trees import flat

Tell = Callable[[dict[str, Any]], None]

_TELL_SECONDS = 0.2


class Sides:
    """A policy that is now the base, now the tuned model. A low-rank adapter is taken off and put back; of full training the
    weights that are wanted are read from the disk, since two copies may not fit."""

    def __init__(self, policy: Policy, adapter: Path) -> None:
        self.policy = policy
        self._adapter = adapter
        self._is_full = policy.adapter.type == "full"
        self._now = "base"
        if not self._is_full:
            put(policy, adapter)

    @contextmanager
    def of(self, side: str) -> Iterator[None]:
        """Inside, the policy is that side: base or tuned."""
        if self._is_full:
            self._read(side)
        elif side == "base":
            with self.policy.reference():
                yield
            return
        yield

    def _read(self, side: str) -> None:
        if side == self._now:
            return
        if side == "tuned":
            put(self.policy, self._adapter)
        else:
            own = self.policy.trainable()
            model = load_model(self.policy.folder, lazy=True)[0]
            if self.policy.places is not None:
                exact_on_cpu(model)  # as the policy was when it got its rows
                added_rows.fill(model, self.policy.places)
            base = flat(model.parameters())
            self.policy.model.load_weights([(name, base[name].astype(value.dtype)) for name, value in own.items()])
            del own
            mx.eval(self.policy.model.parameters())
        self._now = side


def opened(request: Mapping[str, Any], tell: Tell) -> Sides:
    """The run's model, from {run, adapter}. Raises InputError."""
    tell({"event": "phase", "name": "loading"})

    def told(done: int, total: int) -> None:
        tell({"event": "phase", "name": "converting the base", "done": done, "total": total})

    return Sides(base_policy(*base_folder(Path(request["run"]), told)), Path(request["adapter"]))


def rendered(policy: Policy, turns: Sequence[Mapping[str, str]], where: str, plain: bool = False) -> tuple[str, list[int]]:
    """The turns as the model sees them, as text and as ids; `plain`: their contents alone. InputError where the chat template
    refuses them, and for more tokens than the model was made for (attention over 100,000 at once kills a worker)."""
    try:
        if plain:
            text = "".join(turn["content"] for turn in turns)
            ids = policy.chat.encode(text, special=True)
        else:
            text, ids, _ = policy.render([Message(turn["role"], turn["content"]) for turn in turns])
    except TemplateError as error:
        remedy = "change the turns to what the model allows: some want no system turn, most a user's turn last"
        raise InputError(str(error), where=where, remedy=remedy) from error
    if not ids:
        raise InputError("nothing to answer: no tokens", where=where, remedy="give a text")
    limit = context_tokens(read_json(policy.folder / "config.json"))
    if limit is not None and len(ids) > limit:
        what = f"{len(ids):,} tokens, and the model was made for {limit:,} (max_position_embeddings)"
        raise InputError(what, where=where, remedy="give a shorter text; in a chat /reset begins anew")
    return text, ids


def generate(request: Mapping[str, Any], tell: Tell) -> None:
    """Do the request: {run, adapter, prompts, sides, samples, max_tokens, temperature, seed}; prompts are lists of turns.
    `tell` hears of phases, and of each side the answers. Temperature 0 is greedy. Raises InputError."""
    sides = opened(request, tell)
    policy, prompts = sides.policy, []
    for number, turns in enumerate(request["prompts"]):
        text, ids = rendered(policy, turns, f"prompt {number + 1}", bool(request.get("plain")))
        prompts.append(Prompt(number, tuple(ids), text, None))
    for side in request["sides"]:
        start = time.perf_counter()
        with sides.of(side):
            groups = sample(
                policy,
                prompts,
                request["samples"],
                max_tokens=request["max_tokens"],
                temperature=request["temperature"] or 1.0,
                seed=request["seed"],
                step=0,
                purpose="generate",
                greedy=request["temperature"] == 0,
                alive=_alive(side, request, policy, tell),
            )
        seconds = time.perf_counter() - start
        tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
        answers = [[{"text": r.text, "tokens": len(r.token_ids), "finish": r.finish} for r in group] for group in groups]
        tell({"event": "answers", "side": side, "answers": answers, "tokens": tokens, "seconds": seconds})


def _alive(side: str, request: Mapping[str, Any], policy: Policy, tell: Tell) -> Callable[[], None]:
    """Counts decoded positions, and tells them now and then."""
    rows = len(request["prompts"]) * request["samples"] if policy.decoding.mode == "alone" else 1
    done, told = 0, time.monotonic()

    def alive() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            tell({"event": "phase", "name": f"{side} answers", "done": done, "total": request["max_tokens"] * rows})

    return alive
