"""The verb `serve`: a model that stays loaded and answers chats as they come, token by token.

After the first line of stdin (what to load) each one is {"id", "messages", "side", "max_tokens", "temperature", "seed"}, or
{"cancel": id}. Answers: `ready` once; for each chat `text` pieces and an `end`, or `refused`. The end of stdin ends the process.
mlx runs on the main thread alone; stdin is read beside it, so that an answer can be cancelled.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from engine.errors import InputError
from engine.worker import keys
from engine.worker.draw import draw
from engine.worker.generating import Sides, opened, rendered
from engine.worker.model import Policy
from engine.worker.trees import scalar

Tell = Callable[[dict[str, Any]], None]

_PREFILL_TOKENS = 512  # of the prompt that are computed at once: bounds memory, and a cancel is heard between two


class _Inbox:
    """Requests in their order; which of them were cancelled, and whether whoever asks is gone, is known at once."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.gone = threading.Event()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def is_over(self, number: int) -> bool:
        return self.gone.is_set() or number in self._cancelled

    def _read(self) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if "cancel" in request:
                self._cancelled.add(request["cancel"])
            else:
                self.requests.put(request)
        self.gone.set()
        self.requests.put(None)


def serve(request: Mapping[str, Any], tell: Tell) -> None:
    """Load what {run, adapter} says, and answer until stdin ends. Raises InputError where it cannot be loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl+c is for whoever asks, who then cancels
    sides = opened(request, tell)
    inbox = _Inbox()
    tell({"event": "ready"})
    while (ask := inbox.requests.get()) is not None:
        try:
            _answer(sides, ask, inbox, tell)
        except InputError as error:
            tell({"event": "refused", "id": ask["id"], "what": error.what, "where": error.where, "remedy": error.remedy})
        mx.clear_cache()


def _answer(sides: Sides, ask: Mapping[str, Any], inbox: _Inbox, tell: Tell) -> None:
    policy, number = sides.policy, ask["id"]
    _, ids = rendered(policy, ask["messages"], "chat")
    detokenizer = policy.tokenizer.detokenizer
    detokenizer.reset()
    taken: list[int] = []
    start = time.perf_counter()
    with sides.of(ask["side"]):
        for token in _tokens(policy, ids, ask, lambda: inbox.is_over(number)):
            taken.append(token)
            if token in policy.stop_ids:
                break
            detokenizer.add_token(token)
            if piece := detokenizer.last_segment:
                tell({"event": "text", "id": number, "text": piece})
    detokenizer.finalize()
    if piece := detokenizer.last_segment:
        tell({"event": "text", "id": number, "text": piece})
    stopped = bool(taken) and taken[-1] in policy.stop_ids
    finish = "stop" if stopped else "cancelled" if inbox.is_over(number) else "length"
    figures = {"tokens": len(taken), "prompt_tokens": len(ids), "seconds": time.perf_counter() - start}
    tell({"event": "end", "id": number, "finish": finish, "text": policy.decode(taken), **figures})


def _tokens(policy: Policy, ids: Sequence[int], ask: Mapping[str, Any], is_over: Callable[[], bool]) -> Iterator[int]:
    """The tokens that go on after `ids`, at most max_tokens; fewer where it `is_over`. Each is drawn with a key of its own."""
    cache = make_prompt_cache(policy.model)
    first = keys.key32(ask["seed"], ask["id"], "chat")
    logits = None
    for start in range(0, len(ids), _PREFILL_TOKENS):
        if is_over():
            return
        hidden = policy.hidden(mx.array([ids[start : start + _PREFILL_TOKENS]]), cache=cache)
        logits = policy.head(hidden[:, -1:])[:, -1]  # [1, V]
        mx.eval(logits)
    assert logits is not None
    token = _draw(logits, ask["temperature"], first, 0)
    for position in range(1, ask["max_tokens"] + 1):
        following = None
        if position < ask["max_tokens"]:  # computed while the present one is on its way
            following = _draw(policy.model(token[:, None], cache=cache)[:, -1], ask["temperature"], first, position)
            mx.async_eval(following)
        yield int(scalar(token))
        if following is None or is_over():
            return
        token = following


def _draw(logits: mx.array, temperature: float, first: int, position: int) -> mx.array:
    """A token [1] from logits [1, V]; temperature 0 takes the likeliest."""
    key = mx.array([[first, position]], dtype=mx.uint32)
    return draw(logits, key, temperature or 1.0, greedy=temperature == 0)[0]
