"""What supervised training learns from an example: token ids, and which of them are targets.

A reply is learned in exactly the context that generation would give it: the ids of the turns before it with the generation
prompt, then the reply's own ids up to the token that ends it. Where the next reply's context goes on where this reply ended,
id for id, both share a row and what lies between them is masked. Where it does not (templates that strip the thinking of
earlier turns, tokens that merge across a turn's border) the next reply begins a row of its own. What is left out: packing
(rows of like length share a batch instead), and an assistant turn before the first user turn, which replies to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One training row: the loss is over the tokens whose mask is 1."""

    prompt: tuple[int, ...]  # [P] everything before the first target
    tokens: tuple[int, ...]  # [C] everything from it on
    mask: tuple[int, ...]  # [C] 1 where a token is a target

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
    rest = completion
    if chat.has_template:
        whole = chat.render([*messages, Message("assistant", completion)], False)
        if whole.startswith(text):
            rest = whole[len(text) :]
    target = chat.encode(rest)
    stop = next((place for place, token in enumerate(target) if token in chat.stop_ids), None)
    if stop is not None:
        return text, ids, target[: stop + 1]
    return text, ids, target if chat.eos_id is None else [*target, chat.eos_id]


def target_rows(chat: ChatEncoder, example: Example, targets: Targets) -> list[TargetRow]:
    """The example's training rows; more than one where a chat cannot be one row without a wrong context.

    `assistant`: every assistant turn after the first user turn. `last`: the completion. `all`: every token of the context of
    the completion and of the completion itself, but the very first, which nothing predicts. Raises as `chat.render` does.
    """
    turns = example.turns or (*example.messages, Message("assistant", example.completion or ""))
    rows: list[tuple[list[int], list[int]]] = []  # ids and mask, context included
    for place in _learned(turns) if targets == "assistant" and example.turns else [len(turns) - 1]:
        _, before, target = reply(chat, turns[:place], turns[place].content)
        if not rows or before[: len(rows[-1][0])] != rows[-1][0]:
            rows.append(([], []))
        ids, mask = rows[-1]
        between = before[len(ids) :]
        ids += between + target
        mask += [0] * len(between) + [1] * len(target)
    if targets == "all":
        return [_row(ids, [0] + [1] * (len(ids) - 1)) for ids, _ in rows]
    return [_row(ids, mask) for ids, mask in rows]


def _learned(turns: Sequence[Message]) -> list[int]:
    """Places of the assistant turns that reply to somebody."""
    asked = next((place for place, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [place for place, turn in enumerate(turns) if turn.role == "assistant" and place > asked]


def _row(ids: Sequence[int], mask: Sequence[int]) -> TargetRow:
    first = mask.index(1) if 1 in mask else len(mask)
    return TargetRow(tuple(ids[:first]), tuple(ids[first:]), tuple(mask[first:]))
