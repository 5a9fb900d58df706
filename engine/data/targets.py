"""What supervised training learns from an example: token ids, and which of them are targets.

A reply is learned in exactly the context that generation would give it: the ids of the turns before it with the generation
prompt, then the reply's own ids up to the token that ends it. Where the next reply's context goes on where this reply ended,
id for id, both share a row and what lies between them is masked. Where it does not (templates that strip the thinking of
earlier turns, tokens that merge across a turn's border) the next reply begins a row of its own. What is left out: packing
(rows of like length share a batch instead), and an assistant turn before the first user turn, which replies to nothing.

The tokens of decisive steps weigh more (engine/data/weights.py); every other token weighs 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from engine.data.plain_text import text_tokens
from engine.data.weights import Mark, marked_places, signed, token_weights
from engine.rewards.marks import DECISIVE_WEIGHT
from engine.types import Example, Message

Targets = Literal["assistant", "last", "all"]


class ChatEncoder(Protocol):
    """A chat template and its tokenizer. Two answer: ChatTokenizer, without mlx, and the worker's, with the model's own."""

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template; without one a chat is its contents, joined."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a reply."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The stop id that is appended where the template writes none."""
        ...

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The chat as text. Raises where the template refuses it."""
        ...

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids; `special`: with what the tokenizer puts around a text by itself, such as a BOS token."""
        ...

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of `encode(text)`, as its tokenizer says. InputError where it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One training row: the loss is over the tokens whose mask is 1."""

    prompt: tuple[int, ...]  # [P] everything before the first target
    tokens: tuple[int, ...]  # [C] everything from it on
    mask: tuple[int, ...]  # [C] 1 where a token is a target
    weights: tuple[float, ...] = ()  # [C] of each token in the loss of training, 1 or more; (): all weigh 1

    def is_within(self, max_prompt_tokens: int, max_completion_tokens: int) -> bool:
        """Whether prompt and tokens are within the limits, and there is anything to learn."""
        return len(self.prompt) <= max_prompt_tokens and 0 < len(self.tokens) <= max_completion_tokens


def context(chat: ChatEncoder, messages: Sequence[Message]) -> tuple[str, list[int]]:
    """What generation begins from: the turns with the generation prompt, as text and as ids."""
    text = chat.render(messages, True)
    return text, chat.encode(text, special=not chat.has_template)  # a chat template brings its own special tokens


def reply(chat: ChatEncoder, messages: Sequence[Message], completion: str) -> tuple[str, list[int], list[int]]:
    """The context's text and ids, and the ids of `completion` as the template writes it, up to the first stop token; one is
    appended where the template writes none.

    The reply is encoded apart from its context, so that the context's ids are those of generation.
    """
    text, ids = context(chat, messages)
    target = chat.encode(_written(chat, messages, text, completion))
    stop = next((place for place, token in enumerate(target) if token in chat.stop_ids), None)
    if stop is not None:
        return text, ids, target[: stop + 1]
    return text, ids, target if chat.eos_id is None else [*target, chat.eos_id]


def target_rows(
    chat: ChatEncoder, example: Example, targets: Targets, decisive_weight: float = DECISIVE_WEIGHT
) -> list[TargetRow]:
    """The example's training rows; more than one where a chat cannot be one row without a wrong context.

    `assistant`: every assistant turn after the first user turn. `last`: the completion. `all`: every token of the context of
    the completion and of the completion itself, but the very first, which nothing predicts. A token of a step of the completion
    whose mark is m weighs 1 + (decisive_weight - 1) m. Raises as `chat.render` does, and InputError where it cannot be told
    which tokens are a marked step's.
    """
    if not example.messages and not example.turns:
        return [_row(*text_tokens(chat, example.completion or ""))]
    turns = example.turns or (*example.messages, Message("assistant", example.completion or ""))
    rows: list[tuple[list[int], list[int]]] = []  # ids and mask, context included
    text, target = "", list[int]()
    for place in _learned(turns) if targets == "assistant" and example.turns else [len(turns) - 1]:
        text, before, target = reply(chat, turns[:place], turns[place].content)
        if not rows or before[: len(rows[-1][0])] != rows[-1][0]:
            rows.append(([], []))
        ids, mask = rows[-1]
        between = before[len(ids) :]
        ids += between + target
        mask += [0] * len(between) + [1] * len(target)
    if targets == "all":
        rows = [(ids, [0] + [1] * (len(ids) - 1)) for ids, _ in rows]
    if not rows or not example.marks or decisive_weight == 1:
        return [_row(ids, mask) for ids, mask in rows]
    weights = _reply_weights(chat, turns, text, example.marks, decisive_weight)[: len(target)]
    *others, (ids, mask) = rows
    plain = len(ids) - len(target)
    last = _row(ids, mask, [1.0] * plain + weights + [1.0] * (len(target) - len(weights)))
    return [*(_row(ids, mask) for ids, mask in others), last]


def decisive_share(rows: Iterable[TargetRow]) -> float | None:
    """The share, 0 to 1, of the rows' target tokens that weigh more than 1; None where no row has decisive steps (such a row's
    `weights` are not empty)."""
    targets = decisive = 0
    for row in rows:
        targets += sum(row.mask)
        decisive += sum(weight > 1 for weight, target in zip(row.weights, row.mask, strict=False) if target)
    return decisive / targets if decisive else None


def _learned(turns: Sequence[Message]) -> list[int]:
    """Places of the assistant turns that reply to somebody."""
    asked = next((place for place, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [place for place, turn in enumerate(turns) if turn.role == "assistant" and place > asked]


def _written(chat: ChatEncoder, messages: Sequence[Message], text: str, completion: str) -> str:
    """`completion` as the template writes it behind the context `text`, with all that it writes after it."""
    if chat.has_template:
        whole = chat.render([*messages, Message("assistant", completion)], False)
        if whole.startswith(text):
            return whole[len(text) :]
    return completion


def _reply_weights(
    chat: ChatEncoder, turns: Sequence[Message], text: str, marks: Sequence[Mark], decisive_weight: float
) -> list[float]:
    """The weight of each token that the last turn, written behind the context `text`, is encoded to."""
    *messages, last = turns
    written = _written(chat, messages, text, last.content)
    with_signs, signs = signed(last.content, marks, written)
    places = marked_places(_written(chat, messages, text, with_signs), signs, written)
    return token_weights(len(written), chat.offsets(written), places, decisive_weight)


def _row(ids: Sequence[int], mask: Sequence[int], weights: Sequence[float] = ()) -> TargetRow:
    first = mask.index(1) if 1 in mask else len(mask)
    own = tuple(weights[first:])
    return TargetRow(tuple(ids[:first]), tuple(ids[first:]), tuple(mask[first:]), own if any(w != 1 for w in own) else ())
