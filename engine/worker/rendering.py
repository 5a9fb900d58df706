"""Chats through the loaded model's own tokenizer and template; what is learned of them is in engine/data/targets.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from engine.data import targets
from engine.data.template import REFUSALS
from engine.data.weights import REMEDY
from engine.errors import InputError
from engine.types import Message


@dataclass(frozen=True, slots=True)
class ModelChat:
    """The ChatEncoder of a tokenizer that mlx_lm loaded."""

    tokenizer: Any
    stop_ids: frozenset[int]
    source: str | None = None  # of a chat template; None: the tokenizer's own
    variables: Mapping[str, Any] = field(default_factory=dict)  # that the template may ask for

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.source is not None or bool(self.tokenizer.has_chat_template)

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's own end of sequence."""
        return None if self.tokenizer.eos_token_id is None else int(self.tokenizer.eos_token_id)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The chat as text, as mlx_lm.generate would render it. Raises TemplateError where the template refuses it."""
        if not self.has_template:
            return "".join(message.content for message in messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            own = {} if self.source is None else {"chat_template": self.source}
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, **own, **self.variables
            )
        except REFUSALS as error:
            raise TemplateError(f"the chat template refuses the messages: {error}") from error
        return str(text)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids; `special`: with what the tokenizer puts around a text by itself."""
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=special)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of `encode(text)`; blanks around a word may be left out.

        InputError for a tokenizer written in Python, which knows none, and one that changes the text before it encodes it.
        """
        ids = self.encode(text)
        is_fast = getattr(self.tokenizer, "is_fast", False)
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False) if is_fast else None
        if found is None or found.ids != ids:
            what = "the model's tokenizer does not tell which characters its tokens are: a step's tokens cannot be weighed"
            raise InputError(what, where="data.decisive_weight", remedy=REMEDY)
        return [(int(start), int(end)) for start, end in found.offsets]


def render(chat: ModelChat, messages: Sequence[Message], completion: str | None) -> tuple[str, list[int], list[int]]:
    """The prompt's text, its ids, and the completion's ids with the stop token ([] without a completion)."""
    if completion is None:
        return *targets.context(chat, messages), []
    return targets.reply(chat, messages, completion)
